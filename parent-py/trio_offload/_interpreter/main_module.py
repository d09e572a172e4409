"""The user's main module: its source, and how a worker can load it."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from . import frozen

# Since Python 3.13 the prompt is a module that runs as __main__ and takes the typed definitions.
_PROMPT: Final = "_pyrepl.__main__"
# A script's __file__ may be relative to the directory in which Python was started.
_FIRST_DIRECTORY: Final = os.getcwd() if os.path.isdir(".") else "/"
_TEXT_ATTRIBUTES: Final = ("__file__", "__cached__", "__package__", "__doc__")
_FILE_LOADERS: Final = ("SourceFileLoader", "SourcelessFileLoader")


def main_module_spec() -> dict[str, Any]:
    """Return how a worker can load the main module: a ``kind`` and its parameters.

    * ``path``: run the file ``path``
    * ``module``: run the module ``name`` (``python -m``)
    * ``archive``: run the ``__main__`` of the directory or zip file ``path``
    * ``code``: run ``code`` in the format of ``marshal``, compiled from ``path`` (an app of
      PyInstaller)
    * ``none``: workers cannot load it; ``why`` completes the sentence "a __main__ that …"
    """
    bundle = frozen.bundle()
    if bundle is not None and bundle.main is not None:
        return {"kind": "code", "code": bundle.main.code, "path": os.path.join(bundle.folder, f"{bundle.main.name}.py")}
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name == _PROMPT:
        return {"kind": "none", "why": "was typed in and has no file"}
    if spec is not None and spec.name != "__main__":
        return {"kind": "module", "name": spec.name}
    if spec is not None and spec.origin is not None:
        return {"kind": "archive", "path": os.path.abspath(os.path.dirname(spec.origin))}
    file = getattr(main, "__file__", None)
    if not isinstance(file, str):
        return {"kind": "none", "why": "was typed in and has no file"}
    path = os.path.join(_FIRST_DIRECTORY, file)
    if not os.path.isfile(path):
        return {"kind": "none", "why": f"has no file: there is no {path}"}
    return {"kind": "path", "path": path}


def main_attributes() -> dict[str, Any]:
    """Return the attributes that the import system gives the main module, as builtin objects.

    * ``attributes``: the attributes that are text or None
    * ``spec``: name, origin, and whether the origin is a location; None if it has no spec
    * ``loader``: class, name and path of a loader for files; None for any other loader
    """
    values: dict[str, Any] = getattr(sys.modules.get("__main__"), "__dict__", {})
    spec = values.get("__spec__")
    loader: Any = values.get("__loader__")
    kind = type(loader).__name__
    return {
        "attributes": {name: values[name] for name in _TEXT_ATTRIBUTES if isinstance(values.get(name, ...), str | None)},
        "spec": None if spec is None else (spec.name, spec.origin, spec.has_location),
        "loader": (kind, loader.name, loader.path) if kind in _FILE_LOADERS else None,
    }


class _MainModules:
    """Numbers the modules that have been ``__main__``, in the order in which they were seen."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # One tuple: two threads that see a new module at the same time count it once.
        self._last: tuple[object, int] = None, 0

    def number_of(self, main: object) -> int:
        """Return the number of this module, which is ``__main__`` now."""
        last, number = self._last
        if main is not last:
            number += 1
            self._last = main, number
        return number


main_modules: Final = _MainModules()
