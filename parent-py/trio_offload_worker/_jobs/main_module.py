"""The user's main script in a worker, loaded when a job first names an object in it.

The rules of :mod:`multiprocessing` apply. The script runs as ``__mp_main__``, so the code behind
``if __name__ == "__main__"`` does not run. Afterwards both names refer to the module. Two
differences:

* The module's namespace is the globals of its functions. A job that changes a global of the script
  sees the change.
* Once the script has run, the ``__name__`` of the module is ``__main__``, and its functions and
  classes belong to ``__main__``. A job's pickles on disk name them as the program would, and the
  next run of the script finds them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import sys
import threading
from types import CodeType, FunctionType, ModuleType

from .notes import add_note, mark_main_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

loading = False
"""True while the script runs here. ``trio_offload`` then starts no workers, to avoid recursion."""

_NAME: Final = "__mp_main__"
_lock: Final = threading.RLock()
_loaded: ModuleType | None = None
_number: int | None = None  # identifies the parent's main module
_stand_in: ModuleType | None = None  # the `__main__` before the script is loaded


def current() -> ModuleType | None:
    """Return the main module, even if it is only partly loaded, or None."""
    return _loaded if _loaded is not None or not loading else sys.modules.get(_NAME)


def is_loaded() -> bool:
    """Return True if the main module is completely loaded."""
    return _loaded is not None


def load_for(name: str, settings: dict[str, Any]) -> ModuleType | None:
    """Load the script like :func:`load` if its code mentions the name. Return None otherwise.

    A script that cannot be loaded also gives None.
    """
    plan = settings.get("main") or {}
    prepare = _PREPARATIONS.get(plan.get("kind", ""))
    if prepare is None or not _mentions(prepare(plan)[1], name):
        return None
    return load(settings)


def load(settings: dict[str, Any]) -> ModuleType:
    """Return the user's main module. Load it on the first call.

    Args:
        settings: ``settings["main"]`` describes the module. ``attributes`` are some of its
            attributes in the parent. ``kind`` is one of

            * ``path``: run the file ``path``;
            * ``module``: run the module ``name``, as ``python -m`` does;
            * ``archive``: run the ``__main__`` of the directory or zip file ``path``;
            * ``code``: run ``code``, marshalled code that was compiled from the file ``path``;
            * ``none``: it cannot be loaded; ``why`` completes "a __main__ that …".

    Raises:
        BaseException: any exception of the script, with a note about the load. A partly loaded
            module does not remain.
    """
    global loading, _loaded, _number, _stand_in
    with _lock:
        if _loaded is not None:
            return _loaded
        if loading:
            # The script itself asks while it runs. Return the module as far as it is loaded.
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
            attributes = plan.get("attributes") or {}
            if "__cached__" in attributes:
                module.__dict__["__cached__"] = attributes["__cached__"]
            sys.modules[_NAME] = sys.modules["__main__"] = module
            exec(code, module.__dict__)
            _rename(module)
        except SystemExit as error:
            _restore_main(before)
            raise mark_main_failed(_exited(plan, error)) from error
        except BaseException as error:
            _restore_main(before)
            mark_main_failed(error)
            add_note(
                error,
                f"(while a worker loaded the main script {_shown(plan)}, to find a function or class that is defined in it)",
            )
            raise
        finally:
            loading = False
        _loaded, _number, _stand_in = module, settings.get("main_number"), before
        return module


def unload_stale(settings: dict[str, Any]) -> None:
    """Unload the main module if it is not the parent's any more. Its successor loads on demand.

    IPython's ``%run`` makes the script ``__main__`` while it runs, and the file may have been
    edited between two runs.
    """
    global _loaded
    with _lock:
        if _loaded is not None and _stand_in is not None and _number != settings.get("main_number"):
            _loaded = None
            _restore_main(_stand_in)


_GUARD: Final = (
    "Put the code that starts the program behind this guard, so that only the main process runs it:\n\n"
    '    if __name__ == "__main__":\n'
    "        trio.run(main)\n"
)


def _mentions(code: CodeType, name: str) -> bool:
    """True if a name is in the code, or may be imported by ``from … import *``."""
    if name in code.co_names or ("*",) in code.co_consts:
        return True
    return any(isinstance(part, CodeType) and _mentions(part, name) for part in code.co_consts)


def _rename(module: ModuleType) -> None:
    """Set the module of the script's objects to ``__main__``, as in the program.

    This covers all objects that pickle could find by name.
    """
    module.__name__ = "__main__"
    seen: set[int] = set()
    waiting: list[Any] = list(vars(module).values())
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        kind = type(value)
        if kind is staticmethod or kind is classmethod:
            waiting.append(value.__func__)
        elif kind is property:
            waiting += value.fget, value.fset, value.fdel
        elif issubclass(kind, type):
            if vars(value).get("__module__") == _NAME:
                # Bypass the metaclass, which may intercept the attribute.
                type.__setattr__(value, "__module__", "__main__")
                waiting += vars(value).values()
        else:
            _rename_object(value, waiting)


def _rename_object(value: Any, waiting: list[Any]) -> None:
    """Rename a function, or another object with a module: a cached function, a type variable."""
    kind = type(value)
    try:
        if kind.__module__ == "typing":
            # Since Python 3.12 some of these are implemented in C, without a dictionary.
            if value.__module__ == _NAME:
                value.__module__ = "__main__"
            return
        own = object.__getattribute__(value, "__dict__")
        if (value.__module__ if kind is FunctionType else own.get("__module__")) == _NAME:
            value.__module__ = "__main__"
        if "__wrapped__" in own:
            waiting.append(own["__wrapped__"])
    except Exception:
        pass  # Most objects lack a module, and some raise arbitrary exceptions.


def _restore_main(before: ModuleType) -> None:
    sys.modules[_NAME] = sys.modules["__main__"] = before


def _exited(plan: dict[str, Any], error: SystemExit) -> RuntimeError:
    return RuntimeError(
        f"the main script {_shown(plan)} exited ({error!r}) while a worker loaded it to find a function or class that is "
        f"defined in it. {_GUARD}"
    )


def _shown(plan: dict[str, Any]) -> str:
    return plan.get("path") or plan.get("name") or "?"


def _prepare_path(plan: dict[str, Any]) -> tuple[ModuleType, CodeType]:
    path = plan["path"]
    loader: Any
    if path.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader("__main__", path)
        code = loader.get_code("__main__")
    else:
        # Any extension will do: console scripts lack one. A source loader would depend on it, and
        # write a .pyc file.
        loader = importlib.machinery.SourceFileLoader("__main__", path)
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

    # An app made by PyInstaller. Its runtime hooks have already run in `__main__`, and the script
    # may use the names that they defined.
    before = sys.modules["__main__"]
    code = marshal.loads(plan["code"])
    module = _module(getattr(before, "__loader__", None), plan["path"], None, None)
    module.__dict__.update((name, value) for name, value in vars(before).items() if not name.startswith("__"))
    # PyInstaller's loader of `__main__` returns this code object.
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
