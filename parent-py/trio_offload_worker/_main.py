"""The user's main script in a worker, loaded when a job names something in it and not before.

It gets the meaning that :mod:`multiprocessing` gives it: the script runs under the name ``__mp_main__``, so that what
stands behind ``if __name__ == "__main__"`` does not, and the module then answers to both names. Unlike there, the
module's own namespace is that of its functions: a job that changes a global of the script finds it changed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import sys
import threading
from types import CodeType, ModuleType

from ._notes import add_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

loading = False
"""Whether the script is running here just now. ``trio_offload`` starts no workers then: it would be without end."""

_NAME: Final = "__mp_main__"
_lock: Final = threading.RLock()
_loaded: ModuleType | None = None
_number: int | None = None  # which main module of the parent's that is
_stand_in: ModuleType | None = None  # what `__main__` is until it is loaded


def load(settings: dict[str, Any]) -> ModuleType:
    """The user's main module, loaded if it is not yet.

    ``settings["main"]`` says how: ``kind`` is ``path`` (run the file ``path``), ``module`` (run the module ``name``, as
    ``python -m`` does), ``archive`` (run the ``__main__`` of the directory or zip file ``path``), ``code`` (run ``code``, which
    ``marshal`` reads, and which was made of the file ``path``) or ``none`` (it cannot be loaded; ``why`` completes the sentence
    «a __main__ that …»).

    Raises:
        BaseException: whatever the script raises, with a note that says what was going on. Nothing half-loaded remains.
    """
    global loading, _loaded, _number, _stand_in
    with _lock:
        if _loaded is not None:
            return _loaded
        if loading:
            # The script itself asks, while it runs: for what it has by now.
            return sys.modules[_NAME]
        plan = settings.get("main") or {"kind": "none", "why": "the parent did not describe"}
        prepare = _PREPARATIONS.get(plan["kind"])
        if prepare is None:
            raise RuntimeError(
                f"a worker cannot load a __main__ that {plan.get('why', 'is of an unknown kind')}. With the package cloudpickle "
                "installed, the functions and classes in it travel by value; or move them into a module that can be imported."
            )
        before = sys.modules["__main__"]
        loading = True
        try:
            module, code = prepare(plan)
            sys.modules[_NAME] = sys.modules["__main__"] = module
            exec(code, module.__dict__)
        except SystemExit as error:
            _take_back(before)
            raise RuntimeError(
                f"the main script {_shown(plan)} ended itself ({error!r}) while a worker loaded it to find a function that lives "
                f"in it. {_GUARD}"
            ) from error
        except BaseException as error:
            _take_back(before)
            add_note(
                error,
                f"(while a worker loaded the main script {_shown(plan)}, to find a function or class that lives in it)",
            )
            raise
        finally:
            loading = False
        _loaded, _number, _stand_in = module, settings.get("main_number"), before
        return module


def forget_others(settings: dict[str, Any]) -> None:
    """Let go of a main module that is not the parent's any more: a name of the new one has to load that.

    IPython's ``%run`` makes the script the ``__main__`` for as long as it runs; and the file may have been edited since it
    was run before.
    """
    global _loaded
    with _lock:
        if _loaded is not None and _stand_in is not None and _number != settings.get("main_number"):
            _loaded = None
            _take_back(_stand_in)


_GUARD: Final = (
    "What starts the program belongs behind the guard that keeps it to the main process:\n\n"
    '    if __name__ == "__main__":\n'
    "        trio.run(main)\n"
)


def _take_back(before: ModuleType) -> None:
    sys.modules[_NAME] = sys.modules["__main__"] = before


def _shown(plan: dict[str, Any]) -> str:
    return plan.get("path") or plan.get("name") or "?"


def _prepare_path(plan: dict[str, Any]) -> tuple[ModuleType, CodeType]:
    path = plan["path"]
    loader: Any
    if path.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader(_NAME, path)
        code = loader.get_code(_NAME)
    else:
        # The extension does not matter: a console script has none. (A source loader would go by it, and leave a .pyc.)
        loader = importlib.machinery.SourceFileLoader(_NAME, path)
        with io.open_code(path) as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
    return _module(loader, path, None, None), code


def _prepare_module(plan: dict[str, Any]) -> tuple[ModuleType, CodeType]:
    name = plan["name"]
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _module(spec.loader, spec.origin, spec.parent, spec), _code(spec, name)


def _prepare_archive(plan: dict[str, Any]) -> tuple[ModuleType, CodeType]:
    path = plan["path"]
    for hook in sys.path_hooks:
        try:
            finder = hook(path)
        except ImportError:
            continue
        spec = finder.find_spec("__main__", None)
        if spec is not None:
            return _module(spec.loader, spec.origin, "", spec), _code(spec, "__main__")
    raise ImportError(f"there is no __main__ in {os.fspath(path)}", name="__main__", path=path)


def _prepare_code(plan: dict[str, Any]) -> tuple[ModuleType, CodeType]:
    import marshal

    # An app made by PyInstaller. Its runtime hooks have run in `__main__` already, and left there what the script may use.
    before = sys.modules["__main__"]
    code = marshal.loads(plan["code"])
    module = _module(getattr(before, "__loader__", None), plan["path"], None, None)
    module.__dict__.update((name, value) for name, value in vars(before).items() if not name.startswith("__"))
    # What the loader that PyInstaller gives to `__main__` answers with.
    module.__dict__["_pyi_main_co"] = code
    return module, code


_PREPARATIONS: Final[dict[str, Callable[[dict[str, Any]], tuple[ModuleType, CodeType]]]] = {
    "path": _prepare_path,
    "module": _prepare_module,
    "archive": _prepare_archive,
    "code": _prepare_code,
}


def _code(spec: importlib.machinery.ModuleSpec, name: str) -> CodeType:
    loader: Any = spec.loader
    code = loader.get_code(name) if hasattr(loader, "get_code") else None
    if code is None:
        raise ImportError(f"the main module {name} has no Python code to run", name=name)
    return code  # type: ignore[no-any-return]


def _module(loader: Any, file: str | None, package: str | None, spec: importlib.machinery.ModuleSpec | None) -> ModuleType:
    module = ModuleType(_NAME)
    module.__loader__ = loader
    module.__package__ = package
    module.__spec__ = spec
    if file is not None:
        module.__file__ = file
    return module
