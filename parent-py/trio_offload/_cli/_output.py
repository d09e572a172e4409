"""The lines of ``trio-offload map`` on standard output: in the order of the items, each as soon as all before it are there.

* :class:`Window` bounds what the command holds in memory: an item is inside from the moment it is read until its line is
  written. A slow first item, a slow reader of the output and a fast source all end at the same gate, the one for new items.
* A write happens in a thread, because a pipe may be full and a terminal stopped, and Ctrl+C has to work nevertheless. A
  thread costs more than many an item, so writes keep a small distance, and lines gather meanwhile.
* Bytes go straight to the descriptor. Nothing is left in a buffer that a closed pipe would make complain about at exit.
"""

from __future__ import annotations

import os
import select
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._sources import Item

DISTANCE: Final = 0.005
"""Seconds between the beginnings of two writes, at least. Nobody sees a line come so much later."""


class Window:
    """How many items may be between the source and the output, and how many bytes they may take."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items = 0
        self._bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def admit(self, size: int) -> None:
        """Wait until there is room for one item more, and take it. ``size`` in bytes.

        An item that is alone always gets in, however large. No deadlock: the first of those inside is with a worker or
        about to be written, so it leaves some day.
        """
        while self._items and (self._items >= self._max_items or not self.has_room):
            await self.change()
        self._items += 1
        self._bytes += size

    @property
    def has_room(self) -> bool:
        """Whether the bytes inside are fewer than allowed."""
        return self._bytes < self._max_bytes

    async def change(self) -> None:
        """Wait until something has left."""
        await self._waiting.park()

    def grow(self, size: int) -> None:
        """Count the line of an item that is inside, ``size`` bytes."""
        self._bytes += size

    def leave(self, items: int, size: int) -> None:
        """Give back the room of so many items, which took so many bytes with their lines."""
        self._items -= items
        self._bytes -= size
        self._waiting.unpark_all()


class OrderedOutput:
    """Takes lines in any order and writes them in the order of their items."""

    def __init__(
        self,
        descriptor: int,
        window: Window,
        around_write: Callable[[], AbstractContextManager[object]],
        distance: float = DISTANCE,
    ) -> None:
        self._descriptor = descriptor
        self._window = window
        self._around_write = around_write
        self._distance = distance
        self._next = 0  # the index of the first item that has no line yet
        self._behind: dict[int, tuple[int, bytes]] = {}  # lines that wait for it: (bytes in the window, line)
        self._ready: list[tuple[int, bytes]] = []
        self._closed = False
        self._wake = trio.lowlevel.ParkingLot()

    def awaits(self, item: Item) -> bool:
        """Whether this item's line is the next to be written: everything waits for it."""
        return item.index == self._next

    def put(self, item: Item, line: bytes) -> None:
        """Take the line of an item. After :meth:`close` it is dropped."""
        if self._closed:
            return
        self._window.grow(len(line))
        self._behind[item.index] = (item.size + len(line), line)
        while self._next in self._behind:
            self._ready.append(self._behind.pop(self._next))
            self._next += 1
        if self._ready:
            self._wake.unpark()

    def close(self) -> None:
        """No more lines will come: also write those that wait for an item which never finished, still in order."""
        self._closed = True
        self._ready.extend(self._behind[index] for index in sorted(self._behind))
        self._behind.clear()
        self._wake.unpark()

    async def write(self) -> None:
        """Write lines until :meth:`close` and the last of them. Raises :class:`OSError` if that fails.

        Cancelled, it abandons a write that is under way. Nothing may be written after that: how much of it arrived is not
        known.
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
                    b"".join([line for _, line in batch]),
                    abandon_on_cancel=True,
                )
            self._window.leave(len(batch), sum(size for size, _ in batch))
            if not self._closed:
                await trio.sleep_until(earliest_next)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody left the descriptor non-blocking; it is theirs, so wait instead of changing it
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
