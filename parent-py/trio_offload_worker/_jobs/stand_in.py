"""The ``__getattr__`` (PEP 562) of ``__main__`` in a worker before the script is loaded.

Libraries inspect ``__main__`` with :func:`hasattr`, with :func:`getattr` and a default, or in
pickle's search for an object's module. Such a lookup fails and does not run the script. Two lookups
load it:

* An unpickler that finds a name in it. The unpickler in C is intercepted before its lookup
  (``hooks.rs``, ``hooks.py``). The one in Python (``pickle._Unpickler``, the base of dill's and
  joblib's) is recognized by its frames.
* An attribute in code, ``__main__.name`` or ``from __main__ import name``, if the script mentions
  that name.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any


def look_up(name: str, settings: Callable[[], dict[str, Any]], any_use: bool = False, asker: FrameType | None = None) -> Any:
    """Return an attribute of the main script, loading the script if the lookup warrants it.

    Args:
        name: the name.
        settings: returns the settings that describe the script.
        any_use: True if the unpickler in C could not be intercepted, so any lookup may be its own.
        asker: the frame that looks the name up; None means the caller's.

    Raises:
        AttributeError: the script lacks the name, or the lookup does not warrant loading it.
    """
    module = sys.modules.get("trio_offload_worker._jobs.main_module")
    found = None if module is None else module.current()
    if found is None:
        if asker is None:
            try:
                asker = sys._getframe(1)
            except ValueError:
                pass  # The caller is not Python code.
        if any_use or (asker is not None and _is_unpickler(asker)):
            from .main_module import load

            found = load(settings())
        elif asker is not None and _is_attribute(asker):
            from .main_module import load_for

            found = load_for(name, settings())
    if found is None:
        raise AttributeError(f"module '__main__' has no attribute {name!r}")
    return getattr(found, name)


def _is_unpickler(frame: FrameType | None) -> bool:
    """True if the frame is ``find_class`` of the unpickler in Python (Lib/pickle.py)."""
    if frame is not None and frame.f_code.co_name == "_getattribute" and frame.f_globals.get("__name__") == "pickle":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "find_class" and frame.f_globals.get("__name__") == "pickle"


def _is_attribute(frame: FrameType) -> bool:
    """True if the code itself names the attribute, instead of calling a function that does."""
    import opcode

    operation = opcode.opname[frame.f_code.co_code[frame.f_lasti]] if frame.f_lasti >= 0 else ""
    return operation in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
