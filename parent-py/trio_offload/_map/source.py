"""The items of a map, from an iterable of either kind, and the chunks made of them."""

from __future__ import annotations

import collections
import itertools
import math
import reprlib
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._process.process import WorkerProcess
    from .._process.record import Progress


_MAX_TRACED: Final = 20  # failures of a chunk, with their stacks
_SIZED: Final = frozenset({range, list, tuple, dict, set, frozenset})


@attrs.define(eq=False)
class Chunk:
    """Items that travel together. A single item travels as an ordinary call."""

    start: int
    """Index of the first item among all items."""
    items: Sequence[Any]
    number: int = 0
    """Number that the worker writes into its record, beside its progress."""
    sent: int = 0
    """Size of the call, in bytes."""
    lost: tuple[WorkerProcess, ...] = ()
    """Workers that were started for this chunk, and exited before they began it."""
    grants: Sequence[Grant] = ()
    """The handles in the call. Each pickle of the chunk has its own."""

    def release(self) -> None:
        """End the grants of a call that may not have been run."""
        for grant in self.grants:
            grant.end(None)
        self.grants = ()

    def item_at(self, progress: Progress) -> tuple[int, str] | None:
        """Return the index and the text of the item that a worker with this progress runs.

        None means unknown: short items are counted in groups.
        """
        if len(self.items) == 1:
            return self.start, self.shown(0)
        index = progress.index
        if progress.chunk != self.number or progress.count != 1 or index >= len(self.items):
            return None
        return self.start + index, self.shown(index)

    def facts(self, value: Any) -> dict[str, Any]:
        """Return what a trace has of the items, once their call has returned this value."""
        facts = {"item": self.start, "text": self.shown(0)}
        if len(self.items) > 1:
            facts["items"], facts["last"] = len(self.items), self.shown(len(self.items) - 1)
            if value is not None:
                self._add_outcome(facts, value)
        return facts

    def _add_outcome(self, facts: dict[str, Any], value: Any) -> None:
        from .._trace import shortened  # few contexts are traced

        _, _, failures, facts["items"], _ = value
        facts["last"] = self.shown(facts["items"] - 1)
        if failures:
            facts["failed"] = len(failures)
            facts["failures"] = [
                [self.start + index, self.shown(index), *shortened(f"{kind}: {message}", stack)]
                for index, (_, _, kind, message, stack) in itertools.islice(failures.items(), _MAX_TRACED)
            ]

    def shown(self, index: int) -> str:
        """Return the start of the ``repr`` of the item with this index in the chunk."""
        try:
            return reprlib.repr(self.items[index])
        except Exception:
            return f"an instance of {type(self.items[index]).__qualname__}"


class Source:
    """An iterable or async iterable. Its error, like its end, comes after the items before it."""

    def __init__(self, items: Any) -> None:
        self.is_async = isinstance(items, AsyncIterable)
        # A slice of a range is a range, and travels as three numbers.
        self.is_range = type(items) is range
        self._items = items
        # Number of items. None means unknown before the end.
        self._count = len(items) if type(items) in _SIZED else None
        self._iterator: Any = None
        self._queue: collections.deque[Any] = collections.deque()
        self._taken = 0
        self.exhausted = False
        self.error: BaseException | None = None
        self.inside = 0
        """Number of items that have been read and not consumed."""

    @property
    def may_have_more(self) -> bool:
        """True if an item can be taken, or may come."""
        return bool(self._queue) or not self.exhausted

    @property
    def left(self) -> float:
        """Number of items still to be read. Infinity means unknown."""
        # A list may grow while it is read.
        if self._count is None or self._count < self._taken:
            return math.inf
        return self._count - self._taken

    @property
    def total(self) -> int | None:
        """Number of all items, if it is known by now."""
        if self._count is not None:
            return max(self._count, self._taken)
        return self._taken + len(self._queue) if self.exhausted else None

    def read(self, count: int) -> Chunk | None:
        """Return the next ``count`` items of an iterable, or the rest. None means the end."""
        if self.exhausted:
            return None
        if self.is_range:
            first = self._taken
            part = self._items[first : first + count]
            taken = len(part)
            if taken < count:
                self.exhausted = True
                if not taken:
                    return None
            self._taken += taken
            self.inside += taken
            return Chunk(first, part)
        items: list[Any] = []
        try:
            if self._iterator is None:
                self._iterator = _iterate(self._items)
            _read(self._iterator, items, count)
        except BaseException as error:
            # The items before it are in the list.
            self.error = error
            self.exhausted = True
        if len(items) < count:
            self.exhausted = True
        self.inside += len(items)
        return self._chunk(items)

    async def read_one(self) -> bool:
        """Put one item of an async iterable into the queue. Return False at its end."""
        try:
            if self._iterator is None:
                self._iterator = aiter(self._items)
            item = await anext(self._iterator)
        except StopAsyncIteration:
            return False
        except trio.Cancelled:
            raise
        except BaseException as error:
            self.error = error
            return False
        self._queue.append(item)
        self.inside += 1
        return True

    def take(self, count: int) -> Chunk | None:
        """Return up to ``count`` items of the queue. None means an empty queue."""
        return self._chunk([self._queue.popleft() for _ in range(min(count, len(self._queue)))])

    def end(self) -> None:
        """Stop reading, and drop the items of the queue."""
        self.exhausted = True
        self._queue.clear()

    async def close(self) -> None:
        """Close an async generator. Other iterables, like channels, are closed by their owners."""
        iterator = self._iterator or self._items
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()

    def _chunk(self, items: Sequence[Any]) -> Chunk | None:
        if not items:
            return None
        chunk = Chunk(self._taken, items)
        self._taken += len(items)
        return chunk


# Ctrl+C must reach an iterator that hangs.
@trio.lowlevel.disable_ki_protection
def _iterate(items: Any) -> Any:
    return iter(items)


@trio.lowlevel.disable_ki_protection
def _read(iterator: Any, into: list[Any], count: int) -> None:
    into.extend(itertools.islice(iterator, count))
