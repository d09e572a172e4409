"""The calls of a context: those in progress, with an orderly end, and the counters of all."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import attrs
import outcome
import trio

from .._statistics import WorkerContextCounters, sum_counters

CLOSED: Final = "this worker context is closed: its block has ended. Open it around all of its calls, in the same trio.run()"
_MAX_PENDING: Final = 256  # events that wait to be added up


class CallTracker:
    """Counts the calls in progress, in all threads, and lets one task wait until all have ended.

    Lock-free. :meth:`enter` inserts its key, then checks whether the tracker is closed.
    :meth:`close` marks it closed, then checks for keys. Operations on a dictionary are atomic, so
    whichever runs second sees the other.
    """

    def __init__(self) -> None:
        self._closed: tuple[trio.lowlevel.TrioToken, trio.Event] | None = None
        # Key -> True for a call; False for an operation that close() awaits but statistics omit.
        self.entered: dict[object, bool] = {}

    def forget(self) -> None:
        """Drop the parent's calls, in a fork of this process."""
        self.entered.clear()

    @property
    def closed(self) -> bool:
        """True if further calls are refused."""
        return self._closed is not None

    @property
    def running(self) -> int:
        """Number of calls in progress."""
        return sum(self.entered.copy().values())

    def enter(self, key: object, *, counted: bool = True) -> object:
        """Begin a call, and return its key for :meth:`leave`. A task is one for one call at a time.

        Raises:
            trio.ClosedResourceError: The tracker is closed.
        """
        self.entered[key] = counted
        if self._closed is not None:
            self.leave(key)
            raise trio.ClosedResourceError(CLOSED)
        return key

    def leave(self, key: object) -> None:
        """End a call."""
        try:
            del self.entered[key]
        except KeyError:
            return  # a fork of the process in which it was entered
        if self._closed is not None and not self.entered:
            token, finished = self._closed
            if token is trio.lowlevel.current_trio_token():
                finished.set()
            else:
                # Two calls that leave at once may both be the last. The first one wakes the
                # closing task, whose run may end before the second one gets here.
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(finished.set)

    async def close(self) -> None:
        """Refuse further calls, and wait until those in progress have ended."""
        finished = trio.Event()
        self._closed = trio.lowlevel.current_trio_token(), finished
        if not self.entered:
            finished.set()
        await finished.wait()


class Counters:
    """Numbers that only grow. Any thread may add and read, also a signal handler.

    To add is one step on a deque. One thread at a time adds up. A reader that meets it, perhaps
    further down its own stack, gets the numbers of the last read.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin at zero, in a fork of this process."""
        self._lock = threading.Lock()
        self._pending: collections.deque[WorkerContextCounters | float] = collections.deque()
        self._sum = self._last = WorkerContextCounters()

    def add(self, part: WorkerContextCounters | float) -> None:
        """Add the numbers of something that has happened.

        A float is the seconds that a call has waited. Most are added to a worker instead, see
        :attr:`CallSender.waited`.
        """
        self._pending.append(part)
        if len(self._pending) > _MAX_PENDING and self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def read(self, others: Callable[[], Iterable[WorkerContextCounters]]) -> WorkerContextCounters:
        """Return the sum of all additions, and of others that follow later.

        Args:
            others: called after the sum. An entry of theirs that is added in between is counted at
                the next read.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._add_up()
                now = sum_counters([self._sum, *others()])
                # One of the others may be on its way into the sum.
                pairs = zip(attrs.astuple(self._last), attrs.astuple(now), strict=True)
                self._last = WorkerContextCounters(*map(max, pairs))
            finally:
                self._lock.release()
        return self._last

    def _add_up(self) -> None:
        parts = [self._sum]
        waited = 0.0
        with contextlib.suppress(IndexError):
            while True:
                part = self._pending.popleft()
                if isinstance(part, float):
                    waited += part
                else:
                    parts.append(part)
        parts.append(WorkerContextCounters(seconds_waited=waited))
        self._sum = sum_counters(parts)


async def run_shielded(operation: Callable[[], Awaitable[None]]) -> None:
    """Run an operation to completion, deferring cancellation and Ctrl+C.

    A shield does not stop KeyboardInterrupt, which Trio raises in the main task at any checkpoint.
    So the operation runs in a child task. A pending interrupt is raised afterwards.
    """
    results: list[outcome.Outcome[None]] = []

    @trio.lowlevel.enable_ki_protection
    async def run() -> None:
        with trio.CancelScope(shield=True):
            results.append(await outcome.acapture(operation))

    interrupted = False
    with trio.CancelScope(shield=True):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
        except BaseException:
            # KeyboardInterrupt in the nursery: the child task keeps its own exceptions.
            interrupted = True
    try:
        results[0].unwrap()
    finally:
        if interrupted:
            raise KeyboardInterrupt
