"""The state of a channel: its buffer, its open ends, and the items that jobs have received.

A clone of an end belongs to a task, or to one call of a job. The state knows what
each job has received, so after a death each item has one of three fates:

* it was not passed to the job's code: it goes back to its place, at the front;
* it was: it is returned to the caller of :meth:`ChannelState.finish_receiver`, and not received
  again;
* its thread has received again since: it counts as processed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import attrs

from .bounded_buffer import BROKEN, CLOSED, END_OF_CHANNEL, WOULD_BLOCK, BoundedBuffer, Item, Refusal
from .parking import Waiter

ON_DEATH: Final = ("raise", "ignore")


MAX_AHEAD: Final = 64  # items
MAX_AHEAD_IN_STREAM: Final = 250  # items for a job that uses up the former at once
MAX_AHEAD_SIZE: Final = 64 * 1024  # bytes
MAX_CREDIT: Final = 256  # items
CREDIT_SIZE: Final = 4096  # bytes; larger items cannot be sent on credit


@attrs.define(eq=False)
class SendEnd:
    """One open end for sending."""

    closed: bool = False
    credit: int = 0
    """Number of items for which it has places in the buffer, and may send without asking."""


@attrs.define(eq=False)
class Delivery:
    """The items that one request of a job received."""

    thread: Hashable
    """The thread of the job. Its next request shows that it has these items."""
    number: int
    """Number of the request."""
    is_ahead: bool = False
    """True if the job's code gets the items one by one, and not all at once."""
    items: list[Item] = attrs.Factory(list)


@attrs.define(eq=False)
class ReceiveEnd:
    """One open end for receiving."""

    closed: bool = False
    received: int = 0
    """Number of items that it has received."""
    deliveries: dict[Hashable, Delivery] = attrs.Factory(dict)
    """The last delivery to each thread of a job."""


