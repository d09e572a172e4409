"""Hooks for the first use of the main script in the unpickler, and of multiprocessing in imports.

So the main script and the identity for multiprocessing cost nothing until a job uses them.
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
    """The latest settings. They are unpickled on each use, which rarely happens twice."""

    def __init__(self, loads: Callable[[bytes], Any]) -> None:
        self._loads = loads
        self._pickled = b""

    def replace(self, pickled: bytes) -> None:
        self._pickled = pickled

    def get(self) -> dict[str, Any]:
        settings: dict[str, Any] = self._loads(self._pickled) if self._pickled else {}
        return settings


def import_pickle_core() -> Any:
    """Import ``_pickle`` without ``functools``, which would import ``collections`` and five more.

    ``_pickle`` needs only ``functools.partial`` (Modules/_pickle.c, ``_Pickle_InitState``), which
    comes from the builtin module ``_functools``. A stand-in named ``functools`` provides it during
    the import.
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
    """Make ``__main__`` look like the parent's. It is empty until the script is used.

    See ``_jobs/stand_in.py``. ``__mp_main__`` refers to it too, as in the processes of
    multiprocessing.
    """
    global _stand_in
    _stand_in = main = sys.modules["__main__"]
    any_use = not _intercept_unpickler(core, settings)

    def find(name: str) -> Any:
        # The import system and introspection look these up in any module (`__path__`,
        # `__wrapped__`, …).
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module '__main__' has no attribute '{name}'")
        from .._jobs.stand_in import look_up

        return look_up(name, settings.get, any_use, sys._getframe(1))

    main.__dict__["__getattr__"] = find
    describe_main(settings)
    sys.modules["__mp_main__"] = main


_stand_in: ModuleType | None = None


def describe_main(settings: Settings) -> None:
    """Copy the attributes of the parent's main module to the stand-in."""
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
    """Load the script before any unpickler looks up a name in ``__main__``. Return True on success.

    Every unpickler calls the method ``find_class`` for a name (Modules/_pickle.c), even the C class
    without a Python subclass. So this replaces that method in the dictionary behind the C class. It
    stays replaced, because Python's method cache would miss the change back.
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
            # The method cache holds the original: an object has been unpickled before.
            attributes["find_class"] = original
    return seen


def adopt_imported(settings: Settings) -> bool:
    """Adopt the parent's identity in ``multiprocessing``. Return False if it is not imported."""
    if "multiprocessing.process" not in sys.modules:
        return False
    from .._jobs.multiprocessing import adopt

    adopt(settings.get())
    return True


class MultiprocessingFinder:
    """A finder for ``multiprocessing.process``, first on ``sys.meta_path``. It removes itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "multiprocessing.process":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        from .._jobs.multiprocessing import find_spec

        return find_spec(self._settings.get(), name, path, target)
