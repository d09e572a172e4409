"""The state of a semaphore: a number, the queue, and what each job has taken."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from .parking import Parking, Waiter

OnDeath = Literal["return", "keep"]


class SemaphoreState:
    """A number of tokens. A released one goes to the first waiter, so waiters imply zero tokens.

    Anybody may release a token. *Accounts* count what a job takes and releases,
    because its death returns the rest.

    Args:
        value: tokens at the start.
        max_value: most tokens, by default unlimited.
        on_death: the effect of a death: ``"return"`` the tokens of its account, or ``"keep"``
            them taken.
    """

    __slots__ = ("_taken", "_waiting", "max_value", "on_death", "value")

    def __init__(self, value: int, max_value: int | None = None, on_death: OnDeath = "return") -> None:
        self.value = value
        self.max_value = max_value
        self.on_death = on_death
        self._waiting: Parking[tuple[Hashable | None]] = Parking()
        self._taken: dict[Hashable, int] = {}

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._waiting)

    def waiting_owners(self) -> list[Hashable]:
        """Return the owners of the waiters, the first first."""
        return self._waiting.owners()

    def taken(self, account: Hashable) -> int:
        """Return the number of tokens that an account has taken and not released."""
        return self._taken.get(account, 0)

    def accounts(self) -> list[Hashable]:
        """Return the accounts that have tokens."""
        return list(self._taken)

    def try_acquire(self, account: Hashable | None = None) -> bool:
        """Take a token. False means that the caller has to wait. None means without an account."""
        if not self.value:
            return False
        self.value -= 1
        self._enter(account)
        return True

    def park(self, waiter: Waiter, account: Hashable | None = None) -> None:
        """Let a waiter wait, after :meth:`try_acquire` has returned False."""
        self._waiting.add(waiter, (account,))

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a waiter."""
        self._waiting.remove(waiter)

    def release(self, account: Hashable | None = None) -> None:
        """Return a token.

        Raises:
            ValueError: the semaphore has ``max_value`` tokens already.
        """
        if not self._waiting and self.value == self.max_value:
            raise ValueError("semaphore released too many times")
        taken = self._taken.get(account, 0)
        if taken > 1:
            self._taken[account] = taken - 1
        elif taken:
            del self._taken[account]
        self._give_back()

    def gone(self, account: Hashable, *, died: bool) -> int:
        """Close an account, and return the number of tokens that came back.

        An orderly end leaves them taken: the job may have taken them for others.
        """
        taken = self._taken.pop(account, 0)
        if not died or self.on_death == "keep":
            return 0
        # Others may have released in its place.
        room = taken if self.max_value is None else self.max_value - self.value + len(self._waiting)
        returned = min(taken, room)
        for _ in range(returned):
            self._give_back()
        return returned

    def _give_back(self) -> None:
        if self._waiting:
            waiter, (account,) = self._waiting.pop()
            self._enter(account)
            waiter.complete(None)
        else:
            self.value += 1

    def _enter(self, account: Hashable | None) -> None:
        if account is not None:
            self._taken[account] = self._taken.get(account, 0) + 1
