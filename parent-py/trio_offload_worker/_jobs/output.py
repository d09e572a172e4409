"""Standard output that is a pipe to the parent: text is written at once, as on a terminal.

A job's output must be in the pipe when its result is sent.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def write_at_once() -> None:
    """Let Python write lines, and C code each text, when they are printed."""
    global _done
    if _done:
        return
    _done = True
    stream: Any = sys.stdout
    try:
        stream.reconfigure(line_buffering=True)
    except (AttributeError, ValueError):
        pass  # A job, or `init`, has replaced it.
    try:
        import ctypes

        library = ctypes.CDLL(None)
        library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, _IONBF, 0)
    except (ImportError, OSError, ValueError, AttributeError):
        pass  # Output of C code then comes when its buffer is full.


_IONBF = 2  # of glibc and musl
_done = False
