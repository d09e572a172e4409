"""Call a function as soon as a module has been imported, without importing the module."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def find_spec(name: str, path: Any, target: Any, afterwards: Callable[[], object]) -> ModuleSpec | None:
    """Return the module's real spec, with a loader that calls ``afterwards`` after executing it.

    A finder on ``sys.meta_path`` calls this. It must return None for the name itself, or have left
    ``sys.meta_path``.
    """
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if find is None else find(name, path, target)
        if spec is not None:
            _call_after_loading(spec.loader, name, afterwards)
            return spec
    return None


def _call_after_loading(loader: Any, name: str, afterwards: Callable[[], object]) -> None:
    # Patch the loader instance instead of wrapping it. So `__loader__` and `__spec__.loader` stay
    # the real ones, with their other methods (source, resources), and the patch removes itself
    # after one use. Some loaders serve many modules (zipimport's, PyInstaller's before 6.0), and
    # another thread may be importing one of those.
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
