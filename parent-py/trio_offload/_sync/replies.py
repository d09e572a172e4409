"""Replies to the requests of jobs for locks and the like."""

from __future__ import annotations

import pickle
import warnings
from typing import Any, Final

import attrs
import trio

from .._exceptions import AbandonedLockError, BrokenBarrierError, DeadlockError
from .._worker.peer import logger
from .._worker.requests import Request
from .waiters import RequestWaiter

MISTAKES: Final = (
    AbandonedLockError,
    BrokenBarrierError,
    DeadlockError,
    RuntimeError,
    TypeError,
    ValueError,
    trio.WouldBlock,
)
"""The exceptions of the state machines."""


class JobWaiter(RequestWaiter):
    """The wait of a job, whose end is told by :func:`done` and :func:`fail`."""

    def complete(self, result: Any) -> None:
        """As :meth:`Waiter.complete`."""
        done(self.request, result)

    def fail(self, error: BaseException) -> None:
        """As :meth:`Waiter.fail`."""
        fail(self.request, error)


def done(request: Request, result: Any = None) -> None:
    """Reply with a result. The usual one, None, travels without a pickle."""
    if result is None:
        request.complete()
    else:
        request.complete_value(result)


def fail(request: Request, error: BaseException) -> None:
    """Reply with an exception."""
    if isinstance(error, AbandonedLockError):
        facts = pickle.dumps((error.pid, error.function, error.signal))
        request.complete("abandoned", [facts], body={"type": type(error).__name__, "message": str(error)})
    elif isinstance(error, (RuntimeError, TypeError, ValueError)) and not isinstance(
        error, (DeadlockError, BrokenBarrierError)
    ):
        # A mistake of the job: the traceback of this program is useless there.
        request.complete("refused", body={"type": type(error).__name__, "message": str(error)})
    else:
        request.fail(error)


def warn(message: str) -> None:
    """Issue a RuntimeWarning about a job that has ended.

    If the filters make it an exception, it is logged: here it would hit the caller of another job.
    """
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        logger.warning("%s", message)


def facts(statistics: Any) -> dict[str, Any]:
    """Return a record of statistics as builtin objects; tasks and jobs become texts."""
    plain: dict[str, Any] = {}
    for field in attrs.fields(type(statistics)):
        value = getattr(statistics, field.name)
        if attrs.has(type(value)) and field.name == "lock_statistics":
            value = facts(value)
        elif isinstance(value, list):
            value = [text(item) for item in value]
        elif value is not None and not isinstance(value, (bool, int, float)):
            value = text(value)
        plain[field.name] = value
    return plain


def text(owner: Any) -> str:
    """Return a text for an owner."""
    return f"the task {owner.name}" if isinstance(owner, trio.lowlevel.Task) else str(owner)
