"""One lane of a map: its token, its worker, and the calls in flight."""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import weakref
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from .. import _clock
from .._exceptions import BrokenWorkerError, WorkerTimeoutError
from .._limiter import counted_tokens
from .._worker.states import IDLE, RUNNING, CallNotRun
from .._worker.time_limit import answer_in_time
from . import chunks

if TYPE_CHECKING:
    from .._limiter import Limiter
    from .._pool.pool import WorkerPool
    from .._worker.worker import Worker
    from .source import Chunk, Source

_LANE_TIME_SLICE: Final = 0.05  # seconds after which a lane lets others have its token
MAX_UNINTERRUPTED: Final = 16  # answers, or items, between two checkpoints


@attrs.frozen
class Limits:
    """The time of each item, in seconds."""

    timeout: float | None
    """Seconds that it may take. None means unlimited."""
    grace: float | None
    """Seconds that it has to end by itself, once it is told to. None means no time."""


class Scheduler(chunks.Sink, Protocol):
    """The map, as its lanes see it."""

    pool: WorkerPool
    limiter: Limiter | None
    limits: Limits
    may_retire: bool
    """True if workers of the context have a ``retire``."""
    task: chunks.Task
    source: Source
    stopped: bool
    had_worker: bool
    """True if any lane has had a worker."""
    prepared: weakref.WeakSet[Worker]
    """Workers that have imported the function."""

    def take(self) -> Chunk | None:
        """Return the next chunk. None means that the lane has to wait."""

    def room(self) -> int:
        """Return the number of items that the next chunk may have."""

    def limit(self) -> int:
        """Return the largest number of lanes."""


