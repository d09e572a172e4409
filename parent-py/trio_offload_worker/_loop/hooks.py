"""Hooks that wait for a job: for names in ``__main__`` in the unpickler, for multiprocessing in the import system.

The main script and the identity for multiprocessing cost nothing until a job uses them.
"""

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class Settings:
    """The settings that came last, unpickled whenever they are asked for: that is seldom more than once."""

    def __init__(self, loads: Callable[[bytes], Any]) -> None:
        self._loads = loads
        self._pickled = b""

    def replace(self, pickled: bytes) -> None:
        self._pickled = pickled

    def get(self) -> dict[str, Any]:
        settings: dict[str, Any] = self._loads(self._pickled) if self._pickled else {}
        return settings


def import_pickle_core() -> Any:
    """Import ``_pickle`` without the import of ``functools`` that it makes, which draws in ``collections`` and five more.

    All that it wants of it is ``partial`` (Modules/_pickle.c, ``_Pickle_InitState``), and that is the one of the builtin
    module ``_functools``. So it gets this under the name that it asks for, and for that moment only.
    """
    if "functools" in sys.modules:
        import _pickle

        return _pickle
    import _functools  # type: ignore[import-not-found]

    stand_in: Any = type(sys)("functools")
    stand_in.partial = _functools.partial
    sys.modules["functools"] = stand_in
    try:
        import _pickle
    finally:
        if sys.modules.get("functools") is stand_in:
            del sys.modules["functools"]
    return _pickle


def install_main(core: Any, settings: Settings) -> None:
    """``__main__`` looks like the program's and is empty until something uses the user's script; see ``_jobs/stand_in.py``.

    It answers to the name ``__mp_main__`` too, as in the processes of multiprocessing.
    """
    global _stand_in
    _stand_in = main = sys.modules["__main__"]
    any_use = not _intercept_unpickler(core, settings)

    def find(name: str) -> Any:
        # The import system and introspection ask for these of any module (`__path__`, `__wrapped__`, …).
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module '__main__' has no attribute '{name}'")
        from .._jobs.stand_in import look_up

        return look_up(name, settings.get, any_use, sys._getframe(1))

    main.__dict__["__getattr__"] = find
    describe_main(settings)
    sys.modules["__mp_main__"] = main


_stand_in: ModuleType | None = None


def describe_main(settings: Settings) -> None:
    """Give the stand-in for the main module the attributes that the module has in the parent."""
    if _stand_in is None:
        return
    plan = settings.get().get("main") or {}
    values = _stand_in.__dict__
    values.update(plan.get("attributes") or {})
    if plan.get("loader") is not None:
        kind, name, path = plan["loader"]
        values["__loader__"] = getattr(sys.modules["_frozen_importlib_external"], kind)(name, path)
    if plan.get("spec") is not None:
        name, origin, has_location = plan["spec"]
        spec = sys.modules["_frozen_importlib"].ModuleSpec(name, values.get("__loader__"), origin=origin)
        spec.has_location = has_location
        values["__spec__"] = spec


def _intercept_unpickler(core: Any, settings: Settings) -> bool:
    """Have the script loaded before any unpickler looks for a name in ``__main__``; whether that could be done.

    Each unpickler calls the method ``find_class`` for a name (Modules/_pickle.c), also the ones that no class of Python's is
    derived from. So that method of the class in C is replaced, which takes the dictionary behind the class. It stays replaced:
    Python's cache of methods would not hear of the change back.
    """
    attributes = next((one for one in gc.get_referents(core.Unpickler.__dict__) if type(one) is dict), {})
    original: Any = attributes.get("find_class")
    seen = False

    def find_class(self: Any, module: str, name: str, /) -> Any:
        nonlocal seen
        seen = True
        if module == "__main__" or module == "__mp_main__":
            loaded = sys.modules.get("trio_offload_worker._jobs.main_module")
            if loaded is None or not loaded.is_loaded():
                from .._jobs.main_module import load

                load(settings.get())
        return original(self, module, name)

    if original is not None:
        attributes["find_class"] = find_class
        core.loads(b"cbuiltins\nbool\n.")
        if not seen:
            # Somebody has unpickled before, and the cache has the other one.
            attributes["find_class"] = original
    return seen


def adopt_imported(settings: Settings) -> bool:
    """Give ``multiprocessing`` the process's identity if it is imported; whether it is."""
    if "multiprocessing.process" not in sys.modules:
        return False
    from .._jobs.multiprocessing import adopt

    adopt(settings.get())
    return True


class MultiprocessingFinder:
    """First on ``sys.meta_path``; knows one name. Once that is looked for it is gone from there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "multiprocessing.process":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        from .._jobs.multiprocessing import find_spec

        return find_spec(self._settings.get(), name, path, target)
