"""Notes on exceptions (PEP 678), also on Python 3.10.

Both the parent and the worker use it.
"""

from __future__ import annotations


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, unless it has the note already.

    On Python 3.10 the backport of exception groups, which Trio needs, shows it; a plain traceback
    does not. Bypasses the exception's class, which may forbid setting attributes (a frozen
    dataclass does).
    """
    try:
        notes = object.__getattribute__(error, "__dict__").setdefault("__notes__", [])
        if isinstance(notes, list) and note not in notes:
            notes.append(note)
    except Exception:
        # A note is optional: a class that refuses it must not replace the exception.
        pass
