"""Write the lines of ``trio-offload map``, in the order of the items or as they come.

* :class:`Window` bounds memory use. An item is inside from its reading until its line is written.
  So the source waits if an item is slow or the output is read slowly.
* Each write runs in a thread: a pipe may be full and a terminal stopped, and Ctrl+C must still
  work. A thread costs more than many items do, so writes keep a minimum distance, and lines are
  collected in between.
* Bytes go directly to the descriptor. A buffer would fail to flush at exit if the pipe is closed.
"""

from __future__ import annotations

import math
import os
import select
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sources import Item

DISTANCE: Final = 0.005
"""Minimum number of seconds between the starts of two writes. Too short to notice."""


class Window:
    """A bound on the items between the source and the output, and on their bytes."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes: float = max_bytes
        self._items = 0
        self._bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def admit(self, size: int) -> None:
        """Wait for room for an item of ``size`` bytes, and take the room.

        An empty window admits an item of any size. A deadlock is impossible: the oldest item inside
        is with a worker or about to be written.
        """
        while self._items and (self._items >= self._max_items or not self.has_room):
            await self.change()
        self._items += 1
        self._bytes += size

    @property
    def has_room(self) -> bool:
        """True if the bytes inside are below the bound."""
        return self._bytes < self._max_bytes

    def open(self) -> None:
        """Lift the bound on bytes, because nothing more is taken."""
        self._max_bytes = math.inf
        self._waiting.unpark_all()

    async def change(self) -> None:
        """Wait until an item has left."""
        await self._waiting.park()

    def grow(self, size: int) -> None:
        """Add the ``size`` bytes of the line of an item that is inside."""
        self._bytes += size

    def leave(self, items: int, size: int) -> None:
        """Free the room of items, and of their bytes including the lines."""
        self._items -= items
        self._bytes -= size
        self._waiting.unpark_all()


class Output:
    """Take lines in any order, and write them in the order of their items.

    Args:
        descriptor: the file descriptor.
        window: the bound on memory use.
        around_write: returns a block around each write.
        distance: minimum number of seconds between two writes.
        ordered: False writes lines in the order in which they are taken.
    """

    def __init__(
        self,
        descriptor: int,
        window: Window,
        around_write: Callable[[], AbstractContextManager[object]],
        distance: float = DISTANCE,
        *,
        ordered: bool = True,
    ) -> None:
        self._descriptor = descriptor
        self._window = window
        self._around_write = around_write
        self._distance = distance
        self._ordered = ordered
        self.written = 0
        """Number of items whose last line is written."""
        self._taken = 0
        # Index of the first item without a line.
        self._next = 0
        # Lines that wait for it, by index: (bytes in the window, line).
        self._behind: dict[int, tuple[int, bytes]] = {}
        # Lines of values that wait for it too, by index.
        self._parts: dict[int, list[bytes]] = {}
        # Bytes in the window, and lines. An item leaves with its last line.
        self._ready: list[tuple[int, bytes, bool]] = []
        self._closed = False
        self._wake = trio.lowlevel.ParkingLot()

    def awaits(self, item: Item) -> bool:
        """Return True if no line can be written before this item's line."""
        return item.index == self._next if self._ordered else self._taken == self.written

    def put(self, item: Item, line: bytes) -> None:
        """Accept the line of an item. Ignored after :meth:`close`."""
        if self._closed:
            return
        self._window.grow(len(line))
        self._taken += 1
        if not self._ordered:
            self._ready.append((item.size + len(line), line, True))
            self._wake.unpark()
            return
        self._behind[item.index] = (item.size + len(line), line)
        while self._next in self._behind:
            self._release_parts(self._next)
            self._ready.append((*self._behind.pop(self._next), True))
            self._next += 1
        self._release_parts(self._next)
        if self._ready:
            self._wake.unpark()

    async def put_part(self, item: Item, line: bytes) -> None:
        """Accept a line of an item that goes on. Wait while the window is full."""
        if self._closed:
            return
        self._window.grow(len(line))
        self._parts.setdefault(item.index, []).append(line)
        if not self._ordered or item.index == self._next:
            self._release_parts(item.index)
            self._wake.unpark()
        # Lines of the item whose turn it is wait for a slow reader only.
        while not (self._window.has_room or (self.awaits(item) and not self._ready)):
            await self._window.change()

    def _release_parts(self, index: int) -> None:
        for line in self._parts.pop(index, ()):
            self._ready.append((len(line), line, False))

    def close(self) -> None:
        """Ignore further lines. Lines that wait for an unfinished item are written, in order."""
        self._closed = True
        for index in sorted({*self._behind, *self._parts}):
            self._release_parts(index)
            if index in self._behind:
                self._ready.append((*self._behind.pop(index), True))
        self._wake.unpark()
        self._window.open()

    async def write(self) -> None:
        """Write lines until :meth:`close`, and then the rest.

        Cancellation abandons a write in progress. The caller must not write afterwards, because the
        number of written bytes is unknown.

        Raises:
            OSError: a write failed.
        """
        while True:
            while not self._ready:
                if self._closed:
                    return
                await self._wake.park()
            earliest_next = trio.current_time() + self._distance
            batch, self._ready = self._ready, []
            with self._around_write():
                await trio.to_thread.run_sync(
                    _write_all,
                    self._descriptor,
                    b"".join([line for _, line, _ in batch]),
                    abandon_on_cancel=True,
                )
            finished = sum(is_last for _, _, is_last in batch)
            self.written += finished
            self._window.leave(finished, sum(size for size, _, _ in batch))
            if not self._closed:
                await trio.sleep_until(earliest_next)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # its owner has set it to non-blocking: wait, and leave it so
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
