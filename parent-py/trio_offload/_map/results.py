"""What comes out of a ``map``: finished chunks go in, in any order, and single results come out."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import attrs
import outcome
import trio

if TYPE_CHECKING:
    from .source import Chunk

DeliveredType = TypeVar("DeliveredType")


class Work(Protocol):
    """What the results have to know of the work, and to tell it."""

    @property
    def is_over(self) -> bool:
        """Whether no more chunks will come."""

    def problem(self) -> BaseException | None:
        """Why no more will come, if that is not because all is done."""

    def consumed(self, count: int) -> None:
        """So many items have left the window."""

    def stop(self) -> None:
        """Nothing more is needed."""

    def stop_after(self, start: int) -> None:
        """Nothing is needed that comes after the chunk which begins with this item."""

    def note(self, error: BaseException, chunk: Chunk, indexes: list[int]) -> None:
        """Say in an error which items it is about."""


class Results(AsyncIterator[DeliveredType], Generic[DeliveredType]):
    """The async iterator that a ``map`` gives. What is there at once is handed out without a checkpoint in between."""

    def __init__(self, work: Work, *, ordered: bool, outcomes: bool) -> None:
        self._work = work
        self._ordered = ordered
        self._outcomes = outcomes
        # Finished chunks that wait for an earlier one, by the index of their first item; the index that is due.
        self._early: dict[int, _Batch] = {}
        self._due = 0
        self._ready: collections.deque[_Batch] = collections.deque()
        # What is being handed out: of how many items it came, and what is raised at its end.
        self._values: Iterator[Any] = iter(())
        self._count = 0
        self._error: BaseException | None = None
        self._waiting = trio.lowlevel.ParkingLot()
        self._generators: list[Any] = []
        self._over = False
        self._closed = False

    def __aiter__(self) -> AsyncIterator[DeliveredType]:  # noqa: PYI034 a generator, see below
        # A generator hands out values faster than `__anext__` can. It does not outlive a cancellation, so each loop has its own;
        # what one of them leaves is there for the next.
        self._generators = [generator for generator in self._generators if generator.ag_frame is not None]
        generator = self._generate()
        self._generators.append(generator)
        return generator

    async def __anext__(self) -> DeliveredType:
        while True:
            for value in self._values:
                delivered: DeliveredType = value
                return delivered
            if not await self._advance():
                raise StopAsyncIteration

    def deposit(self, chunk: Chunk, values: list[Any], failures: dict[int, BaseException]) -> None:
        """A chunk is finished: the value of each item, or where it has failed the error, by the item's index in the chunk."""
        error: BaseException | None = None
        if self._outcomes:
            values = self._as_outcomes(chunk, values, failures)
        elif failures:
            first = min(failures)
            error = failures[first]
            self._work.note(error, chunk, [first])
            values = values[:first]
        if self._ordered and chunk.start != self._due:
            self._early[chunk.start] = _Batch(values, error, len(chunk.items))
        else:
            self._make_ready(values, error, len(chunk.items))
            while self._early and (due := self._early.pop(self._due, None)) is not None:
                self._make_ready(due.values, due.error, due.count)
        if error is not None:
            # Nothing that comes after it will be handed out.
            if self._ordered:
                self._work.stop_after(chunk.start)
            else:
                self._work.stop()

    def wake(self) -> None:
        """Something has changed that whoever waits for a result should look at."""
        self._waiting.unpark_all()

    def close(self) -> None:
        """The block is left."""
        self._closed = True
        self._ready.clear()
        self._early.clear()
        self._values = iter(())
        self._count, self._error = 0, None
        for generator in self._generators:
            # It is at a `yield`, has not begun, or has ended: in none of these cases is there anything to wait for. Another
            # task may be inside of it; that one is woken, and gets an error.
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

    @trio.lowlevel.enable_ki_protection
    async def _advance(self) -> bool:
        """Go on to what is finished by now; False: nothing more will be. Raises the error that ends the iteration."""
        self._work.consumed(self._count)
        self._count = 0
        if self._error is not None:
            error, self._error = self._error, None
            self._over = True
            self._ready.clear()
            self._early.clear()
            self._work.stop()
            _raise(error)
        if self._ready:
            await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._closed:
                raise trio.ClosedResourceError("the block of this map has been left, and with it its results are gone")
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
        """Hand out what is ready, up to the first error, and not so much that workers run dry before anybody else has a turn."""
        ready = self._ready
        batch = ready[0]
        if len(ready) == 1 and not batch.taken and len(batch.values) <= _AT_ONCE:
            # Most often.
            ready.clear()
            self._values, self._count, self._error = iter(batch.values), batch.count, batch.error
            return
        parts: list[list[Any]] = []
        left = _AT_ONCE
        while ready and self._error is None and left > 0:
            batch = ready[0]
            part, count = batch.take(left)
            parts.append(part)
            left -= len(part)
            self._count += count
            if batch.is_empty:
                self._error = batch.error
                ready.popleft()
        self._values = iter(parts[0]) if len(parts) == 1 else itertools.chain.from_iterable(parts)

    def _make_ready(self, values: list[Any], error: BaseException | None, count: int) -> None:
        """What came of the next so many items. The list is this object's from now on."""
        ready = self._ready
        last = ready[-1] if ready else None
        if last is not None and last.may_grow and len(last.values) + len(values) <= _AT_ONCE:
            # One list is handed out faster than several.
            last.values += values
            last.count += count
            if error is not None:
                last.error = error
                last.may_grow = False
        else:
            ready.append(_Batch(values, error, count, error is None))
        self._due += count
        if self._waiting:
            self._waiting.unpark_all()

    def _as_outcomes(self, chunk: Chunk, values: list[Any], failures: dict[int, BaseException]) -> list[Any]:
        # Several items may have one error in common.
        indexes: dict[int, list[int]] = {}
        for index in sorted(failures):
            indexes.setdefault(id(failures[index]), []).append(index)
        for concerned in indexes.values():
            self._work.note(failures[concerned[0]], chunk, concerned)
        return [
            outcome.Error(failures[index]) if index in failures else outcome.Value(values[index])
            for index in range(len(chunk.items))
        ]


@attrs.define(eq=False)
class _Batch:
    """Finished chunks: what is handed out, the error that is raised after it, and how many items it was made of."""

    values: list[Any]
    error: BaseException | None
    count: int
    may_grow: bool = True
    """Whether more may follow in the same list: none of it has been taken, and no error ends it."""
    taken: int = 0
    """How many of the values have been taken."""

    @property
    def is_empty(self) -> bool:
        """Whether all values have been taken."""
        return self.taken == len(self.values)

    def take(self, most: int) -> tuple[list[Any], int]:
        """Up to so many of the values, and how many items have left the window with them."""
        first, last = self.taken, min(self.taken + most, len(self.values))
        self.taken = last
        self.may_grow = False
        # With the last go the items that have no value.
        count = last - first if last < len(self.values) else self.count - first
        return (self.values if last - first == len(self.values) else self.values[first:last]), count


# Results handed out between two checkpoints: less than a millisecond for a consumer that only counts them.
_AT_ONCE: Final = 2048


def _raise(error: BaseException) -> None:
    try:
        raise error
    finally:
        # Else the error's traceback would hold the error.
        del error
