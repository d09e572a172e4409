"""``CapacityLimiter``: tokens with borrowers, for tasks and jobs."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio

from .._worker.requests import Death, JobOwner, Post, Request
from .handles import Acquirable, PlainGrant
from .limiter_state import LimiterState
from .replies import MISTAKES, JobWaiter, facts, fail, warn
from .statistics import CapacityLimiterStatistics, public_owner
from .waiters import TaskOwner, TaskWaiter

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant


class CapacityLimiter(Acquirable):
    """A limit for tasks and jobs that do something, like :class:`trio.CapacityLimiter`.

    ::

        downloads = trio_offload.CapacityLimiter(3)
        await trio_offload.run_sync(job, downloads)  # in the job: `with downloads:`

    Each borrower has one token: a task, a thread of a job, or an object on whose behalf another
    one borrows. A returned token goes to the first waiter. A dead job's tokens come back. If a job
    returns with tokens, they come back too, with a ``RuntimeWarning``.

    It also serves as the ``limiter`` of :func:`run_sync` and :func:`map`, as Trio's does. There a
    job that waits for the program lends its token.

    Args:
        total_tokens: Number of tokens. :data:`math.inf` lifts the limit.

    Raises:
        TypeError: ``total_tokens`` must be an integer or :data:`math.inf`.
        ValueError: ``total_tokens`` is negative.
    """

    kind: ClassVar[str] = "capacity_limiter"
    _lends_tokens: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.CapacityLimiter:
            """As ``Handle.handle``."""

    def __init__(self, total_tokens: float) -> None:
        super().__init__()
        self._state = LimiterState(_checked(total_tokens))

    def __repr__(self) -> str:
        state = self._state
        return (
            f"<trio_offload.CapacityLimiter at {id(self):#x}, {len(state.borrowers)}/{state.total_tokens} "
            f"with {state.waiting} waiting>"
        )

    @property
    def total_tokens(self) -> float:
        """Number of tokens. If it falls, borrowers keep theirs until they return them."""
        return self._state.total_tokens

    @total_tokens.setter
    def total_tokens(self, total_tokens: float) -> None:
        self._state.total_tokens = _checked(total_tokens)

    @property
    def borrowed_tokens(self) -> int:
        """Number of tokens that are borrowed."""
        return len(self._state.borrowers)

    @property
    def available_tokens(self) -> float:
        """Number of tokens that are free. Negative if ``total_tokens`` has fallen below."""
        return self.total_tokens - self.borrowed_tokens

    @property
    def _pending_borrowers(self) -> list[trio.lowlevel.Task]:
        """The tasks that wait for a token, under Trio's name."""
        return [owner.task for owner in self._state.waiting_owners() if isinstance(owner, TaskOwner)]

    def acquire_nowait(self) -> None:
        """Borrow a token for this task without waiting.

        Raises:
            trio.WouldBlock: All tokens are taken.
            RuntimeError: The task has one of this limiter's tokens.
        """
        self.acquire_on_behalf_of_nowait(trio.lowlevel.current_task())

    @trio.lowlevel.enable_ki_protection
    def acquire_on_behalf_of_nowait(self, borrower: object) -> None:
        """Borrow a token for an object without waiting.

        Args:
            borrower: A task, or any hashable object.

        Raises:
            trio.WouldBlock: All tokens are taken.
            RuntimeError: The borrower has one of this limiter's tokens.
        """
        self.bind()
        if not self._state.try_acquire(_key(borrower)):
            raise trio.WouldBlock

    async def acquire(self) -> None:
        """Borrow a token for this task, and wait until one is free. A checkpoint.

        Raises:
            RuntimeError: The task has one of this limiter's tokens.
        """
        await self.acquire_on_behalf_of(trio.lowlevel.current_task())

    @trio.lowlevel.enable_ki_protection
    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Borrow a token for an object, and wait until one is free. A checkpoint.

        Args:
            borrower: A task, or any hashable object.

        Raises:
            RuntimeError: The borrower has one of this limiter's tokens, or waits for one.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        key = _key(borrower)
        if self._state.try_acquire(key):
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            waiter: TaskWaiter[None] = TaskWaiter()
            self._state.park(waiter, key)
            await waiter.wait(lambda: self._state.withdraw(waiter))

    def release(self) -> None:
        """Return the token of this task.

        Raises:
            RuntimeError: The task lacks one.
        """
        self.release_on_behalf_of(trio.lowlevel.current_task())

    @trio.lowlevel.enable_ki_protection
    def release_on_behalf_of(self, borrower: object) -> None:
        """Return the token of an object.

        Args:
            borrower: The object for which it was borrowed.

        Raises:
            RuntimeError: The object lacks one.
        """
        self._state.release(_key(borrower))

    def statistics(self) -> CapacityLimiterStatistics:
        """Return the state of the limiter."""
        state = self._state
        borrowers = [key.borrower if isinstance(key, _OnBehalf) else public_owner(key) for key in state.borrowers]
        return CapacityLimiterStatistics(len(borrowers), state.total_tokens, borrowers, state.waiting)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _LimiterGrant(self)


