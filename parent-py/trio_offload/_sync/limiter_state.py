"""The state of a capacity limiter: the borrowers of its tokens, and the queue."""

from __future__ import annotations

from collections.abc import Hashable

from .parking import Parking, Waiter


class LimiterState:
    """Tokens, one for each borrower. A returned one goes to the first waiter."""

    __slots__ = ("_pending", "_total", "_waiting", "borrowers")

    def __init__(self, total_tokens: float) -> None:
        self.borrowers: dict[Hashable, None] = {}
        self._total = total_tokens
        self._waiting: Parking[tuple[Hashable]] = Parking()
        self._pending: set[Hashable] = set()

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._waiting)

    def waiting_owners(self) -> list[Hashable]:
        """Return the owners of the waiters, the first first."""
        return self._waiting.owners()

    @property
    def total_tokens(self) -> float:
        """Number of tokens. More borrowers than tokens are possible after it has fallen."""
        return self._total

    @total_tokens.setter
    def total_tokens(self, total_tokens: float) -> None:
        self._total = total_tokens
        self._lend()

    def try_acquire(self, borrower: Hashable) -> bool:
        """Borrow a token. False means that the borrower has to wait.

        Raises:
            RuntimeError: the borrower has a token of this limiter, or waits for one.
        """
        if borrower in self.borrowers:
            raise RuntimeError("this borrower is already holding one of this CapacityLimiter's tokens")
        if borrower in self._pending:
            raise RuntimeError("this borrower is already waiting for one of this CapacityLimiter's tokens")
        if self._waiting or len(self.borrowers) >= self._total:
            return False
        self.borrowers[borrower] = None
        return True

    def park(self, waiter: Waiter, borrower: Hashable) -> None:
        """Let a waiter wait, after :meth:`try_acquire` has returned False."""
        self._pending.add(borrower)
        self._waiting.add(waiter, (borrower,))

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a waiter."""
        detail = self._waiting.remove(waiter)
        if detail is not None:
            self._pending.discard(*detail)

    def release(self, borrower: Hashable) -> None:
        """Return the borrower's token.

        Raises:
            RuntimeError: it lacks one.
        """
        if borrower not in self.borrowers:
            raise RuntimeError("this borrower isn't holding any of this CapacityLimiter's tokens")
        self.gone(borrower)

    def gone(self, borrower: Hashable) -> bool:
        """Return the token of a borrower that has ended. False means that it lacked one."""
        if borrower not in self.borrowers:
            return False
        del self.borrowers[borrower]
        self._lend()
        return True

    def _lend(self) -> None:
        while self._waiting and len(self.borrowers) < self._total:
            waiter, (borrower,) = self._waiting.pop()
            self._pending.discard(borrower)
            self.borrowers[borrower] = None
            waiter.complete(None)
