"""The calls that jobs make to an actor: of its methods, and of its generator methods."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, Protocol

from trio_offload_worker._requests import hosted as _worker_side

from .._sync.pickled_items import closing_temporary_ends, has_handles
from .relays import WINDOW, Relay, TurnOfStream
from .server import Server
from .turns import Turn, TurnOfJob, Turns

if TYPE_CHECKING:
    from .._options import WorkerType
    from .._pickling.payload import Payload
    from .._worker.requests import Request
    from .interface import Interface

# What runs such a call in the worker, with its arguments as a pickle, and unpickled.
_CALLS: Final = (_worker_side.call_pickled, _worker_side.call_for_job)
_STREAMS: Final = (_worker_side.stream_pickled, _worker_side.stream_for_job)


class Host(Protocol):
    """The actor, as an :class:`Awaited` too."""

    interface: Interface

    @property
    def worker_type(self) -> WorkerType:
        """The start method of its workers."""

    @property
    def holder(self) -> Hashable | None:
        """As :attr:`Awaited.holder`."""


class JobCalls:
    """Gives the calls of jobs their turns.

    Args:
        actor: the actor.
        turns: its queue of calls.
        dump: pickles a call, with the method, the helper in the worker and its arguments.
        run: runs a call that has the turn.
    """

    def __init__(
        self,
        actor: Host,
        turns: Turns,
        dump: Callable[[Callable[..., Any], Callable[..., Any], tuple[Any, ...]], Payload],
        run: Callable[[Turn], Awaitable[Any]],
    ) -> None:
        self._actor = actor
        self._turns = turns
        self._dump = dump
        self._run = run
        self._context = contextvars.copy_context()
        self._server: Server | None = None

    def call(self, request: Request, name: str) -> None:
        """Call a method for a job. The values of a generator method are streamed."""
        interface, server = self._actor.interface, self._started()
        generator = interface.generator_method(name)
        if generator is None and request.count is not None:  # by `actor.stream`
            generator = interface.method(name, streams=True)
        if generator is None:
            payload = self._dump_for(request, interface.method(name), _CALLS, (name,))
            server.enter(TurnOfJob(payload, request, server.serve), self._actor, self._turns)
            return
        relay = Relay(self._actor, request.count or WINDOW, request.owner, self._turns.leave)
        payload = self._dump_for(request, generator, _STREAMS, (name, relay.values))
        self._turns.enter(TurnOfStream(payload, relay, server.serve))
        request.complete_value(relay)

    def stream(self, name: str, window: int, taker: Hashable, arguments: tuple[Any, ...]) -> Relay:
        """Call a generator method for a thread. ``arguments`` are positional ones and keywords."""
        relay = Relay(self._actor, window or WINDOW, taker, self._turns.leave)
        function = self._actor.interface.method(name, streams=True)
        payload = self._dump(function, _worker_side.stream_for_job, (name, relay.values, *arguments))
        self._turns.enter(TurnOfStream(payload, relay, self._started().serve))
        return relay

    def close(self) -> None:
        """End the server, between two calls."""
        if self._server is not None:
            self._server.close()

    def _started(self) -> Server:
        if self._server is None:
            self._server = Server(self._run, self._context)
        return self._server

    def _dump_for(
        self,
        request: Request,
        function: Callable[..., Any],
        helpers: tuple[Callable[..., Any], Callable[..., Any]],
        first: tuple[Any, ...],
    ) -> Payload:
        segments = request.segments
        pickled = bytes(segments[0])
        if len(segments) == 1 and not has_handles(pickled):
            return self._dump(function, helpers[0], (*first, pickled))
        with closing_temporary_ends():
            args, kwargs = request.load()
            return self._dump(function, helpers[1], (*first, args, kwargs))
