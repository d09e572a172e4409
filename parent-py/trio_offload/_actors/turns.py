"""The calls of one actor: one runs, the others wait in the order of their arrival."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import outcome
import trio

from .._exceptions import BrokenWorkerError
from .._pickling import calls as _calls
from .._pickling.payload import Payload, release
from .._sync.pickled_items import closing_temporary_ends, has_handles
from .._wait_graph import WAITS
from .._worker.callbacks import fail
from .._worker.requests import TaskOwner

if TYPE_CHECKING:
    from .._wait_graph import Awaited
    from .._worker.requests import Request


class Turn:
    """A call that waits for its turn, or runs."""

    spins = False
    """True if its task polls for the result before it waits."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload
        self.is_sent = False
        """True if the worker may have begun it."""

    def begin(self) -> None:
        """Run it: it has the turn."""
        raise NotImplementedError

    def refuse(self, error: Exception) -> None:
        """End it with an exception: it does not get the turn."""
        raise NotImplementedError


class TurnOfTask(Turn):
    """A call of a task, which runs it itself."""

    spins = True

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._task: trio.lowlevel.Task | None = None
        self._error: Exception | None = None

    async def wait(self, actor: Awaited, leave: Callable[[Turn], object]) -> None:
        """Wait for the turn. A checkpoint.

        Args:
            actor: whom the task waits for.
            leave: takes it out of the queue. It does not run then.

        Raises:
            DeadlockError: the wait would close a circle.
        """
        self._task = task = trio.lowlevel.current_task()
        owner = TaskOwner(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            leave(self)
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            WAITS.add(owner, actor)
        except BaseException:
            leave(self)
            raise
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            WAITS.remove(owner)
        if self._error is not None:
            raise self._error

    def begin(self) -> None:
        """As :meth:`Turn.begin`."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    def refuse(self, error: Exception) -> None:
        """As :meth:`Turn.refuse`."""
        self._error = error
        self.begin()


class TurnOfJob(Turn):
    """A call of a job, which the actor's server runs."""

    def __init__(self, payload: Payload, request: Request, serve: Callable[[TurnOfJob], object]) -> None:
        super().__init__(payload)
        self.request = request
        self._serve = serve

    def begin(self) -> None:
        """As :meth:`Turn.begin`."""
        self.request.on_withdraw = None
        self.request.ends_itself = True
        self._serve(self)

    def enter(self, scope: trio.CancelScope) -> None:
        """As :meth:`Served.enter`."""
        request = self.request
        request.on_withdraw = scope.cancel
        if request.withdrawn_as or request.is_over:
            scope.cancel()

    def end(self, result: outcome.Value[Any] | outcome.Error) -> None:
        """As :meth:`Served.end`."""
        request = self.request
        WAITS.remove(request.owner)
        request.on_withdraw = None
        if isinstance(result, outcome.Value):
            _reply(request, result.value)
        elif request.withdrawn_as and isinstance(result.error, trio.Cancelled):
            request.complete(request.withdrawn_as)
        elif isinstance(result.error, BrokenWorkerError):
            # The job would have to import this package for the exception itself.
            request.fail(trio.BrokenResourceError(str(result.error)))
        else:
            fail(request, result.error)

    def refuse(self, error: Exception) -> None:
        """As :meth:`Turn.refuse`."""
        WAITS.remove(self.request.owner)
        self.request.fail(error)


class Turns:
    """The queue of calls. The running one is not in it."""

    def __init__(self, limit: float, prepare: Callable[[Turn], object]) -> None:
        """``prepare`` is called with each call that gets the turn, before it begins."""
        self._limit = limit
        self._prepare = prepare
        self._waiting: OrderedDict[Turn, None] = OrderedDict()
        self.running: Turn | None = None
        """The call that has the turn."""
        self._on_idle: trio.Event | None = None

    def __len__(self) -> int:
        """Return the number of calls that wait."""
        return len(self._waiting)

    def enter(self, turn: Turn) -> None:
        """Give a call the turn, or let it wait. Raises as :meth:`enqueue`."""
        if self.running is None:
            self.give(turn)
        else:
            self.enqueue(turn)

    def enqueue(self, turn: Turn) -> None:
        """Let a call wait.

        Raises:
            WouldBlock: too many wait already.
        """
        if len(self._waiting) >= self._limit:
            release(turn.payload)
            raise trio.WouldBlock(f"the actor has {len(self._waiting)} waiting calls, which is its max_pending")
        self._waiting[turn] = None

    def leave(self, turn: Turn) -> None:
        """Take a call out of the queue."""
        self._waiting.pop(turn, None)
        release(turn.payload)

    def next(self) -> None:
        """End the turn of the running call, and give it to the first that waits."""
        if not self._waiting:
            self.running = None
            if self._on_idle is not None:
                self._on_idle.set()
            return
        self.give(self._waiting.popitem(last=False)[0])

    def give(self, turn: Turn) -> None:
        """Give a call the turn, and begin it."""
        self.running = turn
        self._prepare(turn)
        turn.begin()

    def refuse(self, make_error: Callable[[], Exception]) -> None:
        """End all calls that wait."""
        waiting = list(self._waiting)
        self._waiting.clear()
        for turn in waiting:
            release(turn.payload)
            turn.refuse(make_error())

    async def wait_idle(self) -> None:
        """Wait until the queue is empty and the running call has ended."""
        if self.running is not None:
            if self._on_idle is None:
                self._on_idle = trio.Event()
            await self._on_idle.wait()


def _reply(request: Request, segments: list[Any]) -> None:
    try:
        if has_handles(segments[0]):
            with closing_temporary_ends():
                request.complete_value(_calls.load(segments))
        else:
            request.complete("value", segments)
    except Exception as error:
        request.fail(error)
