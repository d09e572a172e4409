"""What ``__main__`` answers in a worker before the user's script is loaded: the module's ``__getattr__`` (PEP 562) asks here.

Libraries look into ``__main__``: :func:`hasattr`, :func:`getattr` with a default, pickle's search for an object's module. Such a
look finds nothing, and never runs the script. What does use the script is

* an unpickler that finds a name in it. The one in C is intercepted before it looks (``hooks.rs``, ``hooks.py``); the one in
  Python (``pickle._Unpickler``, which dill and joblib build upon) is known by its frames;
* an attribute in the code itself, ``__main__.name``, and ``from __main__ import name``, if the script mentions that name.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any


def look_up(name: str, settings: Callable[[], dict[str, Any]], any_use: bool = False, asker: FrameType | None = None) -> Any:
    """What the main script has by a name, if it is loaded or this look is a reason to load it.

    Args:
        name: the name.
        settings: gives the settings that say how the script is loaded.
        any_use: the unpickler in C could not be intercepted, so that any look may be one of its.
        asker: the frame that looks; that of the caller where none is given.

    Raises:
        AttributeError: otherwise.
    """
    module = sys.modules.get("trio_offload_worker._jobs.main_module")
    found = None if module is None else module.current()
    if found is None:
        if asker is None:
            try:
                asker = sys._getframe(1)
            except ValueError:
                pass  # It is not Python code that looks.
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
    """Whether this is the unpickler in Python that looks for a class (``find_class`` in Lib/pickle.py)."""
    if frame is not None and frame.f_code.co_name == "_getattribute" and frame.f_globals.get("__name__") == "pickle":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "find_class" and frame.f_globals.get("__name__") == "pickle"


def _is_attribute(frame: FrameType) -> bool:
    """Whether the code itself names the attribute. Where it calls something that looks, that is what it does."""
    import opcode

    operation = opcode.opname[frame.f_code.co_code[frame.f_lasti]] if frame.f_lasti >= 0 else ""
    return operation in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
