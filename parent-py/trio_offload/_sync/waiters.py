"""Who waits for a lock or the like: a task of this program, or a request of a job.

The state machines of this package know waiters by :class:`Waiter` only. A waiter is answered
exactly once, or is withdrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import outcome
import trio

from .._worker.requests import Request
from .._worker.requests import TaskOwner as TaskOwner

ResultType = TypeVar("ResultType")


def current_owner() -> TaskOwner:
    """Return the running task as an owner."""
    return TaskOwner(trio.lowlevel.current_task())


class Waiter(Protocol):
    """Somebody who waits, as a state machine sees it."""

    @property
    def owner(self) -> Hashable:
        """Who will own what is waited for."""

    def complete(self, result: Any) -> None:
        """End the wait with a result."""

    def fail(self, error: BaseException) -> None:
        """End the wait with an exception."""


class TaskWaiter(Generic[ResultType]):
    """The wait of a task."""

    def __init__(self, owner: TaskOwner | None = None) -> None:
        self.owner: TaskOwner = owner or current_owner()
        self._task: trio.lowlevel.Task | None = None
        self._outcome: outcome.Outcome[ResultType] | None = None

    def complete(self, result: ResultType) -> None:
        """As :meth:`Waiter.complete`."""
        self._end(outcome.Value(result))

    def fail(self, error: BaseException) -> None:
        """As :meth:`Waiter.fail`."""
        self._end(outcome.Error(error))

    def _end(self, result: outcome.Outcome[ResultType]) -> None:
        if self._outcome is not None:
            raise RuntimeError("a wait ends once; this is an error in trio-offload")
        self._outcome = result
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    async def wait(self, withdraw: Callable[[], object]) -> ResultType:
        """Wait until the end. A checkpoint.

        Args:
            withdraw: takes the waiter out of its place, if the wait is cancelled.
        """
        if self._outcome is None:
            self._task = trio.lowlevel.current_task()

            def abort(_: Any) -> trio.lowlevel.Abort:
                withdraw()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
            self._task = None
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if self._outcome is None:
            raise RuntimeError("the wait has not ended; this is an error in trio-offload")
        return self._outcome.unwrap()


class RequestWaiter:
    """The wait of a job.

    Args:
        request: the job's request.
        reply: completes the request with a result. None sends the result as a value.
        withdraw: takes the waiter out of its place.
    """

    def __init__(
        self,
        request: Request,
        reply: Callable[[Request, Any], None] | None = None,
        *,
        withdraw: Callable[[RequestWaiter], object],
    ) -> None:
        self.owner: Hashable = request.owner
        self._request = request
        self._reply = reply
        request.on_withdraw = lambda: withdraw(self)

    @property
    def request(self) -> Request:
        """The job's request."""
        return self._request

    def complete(self, result: Any) -> None:
        """As :meth:`Waiter.complete`."""
        if self._reply is None:
            self._request.complete_value(result)
        else:
            self._reply(self._request, result)

    def fail(self, error: BaseException) -> None:
        """As :meth:`Waiter.fail`."""
        self._request.fail(error)
