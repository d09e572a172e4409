"""Which functions have to travel by value: found out once for each, and remembered for as long as it lives.

Without this every call of a lambda, or of a function from a REPL or a notebook, would begin with an ordinary pickle that is
thrown away. What makes it safe to remember:

* Remembered is only that the ordinary pickler is of no use. cloudpickle, which comes next then, takes all that the
  ordinary one takes, and what can be found by name it only names too. So a memory that is out of date costs time and
  changes nothing.
* What is remembered is the object and not its name: a function that is defined anew is another one. It is held weakly,
  and its identity is compared, because a new object may get the number of one that is gone.
* A function that was out of reach may come within it (a name that a test had patched is put back). So its name is
  looked up at each call, which takes a fraction of what a pickle does.
* Not remembered is what travels: a function's body, its globals and what it closes over are pickled at each call.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Collection
from typing import Any, Final

from .._interpreter.main_module import main_plan


class ByValue:
    """The functions and classes that were found to need cloudpickle, and are still there."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        # To be read by others, to see whether there are any.
        self.known: Final[dict[int, weakref.ref[Any]]] = {}

    def __len__(self) -> int:
        return len(self.known)

    def holds(self, function: Callable[..., Any]) -> bool:
        """Whether a call of ``function`` is known to need cloudpickle. It is asked before every call."""
        if not self.known:
            return False
        # By far the most calls are of these, and what they are of is what they are.
        root = function if type(function) in _ROOTS else root_of(function)
        reference = self.known.get(id(root))
        if reference is None or reference() is not root:
            return False
        if found_by_name(root):
            self.known.pop(id(root), None)
            return False
        return True

    def remember(self, function: Callable[..., Any]) -> None:
        """The ordinary pickler could not do a call of ``function``: remember that, if it was for the function's sake."""
        root = root_of(function)
        if found_by_name(root):
            return
        number = id(root)
        known = self.known

        def forget(reference: weakref.ref[Any]) -> None:
            # Called before the number can be given to another object; but another thread may have been here since, or come now.
            if known.get(number) is reference:
                known.pop(number, None)

        try:
            known[number] = weakref.ref(root, forget)
        except TypeError:
            # Not everything that can be called can be held weakly; such a thing is tried anew each time.
            pass


def root_of(function: Callable[..., Any]) -> Any:
    """The function or class that decides about a callable: of a partial its function, of a method or an instance the class."""
    root: Any = function
    while isinstance(root, functools.partial):
        root = root.func
    if isinstance(root, types.MethodType):
        root = root.__self__
    if type(root) in _ROOTS or isinstance(root, type):
        return root
    return type(root)


def found_by_name(root: Any) -> bool:
    """Whether a worker can find this function or class by its name, as far as can be told from here.

    The same question that the pickler asks (``save_global`` in Lib/pickle.py); a ``__main__`` that no worker can
    load has nothing in it that one could find, and what is registered with cloudpickle is not to be looked for.
    """
    try:
        module_name = root.__module__
        found: Any = sys.modules[module_name]
        for name in root.__qualname__.split("."):
            found = getattr(found, name)
    except Exception:
        # Some callables answer to any name and some to none.
        return False
    if found is not root or (module_name == "__main__" and main_plan()["kind"] == "none"):
        return False
    return not (CLOUDPICKLE in sys.modules and _is_registered(module_name))


def registered() -> Collection[str]:
    """The modules whose contents the user wants to travel by value (``cloudpickle.register_pickle_by_value``), by their names.

    Those of a package's submodules are not listed, and travel by value too.
    """
    library: Any = sys.modules.get(CLOUDPICKLE)
    # What the public function gives is a copy of this set, and most calls are made where it is empty.
    names: Collection[str] | None = getattr(library, "_PICKLE_BY_VALUE_MODULES", None)
    if names is not None:
        return names
    list_names = getattr(library, "list_registry_pickle_by_value", None)
    found: Collection[str] = () if list_names is None else list_names()
    return found


def _is_registered(module: str) -> bool:
    names = registered()
    return bool(names) and any(module == name or module.startswith(f"{name}.") for name in names)


CLOUDPICKLE: Final = "cloudpickle.cloudpickle"
"""The module that knows which modules are to travel by value. As long as it is not imported, none is."""


_ROOTS: Final = frozenset({types.FunctionType, types.BuiltinFunctionType, type})
