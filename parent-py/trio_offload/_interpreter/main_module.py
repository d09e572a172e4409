"""Where the user's main module comes from, and how a worker can load it."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from . import frozen as _frozen

# Since Python 3.13 the prompt is a module that runs as __main__, and what is typed in becomes part of it.
_PROMPT: Final = "_pyrepl.__main__"
# A script's __file__ may be relative to the directory in which Python was started.
_FIRST_DIRECTORY: Final = os.getcwd() if os.path.isdir(".") else "/"
_PLAIN_ATTRIBUTES: Final = ("__file__", "__cached__", "__package__", "__doc__")
_FILE_LOADERS: Final = ("SourceFileLoader", "SourcelessFileLoader")


def main_plan() -> dict[str, Any]:
    """How a worker can load what ``__main__`` is here: a ``kind`` and what that kind needs.

    * ``path``: run the file ``path``
    * ``module``: run the module ``name`` (``python -m``)
    * ``archive``: run the ``__main__`` of the directory or zip file ``path``
    * ``code``: run ``code``, as ``marshal`` writes it, which was made of the file ``path`` (an app made by PyInstaller)
    * ``none``: it cannot; ``why`` completes the sentence «a __main__ that …»
    """
    bundle = _frozen.bundle()
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
    """What the main module has of the attributes that the import system gives to one, as builtin objects.

    * ``attributes``: their values, if those are text or None
    * ``spec``: the name, the origin and whether that is a place; None if the module has none
    * ``loader``: of the loaders for files the class, the name and the path; None for any other
    """
    values: dict[str, Any] = getattr(sys.modules.get("__main__"), "__dict__", {})
    spec = values.get("__spec__")
    loader: Any = values.get("__loader__")
    kind = type(loader).__name__
    return {
        "attributes": {name: values[name] for name in _PLAIN_ATTRIBUTES if isinstance(values.get(name, ...), str | None)},
        "spec": None if spec is None else (spec.name, spec.origin, spec.has_location),
        "loader": (kind, loader.name, loader.path) if kind in _FILE_LOADERS else None,
    }


class _MainModules:
    """How many modules have been ``__main__`` so far, as far as anybody has looked."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # In one piece: of two threads that find another one at the same time neither counts it twice.
        self._last: tuple[object, int] = None, 0

    def number_of(self, main: object) -> int:
        """Return the number of this module, the last that anybody has found to be ``__main__``."""
        last, number = self._last
        if main is not last:
            number += 1
            self._last = main, number
        return number


main_modules: Final = _MainModules()
