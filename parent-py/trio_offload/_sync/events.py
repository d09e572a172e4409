"""``Event``: a flag that tasks and jobs wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import trio

from .._worker.requests import Post, Request
from .event_state import EventState
from .handles import Handle, PlainGrant
from .replies import JobWaiter, facts
from .statistics import WaitStatistics
from .waiters import TaskWaiter

if TYPE_CHECKING:
    from .._pickling.payload import Grant


class Event(Handle):
    """A flag that tasks and jobs set, reset and wait for, like :class:`trio.Event`.

    It can be reset, unlike Trio's. A new event for each occasion is less prone to races.
    """

    kind: ClassVar[str] = "event"

    def __init__(self) -> None:
        super().__init__()
        self._state = EventState()

    def __repr__(self) -> str:
        text = "set" if self._state.is_set else "not set"
        return f"<trio_offload.Event at {id(self):#x}, {text} with {self._state.waiting} waiting>"

    def __bool__(self) -> Literal[True]:
        """Raise NotImplementedError, as Trio's event does: ask :meth:`is_set`."""
        raise NotImplementedError("an event is no truth value; did you mean `event.is_set()`?")

    def is_set(self) -> bool:
        """Return True if the flag is set."""
        return self._state.is_set

    @trio.lowlevel.enable_ki_protection
    def set(self) -> None:
        """Set the flag, and end all waits."""
        self._state.set()

    def clear(self) -> None:
        """Reset the flag. Waits that have ended stay ended."""
        self._state.clear()

    async def wait(self) -> None:
        """Wait until the flag is set. A checkpoint."""
        if self._state.is_set:
            await trio.lowlevel.checkpoint()
            return
        self.bind()
        waiter: TaskWaiter[None] = TaskWaiter()
        self._state.park(waiter)
        await waiter.wait(lambda: self._state.withdraw(waiter))

    def statistics(self) -> WaitStatistics:
        """Return the number of waiters."""
        return WaitStatistics(self._state.waiting)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _EventGrant(self)


class _EventGrant(PlainGrant):
    """What a call may do with an event."""

    handle: Event

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        state = self.handle._state
        if request.op == "wait":
            if state.is_set:
                request.complete()
            else:
                state.park(JobWaiter(request, withdraw=state.withdraw))
        elif request.op == "is_set":
            request.complete_value(state.is_set)
        elif request.op == "statistics":
            request.complete_value(facts(self.handle.statistics()))
        else:
            super().request(request)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "set":
            self.handle._state.set()
        elif post.op == "clear":
            self.handle._state.clear()
