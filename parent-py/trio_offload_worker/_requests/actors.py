"""Actors and shared objects as a job has them: their methods block."""

from __future__ import annotations

from .handles import JobHandle
from .hosted import Itself
from .pickles import dumps, result
from .requests import request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


def proxy(kind: str, id: int, name: str, special: tuple[str, ...], has_attributes: bool) -> Proxy:
    """Return the stand-in for an actor or a shared object.

    Args:
        kind: kind of the handle.
        id: its ID.
        name: name of the object's class.
        special: its special methods that jobs may use, such as ``__getitem__``; and ``stream``, if
            its generator methods are streamed.
        has_attributes: True if it is a namespace: its attributes are read and set.
    """
    return class_of(special, has_attributes)(kind, id, name, special, has_attributes)


def class_of(special: tuple[str, ...], has_attributes: bool) -> type[Proxy]:
    """Return the class of such stand-ins, as :func:`proxy` describes them."""
    key = special, has_attributes
    cls = _classes.get(key)
    if cls is None:
        base = NamespaceProxy if has_attributes else Proxy
        members: dict[str, Any] = {method: _special_method(method) for method in special if method != STREAM}
        if STREAM in special:
            members[STREAM] = property(_streams)
        cls = _classes[key] = type(base.__name__, (base,), {"__slots__": (), "__module__": __name__, **members})
    return cls


class Proxy(JobHandle):
    """An object elsewhere. A call of a method waits for its result."""

    __slots__ = ("__dict__",)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{self._details[0]!r} has no method {name!r} for jobs")
        method = _method(self, name)
        self.__dict__[name] = method
        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                f"{self._details[0]}.{name} cannot be set from a job, because the object lives elsewhere: call a method that sets it"
            )
        object.__setattr__(self, name, value)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = result(request("call " + name, self._id, dumps((args, kwargs))))
        return self if value is Itself else value

    def _stream(self, name: str, window: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a generator method. 0 stands for the usual window."""
        return result(request("call " + name, self._id, dumps((args, kwargs)), count=window))

    def __repr__(self) -> str:
        return f"<proxy of {self._details[0]} {self._id:#x}>"


class NamespaceProxy(Proxy):
    """A namespace elsewhere. Its attributes are read, set and deleted there."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._call("__getattribute__", (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self._call("__setattr__", (name, value), {})

    def __delattr__(self, name: str) -> None:
        self._call("__delattr__", (name,), {})


def _method(proxy: Proxy, name: str) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        return proxy._call(name, args, kwargs)

    method.__name__ = name
    method.__qualname__ = f"{proxy._details[0]}.{name}"
    return method


def _special_method(name: str) -> Callable[..., Any]:
    def method(self: Proxy, *args: Any, **kwargs: Any) -> Any:
        return self._call(name, args, kwargs)

    def iterating(self: Proxy) -> Any:
        value = self._call(name, (), {})
        return self if value is self else iter(value)

    made = iterating if name in ("__iter__", "__reversed__") else method
    made.__name__ = made.__qualname__ = name
    return made


def _streams(proxy: Proxy) -> Any:
    from .actor_streams import ActorStreams

    return ActorStreams(proxy)


STREAM: Final = "stream"
_classes: Final[dict[tuple[tuple[str, ...], bool], type[Proxy]]] = {}