@attrs.frozen
class _OnBehalf:
    """An object on whose behalf this program borrows. It cannot equal an owner."""

    borrower: Hashable


def _key(borrower: object) -> Hashable:
    return TaskOwner(borrower) if isinstance(borrower, trio.lowlevel.Task) else _OnBehalf(borrower)


def _checked(total_tokens: float) -> float:
    if not isinstance(total_tokens, int) and total_tokens != math.inf:
        raise TypeError(f"total_tokens must be an int or math.inf, got {total_tokens!r}")
    if total_tokens < 0:
        raise ValueError(f"total_tokens must be >= 0, got {total_tokens}")
    return total_tokens


@attrs.frozen
class _OnBehalfInJob:
    """An object on whose behalf a job borrows. The job numbers such objects."""

    grant: PlainGrant = attrs.field(eq=id, repr=False)
    number: int
    job: str = attrs.field(eq=False)

    def __str__(self) -> str:
        return f"object {self.number} of {self.job}"


class _LimiterGrant(PlainGrant):
    """What a call may do with a limiter."""

    handle: CapacityLimiter

    def __init__(self, handle: CapacityLimiter) -> None:
        super().__init__(handle)
        # The thread that borrows or has borrowed, and the number of its request.
        self._borrowers: dict[Hashable, tuple[JobOwner, int]] = {}

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        try:
            if request.op in ("acquire", "acquire_nowait"):
                self._acquire(request)
            elif request.op == "resize":
                self.handle.total_tokens = request.load()
                request.complete()
            elif request.op == "statistics":
                request.complete_value(facts(self.handle.statistics()))
            else:
                super().request(request)
        except MISTAKES as error:
            fail(request, error)

    def _acquire(self, request: Request) -> None:
        state = self.handle._state
        key = self._key(request)
        if state.try_acquire(key):
            request.complete()
        elif request.op == "acquire_nowait":
            raise trio.WouldBlock
        else:
            state.park(JobWaiter(request, withdraw=state.withdraw), key)
        self._borrowers[key] = request.owner, request.number

    def _key(self, message: Request | Post) -> Hashable:
        if message.count:
            return _OnBehalfInJob(self, message.count, str(message.owner))
        return message.owner

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "release":
            self._give_back([self._key(post)])
        elif post.op == "return":
            # The job was interrupted while it acquired, in the request with this number.
            self._give_back([key for key, (_, number) in self._borrowers.items() if number == post.count])
        elif post.op == "end":
            self._end([key for key, (owner, _) in self._borrowers.items() if owner == post.owner])

    def settle(self, death: Death | None) -> None:
        """As :meth:`PlainGrant.settle`."""
        if death is None:
            self._end(list(self._borrowers))
        else:
            self._give_back(list(self._borrowers))

    def _give_back(self, keys: list[Hashable]) -> list[Hashable]:
        """Return the tokens of these borrowers, and the borrowers that had one."""
        for key in keys:
            self._borrowers.pop(key, None)
        return [key for key in keys if self.handle._state.gone(key)]

    def _end(self, keys: list[Hashable]) -> None:
        for key in self._give_back(keys):
            warn(f"{key} ended with a token of {self.handle!r}, which was returned")
