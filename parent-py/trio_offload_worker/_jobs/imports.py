"""What is to happen as soon as some module has been imported, without importing it for that."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def find_spec(name: str, path: Any, target: Any, afterwards: Callable[[], object]) -> ModuleSpec | None:
    """The spec that the finders have for a module, with a loader that calls ``afterwards`` when it has executed it.

    To be called by a finder on ``sys.meta_path`` that has nothing to say to this name itself, or is there no more.
    """
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if find is None else find(name, path, target)
        if spec is not None:
            _call_after_loading(spec.loader, name, afterwards)
            return spec
    return None


def _call_after_loading(loader: Any, name: str, afterwards: Callable[[], object]) -> None:
    # On the instance and not around it: `__loader__` and `__spec__.loader` stay the real ones, with all that others ask of
    # them (source, resources), and after this one use nothing is left of it. Some loaders are shared by many modules (that
    # of a zip file, PyInstaller's before 6.0), of which another thread may import one just now.
    real = loader.exec_module
    done = False

    def exec_module(module: ModuleType) -> None:
        nonlocal done
        if done or module.__name__ != name:
            real(module)
            return
        done = True
        if vars(loader).get("exec_module") is exec_module:
            del loader.exec_module
        real(module)
        afterwards()

    loader.exec_module = exec_module