class ChannelState:
    """The state that all ends of a channel share.

    ``on_death`` is "raise" if a stream ends with ``broken`` after a sender's worker has died, or
    "ignore" if it ends with ``end_of_channel``.
    """

    on_room: Callable[[], None]
    """Called when the buffer may have room for more credit."""

    def __init__(self, max_items: float, max_bytes: float, on_death: str = "raise") -> None:
        self.buffer = BoundedBuffer(max_items, max_bytes)
        self.run: object = None
        """The run of Trio in which the channel is used."""
        self.on_room = no_action
        # Items that tasks take before the next call of `on_room` can have an effect.
        self._takes_to_room: float = 0
        self.open_senders = 0
        self.open_receivers = 0
        self._on_death = on_death
        self._death = ""

    def add_sender(self) -> SendEnd:
        """Return a new end for sending."""
        self.open_senders += 1
        return SendEnd()

    def add_receiver(self) -> ReceiveEnd:
        """Return a new end for receiving."""
        self.open_receivers += 1
        return ReceiveEnd()

    def clone_sender(self, end: SendEnd) -> SendEnd:
        """Return a further end for sending.

        Raises:
            Refusal: ``closed``.
        """
        _check_open(end)
        return self.add_sender()

    def clone_receiver(self, end: ReceiveEnd) -> ReceiveEnd:
        """Return a further end for receiving.

        Raises:
            Refusal: ``closed``.
        """
        _check_open(end)
        return self.add_receiver()

    def send(self, end: SendEnd, items: Sequence[Item], waiter: Waiter | None) -> bool:
        """Send items. As :meth:`BoundedBuffer.put`.

        Raises:
            Refusal: ``closed``, ``broken`` (all ends for receiving are closed) or ``would_block``.
        """
        _check_open(end)
        if not self.open_receivers:
            raise _nobody_receives()
        return self.buffer.put(end, items, waiter)

    def may_run_ahead(self, limit: int = MAX_AHEAD) -> int:
        """Return the number of items that a job may get at once, before its code wants them.

        More than one only if it is the only receiver: others would miss them.
        """
        return int(min(limit, max(self.buffer.max_items, 1))) if self.open_receivers == 1 else 1

    def receive(
        self, end: ReceiveEnd, waiter: Waiter | None, limit: int = 1, delivery: Delivery | None = None
    ) -> list[Item] | None:
        """Receive up to ``limit`` items. Return None if the waiter was parked.

        Args:
            end: The end.
            waiter: The waiter to park. Without one the receive must not wait.
            limit: Maximum number of items.
            delivery: Where to note the items, for a job.

        Raises:
            Refusal: ``closed``, ``end_of_channel``, ``broken`` (a sender died) or ``would_block``.
        """
        _check_open(end)
        if delivery is not None:
            processed = end.deliveries.pop(delivery.thread, None)
            if processed is not None:
                self.buffer.released(processed.items)

        def deliver(items: list[Item]) -> list[Item]:
            end.received += len(items)
            if delivery is not None:
                delivery.items = items
                end.deliveries[delivery.thread] = delivery
            return items

        may_wait = self.open_senders > 0
        max_size = MAX_AHEAD_SIZE if delivery is not None and delivery.is_ahead else math.inf
        waiter = waiter if may_wait else None
        try:
            items: list[Item] | None = self.buffer.take(end, limit, waiter, deliver, max_size=max_size)
        except Refusal:
            raise (Refusal(WOULD_BLOCK) if may_wait else self._ending()) from None
        self.on_room()
        return items

    def extend_credit(self, end: SendEnd, *, asks: bool = False) -> int:
        """Reserve places for an end, if it is the only one for sending. Return their number.

        A message to the job costs as much for one place as for all. So it returns 0 until half of
        the credit is used, unless the job ``asks`` for a place and gets a reply.

        The places are not kept from others. A second sender, or a request of this one that crosses
        with its credit, may take them too. Then the buffer has up to ``credit`` items above its
        bound, until they are received. To keep the places would be worse: the first sender may
        never use them, and the second would wait for ever. To take them back is impossible while a
        message that uses them may be on its way.
        """
        buffer = self.buffer
        self._takes_to_room = 0
        if end.closed or self.open_senders != 1 or not self.open_receivers or buffer.parked_puts:
            return 0
        limit = min(buffer.max_items, MAX_CREDIT, buffer.max_bytes // CREDIT_SIZE)
        places = buffer.max_items - len(buffer)
        free = min(limit, places, (buffer.max_bytes - buffer.bytes_used) // CREDIT_SIZE)
        count = int(free) - end.credit
        if limit < 2 or count < (1 if asks else limit // 2):
            if free == places:
                self._takes_to_room = limit // 2 - count
            return 0
        end.credit += count
        return count

    def send_on_credit(self, end: SendEnd, items: Sequence[Item]) -> None:
        """Send items whose places are reserved.

        They are dropped if they cannot be received any more.

        Raises:
            Refusal: ``would_block``: the end has not so much credit.
        """
        if end.credit < len(items):
            raise Refusal(WOULD_BLOCK)
        end.credit -= len(items)
        if end.closed or not self.open_receivers:
            self.buffer.released(items)
            return
        self.buffer.put_reserved(items)
        self.on_room()

    def send_one(self, end: SendEnd, item: Item) -> bool:
        """Send an item. Return False if that is less simple, or an error: see :meth:`send`."""
        return not end.closed and self.open_receivers > 0 and self.buffer.put_one(item)

    def receive_one(self, end: ReceiveEnd) -> Item | None:
        """Receive an item for a task. Return None as :meth:`send_one` returns False."""
        item = None if end.closed else self.buffer.take_one()
        if item is not None:
            end.received += 1
            self._takes_to_room -= 1
            if self._takes_to_room <= 0:
                self.on_room()
        return item

    def withdraw(self, waiter: Waiter) -> int | None:
        """As :meth:`BoundedBuffer.withdraw`."""
        return self.buffer.withdraw(waiter)

    def close_sender(self, end: SendEnd, death: str = "") -> None:
        """Close an end for sending. ``death`` tells how its worker died, if it did.

        The last one ends the stream: its receivers get the items that are left, and then
        ``end_of_channel`` or ``broken``.
        """
        if end.closed:
            return
        end.closed = True
        self.open_senders -= 1
        if death and self._on_death == "raise":
            self._death = self._death or death
        self.buffer.fail_puts(_closed, end)
        if not self.open_senders:
            self.buffer.fail_takes(self._ending)

    def close_receiver(self, end: ReceiveEnd) -> None:
        """Close an end for receiving. The last one drops the buffer, and senders get ``broken``."""
        if end.closed:
            return
        end.closed = True
        self.open_receivers -= 1
        self.buffer.fail_takes(_closed, end)
        if not self.open_receivers:
            self.buffer.fail_puts(_nobody_receives)
            self.buffer.clear()

    def put_back(self, end: ReceiveEnd, number: int, handed: int) -> None:
        """Put the items of a request back to the front, except those that the job's code got."""
        for delivery in [*end.deliveries.values()]:
            if delivery.number == number:
                del end.deliveries[delivery.thread]
                self.buffer.released(delivery.items[:handed])
                self._return(end, delivery.items[handed:])

    def finish_receiver(self, end: ReceiveEnd, handed: Callable[[int], int]) -> list[Item]:
        """Close the end of a call that has ended, or died.

        Items that did not reach the job's code go back to the front.

        Args:
            end: The end.
            handed: Returns by a request's number how many of its items were passed to the job's
                code, or more than it has.

        Returns:
            The items that the job's threads received last. The caller releases them.
        """
        deliveries, end.deliveries = [*end.deliveries.values()], {}
        in_hand: list[Item] = []
        returned: list[Item] = []
        for delivery in deliveries:
            count = min(handed(delivery.number), len(delivery.items))
            # Of items that were received one by one, only the last is in hand.
            first = max(count - 1, 0) if delivery.is_ahead else 0
            self.buffer.released(delivery.items[:first])
            in_hand += delivery.items[first:count]
            returned += delivery.items[count:]
        self._return(end, returned)
        self.close_receiver(end)
        return sorted(in_hand, key=lambda item: item.number)

    def _return(self, end: ReceiveEnd, items: Sequence[Item]) -> None:
        if not items:
            return
        end.received -= len(items)
        if self.open_receivers:
            self.buffer.put_back(items)
        else:
            self.buffer.released(items)

    def _ending(self) -> Refusal:
        if self._death:
            return Refusal(BROKEN, f"the stream is not complete: {self._death}")
        return Refusal(END_OF_CHANNEL, "all send channels are closed")


def _check_open(end: SendEnd | ReceiveEnd) -> None:
    if end.closed:
        raise _closed()


def _closed() -> Refusal:
    return Refusal(CLOSED, "this channel is closed")


def _nobody_receives() -> Refusal:
    return Refusal(BROKEN, "all receive channels are closed")


def no_action() -> None:
    """Do nothing."""
