"""`map`: one function, many items, several workers at once.

    items ─▶ source ─▶ chunks ─▶ lanes, one worker each ─▶ results ─▶ the consumer
                ▲                                             │
                └────────────────── window ◀──────────────────┘

Rules that the code in this folder keeps:

* An item is inside the window from its reading until its chunk's results have been consumed. Only
  items outside wait for the consumer. Items inside always finish.
* A lane holds a limiter token and a worker only while it has work. It releases both before it
  waits, and periodically under constant load. Otherwise a consumer that calls
  :func:`~trio_offload.run_sync` for each result could wait for a token forever.
* A chunk runs once. :mod:`.chunks` has the exceptions.
* A lane catches its errors. An item's error becomes the item's outcome. Any other error ends the
  iteration. The iterator raises both as they are, without a group.
* One task reads an async iterable from beginning to end, because it may have nurseries and cancel
  scopes open. An ordinary iterable is read by any lane that needs an item.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
import weakref
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import trio

from .._exceptions import WorkerStartError, is_interrupt
from .._limiter import Limiter, counted_tokens, current_default_worker_limiter
from .._pickling.payload import function_name, release, repeated
from .._pool.tracker import CLOSED
from .._process.processors import usable_processors
from .._sizes import check_progress
from .._worker.peer import logger
from . import chunks, failures
from .block import Block
from .lane import MAX_UNINTERRUPTED, Lane, Limits
from .pace import AdaptiveBatching
from .results import ResultQueue, Results
from .source import Chunk, Source

if TYPE_CHECKING:
    from types import TracebackType

    from .._options import MapSettings
    from .._pool.pool import WorkerPool
    from .._worker.worker import Worker

DeliveredType = TypeVar("DeliveredType")


class Map(Block[DeliveredType], Generic[DeliveredType]):
    """The context manager of one map. Its lanes run inside the block."""

    def __init__(
        self, pool: WorkerPool, function: Callable[..., Any], items: Any, options: MapSettings, *, unpacks: bool = False
    ) -> None:
        self.limiter: Limiter | None = options.limiter
        if self.limiter is None and options.workers is None:
            self.limiter = current_default_worker_limiter()
        _check_arguments(function, items)
        check_progress(options.progress)
        self.may_retire = pool.launcher.options.retire is not bool
        if options.chunk_size is None and (options.timeout is not None or self.may_retire):
            # A worker that may be ended for a job runs one item at a time.
            options = attrs.evolve(options, chunk_size=1)
        self.pool = pool
        self.limits = Limits(options.timeout, options.grace)
        self.pace = AdaptiveBatching(options.chunk_size)
        self.source = Source(items)
        self.results: ResultQueue[DeliveredType] = ResultQueue(self, options)
        self.task = chunks.make_task(
            function,
            to_fork=pool.launcher.inherits_main,
            measures=options.chunk_size is None,
            small=self.source.is_range,
            unpacks=unpacks,
        )
        self.prepared: weakref.WeakSet[Worker] = weakref.WeakSet()
        self.stopped = False
        self.had_worker = False
        self._options = options
        self._processors = 0
        self._again: list[tuple[int, Chunk]] = []
        # Idle lanes wait in one place and the reader of an async iterable in another. A chunk that
        # is put back wakes one task, which must be a lane.
        self._idle_lanes = trio.lowlevel.ParkingLot()
        self._full_window = trio.lowlevel.ParkingLot()
        self.lanes: set[Lane] = set()
        self._failed_lanes = 0  # lanes that could not get a worker
        self._entered = False
        self._fatal: BaseException | None = None
        self._close_error: BaseException | None = None
        self._reader = trio.CancelScope()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Results[DeliveredType]:
        if self._entered:
            raise RuntimeError("a map can be entered once; call map() again")
        self._entered = True
        await trio.lowlevel.checkpoint()
        if self.pool.calls.closed:
            raise trio.ClosedResourceError(CLOSED)
        # A function that cannot be pickled fails once, here, and not for each item.
        with repeated("a map calls its function for each item"):
            release(self.task.dump_call(self.task.function, ()))
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        if self.source.is_async:
            self._nursery.start_soon(self._read_ahead)
        if self._options.progress is not None:
            self._nursery.start_soon(self.results.reporter().run)
        self._add_lane()
        return Results(self.results)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.results.close()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as problem:
            # Lanes catch their errors, so this is the nursery's: Ctrl+C while workers were ended.
            if not is_interrupt(problem):
                raise
            raise KeyboardInterrupt from None
        finally:
            if self.task.held is not None:
                await self.task.held.release(self.pool, [*self.prepared])
            late = self.results.show() or self._close_error
        if error is None and late is not None:
            raise late

    # --- for the results --------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """True if all results have come."""
        return not self.lanes

    def problem(self) -> BaseException | None:
        """Return the error that ended the map early, if any."""
        return self._fatal or self.source.error

    def stop(self) -> None:
        """Kill all running items, after their grace, and drop the others."""
        self.stopped = True
        self.source.end()
        self._reader.cancel()
        self.results.watch.stop()
        for lane in self.lanes:
            lane.scope.cancel()

    def stop_reading(self) -> None:
        """Stop reading. Items that have begun finish."""
        self.source.end()
        self._reader.cancel()
        self._idle_lanes.unpark_all()

    def stop_after(self, start: int) -> None:
        """Drop the chunks after the one that begins with this item."""
        self._again = [entry for entry in self._again if entry[0] < start]
        heapq.heapify(self._again)
        self.stop_reading()

    def consumed(self, count: int) -> None:
        """Note that some items have left the window."""
        if count:
            self.source.inside -= count
            self._idle_lanes.unpark_all()
            if self.source.is_async:
                self._full_window.unpark_all()

    def note(self, error: BaseException, chunk: Chunk, indexes: list[int]) -> None:
        """Let an error name its items."""
        failures.mark(error, self.task.function, chunk, indexes)

    @property
    def name(self) -> str:
        """The name of the function."""
        return function_name(self.task.function)

    # --- for the lanes ----------------------------------------------------------------------------

    def limit(self) -> int:
        """Return the largest number of lanes. The tokens of a limiter may change at any time."""
        if self._options.workers is not None:
            return self._options.workers
        limiter = self.limiter
        tokens = limiter.total_tokens if type(limiter) is trio.CapacityLimiter else counted_tokens(limiter)
        if tokens != math.inf:
            return max(1, int(tokens))
        if not self._processors:
            self._processors = usable_processors()
        return self._processors

    def window(self) -> int:
        """Return the largest number of items inside."""
        return self._options.window or self.pace.window_chunks * self.limit() * self.pace.size

    def _chunk_size(self) -> int:
        if self._options.window is None:
            return self.pace.size
        # Every lane gets a part of a small window.
        return min(self.pace.size, max(1, self._options.window // self.limit()))

    def busy(self) -> int:
        """Return the number of lanes that have work."""
        return len(self.lanes) - len(self._idle_lanes)

    def room(self) -> int:
        """Return the number of items that the next chunk may have.

        0 means that the window is full. An empty window always has room for one chunk.
        """
        inside = self.source.inside
        if self._options.window is None:
            # Inlines `_window` and `_chunk_size`, because each chunk needs this.
            pace = self.pace
            size = pace.size
            if not inside or inside + size <= pace.window_chunks * (self._options.workers or self.limit()) * size:
                return size
            return 0
        size = self._chunk_size()
        return size if not inside or inside + size <= self.window() else 0

    def take(self) -> Chunk | None:
        """Return the next chunk. None means that the lane has to wait."""
        if self._again:
            return heapq.heappop(self._again)[1]
        source, pace = self.source, self.pace
        if source.is_async:
            return source.take(self._chunk_size())
        size = self.room()
        if not size:
            return None
        if pace.measures:
            began = time.perf_counter()
            chunk = source.read(size)
            if chunk is not None:
                pace.read(len(chunk.items), time.perf_counter() - began)
        else:
            chunk = source.read(size)
        if source.exhausted:
            # Lanes that wait for an item can end.
            self._idle_lanes.unpark_all()
        return chunk

    def put_back(self, chunk: Chunk) -> None:
        """Let the next free lane take a chunk that has not begun, before anything new."""
        heapq.heappush(self._again, (chunk.start, chunk))
        self._idle_lanes.unpark()

    # --- the tasks --------------------------------------------------------------------------------

    def _add_lane(self) -> None:
        """Add a lane if it could find work. Each lane with work adds the next."""
        if self.stopped or self._fatal is not None or not (self._again or self.source.may_have_more):
            return
        if self.lanes and len(self.lanes) >= self.limit() - self._failed_lanes:
            return
        lane = Lane(self)
        self.lanes.add(lane)
        self._nursery.start_soon(self._run, lane)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, lane: Lane) -> None:
        try:
            with lane.scope:
                while (chunk := await self._next_chunk()) is not None:
                    self._add_lane()
                    try:
                        await lane.serve(chunk)
                    except WorkerStartError as error:
                        if not self._goes_on_without(error):
                            break
        except trio.Cancelled:
            # From a scope around the block. The block's own task gets its own cancellation.
            pass
        except Exception as error:
            self.fail(error)
        finally:
            self.lanes.discard(lane)
            if not self.lanes and (problem := self.results.show()) is not None:
                self.fail(problem)
            self.results.wake()

    def _goes_on_without(self, error: WorkerStartError) -> bool:
        """Return True if a lane goes on although the start of its worker failed."""
        if self.had_worker and len(self.lanes) > 1:
            self._failed_lanes += 1
            logger.warning("map continues with one worker less: %s", error)
            return False
        if len(self.pool.cache):
            # For example the worker of a lane that has ended.
            return True
        self.fail(error)
        return False

    def fail(self, error: BaseException) -> None:
        """End the iteration with an error, once the running items have finished."""
        if self._fatal is None:
            self._fatal = error
        self.stop_reading()

    async def _next_chunk(self) -> Chunk | None:
        """Wait for a chunk, without a token or a worker. None means the end."""
        await trio.lowlevel.checkpoint()
        while self._fatal is None:
            chunk = self.take()
            if chunk is not None:
                return chunk
            if not self._again and not self.source.may_have_more:
                return None
            if not self.source.is_async:
                self.results.watch.start(self, self._nursery)
            await self._idle_lanes.park()
        return None

    @trio.lowlevel.enable_ki_protection
    async def _read_ahead(self) -> None:
        """Read an async iterable as far as the window allows, and close it at the end."""
        source = self.source
        try:
            with self._reader:
                for count in itertools.count(1):
                    while source.inside >= self.window():
                        self.results.watch.start(self, self._nursery)
                        await self._full_window.park()
                    if not await source.read_one():
                        break
                    self._idle_lanes.unpark_all()
                    if not count % MAX_UNINTERRUPTED:
                        await trio.lowlevel.checkpoint()
            try:
                await source.close()
            except Exception as error:
                self._close_error = error
        except trio.Cancelled:
            pass  # as in a lane
        finally:
            source.exhausted = True
            self._idle_lanes.unpark_all()


def _check_arguments(function: Any, items: Any) -> None:
    # A text is an iterable, by mistake.
    if not callable(function) or not isinstance(items, (AsyncIterable, Iterable)) or isinstance(items, (str, bytes)):
        from .._slips import wrong_map  # not needed by programs without a slip

        raise wrong_map(function, items)
