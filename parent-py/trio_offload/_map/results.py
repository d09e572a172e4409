"""The results of a map: finished chunks go in, in any order, and single results come out."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Iterator
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import attrs
import outcome
import trio

from .._documented import PublicABCType
from .failures import separate
from .stall import Watch

if TYPE_CHECKING:
    from .._options import MapSettings
    from .._statistics import JobProgress
    from .progress import Lane, Reporter
    from .source import Chunk, Source

DeliveredType = TypeVar("DeliveredType")


# Results handed out between two checkpoints. A consumer that only counts takes less than a
# millisecond for them.
_MAX_AT_ONCE: Final = 2048


class Work(Protocol):
    """The map, as its results see it."""

    source: Source

    @property
    def lanes(self) -> Collection[Lane]:
        """The lanes."""

    def fail(self, error: BaseException) -> None:
        """End the map with an error."""

    @property
    def is_over(self) -> bool:
        """True if all chunks have come."""

    def problem(self) -> BaseException | None:
        """Return the error that ended the map early, if any."""

    def consumed(self, count: int) -> None:
        """Note that some items have left the window."""

    def stop(self) -> None:
        """Kill all running items, and drop the others."""

    def stop_after(self, start: int) -> None:
        """Drop the chunks after the one that begins with this item."""

    def note(self, error: BaseException, chunk: Chunk, indexes: list[int]) -> None:
        """Let an error name its items."""


class Results(AsyncIterator[DeliveredType], Generic[DeliveredType], metaclass=PublicABCType):
    """The results of a map, for ``async for``.

    ::

        async with trio_offload.map(len, lines, chunk_size="auto") as lengths:
            first = await anext(lengths)
            print(first, max(await lengths.collect()))  # `collect` has those after the first

    A checkpoint if it waits, and once for each batch. Several loops, one after another, share the
    results. The results of ``Results[int]`` have the type `int`.
    """

    _is_constructible = False

    __slots__ = ("_queue",)

    def __init__(self, queue: ResultQueue[DeliveredType]) -> None:
        self._queue = queue

    def __aiter__(self) -> AsyncIterator[DeliveredType]:  # noqa: PYI034 a generator, see below
        return self._queue.iterate()

    def __anext__(self) -> Coroutine[Any, Any, DeliveredType]:
        # Returns the coroutine, because another one around it would slow each step.
        return self._queue.next()

    def batches(self) -> AsyncIterator[list[DeliveredType]]:
        """Return an iterator over lists of results: each has all that are ready, 2,048 or a chunk.

        It takes a fraction of the time that single results take. You may change the lists. An
        error comes after a list of the results before it.
        """
        return self._queue.iterate_batches()

    async def collect(self) -> list[DeliveredType]:
        """Return a list of all results that have not been consumed. A cancellation loses them.

        Raises:
            Exception: The error that ends the iteration.
        """
        collected: list[DeliveredType] = []
        async for batch in self.batches():
            collected += batch
        return collected

    @property
    def progress(self) -> JobProgress:
        """How far the map is, in items. Parts of running items count if their jobs report them."""
        return self._queue.reporter().progress()


class ResultQueue(Generic[DeliveredType]):
    """Finished chunks, and the results that are ready."""

    def __init__(self, work: Work, options: MapSettings) -> None:
        self._work = work
        self._ordered = options.ordered
        self._outcomes = options.return_outcomes
        self._items = options.return_items
        # Finished chunks that wait for an earlier one, by the index of their first item.
        self._early: dict[int, _Batch] = {}
        self.due = 0
        """Index of the next item in order that has not come."""
        self._ready: collections.deque[_Batch] = collections.deque()
        # The values being handed out, the number of their items, and the error that follows.
        self._values: Iterator[Any] = iter(())
        self._list: list[Any] | None = None  # the list of the values, if there is only one
        self._count = 0
        self._error: BaseException | None = None
        self._waiting = trio.lowlevel.ParkingLot()
        self._generators: list[Any] = []
        self.watch = Watch(disabled=not options.ordered)
        self._over = False
        self._closed = False
        self._show = options.progress
        self._reporter: Reporter | None = None
        self._dropped = 0  # items that came and were dropped, as they waited for an earlier one

    def iterate(self) -> AsyncIterator[DeliveredType]:
        """Return an iterator over the results that nobody has got."""
        # A generator hands out values faster than `next`. A cancellation ends it, so each loop
        # has one. Each continues where the one before it stopped.
        self._generators = [generator for generator in self._generators if generator.ag_frame is not None]
        generator = self._generate()
        self._generators.append(generator)
        return generator

    def iterate_batches(self) -> AsyncIterator[list[DeliveredType]]:
        """Return an iterator over lists of the results that nobody has got."""
        self._generators = [generator for generator in self._generators if generator.ag_frame is not None]
        generator = self._generate_batches()
        self._generators.append(generator)
        return generator

    def reporter(self) -> Reporter:
        """Return the object that adds up the progress."""
        if self._reporter is None:
            from .progress import Reporter  # few maps are asked

            self._reporter = Reporter(self._work, lambda: self.finished, self._show)
        return self._reporter

    def show(self) -> BaseException | None:
        """Tell the map's progress to its function, if there is one. Return its exception."""
        return None if self._show is None else self.reporter().look()

    @property
    def finished(self) -> int:
        """Number of items that have come."""
        return self.due + sum(batch.count for batch in self._early.values()) + self._dropped

    async def next(self) -> DeliveredType:
        """Return the next result.

        Raises:
            StopAsyncIteration: There is none.
        """
        while True:
            for value in self._values:
                delivered: DeliveredType = value
                return delivered
            if not await self._advance():
                raise StopAsyncIteration

    def deposit(self, chunk: Chunk, values: list[Any], failures: dict[int, BaseException]) -> None:
        """Take a finished chunk.

        Args:
            chunk: The chunk.
            values: The value of each item.
            failures: The errors of the items that failed, by their indexes in the chunk.
        """
        error: BaseException | None = None
        if self._outcomes:
            values = self._as_outcomes(chunk, values, failures)
        elif failures:
            first = min(failures)
            error = failures[first]
            self._work.note(error, chunk, [first])
            values = values[:first]
        if self._items:
            # From here on the items live as long as their results.
            values = list(zip(chunk.items, values, strict=False))
        if self._ordered and chunk.start != self.due:
            self._early[chunk.start] = _Batch(values, error, len(chunk.items))
        else:
            self._make_ready(values, error, len(chunk.items))
            while self._early and (due := self._early.pop(self.due, None)) is not None:
                self._make_ready(due.values, due.error, due.count)
        if error is not None:
            # Results after an error are not handed out.
            if self._ordered:
                self._work.stop_after(chunk.start)
            else:
                self._work.stop()

    @property
    def is_awaited(self) -> bool:
        """True if a consumer waits for a result."""
        return bool(self._waiting)

    def wake(self) -> None:
        """Wake the tasks that wait for a result, because the state of the map has changed."""
        self._waiting.unpark_all()

    def close(self) -> None:
        """Drop all results, because the block has been left."""
        self._closed = True
        if self._reporter is not None:
            self._reporter.stop()
        self._ready.clear()
        self._drop_early()
        self._values, self._list = iter(()), None
        self._count, self._error = 0, None
        for generator in self._generators:
            # A generator at a `yield`, before its start, or after its end closes without waiting.
            # If another task is inside, that task is woken and gets an error.
            with contextlib.suppress(StopIteration, RuntimeError):
                generator.aclose().send(None)
        self._generators.clear()
        self.wake()

    async def _generate(self) -> AsyncGenerator[DeliveredType, None]:
        while True:
            for value in self._values:
                yield value
            if not await self._advance():
                return

    async def _generate_batches(self) -> AsyncGenerator[list[DeliveredType], None]:
        while True:
            # Without a copy, if a loop over single results has not taken a value of the list.
            values, self._list = self._list, None
            if values is None or length_hint(self._values) < len(values):
                values = [*self._values]
            self._values = iter(())
            if values:
                yield values
            if not await self._advance():
                return

    def _drop_early(self) -> None:
        self._dropped = self.finished - self.due
        self._early.clear()

    @trio.lowlevel.enable_ki_protection
    async def _advance(self) -> bool:
        """Wait for further values. Return False at the end of the iteration.

        Raises:
            Exception: The error that ends the iteration.
        """
        self._work.consumed(self._count)
        self._count = 0
        if self._error is not None:
            error, self._error = self._error, None
            self._over = True
            self._ready.clear()
            self._drop_early()
            self._work.stop()
            _raise(error)
        if self._ready:
            await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._closed:
                raise trio.ClosedResourceError("the block of this map has ended, so its results are gone")
            if self._over or self._work.is_over:
                await trio.lowlevel.checkpoint()
                problem = None if self._over else self._work.problem()
                self._over = True
                if problem is not None:
                    _raise(problem)
                return False
            await self._waiting.park()
        self._take()
        return True

    def _take(self) -> None:
        """Hand out ready results, up to the first error.

        At most ``_MAX_AT_ONCE``, because workers run dry until other tasks have their turn.
        """
        ready = self._ready
        batch = ready[0]
        if len(ready) == 1 and not batch.taken and len(batch.values) <= _MAX_AT_ONCE:
            # The most frequent case.
            ready.clear()
            self._values, self._count, self._error = iter(batch.values), batch.count, batch.error
            self._list = batch.values
            return
        parts: list[list[Any]] = []
        left = _MAX_AT_ONCE
        while ready and self._error is None and left > 0:
            batch = ready[0]
            part, count = batch.take(left)
            parts.append(part)
            left -= len(part)
            self._count += count
            if batch.is_empty:
                self._error = batch.error
                ready.popleft()
        self._list = parts[0] if len(parts) == 1 else None
        self._values = iter(parts[0]) if len(parts) == 1 else itertools.chain.from_iterable(parts)

    def _make_ready(self, values: list[Any], error: BaseException | None, count: int) -> None:
        """Append the results of the next ``count`` items. Takes ownership of the list."""
        ready = self._ready
        last = ready[-1] if ready else None
        if last is not None and last.may_grow and len(last.values) + len(values) <= _MAX_AT_ONCE:
            # One list is handed out faster than several.
            last.values += values
            last.count += count
            if error is not None:
                last.error = error
                last.may_grow = False
        else:
            ready.append(_Batch(values, error, count, error is None))
        self.due += count
        if self._waiting:
            self._waiting.unpark_all()

    def _as_outcomes(self, chunk: Chunk, values: list[Any], failures: dict[int, BaseException]) -> list[Any]:
        if not failures:
            return list(map(outcome.Value, values))
        for first, indexes in separate(failures).items():
            self._work.note(failures[first], chunk, indexes)
        return [
            outcome.Error(failures[index]) if index in failures else outcome.Value(values[index])
            for index in range(len(chunk.items))
        ]


@attrs.define(eq=False)
class _Batch:
    """Finished chunks: their values, the error that follows, and the number of their items."""

    values: list[Any]
    error: BaseException | None
    count: int
    may_grow: bool = True
    """True until values have been taken, or an error follows them."""
    taken: int = 0
    """Number of values that have been taken."""

    @property
    def is_empty(self) -> bool:
        """True if all values have been taken."""
        return self.taken == len(self.values)

    def take(self, most: int) -> tuple[list[Any], int]:
        """Return up to ``most`` values, and the number of items that leave the window with them."""
        first, last = self.taken, min(self.taken + most, len(self.values))
        self.taken = last
        self.may_grow = False
        # Items without a value leave with the last value.
        count = last - first if last < len(self.values) else self.count - first
        return (self.values if last - first == len(self.values) else self.values[first:last]), count


def _raise(error: BaseException) -> None:
    try:
        raise error
    finally:
        # Otherwise the error's traceback would refer to the error.
        del error
