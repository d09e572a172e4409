"""``Lock`` and ``RLock``: mutual exclusion of tasks and jobs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from .._wait_graph import WAITS
from .._worker.peer import logger
from .._worker.requests import Death, Post, Request
from .handles import Acquirable, PlainGrant
from .lock_state import LockState, OnAbandon
from .replies import MISTAKES, JobWaiter, facts, fail
from .statistics import LockStatistics, public_owner
from .waiters import TaskOwner, TaskWaiter, current_owner

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant

# Trio before 0.27 does not tell who ends with a lock.
_watch_end: Final[Any] = getattr(trio.lowlevel, "add_parking_lot_breaker", None)
_unwatch_end: Final[Any] = getattr(trio.lowlevel, "remove_parking_lot_breaker", None)


class _Lock(Acquirable):
    """The Trio side of both locks."""

    _is_reentrant: ClassVar[bool] = False

    def __init__(self, *, on_abandon: OnAbandon = "break") -> None:
        super().__init__()
        if on_abandon not in ("break", "release"):
            raise ValueError(f"on_abandon must be 'break' or 'release', got {on_abandon!r}")
        name = f"the {type(self).__name__} at {id(self):#x}"
        self._state = LockState(name, WAITS, is_reentrant=self._is_reentrant, on_abandon=on_abandon)
        self._end = _EndOfTask(self._state)

    def __repr__(self) -> str:
        state = self._state
        text = "abandoned" if state.abandonment else "unlocked" if state.holder is None else f"locked by {state.holder}"
        waiters = f" with {state.waiting} waiting" if state.waiting else ""
        return f"<trio_offload.{type(self).__name__} at {id(self):#x}, {text}{waiters}>"

    def locked(self) -> bool:
        """Return True if the lock is held."""
        return self._state.holder is not None

    @trio.lowlevel.enable_ki_protection
    def acquire_nowait(self) -> None:
        """Acquire the lock without waiting.

        Raises:
            trio.WouldBlock: Another task or job holds it.
            AbandonedLockError: Its holder ended with it. :meth:`recover` mends it.
            RuntimeError: This task holds it already, and it is not an :class:`RLock`.
        """
        self.bind()
        owner = current_owner()
        if not self._state.try_acquire(owner):
            raise trio.WouldBlock
        self._watch(owner)

    @trio.lowlevel.enable_ki_protection
    async def acquire(self) -> None:
        """Acquire the lock, and wait for it if it is held. A checkpoint.

        Raises:
            AbandonedLockError: Its holder ended with it. :meth:`recover` mends it.
            DeadlockError: The holder waits for this task, perhaps through others.
            RuntimeError: This task holds it already, and it is not an :class:`RLock`.
        """
        await self._acquire(1)

    async def _acquire(self, depth: int) -> None:
        """Acquire the lock as often as ``depth`` says."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        owner = current_owner()
        if self._state.try_acquire(owner, depth):
            self._watch(owner)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        waiter: TaskWaiter[None] = TaskWaiter(owner)
        self._state.park(waiter, depth)
        await waiter.wait(lambda: self._state.withdraw(waiter))
        self._watch(owner)

    @trio.lowlevel.enable_ki_protection
    def release(self) -> None:
        """Release the lock: it goes to the first waiter.

        Raises:
            RuntimeError: This task does not hold it.
        """
        owner = current_owner()
        self._state.check_holder(owner, "can't release a Lock you don't own")
        if self._state.depth == 1:
            self._unwatch()
        self._state.release(owner)

    @trio.lowlevel.enable_ki_protection
    def recover(self) -> bool:
        """Let an abandoned lock be acquired again, after its data has been repaired.

        Returns:
            True if it was abandoned.
        """
        return self._state.recover()

    def statistics(self) -> LockStatistics:
        """Return the state of the lock."""
        state = self._state
        return LockStatistics(
            locked=state.holder is not None,
            owner=public_owner(state.holder),
            tasks_waiting=state.waiting,
            abandoned=state.abandonment is not None,
        )

    def _watch(self, owner: TaskOwner) -> None:
        """Notice the end of the task that has acquired the lock."""
        self._end.watch(owner)

    def _unwatch(self) -> None:
        """Undo :meth:`_watch`: the task has released the lock."""
        self._end.unwatch()

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return LockGrant(self)


