"""Actors and shared objects in threads of Trio's, where they work as in a worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import trio

from trio_offload_worker._requests import trio_threads
from trio_offload_worker._requests.actor_streams import ActorStream
from trio_offload_worker._requests.actors import Proxy, class_of
from trio_offload_worker._requests.hosted import Itself

from .._sync.in_threads import translated
from .relays import Relay


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


class _StreamInThread(ActorStream):
    """Takes values in the event loop."""

    __slots__ = ("_relay", "_token")

    def __init__(self, relay: Relay, token: trio.lowlevel.TrioToken) -> None:
        super().__init__(relay.kind, id(relay))
        self._relay = relay
        self._token = token

    def _take(self) -> Iterable[Any]:
        try:
            found = translated(trio_threads.run, self._relay.take_in_thread, ())
        except trio.Cancelled:
            raise
        except BaseException:
            self._is_over = True
            raise
        if isinstance(found, list):
            return found
        self._is_over = True
        raise self._stop(found.item.payload.load())

    def _close(self) -> None:
        translated(trio_threads.run, self._relay.close_in_thread, ())

    def _drop(self) -> None:
        try:
            self._token.run_sync_soon(self._relay.close)
        except trio.RunFinishedError:
            pass


class _InThread(Proxy):
    """Calls methods in the event loop, in place of the requests of a job."""

    __slots__ = ()

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        callee: Callee = self.__dict__["_callee"]
        value = translated(trio_threads.run, callee.call_for_thread, (name, args, kwargs))
        if isinstance(value, Relay):
            return _StreamInThread(value, trio_threads.current_token())
        return self if value is Itself else value

    def _stream(self, name: str, window: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        host: Any = self.__dict__["_callee"]
        relay = translated(trio_threads.run, host.stream_for_thread, (name, window, args, kwargs))
        return _StreamInThread(relay, trio_threads.current_token())

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
