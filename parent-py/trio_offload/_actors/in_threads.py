"""Actors and shared objects in threads of Trio's, where they work as in a worker."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from trio_offload_worker._requests import trio_threads
from trio_offload_worker._requests.actors import Proxy, class_of
from trio_offload_worker._requests.hosted import Itself

from .._sync.in_threads import translated


class Callee(Protocol):
    """An object whose methods jobs may call: see :class:`~.grants.Callee`."""

    kind: ClassVar[str]

    def bind(self) -> int:
        """Return the number of the handle."""

    def details_of_stand_in(self) -> tuple[str, tuple[str, ...], bool]:
        """Return the name, the special methods, and whether it is a namespace."""

    async def call_for_thread(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]: ...


class _InThread(Proxy):
    """Calls methods in the event loop, in place of the requests of a job."""

    __slots__ = ()

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        callee: Callee = self.__dict__["_callee"]
        value = translated(trio_threads.run, callee.call_for_thread, (name, args, kwargs))
        return self if value is Itself else value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        callee: Callee = self.__dict__["_callee"]
        return callee.__reduce_ex__(protocol)


def in_thread(callee: Callee) -> Proxy:
    """Return the object for a job that runs in a thread. A worker gets a stand-in for it."""
    details = callee.details_of_stand_in()
    cls = type("Proxy", (_InThread, class_of(*details[1:])), {"__slots__": ()})
    made: Proxy = cls(callee.kind, callee.bind(), *details)
    made.__dict__["_callee"] = callee
    return made
