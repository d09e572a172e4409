"""Notes on exceptions (PEP 678), also on Python 3.10, and one mark.

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


def mark_main_failed(error: BaseException) -> BaseException:
    """Mark an exception, and return it: loading the main script failed, whatever the job."""
    try:
        object.__getattribute__(error, "__dict__")[_MAIN_FAILED] = True
    except Exception:
        pass  # As for a note.
    return error


def has_main_failed(error: BaseException) -> bool:
    """Return True for an exception with that mark."""
    try:
        return object.__getattribute__(error, "__dict__").get(_MAIN_FAILED) is True
    except Exception:
        return False


_MAIN_FAILED = "__trio_offload_main_failed__"
