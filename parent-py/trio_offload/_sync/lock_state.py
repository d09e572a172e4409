"""The state of a lock: its holder, the queue, and the traces of a holder that ended with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Literal, Protocol

import attrs

from .._exceptions import AbandonedLockError
from .._wait_graph import WaitGraph
from .parking import Parking, Waiter

if TYPE_CHECKING:
    import signal

OnAbandon = Literal["break", "release"]


class Death(Protocol):
    """How a worker died."""

    @property
    def pid(self) -> int:
        """Process ID of the worker."""

    @property
    def function(self) -> str:
        """Name of the function that it ran."""

    @property
    def cause(self) -> str:
        """How it ended, in words that follow the worker's name."""

    @property
    def signal(self) -> signal.Signals | None:
        """Signal that ended it. None means that it was not a signal."""


class Sleepers(Protocol):
    """Waiters of a condition, which the end of its lock's holder concerns."""

    def fail_all(self, make: Callable[[], BaseException]) -> None:
        """End all waits with an exception."""


@attrs.frozen
class Abandonment:
    """How a holder ended without a release."""

    message: str
    pid: int | None
    function: str | None
    signal: signal.Signals | None

    @classmethod
    def by(cls, lock: object, owner: Hashable, death: Death | None) -> Abandonment:
        """Return the facts about the end of this owner, who held the lock."""
        if death is not None:
            text = f"worker {death.pid}, which ran {death.function}, {death.cause}"
            return cls(f"{lock} is abandoned: {text}", death.pid, death.function, death.signal)
        call = getattr(owner, "call", None)
        text = f"{owner} ended without releasing it"
        return cls(f"{lock} is abandoned: {text}", getattr(call, "pid", None), getattr(call, "function", None), None)

    def error(self) -> AbandonedLockError:
        """Return a new exception with these facts."""
        error = AbandonedLockError(f"{self.message}. Repair the data that the lock guards, then call recover()")
        error.pid, error.function, error.signal = self.pid, self.function, self.signal
        return error


@attrs.frozen
class Place:
    """A waiter's place in the queue of a lock."""

    depth: int
    """How many releases it will take."""
    pass_on: Callable[[], None] | None = None
    """Gives the notification that brought it here to another waiter of its condition."""


