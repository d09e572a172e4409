"""Notes on exceptions (PEP 678), also where Python does not have them yet."""

from __future__ import annotations


def add_note(error: BaseException, note: str) -> None:
    """Add a note; on Python 3.10 it is kept, though a traceback does not show it.

    Written around the exception's class, which may forbid that its attributes are set.
    """
    try:
        notes = object.__getattribute__(error, "__dict__").setdefault("__notes__", [])
        if isinstance(notes, list) and note not in notes:
            notes.append(note)
    except Exception:
        # A note is a courtesy. Whoever makes an exception that refuses one does without.
        pass
