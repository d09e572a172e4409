"""The state of a barrier: the parties that have arrived."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from .._exceptions import BrokenBarrierError
from .parking import Parking, Waiter

OnDeath = Literal["break", "shrink"]


class BarrierState:
    """Waiters for each other: all continue when the last party arrives.

    Args:
        parties: number of parties.
        on_death: the effect of a worker that dies while its job waits here: ``"break"`` the
            barrier, or ``"shrink"`` it by one party.
    """

    __slots__ = ("_waiting", "is_broken", "on_death", "parties")

    def __init__(self, parties: int, on_death: OnDeath = "break") -> None:
        self.parties = parties
        self.on_death = on_death
        self.is_broken = False
        self._waiting: Parking[tuple[()]] = Parking()

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._waiting)

    def waiting_owners(self) -> list[Hashable]:
        """Return the owners of the waiters, the first first."""
        return self._waiting.owners()

    def try_pass(self) -> int | None:
        """Arrive as the last party: let all continue and return the index of the caller.

        None means that the caller has to wait. Indexes count the parties as they arrive, from 0.

        Raises:
            BrokenBarrierError: the barrier is broken.
        """
        if self.is_broken:
            raise BrokenBarrierError("the barrier is broken; call reset() to use it again")
        if len(self._waiting) + 1 < self.parties:
            return None
        return self._let_pass()

    def park(self, waiter: Waiter) -> None:
        """Let a waiter wait for the others, after :meth:`try_pass` has returned None."""
        self._waiting.add(waiter, ())

    def withdraw(self, waiter: Waiter, *, died: bool = False) -> None:
        """Remove a waiter. The others would wait for it, so this breaks the barrier."""
        if self._waiting.remove(waiter) is None:
            return
        if not died or self.on_death == "break":
            self._break("the worker of a party died" if died else "a party stopped waiting")
            return
        self.parties -= 1
        if len(self._waiting) == self.parties:
            self._let_pass()

    def abort(self) -> None:
        """Break the barrier: waits fail, now and until :meth:`reset`."""
        self._break("it was aborted")

    def reset(self) -> None:
        """Return to the start: waits fail now, later ones do not."""
        self._break("it was reset")
        self.is_broken = False

    def _let_pass(self) -> int:
        waiters = self._waiting.clear()
        for index, (waiter, _) in enumerate(waiters):
            waiter.complete(index)
        return len(waiters)

    def _break(self, reason: str) -> None:
        self.is_broken = True
        for waiter, _ in self._waiting.clear():
            waiter.fail(BrokenBarrierError(f"the barrier is broken: {reason}"))
