"""Cache the pickles of functions that are pickled by reference.

Most of the time of pickling ``(function, args)`` goes into finding the function in its module
(``save_global`` in Lib/pickle.py). The result is kept. Each call checks the same condition as the
pickler: the module is imported, and its attribute of this name is this object. If a function was
replaced in its module, the pickler gets the whole call and refuses it.

A pickle is a program for a stack machine. A call's pickle is assembled from three parts: "push the
function" (without memoizing), the program that pushes the arguments, and "make a tuple of two".
"""

from __future__ import annotations

import copyreg
import functools
import sys
import types
from collections.abc import Callable
from typing import Any, Final

END_OF_CALL: Final = b"\x86."
"""Opcodes after the arguments: TUPLE2, STOP. They replace the STOP of the arguments' own pickle."""
END_OF_CALL_OF_TWO: Final = b"\x86" + END_OF_CALL
"""The same if the arguments are the second of two."""
CALL_WITHOUT_ARGUMENTS: Final = b")" + END_OF_CALL
"""Opcodes after the start for a call without arguments: EMPTY_TUPLE first."""
AFTER_PROTOCOL: Final = 2
"""Offset behind PROTO in the pickle of the arguments; the start has its own."""

_MAX_KNOWN: Final = 256
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_MAX_SHORT: Final = 1000
# The types that the pickler pickles by reference (Modules/_pickle.c, `save` and `save_global`).
_KINDS: Final = frozenset({types.FunctionType, types.BuiltinFunctionType, type})
_ASYNCHRONOUS: Final = 0x80 | 0x200  # CO_COROUTINE and CO_ASYNC_GENERATOR of `inspect`
# The letters of names without encoding and without line breaks.
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")


class CallsByReference:
    """The known starts of pickled calls, by function."""

    __slots__ = ("_joined", "_known")

    def __init__(self) -> None:
        self._known: Final[dict[Callable[..., Any], tuple[str, str, bytes]]] = {}
        self._joined: Final[dict[tuple[Callable[..., Any], bytes], bytes]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def start_of(self, function: Callable[..., Any]) -> bytes | None:
        """Return the start of the pickle of a call of ``function``.

        None means that the pickler must decide.
        """
        kind = type(function)
        if kind not in _KINDS or kind in copyreg.dispatch_table:
            return None
        try:
            module, name, start = self._known[function]
        except KeyError:
            known = self._remember(function)
            if known is None:
                return None
            module, name, start = known
        try:
            if sys.modules[module].__dict__[name] is function:
                return start
        except (KeyError, AttributeError):
            pass
        return None

    def start_of_two(self, ours: Callable[..., Any], first: Callable[..., Any]) -> bytes | None:
        """Return the start for a call of ``ours`` with ``first`` and one more argument.

        ``ours`` must not be replaced in its module.
        """
        start = self.start_of(first)
        if start is None:
            return None
        try:
            return self._joined[ours, start]
        except KeyError:
            start_of_ours = self.start_of(ours)
            if start_of_ours is None:
                return None
            self._joined[ours, start] = joined = start_of_ours + start[AFTER_PROTOCOL:]
            return joined

    def _remember(self, function: Callable[..., Any]) -> tuple[str, str, bytes] | None:
        check_function(function)
        module, name = function.__module__, function.__qualname__
        if type(function) is types.BuiltinFunctionType and type(function.__self__) is not types.ModuleType:
            # A bound method, which is pickled differently.
            return None
        if type(module) is not str or not _PLAIN.issuperset(module) or not _PLAIN.issuperset(name):
            return None
        if "." in name or type(sys.modules.get(module)) is not types.ModuleType:
            return None
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
            self._joined.clear()
        known = module, name, b"\x80\x05c%b\n%b\n" % (module.encode(), name.encode())
        self._known[function] = known
        return known


def check_function(function: Any, caller: str = "run_sync") -> None:
    """Raise TypeError unless a job's function is synchronous, as far as it shows.

    The message names the ``caller``.
    """
    inner = function
    while type(inner) is functools.partial:
        inner = inner.func
    if type(inner) is types.MethodType:
        inner = inner.__func__
    if not callable(function) or (type(inner) is types.FunctionType and inner.__code__.co_flags & _ASYNCHRONOUS):
        from .._slips import wrong_function

        raise wrong_function(function, inner, caller)


def are_small(args: tuple[Any, ...]) -> bool:
    """Return True if all arguments are numbers and short texts."""
    for value in args:
        kind = type(value)
        if kind not in _NUMBERS and ((kind is not str and kind is not bytes) or len(value) > _MAX_SHORT):
            return False
    return len(args) <= _MAX_SHORT
