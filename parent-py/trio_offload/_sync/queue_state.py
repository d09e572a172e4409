"""The state of a work queue: its buffer, its leases, and the items that failed.

An item is unfinished from the moment at which it is put until its lease is done, or it has failed.
A holder that dies fails its lease. The item fails with it, or is tried again, at the front.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import attrs

from .bounded_buffer import CLOSED, END_OF_CHANNEL, WOULD_BLOCK, BoundedBuffer, Item, Refusal
from .parking import Waiter

ON_DEATH: Final = ("fail", "retry")
REFUSED: Final = "refused"


@attrs.define(eq=False)
class LeaseState:
    """One item in the hands of one holder."""

    item: Item
    owner: Hashable
    number: int = 0
    """Number of the request that got it, for a job."""
    settled: bool = False


@attrs.define(eq=False)
class FailedLease:
    """An item that failed, with the reason of the last failure."""

    item: Item
    reason: str


class QueueState:
    """The state of a work queue.

    ``attempts`` is the number of failures after which an item has failed. At least 1.
    """

    def __init__(self, max_items: float, max_bytes: float, attempts: int = 1) -> None:
        self.buffer = BoundedBuffer(max_items, max_bytes)
        self.closed = False
        self.leases: dict[LeaseState, None] = {}
        self.failed: list[FailedLease] = []
        self._attempts = attempts
        self._joins: dict[Waiter, None] = {}

    @property
    def unfinished(self) -> int:
        """Number of items that wait or are leased."""
        return len(self.buffer) + len(self.leases)

    @property
    def parked_joins(self) -> int:
        """Number of parked joins."""
        return len(self._joins)

    def put(self, items: list[Item], waiter: Waiter | None) -> bool:
        """Put items. As :meth:`BoundedBuffer.put`.

        Raises:
            Refusal: ``closed`` or ``would_block``.
        """
        if self.closed:
            raise _closed()
        return self.buffer.put(self, items, waiter)

    def get(self, owner: Hashable, waiter: Waiter | None, number: int = 0) -> LeaseState | None:
        """Lease the first item. Return None if the waiter was parked.

        Args:
            owner: The task, or the call of a job, that holds the lease.
            waiter: The waiter to park. Without one the get must not wait.
            number: Number of the request, for a job.

        Raises:
            Refusal: ``end_of_channel`` (closed, and each item is finished) or ``would_block``.
        """

        def lease(items: list[Item]) -> LeaseState:
            state = LeaseState(items[0], owner, number)
            self.leases[state] = None
            return state

        is_over = self._is_over()
        try:
            leased: LeaseState | None = self.buffer.take(owner, 1, None if is_over else waiter, lease)
        except Refusal:
            raise (_end() if is_over else Refusal(WOULD_BLOCK)) from None
        return leased

    def join(self, waiter: Waiter) -> bool:
        """Return True if each item is finished, or park the waiter until then."""
        if not self.unfinished and not self.buffer.parked_puts:
            return True
        self._joins[waiter] = None
        return False

    def withdraw(self, waiter: Waiter) -> int | None:
        """As :meth:`BoundedBuffer.withdraw`, also for a join."""
        if waiter in self._joins:
            del self._joins[waiter]
            return 0
        count = self.buffer.withdraw(waiter)
        self._check_finished()
        return count

    def close(self) -> None:
        """Refuse further puts. Parked puts fail with ``closed``."""
        if not self.closed:
            self.closed = True
            self.buffer.fail_puts(_closed)
            self._check_finished()

    def done(self, lease: LeaseState) -> None:
        """Finish an item.

        Raises:
            Refusal: ``refused``: the lease is over.
        """
        self._settle(lease)
        self._check_finished()

    def give_back(self, lease: LeaseState) -> None:
        """Put an item back to the front. It does not count as a failure.

        Raises:
            Refusal: ``refused``: the lease is over.
        """
        self._settle(lease)
        self.buffer.put_back([lease.item])

    def fail(self, lease: LeaseState, reason: str) -> None:
        """Count a failure of an item. It goes back to the front, or has failed.

        Raises:
            Refusal: ``refused``: the lease is over.
        """
        self._settle(lease)
        lease.item.attempts += 1
        if lease.item.attempts < self._attempts:
            self.buffer.put_back([lease.item])
        else:
            self.failed.append(FailedLease(lease.item, reason))
            self._check_finished()

    def _settle(self, lease: LeaseState) -> None:
        if lease.settled:
            raise Refusal(REFUSED, "the lease is over: it was done, given back or failed before")
        lease.settled = True
        del self.leases[lease]

    def _is_over(self) -> bool:
        return self.closed and not self.unfinished

    def _check_finished(self) -> None:
        if self.unfinished or self.buffer.parked_puts:
            return
        joins, self._joins = self._joins, {}
        for waiter in joins:
            waiter.complete(None)
        if self.closed:
            self.buffer.fail_takes(_end)


def _closed() -> Refusal:
    return Refusal(CLOSED, "the work queue is closed")


def _end() -> Refusal:
    return Refusal(END_OF_CHANNEL, "the work queue is closed, and each item is finished")
