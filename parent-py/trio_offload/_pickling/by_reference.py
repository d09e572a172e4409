"""Functions that are sent by their name: the pickle of that is made once for each.

To pickle ``(function, args)`` is to a large part to find out that the function is what its module has by its name
(``save_global`` in Lib/pickle.py). What comes of that is kept, and whether it still holds is asked at each call, as the pickler
would: the module is imported, and what it has by this name is this very object. So a function that was replaced in its module is
refused as ever, by the pickler, which then gets the whole of it.

A pickle is a program for a stack. The one for a call is put together of «push the function», which remembers nothing for later,
the program that pushes the arguments, and «make a tuple of the two».
"""

from __future__ import annotations

import copyreg
import sys
import types
from collections.abc import Callable
from typing import Any, Final


class ByName:
    """The functions and classes whose names are known."""

    __slots__ = ("_joined", "_known")

    def __init__(self) -> None:
        self._known: Final[dict[Callable[..., Any], tuple[str, str, bytes]]] = {}
        self._joined: Final[dict[tuple[Callable[..., Any], bytes], bytes]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def start_of(self, function: Callable[..., Any]) -> bytes | None:
        """How the pickle of a call of ``function`` starts; None if that is for the pickler to say."""
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
        """The same for a call of ``ours`` with ``first`` and one more argument. Ours is one that nobody replaces in its module."""
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
        module, name = function.__module__, function.__qualname__
        if type(function) is types.BuiltinFunctionType and type(function.__self__) is not types.ModuleType:
            # A method, which is pickled as one.
            return None
        if type(module) is not str or not _PLAIN.issuperset(module) or not _PLAIN.issuperset(name):
            return None
        if "." in name or type(sys.modules.get(module)) is not types.ModuleType:
            return None
        if len(self._known) >= _MOST:
            self._known.clear()
            self._joined.clear()
        known = module, name, b"\x80\x05c%b\n%b\n" % (module.encode(), name.encode())
        self._known[function] = known
        return known


def are_small(args: tuple[Any, ...]) -> bool:
    """Whether all arguments are numbers and short texts."""
    for value in args:
        kind = type(value)
        if kind not in _NUMBERS and ((kind is not str and kind is not bytes) or len(value) > _SHORT):
            return False
    return len(args) <= _SHORT


END_OF_CALL: Final = b"\x86."
"""What comes after the arguments: TUPLE2, STOP. Theirs ended with a STOP alone."""
END_OF_CALL_OF_TWO: Final = b"\x86" + END_OF_CALL
"""The same if they are the second of two."""
CALL_WITHOUT_ARGUMENTS: Final = b")" + END_OF_CALL
"""What comes after the start where there are no arguments: EMPTY_TUPLE."""
AFTER_PROTOCOL: Final = 2
"""Where the pickle of the arguments goes on after it has said its protocol (PROTO), which the start says."""

_MOST: Final = 256
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_SHORT: Final = 1000
# Of these the pickler takes the name (Modules/_pickle.c, `save` and `save_global`).
_KINDS: Final = frozenset({types.FunctionType, types.BuiltinFunctionType, type})
# The letters of a name that needs no encoding, and that no line ends in.
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")
