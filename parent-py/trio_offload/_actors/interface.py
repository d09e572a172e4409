"""The methods of an actor's class that can be called, and the special ones that jobs have."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Final

SPECIAL: Final = (
    *("__add__", "__and__", "__bool__", "__call__", "__contains__", "__delitem__", "__ge__", "__getitem__"),
    *("__gt__", "__iadd__", "__iand__", "__imul__", "__ior__", "__isub__", "__iter__", "__ixor__", "__le__"),
    *("__len__", "__lt__", "__mul__", "__next__", "__or__", "__radd__", "__rand__", "__reversed__", "__rmul__"),
    *("__ror__", "__rsub__", "__rxor__", "__setitem__", "__sub__", "__xor__"),
)
"""The special methods of the classes of `collections.abc`, without comparisons for equality."""
_ATTRIBUTES: Final = ("__delattr__", "__getattribute__", "__setattr__")
_ASYNCHRONOUS: Final = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)


class Interface:
    """The methods of one class."""

    def __init__(self, cls: Callable[..., Any], only: frozenset[str] | None = None, *, may_be_async: bool = False) -> None:
        """Raises TypeError for anything but a class."""
        inner: Any = cls
        while isinstance(inner, functools.partial):
            inner = inner.func
        if not isinstance(inner, type):
            raise TypeError(f"cls must be a class, or a functools.partial of one, got {cls!r}")
        self.cls: type = inner
        self.name = inner.__qualname__
        self.only = only
        self._may_be_async = may_be_async
        self.has_attributes = issubclass(inner, types.SimpleNamespace)
        self._known: dict[str, Callable[..., Any]] = {}
        self._generators: dict[str, Callable[..., Any] | None] = {}

    @property
    def special(self) -> tuple[str, ...]:
        """The special methods that jobs may call."""
        return tuple(name for name in SPECIAL if callable(self._find(name)) and (self.only is None or name in self.only))

    def _find(self, name: str) -> Any:
        # Not with getattr alone: it also finds `__call__` and `__or__` of the class's own class.
        if any(name in vars(base) for base in self.cls.__mro__ if base is not object):
            return getattr(self.cls, name)
        return None

    def method(self, name: str, *, streams: bool = False) -> Callable[..., Any]:
        """Return the function of a method: messages name it.

        With ``streams`` it may be a generator function.

        Raises:
            AttributeError: the method does not exist, or is private.
            TypeError: it is asynchronous, or a generator function.
        """
        try:
            return self._known[name]
        except KeyError:
            pass
        if self.has_attributes and name in _ATTRIBUTES:
            return self._known.setdefault(name, getattr(self.cls, name))
        if self.only is not None and name not in self.only:
            raise AttributeError(f"{name!r} is not a shared method of this {self.name}")
        if name.startswith("_") and name not in SPECIAL:
            raise AttributeError(f"{self.name}.{name} is private")
        found: Any = self._find(name)
        if not callable(found):
            raise AttributeError(f"{self.name} has no method {name!r}")
        if not self._may_be_async and any(is_asynchronous(found) for is_asynchronous in _ASYNCHRONOUS):
            raise TypeError(f"{self.name}.{name} is asynchronous; methods of an actor are synchronous")
        if inspect.isgeneratorfunction(found) and name not in SPECIAL and not streams:
            remedy = "only an actor streams it" if self._may_be_async else f"use actor.stream.{name}(...)"
            raise TypeError(f"{self.name}.{name} is a generator function: {remedy}")
        return found if streams else self._known.setdefault(name, found)

    def generator_method(self, name: str) -> Callable[..., Any] | None:
        """Return the function of a generator method, or None for any other name."""
        try:
            return self._generators[name]
        except KeyError:
            pass
        found = self._find(name)
        if found is None:
            return None
        is_one = name not in SPECIAL and inspect.isgeneratorfunction(found)
        return self._generators.setdefault(name, self.method(name, streams=True) if is_one else None)

    @functools.cached_property
    def streams(self) -> bool:
        """True if ``stream`` of a job's stand-in has generator methods, and hides nothing."""
        if self.has_attributes or self._find("stream") is not None:
            return False
        names = (name for base in self.cls.__mro__ for name in vars(base) if not name.startswith("_"))
        return any(inspect.isgeneratorfunction(self._find(name)) for name in names)
