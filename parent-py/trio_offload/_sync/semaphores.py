"""``Semaphore`` and ``BoundedSemaphore``: a number of tokens for tasks and jobs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, ClassVar

import trio

from .._worker.requests import Death, Post, Request
from .handles import Acquirable, PlainGrant
from .replies import MISTAKES, JobWaiter, facts, fail
from .semaphore_state import OnDeath, SemaphoreState
from .statistics import WaitStatistics
from .waiters import TaskWaiter

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant


class Semaphore(Acquirable):
    """A number of tokens that tasks and jobs take and release, like :class:`trio.Semaphore`.

    ::

        connections = trio_offload.Semaphore(5)
        await trio_offload.run_sync(job, connections)  # in the job: `with connections:`

    A released token goes to the first waiter. Anybody may release a token. If a
    worker dies, the tokens come back that its job has taken and not released. A job that returns
    leaves them taken.

    Args:
        initial_value: Number of tokens at the start.
        max_value: Largest number of tokens, by default unlimited.
        on_death: ``"return"`` as described. ``"keep"``: a dead job's tokens stay taken.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is negative, or the first one is above the second.
    """

    kind: ClassVar[str] = "semaphore"

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.Semaphore:
            """As ``Handle.handle``."""

    def __init__(self, initial_value: int, *, max_value: int | None = None, on_death: OnDeath = "return") -> None:
        super().__init__()
        if not isinstance(initial_value, int):
            raise TypeError(f"initial_value must be an int, got {initial_value!r}")
        if initial_value < 0:
            raise ValueError(f"initial_value must be >= 0, got {initial_value}")
        if max_value is not None:
            if not isinstance(max_value, int):
                raise TypeError(f"max_value must be None or an int, got {max_value!r}")
            if max_value < initial_value:
                raise ValueError(f"max_value must be >= initial_value, got {max_value}")
        if on_death not in ("return", "keep"):
            raise ValueError(f"on_death must be 'return' or 'keep', got {on_death!r}")
        self._state = SemaphoreState(initial_value, max_value, on_death)

    def __repr__(self) -> str:
        limit = "" if self.max_value is None else f", max_value={self.max_value}"
        return f"<trio_offload.{type(self).__name__}({self.value}{limit}) at {id(self):#x}>"

    @property
    def value(self) -> int:
        """Number of free tokens."""
        return self._state.value

    @property
    def max_value(self) -> int | None:
        """Largest number of free tokens. None means an unlimited one."""
        return self._state.max_value

    @trio.lowlevel.enable_ki_protection
    def acquire_nowait(self) -> None:
        """Take a token without waiting.

        Raises:
            trio.WouldBlock: All tokens are taken.
        """
        self.bind()
        if not self._state.try_acquire():
            raise trio.WouldBlock

    @trio.lowlevel.enable_ki_protection
    async def acquire(self) -> None:
        """Take a token, and wait until one is free. A checkpoint."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        if self._state.try_acquire():
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            waiter: TaskWaiter[None] = TaskWaiter()
            self._state.park(waiter)
            await waiter.wait(lambda: self._state.withdraw(waiter))

    @trio.lowlevel.enable_ki_protection
    def release(self) -> None:
        """Release a token: it goes to the first waiter.

        Raises:
            ValueError: There are ``max_value`` free tokens already.
        """
        self._state.release()

    def statistics(self) -> WaitStatistics:
        """Return the number of waiters."""
        return WaitStatistics(self._state.waiting)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _SemaphoreGrant(self)

    def details(self, grant: Grant | None) -> tuple[bool]:
        """As :meth:`Handle.details`: whether a release may fail."""
        return (self.max_value is not None,)


class BoundedSemaphore(Semaphore):
    """A :class:`Semaphore` that never has more tokens than at its start.

    ::

        licenses = trio_offload.BoundedSemaphore(2)
        async with licenses:
            await trio_offload.run_sync(render, "scene.blend")
        try:
            licenses.release()  # once too often
        except ValueError as error:
            print(error)

    Args:
        initial_value: Number of tokens.
        on_death: as for :class:`Semaphore`.

    Raises:
        TypeError: ``initial_value`` is not an integer.
        ValueError: ``initial_value`` is negative.
    """

    def __init__(self, initial_value: int, *, on_death: OnDeath = "return") -> None:
        super().__init__(initial_value, max_value=initial_value, on_death=on_death)


class _SemaphoreGrant(PlainGrant):
    """What a call may do with a semaphore."""

    handle: Semaphore

    def __init__(self, handle: Semaphore) -> None:
        super().__init__(handle)
        # All threads of a call share an account.
        self._account: Hashable = self

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        state = self.handle._state
        try:
            if request.op == "acquire":
                if state.try_acquire(self._account):
                    request.complete()
                else:
                    state.park(JobWaiter(request, withdraw=state.withdraw), self._account)
            elif request.op == "acquire_nowait":
                if not state.try_acquire(self._account):
                    raise trio.WouldBlock
                request.complete()
            elif request.op == "release":
                state.release(self._account)
                request.complete()
            elif request.op == "value":
                request.complete_value((state.value, state.max_value))
            elif request.op == "statistics":
                request.complete_value(facts(self.handle.statistics()))
            else:
                super().request(request)
        except MISTAKES as error:
            fail(request, error)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "release" and self.handle.max_value is None:
            self.handle._state.release(self._account)
        elif post.op == "return":
            # The job was interrupted while it acquired.
            self.handle._state.release(self._account)

    def settle(self, death: Death | None) -> None:
        """As :meth:`PlainGrant.settle`."""
        self.handle._state.gone(self._account, died=death is not None)
