"""The state of an event: a flag, and the waiters for it."""

from __future__ import annotations

from collections.abc import Hashable

from .parking import Parking, Waiter


class EventState:
    """A flag. Waiters imply that it is not set."""

    __slots__ = ("_waiting", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: Parking[tuple[()]] = Parking()

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._waiting)

    def waiting_owners(self) -> list[Hashable]:
        """Return the owners of the waiters, the first first."""
        return self._waiting.owners()

    def set(self) -> None:
        """Set the flag, and end all waits."""
        self.is_set = True
        for waiter, _ in self._waiting.clear():
            waiter.complete(None)

    def clear(self) -> None:
        """Reset the flag."""
        self.is_set = False

    def park(self, waiter: Waiter) -> None:
        """Let a waiter wait for the flag, which is not set."""
        self._waiting.add(waiter, ())

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a waiter."""
        self._waiting.remove(waiter)
