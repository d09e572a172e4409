"""A FIFO buffer that is bounded in items and in bytes, with parked puts and takes.

Channels and work queues share it. A put is parked if the buffer is full, a take if it is empty.
Both are served in the order in which they came. It knows neither sockets nor Trio.
Invariants, after each method:

* a take is parked only while the buffer and the parked puts are empty;
* a put is parked only while its first item does not fit;
* the items lie in the order of their numbers. They get these when their turn comes.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final

import attrs

from .parking import Parking, Waiter

WOULD_BLOCK: Final = "would_block"
END_OF_CHANNEL: Final = "end_of_channel"
BROKEN: Final = "broken"
CLOSED: Final = "closed"

_number_of: Final = operator.attrgetter("number")


class Refusal(Exception):
    """An operation was refused. ``status`` is the reason, by its name in the protocol."""

    def __init__(self, status: str, message: str = "") -> None:
        super().__init__(message or status)
        self.status = status
        self.message = message


@attrs.define(eq=False)
class Item:
    """A pickled object on its way."""

    payload: Any
    """The pickle. The buffer does not look into it."""
    size: int
    """Size of the pickle in bytes."""
    number: int = 0
    """Place in the order in which items enter the buffer, or pass it."""
    attempts: int = 0
    """Number of holders that failed, if it is the item of a work queue."""


@attrs.define(eq=False)
class _Put:
    source: Hashable
    items: deque[Item]
    count: int


@attrs.define(eq=False)
class _Take:
    source: Hashable
    limit: int
    max_size: float
    convert: Callable[[list[Item]], Any]


class BoundedBuffer:
    """The buffer, its parked puts and its parked takes.

    A ``source`` is the end, or other object, for which a put or take is parked. :meth:`fail_puts`
    and :meth:`fail_takes` find it by that.
    """

    def __init__(self, max_items: float, max_bytes: float) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.bytes_used = 0
        self.released: Callable[[Sequence[Item]], None] = _ignore
        """Called with items that leave for good without being taken: to free what they hold."""
        self._items: deque[Item] = deque()
        self._puts: Parking[_Put] = Parking()
        self._takes: Parking[_Take] = Parking()
        # The waiters of each source, so that the end of one costs nothing for the others.
        self._waiters: dict[Hashable, dict[Waiter, None]] = {}
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._items)

    @property
    def parked_puts(self) -> int:
        """Number of parked puts."""
        return len(self._puts)

    @property
    def parked_takes(self) -> int:
        """Number of parked takes."""
        return len(self._takes)

    def put(self, source: Hashable, items: Iterable[Item], waiter: Waiter | None) -> bool:
        """Put items, in order. Return False if the waiter was parked for a part of them.

        A parked waiter is completed with the number of its items, once all are in.

        Args:
            source: The end that puts them.
            items: The items. Without a waiter it must be one.
            waiter: The waiter to park. Without one the put must not wait.

        Raises:
            Refusal: ``would_block``: the item was not put.
        """
        put = _Put(source, deque(items), 0)
        put.count = len(put.items)
        if waiter is None and (self._puts or not (self._takes or self._has_place_for(put.items[0]))):
            raise Refusal(WOULD_BLOCK)
        if not self._puts:
            self._admit(put.items)
        if put.items and waiter is not None:
            self._park(self._puts, waiter, put)
            return False
        return True

    def take(
        self,
        source: Hashable,
        limit: int,
        waiter: Waiter | None,
        convert: Callable[[list[Item]], Any],
        *,
        max_size: float = math.inf,
    ) -> Any:
        """Take up to ``limit`` items. Return them converted, or None if the waiter was parked.

        A parked waiter is completed with the converted items, at least one.

        Args:
            source: The end that takes them.
            limit: Maximum number of items.
            waiter: The waiter to park. Without one the take must not wait.
            convert: Makes the result, at the moment at which the items leave the buffer.
            max_size: Size in bytes at which further items are left. The first may exceed it.

        Raises:
            Refusal: ``would_block``: the buffer is empty.
        """
        items: list[Item] = []
        size = 0
        while len(items) < limit and size < max_size:
            if self._items:
                items.append(self._pop())
            elif self._puts:
                # A buffer without places passes an item on from hand to hand.
                items.append(self._enter(self._puts.first()[1].items.popleft()))
                self._pop_finished()
            else:
                break
            size += items[-1].size + 1
        if items:
            self._fill()
            return convert(items)
        if waiter is None:
            raise Refusal(WOULD_BLOCK)
        self._park(self._takes, waiter, _Take(source, limit, max_size, convert))
        return None

    def put_reserved(self, items: Sequence[Item]) -> None:
        """Put items whose places their sender has reserved. It does not wait."""
        for number, item in enumerate(items, self._next_number):
            item.number = number
        self._next_number += len(items)
        rest = items
        while self._takes and rest:
            waiter, take = self._pop_take()
            count = _fitting(rest, take)
            waiter.complete(take.convert([*rest[:count]]))
            rest = rest[count:]
        self.bytes_used += sum([item.size for item in rest])
        self._items.extend(rest)

    def put_one(self, item: Item) -> bool:
        """Put an item into a free place. Return False if that is less simple."""
        if self._takes or self._puts or not self._has_place_for(item):
            return False
        self.bytes_used += item.size
        self._items.append(self._enter(item))
        return True

    def take_one(self) -> Item | None:
        """Take the first item, or return None if that is less simple."""
        if not self._items:
            return None
        item = self._pop()
        if self._puts:
            self._fill()
        return item

    def put_back(self, items: Iterable[Item]) -> None:
        """Put items that were taken back into their places. The bounds do not apply."""
        returned = sorted(items, key=_number_of)
        self.bytes_used += sum(item.size for item in returned)
        self._items = deque(heapq.merge(returned, self._items, key=_number_of))
        while self._takes and self._items:
            waiter, take = self._pop_take()
            waiter.complete(take.convert([self._pop() for _ in range(_fitting(self._items, take))]))
        self._fill()

    def withdraw(self, waiter: Waiter) -> int | None:
        """Remove a parked waiter without an answer. Return None if it was not parked.

        Otherwise return the number of items that a put had put, or 0 for a take.
        """
        take = self._takes.remove(waiter)
        if take is not None:
            self._forget(waiter, take)
            return 0
        put = self._puts.remove(waiter)
        if put is None:
            return None
        self._forget(waiter, put)
        self.released(put.items)
        # The next put may have a smaller item.
        self._fill()
        return put.count - len(put.items)

    def fail_puts(self, error: Callable[[], BaseException], source: Hashable = None) -> None:
        """Fail the parked puts of a source, or all of them."""
        self._fail(self._puts, error, source)
        self._fill()

    def fail_takes(self, error: Callable[[], BaseException], source: Hashable = None) -> None:
        """Fail the parked takes of a source, or all of them."""
        self._fail(self._takes, error, source)

    def clear(self) -> None:
        """Release all items."""
        items, self._items = self._items, deque()
        self.bytes_used = 0
        self.released(items)

    def _has_place_for(self, item: Item) -> bool:
        if len(self._items) >= self.max_items:
            return False
        # An item above the bound passes alone.
        return not self._items or self.bytes_used + item.size <= self.max_bytes

    def _admit(self, items: deque[Item]) -> None:
        """Move items to parked takes, then into free places."""
        while items:
            if self._takes:
                waiter, take = self._pop_take()
                waiter.complete(take.convert([self._enter(items.popleft()) for _ in range(_fitting(items, take))]))
            elif self._has_place_for(items[0]):
                self.bytes_used += items[0].size
                self._items.append(self._enter(items.popleft()))
            else:
                break

    def _fill(self) -> None:
        """Let parked puts have the free places, in their order."""
        while self._puts:
            items = self._puts.first()[1].items
            self._admit(items)
            if items:
                break
            self._pop_finished()

    def _pop_finished(self) -> None:
        """Complete the first put if all of its items are in."""
        waiter, put = self._puts.first()
        if not put.items:
            self._puts.pop()
            self._forget(waiter, put)
            waiter.complete(put.count)

    def _pop_take(self) -> tuple[Waiter, _Take]:
        waiter, take = self._takes.pop()
        self._forget(waiter, take)
        return waiter, take

    def _park(self, parking: Parking[Any], waiter: Waiter, detail: _Put | _Take) -> None:
        parking.add(waiter, detail)
        self._waiters.setdefault(detail.source, {})[waiter] = None

    def _forget(self, waiter: Waiter, detail: _Put | _Take) -> None:
        waiters = self._waiters[detail.source]
        del waiters[waiter]
        if not waiters:
            del self._waiters[detail.source]

    def _fail(self, parking: Parking[Any], error: Callable[[], BaseException], source: Hashable) -> None:
        if source is None:
            failed = parking.clear()
        else:
            failed = [(waiter, parking.remove(waiter)) for waiter in self._waiters.get(source, ()) if waiter in parking]
        for waiter, detail in failed:
            self._forget(waiter, detail)
            if type(detail) is _Put:
                self.released(detail.items)
            waiter.fail(error())

    def _enter(self, item: Item) -> Item:
        item.number = self._next_number
        self._next_number += 1
        return item

    def _pop(self) -> Item:
        item = self._items.popleft()
        self.bytes_used -= item.size
        return item


def _fitting(items: Iterable[Item], take: _Take) -> int:
    """Return the number of items that a take gets."""
    count = size = 0
    for item in items:
        if count == take.limit or size >= take.max_size:
            break
        count += 1
        size += item.size + 1
    return count


def _ignore(_items: Sequence[Item]) -> None:
    pass
