"""Remember which functions need cloudpickle.

Without this cache, every call of a lambda or a REPL function would first try the standard pickler
and discard the result. The cache is safe because:

* It stores only that the standard pickler fails. cloudpickle pickles everything that the standard
  pickler does, and pickles importable objects by reference too. So a stale entry costs time only.
* It stores the object, not its name: a redefined function is another object. References are weak,
  and the identity is compared, because an id may be reused.
* A function may become importable (a name that a test had patched is restored). So its name is
  looked up at each call, which takes a fraction of pickling.
* The pickle itself is not stored: a function's body, globals and closure are pickled at each call.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Collection
from typing import Any, Final

from .._interpreter.main_module import main_module_spec

CLOUDPICKLE: Final = "cloudpickle.cloudpickle"
"""The module with the registry of modules to pickle by value. Empty until it is imported."""
_ROOTS: Final = frozenset({types.FunctionType, types.BuiltinFunctionType, type})


class FunctionsByValue:
    """The living functions and classes that need cloudpickle."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        # Read-only for others.
        self.known: Final[dict[int, weakref.ref[Any]]] = {}

    def __len__(self) -> int:
        return len(self.known)

    def holds(self, function: Callable[..., Any]) -> bool:
        """Return True if a call of ``function`` is known to need cloudpickle.

        Called before every call.
        """
        if not self.known:
            return False
        # Usually the function is its own root.
        root = function if type(function) in _ROOTS else root_of(function)
        reference = self.known.get(id(root))
        if reference is None or reference() is not root:
            return False
        if found_by_reference(root):
            self.known.pop(id(root), None)
            return False
        return True

    def remember(self, function: Callable[..., Any]) -> None:
        """Remember that the standard pickler refused a call, if it was because of the function."""
        root = root_of(function)
        if found_by_reference(root):
            return
        number = id(root)
        known = self.known

        def forget(reference: weakref.ref[Any]) -> None:
            # Called before the id is reused; another thread may have stored a new entry since.
            if known.get(number) is reference:
                known.pop(number, None)

        try:
            known[number] = weakref.ref(root, forget)
        except TypeError:
            # Some callables lack weak references. They are tried again at each call.
            pass


def root_of(function: Callable[..., Any]) -> Any:
    """Return the function or class that decides about a callable.

    It is a partial's function, or the class of a method or an instance.
    """
    root: Any = function
    while isinstance(root, functools.partial):
        root = root.func
    if isinstance(root, types.MethodType):
        root = root.__self__
    if type(root) in _ROOTS or isinstance(root, type):
        return root
    return type(root)


def found_by_reference(root: Any) -> bool:
    """Return True if a worker can find this function or class by its name.

    Checks the same as the pickler (``save_global`` in Lib/pickle.py). False for a ``__main__`` that
    workers cannot load, and for modules registered with cloudpickle.
    """
    try:
        module_name = root.__module__
        found: Any = sys.modules[module_name]
        for name in root.__qualname__.split("."):
            found = getattr(found, name)
    except Exception:
        # Callables may have or lack any attribute.
        return False
    if found is not root or (module_name == "__main__" and main_module_spec()["kind"] == "none"):
        return False
    return not (CLOUDPICKLE in sys.modules and _is_registered(module_name))


def registered() -> Collection[str]:
    """Return the names of the modules that the user has registered to be pickled by value.

    See ``cloudpickle.register_pickle_by_value``. It covers submodules, which are not listed.
    """
    library: Any = sys.modules.get(CLOUDPICKLE)
    try:
        # The public function copies this set, which usually is empty.
        names: Collection[str] = library._PICKLE_BY_VALUE_MODULES
        return names
    except AttributeError:
        pass  # Another release, or none.
    list_names = getattr(library, "list_registry_pickle_by_value", None)
    found: Collection[str] = () if list_names is None else list_names()
    return found


def _is_registered(module: str) -> bool:
    names = registered()
    return bool(names) and any(module == name or module.startswith(f"{name}.") for name in names)
