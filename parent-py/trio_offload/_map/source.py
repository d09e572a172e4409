"""What goes into a ``map``: items, however they come, and how many of them make a chunk."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from .._worker.worker import MOST_IN_FLIGHT

if TYPE_CHECKING:
    from .._process.process import WorkerProcess


@attrs.define(eq=False)
class Chunk:
    """Items that travel together; one that is alone travels as a call of its own."""

    start: int
    """The index of the first item in the whole."""
    items: Sequence[Any]
    number: int = 0
    """What the worker writes into its record beside the progress."""
    sent: int = 0
    """Bytes."""
    lost: tuple[WorkerProcess, ...] = ()
    """Workers that were started for it and left before they had begun."""


class Source:
    """An iterable of either kind. An error of its own, or its end, comes after the items before it."""

    def __init__(self, items: Any) -> None:
        self.is_async = isinstance(items, AsyncIterable)
        # Whether there is no need to look what is in it. What is taken of it is a range too: that travels as three numbers.
        self.is_plain = type(items) is range
        self._items = items
        # How many items there are; of an iterable that is not of these types only reading tells.
        self._count = len(items) if type(items) in _SIZED else None
        self._iterator: Any = None
        self._queue: collections.deque[Any] = collections.deque()
        self._taken = 0
        self.exhausted = False
        self.error: BaseException | None = None
        self.inside = 0
        """How many items have been read and not consumed yet."""

    @property
    def may_have_more(self) -> bool:
        """Whether there is an item to take, or one may come."""
        return bool(self._queue) or not self.exhausted

    @property
    def left(self) -> float:
        """How many items are still to be read; infinity if that is not known."""
        # A list may grow while it is read.
        if self._count is None or self._count < self._taken:
            return math.inf
        return self._count - self._taken

    def read(self, count: int) -> Chunk | None:
        """The next ``count`` items of an ordinary iterable, or as many as there are; None: no more."""
        if self.exhausted:
            return None
        if self.is_plain:
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
            # What came before it is in the list.
            self.error = error
            self.exhausted = True
        if len(items) < count:
            self.exhausted = True
        self.inside += len(items)
        return self._chunk(items)

    async def read_one(self) -> bool:
        """Put one item of an async iterable into the queue; whether there was one."""
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
        """Up to ``count`` items of the queue; None: it is empty."""
        return self._chunk([self._queue.popleft() for _ in range(min(count, len(self._queue)))])

    def end(self) -> None:
        """No more is wanted."""
        self.exhausted = True
        self._queue.clear()

    async def close(self) -> None:
        """End an async generator. Anything else, a channel say, is its owner's to close."""
        iterator = self._iterator or self._items
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()

    def _chunk(self, items: Sequence[Any]) -> Chunk | None:
        if not items:
            return None
        chunk = Chunk(self._taken, items)
        self._taken += len(items)
        return chunk


class Pace:
    """How many items a chunk has, and how many chunks a worker gets before it has answered the first of them."""

    def __init__(self, chunk_size: int | None) -> None:
        self.measures = chunk_size is None
        # How many items the next chunk should have.
        self.size = chunk_size or 1
        self.in_flight = 1
        # How many chunks of each worker may be inside of the window, if that is not given.
        self.inside = _INSIDE
        self._wanted = self.size
        self._most_read = MOST_ITEMS

    def read(self, items: int, seconds: float) -> None:
        """It has taken so long to read so many items, and nothing else could run meanwhile."""
        if self.measures:
            self._most_read = max(1, int(min(MOST_ITEMS, items * _LONGEST_READ / max(seconds, 1e-9))))
            self.size = min(self._wanted, self._most_read)

    def answered(self, calls: int, seconds: float, *, waits: bool) -> None:
        """A worker has answered so many calls in so many seconds, and ``waits`` for more if none is left in flight."""
        # A second call behind a long one would only keep an item from the other workers. Short ones have several behind them: the
        # parent then often finds more than one answer where it looks for one, and sends as many calls at once. They become more
        # only as fast as short ones are seen, so that a single one does not bring long ones behind each other.
        each = seconds / calls
        if each >= _AHEAD:
            self.in_flight = 1
        else:
            # What a worker could have done in the time is not known if it had to wait for the parent.
            short = each * MOST_IN_FLIGHT <= _BEHIND or (waits and calls > 1)
            self.in_flight = min(MOST_IN_FLIGHT if short else max(2, int(_BEHIND / each)), self.in_flight + calls)
        self.inside = max(_INSIDE, 2 * self.in_flight)

    def measured(self, items: int, worked: float, size: int) -> None:
        """A chunk of so many items, and so many bytes both ways, was worked on for so many seconds."""
        if not self.measures or not items:
            return
        wanted = int(min(_TARGET * items / max(worked, 1e-9), MOST_BYTES * items / max(size, 1), MOST_ITEMS))
        if wanted < self._wanted:
            self._wanted = max(1, wanted)
        else:
            # One measurement is not believed further than this, and a chunk that was cut off says little of larger ones.
            self._wanted = max(self._wanted, min(wanted, items * _GROWTH))
        self.size = min(self._wanted, self._most_read)


MOST_ITEMS: Final = 16_384
MOST_BYTES: Final = 512 * 1024
_TARGET: Final = 0.02  # seconds that a chunk should last
_GROWTH: Final = 8
_LONGEST_READ: Final = 0.001  # seconds
_SIZED: Final = frozenset({range, list, tuple, dict, set, frozenset})
_AHEAD: Final = 0.1  # seconds; calls that take longer are sent one at a time
_BEHIND: Final = 0.002  # seconds; calls that are sent ahead may take so long together, except that one always is
_INSIDE: Final = 8  # chunks for each worker, at least


# Ctrl+C has to get through to an iterator that does not come to an end.
@trio.lowlevel.disable_ki_protection
def _iterate(items: Any) -> Any:
    return iter(items)


@trio.lowlevel.disable_ki_protection
def _read(iterator: Any, into: list[Any], count: int) -> None:
    into.extend(itertools.islice(iterator, count))
