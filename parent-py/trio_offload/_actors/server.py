"""The task that runs the calls which jobs make to an actor."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import outcome
import trio

from .._wait_graph import WAITS
from .turns import Turn, TurnOfJob, Turns

if TYPE_CHECKING:
    from .._wait_graph import Awaited


class Served(Protocol):
    """A call that the server runs."""

    def enter(self, scope: trio.CancelScope) -> None:
        """Note that it runs inside of this scope, which ends it."""

    def end(self, result: outcome.Value[Any] | outcome.Error) -> None:
        """Note its result."""


class Server:
    """A system task, because a job may call an actor from anywhere.

    It hosts the running method of a job's call, so that this outlives the job: a job that dies
    does not take the actor with it. The method is told instead.
    """

    def __init__(self, run: Callable[[Turn], Awaitable[Any]], context: contextvars.Context) -> None:
        """``run`` runs a call, whose callbacks get the ``context``."""
        self._run = run
        self._scope = trio.CancelScope()
        self._turn: Any = None  # a Turn that is Served too
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

    def serve(self, turn: Served) -> None:
        """Run a call that has the turn."""
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

    async def _serve_one(self, turn: Any) -> None:
        with trio.CancelScope(shield=True) as scope:
            turn.enter(scope)
            result = await outcome.acapture(self._run, turn)
        turn.end(result)
