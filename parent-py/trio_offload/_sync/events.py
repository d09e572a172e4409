"""``Event``: a flag that tasks and jobs wait for."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, ClassVar, Literal

import trio

from .._worker.board import Board, give_flag_back, take_flag
from .._worker.requests import Death, Post, Request
from .event_state import EventState
from .handles import Handle, PlainGrant
from .replies import JobWaiter, facts
from .statistics import WaitStatistics
from .waiters import TaskWaiter

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant
    from .._worker.conversation import Conversation


class Event(Handle):
    """A flag that tasks and jobs set, reset and wait for, like :class:`trio.Event`.

    ::

        ready = trio_offload.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_offload.run_sync, job, ready)  # in the job: `ready.set()`
            await ready.wait()

    It can be reset, unlike Trio's. A new event for each occasion is less prone to races.
    """

    kind: ClassVar[str] = "event"

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.Event:
            """As ``Handle.handle``."""

    def __init__(self) -> None:
        super().__init__()
        self._state = EventState()
        # Its place among the flags in the record of each worker. None means that no job has it.
        self._flag: int | None = None
        self._boards: list[Board] = []
        # During a fork, if the worker gets it in its `init` or `retire`.
        self._is_shown_in_copy = False

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
        self._state.is_set = True
        self._show()  # before the wait of a job ends, which may look then
        self._state.set()

    @trio.lowlevel.enable_ki_protection
    def clear(self) -> None:
        """Reset the flag. Waits that have ended stay ended."""
        self._state.clear()
        self._show()

    async def wait(self) -> None:
        """Wait until the flag is set. A checkpoint."""
        if self._state.is_set:
            await trio.lowlevel.checkpoint_if_cancelled()
            await trio.lowlevel.cancel_shielded_checkpoint()
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

    def details(self, grant: Grant | None) -> tuple[int]:
        """As :meth:`Handle.details`: the number of its flag, 0 for none."""
        if grant is None and not self._is_shown_in_copy:
            return (0,)  # the record shows the events that were granted
        if self._flag is None:
            self._flag = take_flag()
            if self._flag:
                weakref.finalize(self, give_flag_back, self._flag).atexit = False
        return (self._flag,)

    def _show(self) -> None:
        if self._flag:
            for board in self._boards:
                board.show(self._flag, self._state.is_set)


class _EventGrant(PlainGrant):
    """What a call may do with an event."""

    handle: Event

    def __init__(self, handle: Event) -> None:
        super().__init__(handle)
        self._boards: list[Board] = []

    def begin(self, conversation: Conversation) -> None:
        """As :meth:`PlainGrant.begin`: from now on the job sees the event on the worker's board."""
        board = conversation.board
        self._boards.append(board)
        self.handle._boards.append(board)
        if self.handle._flag:
            board.show(self.handle._flag, self.handle.is_set())

    def settle(self, death: Death | None) -> None:
        """As :meth:`PlainGrant.settle`."""
        for board in self._boards:
            self.handle._boards.remove(board)

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
            self.handle.set()
        elif post.op == "clear":
            self.handle.clear()
