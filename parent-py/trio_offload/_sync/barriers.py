"""``Barrier``: tasks and jobs that wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio

from .._worker.requests import Post, Request
from .barrier_state import BarrierState, OnDeath
from .handles import Handle, PlainGrant
from .replies import MISTAKES, JobWaiter, facts, fail
from .statistics import WaitStatistics
from .waiters import TaskWaiter

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant


class Barrier(Handle):
    """A place where tasks and jobs wait for each other, like :class:`threading.Barrier`.

    ::

        barrier = trio_offload.Barrier(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_offload.run_sync, job, barrier)  # in the job: `barrier.wait()`
            await barrier.wait()

    All continue when the last party has arrived. If one gives up, because of a timeout or a
    cancellation, or its worker dies, the barrier breaks: the others get
    :exc:`BrokenBarrierError`, until :meth:`reset` is called.

    Args:
        parties: Number of parties.
        on_death: ``"break"`` as described. ``"shrink"``: a worker that dies while its job waits
            here makes it one party less.

    Raises:
        TypeError: ``parties`` is not an integer.
        ValueError: ``parties`` is below 1.
    """

    kind: ClassVar[str] = "barrier"

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.Barrier:
            """As ``Handle.handle``."""

    def __init__(self, parties: int, *, on_death: OnDeath = "break") -> None:
        super().__init__()
        if not isinstance(parties, int):
            raise TypeError(f"parties must be an int, got {parties!r}")
        if parties < 1:
            raise ValueError(f"parties must be >= 1, got {parties}")
        if on_death not in ("break", "shrink"):
            raise ValueError(f"on_death must be 'break' or 'shrink', got {on_death!r}")
        self._state = BarrierState(parties, on_death)

    def __repr__(self) -> str:
        text = "broken" if self.broken else f"{self.n_waiting}/{self.parties} have arrived"
        return f"<trio_offload.Barrier at {id(self):#x}, {text}>"

    @property
    def parties(self) -> int:
        """Number of parties."""
        return self._state.parties

    @property
    def n_waiting(self) -> int:
        """Number of parties that have arrived and wait for the others."""
        return self._state.waiting

    @property
    def broken(self) -> bool:
        """True if the barrier is broken."""
        return self._state.is_broken

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> int:
        """Wait for the other parties. A checkpoint.

        Returns:
            The index of this party, 0 for the first that arrived, and so on.

        Raises:
            BrokenBarrierError: The barrier is broken, or breaks now.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        index = self._state.try_pass()
        if index is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return index
        waiter: TaskWaiter[int] = TaskWaiter()
        self._state.park(waiter)
        return await waiter.wait(lambda: self._state.withdraw(waiter))

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """Break the barrier."""
        self._state.abort()

    @trio.lowlevel.enable_ki_protection
    def reset(self) -> None:
        """Mend and empty the barrier. Those that wait get BrokenBarrierError."""
        self._state.reset()

    def statistics(self) -> WaitStatistics:
        """Return the number of waiters."""
        return WaitStatistics(self._state.waiting)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _BarrierGrant(self)


class _BarrierGrant(PlainGrant):
    """What a call may do with a barrier."""

    handle: Barrier

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        state = self.handle._state
        try:
            if request.op == "wait":
                index = state.try_pass()
                if index is None:
                    state.park(JobWaiter(request, withdraw=lambda waiter: state.withdraw(waiter, died=request.is_over)))
                else:
                    request.complete_value(index)
            elif request.op == "facts":
                request.complete_value((state.parties, state.waiting, state.is_broken))
            elif request.op == "statistics":
                request.complete_value(facts(self.handle.statistics()))
            else:
                super().request(request)
        except MISTAKES as error:
            fail(request, error)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "abort":
            self.handle._state.abort()
        elif post.op == "reset":
            self.handle._state.reset()
