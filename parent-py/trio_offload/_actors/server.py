"""The task that runs the calls which jobs make to an actor."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import outcome
import trio

from .._exceptions import BrokenWorkerError
from .._pickling import calls as _calls
from .._sync.pickled_items import closing_temporary_ends, has_handles
from .._wait_graph import WAITS
from .._worker.callbacks import fail
from .turns import Turn, TurnOfJob, Turns

if TYPE_CHECKING:
    from .._wait_graph import Awaited


class Server:
    """A system task, because a job may call an actor from anywhere.

    It hosts the running method of a job's call, so that this outlives the job: a job that dies
    does not take the actor with it. The method is told instead.
    """

    def __init__(self, run: Callable[[Turn], Awaitable[Any]], context: contextvars.Context) -> None:
        """``run`` runs a call, whose callbacks get the ``context``."""
        self._run = run
        self._scope = trio.CancelScope()
        self._turn: TurnOfJob | None = None
        self._idle: trio.lowlevel.Task | None = None
        trio.lowlevel.spawn_system_task(self._serve, name="the server of an actor", context=context)

    def enter(self, turn: TurnOfJob, actor: Awaited, turns: Turns) -> None:
        """Run a call if the actor is idle. Else it waits, and the job may withdraw it."""
        request = turn.request

        def leave() -> None:
            WAITS.remove(request.owner)
            turns.leave(turn)

        try:
            WAITS.add(request.owner, actor)
        except BaseException:
            turns.leave(turn)
            raise
        if turns.running is None:
            turns.give(turn)
            return
        try:
            turns.enqueue(turn)
        except trio.WouldBlock:
            WAITS.remove(request.owner)
            raise
        request.on_withdraw = leave

    def serve(self, turn: TurnOfJob) -> None:
        """Run a call that has the turn."""
        turn.request.on_withdraw = None
        turn.request.ends_itself = True
        self._turn = turn
        if self._idle is not None:
            task, self._idle = self._idle, None
            trio.lowlevel.reschedule(task)

    def close(self) -> None:
        """End the task, between two calls."""
        self._scope.cancel()

    async def _serve(self) -> None:
        with self._scope:
            while True:
                if self._turn is None:
                    self._idle = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
                turn, self._turn = self._turn, None
                if turn is not None:
                    await self._serve_one(turn)

    def _stop_waiting(self, _: Any) -> trio.lowlevel.Abort:
        self._idle = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _serve_one(self, turn: TurnOfJob) -> None:
        request = turn.request
        with trio.CancelScope(shield=True) as scope:
            request.on_withdraw = scope.cancel
            if request.withdrawn_as or request.is_over:
                scope.cancel()
            result = await outcome.acapture(self._run, turn)
        WAITS.remove(request.owner)
        request.on_withdraw = None
        if isinstance(result, outcome.Value):
            _reply(turn, result.value)
        elif request.withdrawn_as and isinstance(result.error, trio.Cancelled):
            request.complete(request.withdrawn_as)
        elif isinstance(result.error, BrokenWorkerError):
            # The job would have to import this package for the exception itself.
            request.fail(trio.BrokenResourceError(str(result.error)))
        else:
            fail(request, result.error)


def _reply(turn: TurnOfJob, segments: list[Any]) -> None:
    request = turn.request
    try:
        if has_handles(segments[0]):
            with closing_temporary_ends():
                request.complete_value(_calls.load(segments))
        else:
            request.complete("value", segments)
    except Exception as error:
        request.fail(error)