class Lane:
    """One worker at a time, fed with chunks."""

    _worker: Worker
    worker: Worker | None = None
    """The same, from outside: None while it has none."""
    _is_new: bool
    """True until the worker, which was started for this lane, has answered."""
    _task: chunks.Task
    """The map's task, as this worker gets it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scope = trio.CancelScope()
        self.in_flight: collections.deque[Chunk] = collections.deque()
        self._scheduler = scheduler

    async def serve(self, chunk: Chunk) -> None:
        """Take a token and a worker, and run chunks until they run out or others want the token."""
        scheduler = self._scheduler
        pool = scheduler.pool
        async with contextlib.AsyncExitStack() as stack:
            if scheduler.limiter is not None:
                began = pool.begin_wait()
                try:
                    await stack.enter_async_context(scheduler.limiter)
                finally:
                    pool.note_wait(began)
            try:
                stack.callback(pool.calls.leave, pool.calls.enter(object()))
                worker, self._is_new = await pool.take()
            except Exception:
                scheduler.put_back(chunk)
                raise
            self._worker = self.worker = worker
            worker.limiter, worker.grace = scheduler.limiter, scheduler.limits.grace
            self.in_flight.clear()
            worker.items_in_flight = self.in_flight
            scheduler.had_worker = True
            try:
                if await self._prepare(chunk):
                    await self._feed(chunk)
            finally:
                del self._worker, self.worker
                try:
                    if worker.state is RUNNING:
                        # Cancelled between two answers, or an answer has ended the map.
                        await _end_running(worker)
                finally:
                    worker.items_in_flight, worker.grace = (), None
                    pool.give_back(worker)

    async def _prepare(self, chunk: Chunk) -> bool:
        """Let the worker import or hold the function, so that an item's time does not include that.

        Return True if the worker takes the chunk.
        """
        scheduler, worker = self._scheduler, self._worker
        self._task, held = scheduler.task, scheduler.task.held
        if held is None and (scheduler.limits.timeout is None or worker in scheduler.prepared):
            return True
        if held is not None and held.is_in(worker):
            self._task = self._task.for_holder()
            return True
        scheduler.prepared.add(worker)
        try:
            worker.submit(chunks.dump_import(scheduler.task), prepares=True)
            held = scheduler.task.held  # unless it cannot be held
            # Most outcomes are ignored: the item will have the same.
            _, problem = await worker.answer()
            chunks.refuse_main(problem)
            if held is not None and problem is None:
                held.note(worker)
                self._task = self._task.for_holder()
        except CallNotRun:
            self._resend(chunk)
        except BrokenWorkerError as error:
            chunks.fail(scheduler, chunk, error)
        return worker.state is IDLE

    async def _feed(self, first: Chunk) -> None:
        """Run chunks until they run out, the worker has left, or the time slice is over."""
        scheduler, worker, in_flight = self._scheduler, self._worker, self.in_flight
        source, pace, timeout = scheduler.source, scheduler.pace, scheduler.limits.timeout
        may_retire, record = scheduler.may_retire, worker.record_identity
        takes_more = self._submit(first, record)
        clock = _clock.now
        now = since = sent = clock()
        until = now + _LANE_TIME_SLICE
        answered = 0
        for answers in itertools.count(1):
            if takes_more and not in_flight and now < until and source.may_have_more and not scheduler.room():
                # Most often the consumer only needs its turn.
                await trio.lowlevel.checkpoint()
            # Answers that have been read come first. The calls that follow then go out together.
            if takes_more and now < until and not (in_flight and worker.has_answer):
                if answered:
                    pace.answered(answered, now - sent, waits=not in_flight)
                    answered = 0
                most = self._max_in_flight()
                while len(in_flight) < most and not scheduler.stopped:
                    if may_retire and worker.will_retire(len(in_flight)):
                        break
                    chunk = scheduler.take()
                    if chunk is None:
                        break
                    takes_more = self._submit(chunk, record)
                    if not takes_more:
                        break
                    if len(in_flight) == 1:
                        # The time that its pickling took is not its own.
                        since = clock()
                sent = since
            if not in_flight:
                return
            try:
                if timeout is None:
                    result = await worker.answer()
                else:
                    result = await answer_in_time(worker, since, timeout)
            except (CallNotRun, BrokenWorkerError, WorkerTimeoutError) as error:
                self._settle(error)
                return
            self._is_new = False
            now = clock()
            if now >= until and not self._has_rival():
                until = now + _LANE_TIME_SLICE
            chunks.accept(scheduler, in_flight.popleft(), result, now - since, worker.answer_size)
            since = now
            answered += 1
            if not answers % MAX_UNINTERRUPTED:
                # Answers that are there already come without a checkpoint.
                await trio.lowlevel.checkpoint()

    def _max_in_flight(self) -> int:
        """Return how many chunks the worker may have. Lanes share the last items."""
        scheduler = self._scheduler
        most = scheduler.pace.in_flight
        share = scheduler.source.left / (2 * scheduler.limit() * scheduler.pace.size)
        return most if share >= most else 1 + int(share)

    def _has_rival(self) -> bool:
        """Return True if another task may want the token. Its release lets the worker run dry."""
        limiter = self._scheduler.limiter
        if limiter is None:
            return False
        if type(limiter) is not trio.CapacityLimiter and counted_tokens(limiter) == math.inf:
            return True
        waiting: int = limiter.statistics().tasks_waiting  # type: ignore[attr-defined]
        return waiting > 0

    def _submit(self, chunk: Chunk, record: tuple[int, int]) -> bool:
        """Submit a chunk, unless its pickling settles it.

        Return False if the worker is exiting. It is given back once it has answered.
        """
        scheduler = self._scheduler
        payload = chunks.dump(scheduler, self._task, chunk, record)
        if payload is not None:
            chunk.sent, chunk.grants = sum(payload.lengths), payload.grants
            try:
                self._worker.submit(payload)
            except CallNotRun:
                chunk.release()
                if self.in_flight:
                    scheduler.put_back(chunk)
                else:
                    self._resend(chunk)
                return False
            self.in_flight.append(chunk)
        return True

    def _settle(self, error: CallNotRun | BrokenWorkerError | WorkerTimeoutError) -> None:
        """Settle the chunks in flight of a worker that has ended or is exiting."""
        scheduler, worker, in_flight = self._scheduler, self._worker, self.in_flight
        for chunk in in_flight:
            chunk.release()
        if isinstance(error, CallNotRun):
            for chunk in in_flight:
                self._resend(chunk)
            return
        first = in_flight.popleft()
        for place, chunk in enumerate(in_flight):
            if place < worker.answered_too_late:
                chunks.fail(scheduler, chunk, self._describe_victim(error))
            else:
                scheduler.put_back(chunk)
        if isinstance(error, BrokenWorkerError):
            chunks.fail_broken(scheduler, scheduler.task, first, worker, error)
        else:
            chunks.fail(scheduler, first, error)

    def _describe_victim(self, cause: BrokenWorkerError | WorkerTimeoutError) -> WorkerTimeoutError:
        """Return the error of an item that may have begun before its worker was killed."""
        timeout = self._scheduler.limits.timeout or 0.0
        victim = WorkerTimeoutError(
            f"the item before this one timed out: it took more than {timeout:g} seconds, and its worker "
            f"{self._worker.process.pid} was killed. The worker may have begun this item",
            timeout,
        )
        victim.crash = cause.crash
        return victim

    def _resend(self, chunk: Chunk) -> None:
        scheduler = self._scheduler
        chunks.resend(scheduler, scheduler.task, chunk, self._worker, is_new=self._is_new)


async def _end_running(worker: Worker) -> None:
    """End a worker whose next answer nobody takes, after the grace of its item."""
    try:
        with trio.CancelScope(shield=True):
            await worker.give_grace()
    finally:
        await worker.end_cancelled()