class LockState:
    """A lock that is handed over to the first waiter, so it is free only if the queue is empty.

    Args:
        name: its name in messages.
        graph: where its waiters are entered.
        is_reentrant: True if the holder may acquire it again.
        on_abandon: the effect of a holder that ends without a release. ``"break"`` lets all waits
            fail until :meth:`recover`, ``"release"`` hands the lock over.
    """

    __slots__ = (
        "_graph", "_pass_on", "_waiting", "abandonment", "depth", "holder", "is_reentrant", "name",
        "on_abandon", "sleepers",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        graph: WaitGraph,
        *,
        is_reentrant: bool = False,
        on_abandon: OnAbandon = "break",
    ) -> None:
        self.name = name
        self.is_reentrant = is_reentrant
        self.on_abandon = on_abandon
        self.holder: Hashable | None = None
        self.depth = 0
        self.abandonment: Abandonment | None = None
        self.sleepers: dict[Sleepers, None] = {}
        """The conditions of this lock that have waiters."""
        self._graph = graph
        self._waiting: Parking[Place] = Parking()
        self._pass_on: Callable[[], None] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._waiting)

    def waiting_owners(self) -> list[Hashable]:
        """Return the owners of the waiters, the first first."""
        return self._waiting.owners()

    def try_acquire(self, owner: Hashable, depth: int = 1) -> bool:
        """Take the lock if it is free. False means that the owner has to wait.

        Raises:
            AbandonedLockError: a holder ended without a release.
            RuntimeError: the owner holds it, and it is not reentrant.
        """
        if self.abandonment is not None:
            raise self.abandonment.error()
        if self.holder is None:
            self.holder, self.depth = owner, depth
            return True
        if self.holder != owner:
            return False
        if not self.is_reentrant:
            raise RuntimeError("attempt to re-acquire an already held Lock")
        self.depth += depth
        return True

    def park(self, waiter: Waiter, depth: int = 1) -> None:
        """Let a waiter wait for the lock, after :meth:`try_acquire` has returned False.

        Raises:
            DeadlockError: the holder waits for this owner, perhaps through others.
        """
        self._graph.add(waiter.owner, self)
        self._waiting.add(waiter, Place(depth))

    def park_notified(self, waiter: Waiter, depth: int, pass_on: Callable[[], None]) -> None:
        """Let a notified waiter of a condition wait for the lock, or give the free lock to it.

        Raises:
            DeadlockError: as :meth:`park`.
        """
        place = Place(depth, pass_on)
        if self.holder is None:
            self._give(waiter, place)
        else:
            self._graph.add(waiter.owner, self)
            self._waiting.add(waiter, place)

    def withdraw(self, waiter: Waiter) -> bool:
        """Remove a waiter. False means that it does not wait."""
        place = self._waiting.remove(waiter)
        if place is None:
            return False
        self._graph.remove(waiter.owner)
        if place.pass_on is not None:
            place.pass_on()
        return True

    def release(self, owner: Hashable) -> None:
        """Undo one acquisition, and hand the lock over with the last one.

        Raises:
            RuntimeError: the owner does not hold it.
        """
        self.check_holder(owner, "can't release a Lock you don't own")
        self.depth -= 1
        if not self.depth:
            self._hand_over()

    def release_all(self, owner: Hashable) -> int:
        """Undo all acquisitions of the holder, and return their number.

        Raises:
            RuntimeError: the owner does not hold it.
        """
        self.check_holder(owner, "can't release a Lock you don't own")
        depth = self.depth
        self._hand_over()
        return depth

    def check_holder(self, owner: Hashable, message: str) -> None:
        """Raise RuntimeError with this message unless the owner holds the lock."""
        holder = self.holder
        # Mostly it is the same object. A comparison takes 100 bytecodes.
        if holder is not owner and (holder is None or holder != owner):
            raise RuntimeError(message)

    def gone(self, owner: Hashable, death: Death | None) -> Abandonment | None:
        """Settle the end of an owner. Its waiters have been withdrawn.

        Args:
            owner: The owner.
            death: the death of its worker. None means an orderly end.

        Returns:
            The facts, if it held the lock.
        """
        if self.holder is None or self.holder != owner:
            return None
        abandonment = Abandonment.by(self, owner, death)
        pass_on = self._pass_on
        if self.on_abandon == "release":
            self._hand_over()
            if pass_on is not None:
                pass_on()
            return abandonment
        self.holder, self.depth, self._pass_on = None, 0, None
        self.abandonment = abandonment
        waiters = self._waiting.clear()
        for waiter, _ in waiters:
            self._graph.remove(waiter.owner)
        for waiter, _ in waiters:
            waiter.fail(abandonment.error())
        # They would wait for a notification of a holder, which the lock lacks until `recover`.
        for sleepers in list(self.sleepers):
            sleepers.fail_all(abandonment.error)
        return abandonment

    def recover(self) -> bool:
        """Let an abandoned lock be acquired again. False means that it was not abandoned."""
        was_abandoned = self.abandonment is not None
        self.abandonment = None
        return was_abandoned

    def _hand_over(self) -> None:
        if self._waiting:
            waiter, place = self._waiting.pop()
            self._graph.remove(waiter.owner)
            self._give(waiter, place)
        else:
            self.holder, self.depth, self._pass_on = None, 0, None

    def _give(self, waiter: Waiter, place: Place) -> None:
        self.holder, self.depth, self._pass_on = waiter.owner, place.depth, place.pass_on
        waiter.complete(None)