class Lock(_Lock):
    """A lock that tasks and jobs share. Only its holder may release it.

    It goes to waiters in the order of their arrival. It works like :class:`trio.Lock`, and a job
    gets it as an argument::

        lock = trio_offload.Lock()
        await trio_offload.run_sync(job, lock)  # in the job: `with lock:`

    If the holder's worker dies, or a task or a job ends without a release, the data behind the lock
    may be half changed. So all who wait for the lock, or try to acquire it, get
    :exc:`AbandonedLockError`, until :meth:`recover` is called.

    A wait that would close a cycle of holders and waiters raises :exc:`DeadlockError` at once.

    Args:
        on_abandon: ``"break"`` as described. ``"release"``: the lock goes to the next, and a
            warning is logged.

    Raises:
        ValueError: ``on_abandon`` is something else.
    """

    kind: ClassVar[str] = "lock"

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.Lock:
            """As ``Handle.handle``."""


class RLock(_Lock):
    """A :class:`Lock` whose holder may acquire it again. It is free after as many releases.

    ::

        def copy_tree(folder, lock):  # a job
            with lock:
                for inner in subfolders(folder):
                    copy_tree(inner, lock)  # which has the lock already

        lock = trio_offload.RLock()
        await trio_offload.run_sync(copy_tree, "photos", lock)

    The holder is a task, or a thread of a job.
    """

    kind: ClassVar[str] = "rlock"
    _is_reentrant: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.RLock:
            """As ``Handle.handle``."""


class _EndOfTask:
    """Gets the end of the task that holds a lock, from Trio, which takes it for a parking lot."""

    def __init__(self, state: LockState) -> None:
        self._state = state
        self._watched: TaskOwner | None = None

    def watch(self, owner: TaskOwner) -> None:
        """Ask Trio for the end of a task. The task may be watched already."""
        if _watch_end is not None and self._watched is None:
            self._watched = owner
            _watch_end(owner.task, self)

    def unwatch(self) -> None:
        """Undo :meth:`watch`."""
        if self._watched is not None:
            watched, self._watched = self._watched, None
            _unwatch_end(watched.task, self)

    def break_lot(self, task: trio.lowlevel.Task) -> None:
        """Settle the end of the task. Trio calls this."""
        self._watched = None
        settle(self._state, TaskOwner(task), None)


def settle(state: LockState, owner: Hashable, death: Death | None) -> None:
    """Settle the end of an owner that may hold the lock."""
    abandonment = state.gone(owner, death)
    if abandonment is not None and state.on_abandon == "release":
        logger.warning("%s; it goes to the next, because of on_abandon='release'", abandonment.message)


class LockGrant(PlainGrant):
    """What a call may do with a lock."""

    handle: _Lock

    def __init__(self, handle: _Lock) -> None:
        super().__init__(handle)
        # Each thread of a job, and each item of a chunk, holds locks for itself.
        self._owners: set[Hashable] = set()

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        state = self.handle._state
        try:
            if request.op == "acquire":
                self._let_acquire(state, request)
            elif request.op == "reacquire":
                # After a wait of a condition that failed, perhaps before it had begun.
                if state.holder == request.owner:
                    request.complete()
                else:
                    self._let_acquire(state, request)
            elif request.op == "acquire_nowait":
                if not state.try_acquire(request.owner):
                    raise trio.WouldBlock
                self._owners.add(request.owner)
                request.complete()
            elif request.op == "recover":
                request.complete_value(state.recover())
            elif request.op == "locked":
                request.complete_value(self.handle.locked())
            elif request.op == "statistics":
                request.complete_value(facts(self.handle.statistics()))
            else:
                super().request(request)
        except MISTAKES as error:
            fail(request, error)

    def _let_acquire(self, state: LockState, request: Request) -> None:
        if state.try_acquire(request.owner):
            request.complete()
        else:
            state.park(JobWaiter(request, withdraw=state.withdraw))
        self._owners.add(request.owner)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "release":
            state = self.handle._state
            # A job that is interrupted gives back a lock that it may not have.
            if state.holder == post.owner:
                state.release(post.owner)
        elif post.op == "end":
            settle(self.handle._state, post.owner, None)

    def settle(self, death: Death | None) -> None:
        """Settle a lock that the call holds."""
        owners, self._owners = self._owners, set()
        for owner in owners:
            settle(self.handle._state, owner, death)
