"""The state of a condition: the waiters for a notification, in front of the queue of its lock."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from .._exceptions import DeadlockError
from .lock_state import LockState
from .parking import Parking, Waiter


class ConditionState:
    """Waiters for a notification. A notified waiter moves to the end of the lock's queue.

    A notification is passed on if its waiter leaves before it has the lock.
    """

    __slots__ = ("_sleeping", "lock")

    def __init__(self, lock: LockState) -> None:
        self.lock = lock
        self._sleeping: Parking[int] = Parking()

    @property
    def waiting(self) -> int:
        """Number of waiters without a notification."""
        return len(self._sleeping)

    def waiting_owners(self) -> list[Hashable]:
        """Return the owners of these waiters, the first first."""
        return self._sleeping.owners()

    def park(self, waiter: Waiter) -> int:
        """Release the lock and wait. Return the number of acquisitions that were undone.

        Raises:
            RuntimeError: the owner of the waiter does not hold the lock.
        """
        self.lock.check_holder(waiter.owner, "must hold the lock to wait")
        depth = self.lock.depth
        self._sleeping.add(waiter, depth)
        self.lock.sleepers[self] = None
        self.lock.release_all(waiter.owner)
        return depth

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a waiter, notified or not. It does not hold the lock."""
        if self._sleeping.remove(waiter) is None:
            self.lock.withdraw(waiter)
        else:
            self._tidy()

    def notify(self, owner: Hashable, count: int | None = 1) -> None:
        """Notify the first waiters. None means all of them.

        Raises:
            RuntimeError: the owner does not hold the lock.
        """
        self.lock.check_holder(owner, "must hold the lock to notify")
        for _ in range(len(self._sleeping) if count is None else min(count, len(self._sleeping))):
            self._notify_first()

    def fail_all(self, make: Callable[[], BaseException]) -> None:
        """End all waits with an exception."""
        waiters = self._sleeping.clear()
        self._tidy()
        for waiter, _ in waiters:
            waiter.fail(make())

    def _notify_first(self) -> None:
        """Move the first waiter to the queue of the lock. A waiter that cannot wait there fails."""
        while self._sleeping:
            waiter, depth = self._sleeping.pop()
            self._tidy()
            try:
                self.lock.park_notified(waiter, depth, self._notify_first)
            except DeadlockError as error:
                # The holder waits for a lock of this waiter. `notify` itself cannot lead here,
                # because its caller holds the lock and does not wait.
                waiter.fail(error)
            else:
                return

    def _tidy(self) -> None:
        if not self._sleeping:
            self.lock.sleepers.pop(self, None)
