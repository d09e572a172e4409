"""What ``statistics()`` of locks and the like returns: records like Trio's."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import attrs

from trio_offload_worker import PublicType

from .._documented import documented


def public_owner(owner: Hashable | None) -> Any:
    """Return the task or the job behind an owner."""
    return getattr(owner, "task", None) or getattr(owner, "call", owner)


@documented
@attrs.frozen
class LockStatistics(metaclass=PublicType):
    """The state of a lock."""

    locked: bool
    """True if it is held."""
    owner: Any
    """The holder: a :class:`trio.lowlevel.Task`, or the record of a job, whose ``str`` names it.

    None means that it is not held.
    """
    tasks_waiting: int
    """Number of tasks and jobs that wait for it."""
    abandoned: bool
    """True if a holder ended with it, until ``recover()`` is called."""


@documented
@attrs.frozen
class WaitStatistics(metaclass=PublicType):
    """The state of an event, a semaphore or a barrier."""

    tasks_waiting: int
    """Number of tasks and jobs that wait."""


@documented
@attrs.frozen
class CapacityLimiterStatistics(metaclass=PublicType):
    """The state of a capacity limiter."""

    borrowed_tokens: int
    """Number of tokens that are borrowed."""
    total_tokens: float
    """Number of tokens."""
    borrowers: list[Any]
    """The borrowers: tasks, records of jobs, and objects on whose behalf others borrow."""
    tasks_waiting: int
    """Number of tasks and jobs that wait for a token."""


@documented
@attrs.frozen
class ConditionStatistics(metaclass=PublicType):
    """The state of a condition."""

    tasks_waiting: int
    """Number of tasks and jobs that wait for a notification."""
    lock_statistics: LockStatistics
    """The state of its lock."""
