"""``Condition``: tasks and jobs that wait for a change of what a lock guards."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import trio

from .._exceptions import AbandonedLockError, DeadlockError
from .._worker.requests import Post, Request
from .condition_state import ConditionState
from .handles import Acquirable, PlainGrant
from .locks import Lock, RLock
from .replies import MISTAKES, JobWaiter, facts, fail
from .statistics import ConditionStatistics
from .waiters import TaskWaiter, current_owner

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant

ResultType = TypeVar("ResultType")


class Condition(Acquirable):
    """A condition of data behind a lock, like :class:`trio.Condition`.

    ::

        changed = trio_offload.Condition()
        async with trio.open_nursery() as nursery, changed:
            nursery.start_soon(trio_offload.run_sync, job, changed)
            await changed.wait()  # until the job notifies: `with changed: changed.notify()`

    Its holder waits for a change, and is notified by another holder. A notification goes to the
    next waiter if its first one dies, or gives up, before it has the lock again.

    If the lock is abandoned, all waits raise :exc:`AbandonedLockError`, without the lock.

    Args:
        lock: A :class:`Lock` or :class:`RLock`. None means a new :class:`Lock`.

    Raises:
        TypeError: ``lock`` is something else.
    """

    kind: ClassVar[str] = "condition"

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.Condition:
            """As ``Handle.handle``."""

    def __init__(self, lock: Lock | RLock | None = None) -> None:
        super().__init__()
        if lock is None:
            lock = Lock()
        elif not isinstance(lock, (Lock, RLock)):
            raise TypeError(f"lock must be a trio_offload.Lock or trio_offload.RLock, got {lock!r}")
        self._lock = lock
        self._state = ConditionState(lock._state)

    def __repr__(self) -> str:
        return f"<trio_offload.Condition at {id(self):#x} of {self._lock!r} with {self._state.waiting} waiting>"

    def locked(self) -> bool:
        """Return True if the lock is held."""
        return self._lock.locked()

    def acquire_nowait(self) -> None:
        """Acquire the lock, as :meth:`Lock.acquire_nowait`.

        Raises:
            trio.WouldBlock: Another task or job holds it.
            AbandonedLockError: Its holder ended with it.
            RuntimeError: This task holds it already, and it is not an :class:`RLock`.
        """
        self._lock.acquire_nowait()

    async def acquire(self) -> None:
        """Acquire the lock, as :meth:`Lock.acquire`. A checkpoint.

        Raises:
            AbandonedLockError: Its holder ended with it.
            DeadlockError: The holder waits for this task.
            RuntimeError: This task holds it already, and it is not an :class:`RLock`.
        """
        await self._lock.acquire()

    def release(self) -> None:
        """Release the lock, as :meth:`Lock.release`.

        Raises:
            RuntimeError: This task does not hold it.
        """
        self._lock.release()

    def recover(self) -> bool:
        """Let an abandoned lock be acquired again, as :meth:`Lock.recover`.

        Returns:
            True if it was abandoned.
        """
        return self._lock.recover()

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Release the lock, wait for a notification, and acquire the lock again. A checkpoint.

        A cancelled wait acquires the lock too before it raises :exc:`trio.Cancelled`.

        Raises:
            RuntimeError: This task does not hold the lock.
            AbandonedLockError: A holder ended with the lock. This task does not hold it.
            DeadlockError: The lock's holder waits for this task. This task does not hold it.
        """
        owner = current_owner()
        waiter: TaskWaiter[None] = TaskWaiter(owner)
        self._lock._state.check_holder(owner, "must hold the lock to wait")
        self._lock._unwatch()
        depth = self._state.park(waiter)
        try:
            await waiter.wait(lambda: self._state.withdraw(waiter))
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._lock._acquire(depth)
            raise
        self._lock._watch(owner)

    async def wait_for(self, predicate: Callable[[], ResultType]) -> ResultType:
        """Wait until a function returns a true value, and return that.

        The function is called at once and after each notification, while this task holds the lock.

        Args:
            predicate: The function.

        Raises:
            RuntimeError: This task does not hold the lock.
            AbandonedLockError: As :meth:`wait`.
            DeadlockError: As :meth:`wait`.
        """
        result = predicate()
        while not result:
            await self.wait()
            result = predicate()
        return result

    @trio.lowlevel.enable_ki_protection
    def notify(self, n: int = 1) -> None:
        """Notify waiters, the first first. They continue once they have the lock.

        Args:
            n: Number of waiters.

        Raises:
            RuntimeError: This task does not hold the lock.
        """
        self._state.notify(current_owner(), n)

    @trio.lowlevel.enable_ki_protection
    def notify_all(self) -> None:
        """Notify all waiters.

        Raises:
            RuntimeError: This task does not hold the lock.
        """
        self._state.notify(current_owner(), None)

    def statistics(self) -> ConditionStatistics:
        """Return the number of waiters without a notification, and the state of the lock."""
        return ConditionStatistics(self._state.waiting, self._lock.statistics())

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # `wait` may have lost the lock. An error of the release would hide the reason.
        if isinstance(exc_value, (AbandonedLockError, DeadlockError)) and self._lock._state.holder != current_owner():
            return
        self.release()

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _ConditionGrant(self)

    def details(self, grant: Grant | None) -> tuple[Any, ...]:
        """As :meth:`Handle.details`: the lock, which is granted too."""
        return (self._lock,)


class _ConditionGrant(PlainGrant):
    """What a call may do with a condition. The end of a holder is the business of its lock."""

    handle: Condition

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        state = self.handle._state
        try:
            if request.op == "wait":
                state.park(JobWaiter(request, withdraw=state.withdraw))
            elif request.op == "statistics":
                request.complete_value(facts(self.handle.statistics()))
            else:
                super().request(request)
        except MISTAKES as error:
            fail(request, error)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "notify" and self.handle._state.lock.holder == post.owner:
            self.handle._state.notify(post.owner, post.count)
