"""The state of a channel, without processes: random histories, and all short ones."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pytest
from channel_support import CountingWaiter
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ledger import Step, explore_everything

from trio_offload._sync.bounded_buffer import BROKEN, CLOSED, END_OF_CHANNEL, WOULD_BLOCK, Item, Refusal
from trio_offload._sync.channel_state import MAX_AHEAD, MAX_CREDIT, ChannelState, Delivery, ReceiveEnd, SendEnd


class ChannelLedger:
    """A channel, and a model of it: where each item is, and who waits.

    Sent items are `open` until they are received, refused to their sender, or dropped. The model
    knows one more rule: the next item that is received is the open one that was sent first.
    """

    def __init__(self, max_items: float, max_bytes: float, on_death: str = "raise") -> None:
        self.state = ChannelState(max_items, max_bytes, on_death)
        self.state.buffer.released = self.release
        self.on_death = on_death
        self.senders: list[SendEnd] = [self.state.add_sender(), self.state.add_sender()]
        self.receivers: list[ReceiveEnd] = [self.state.add_receiver(), self.state.add_receiver()]
        self.waiters: list[CountingWaiter] = []
        self.sent: list[Item] = []
        self.open: list[Item] = []
        self.held: dict[int, Item] = {}
        self.refused: list[Item] = []
        self.released: list[Item] = []
        self.told: list[Item] = []
        self.deaths = 0
        self.requests = 0

    # --- operations. Those that do not apply return False.

    def send(self, sender: int, sizes: tuple[int, ...], waits: bool) -> bool | None:
        end, items = self.senders[sender % len(self.senders)], [Item("x", size) for size in sizes]
        waiter = self.waiter(f"send{len(self.waiters)}", end) if waits else None
        if waiter is not None:
            waiter.items = items
        places = self.places(sizes[0])
        self.sent += items
        self.open += items
        try:
            done = self.state.send(end, items, waiter)
        except Refusal as refusal:
            status = refusal.status
            expected = CLOSED if end.closed else BROKEN if not self.state.open_receivers else WOULD_BLOCK
            assert status == expected
            assert expected != WOULD_BLOCK or (not waits and not places)
            if waiter is not None:
                self.waiters.remove(waiter)
            self.refuse(items)
            return None
        assert done or waits
        if done and waiter is not None:
            self.waiters.remove(waiter)
        return None

    def places(self, size: int) -> bool:
        """Whether a send would find a place."""
        buffer = self.state.buffer
        if buffer.parked_takes:
            return True
        if buffer.parked_puts or len(buffer) >= buffer.max_items:
            return False
        return not len(buffer) or buffer.bytes_used + size <= buffer.max_bytes

    def receive(self, receiver: int, limit: int, waits: bool, thread: int | None) -> bool | None:
        end = self.receivers[receiver % len(self.receivers)]
        name = f"receive{len(self.waiters)}" if thread is None else f"thread {thread}"
        delivery = None
        if thread is not None:
            # A thread waits for one thing at a time.
            if end.closed or any(other.waits and other.name == name and other.end is end for other in self.waiters):
                return False
            self.requests += 1
            delivery = Delivery(thread, self.requests)
        waiter = self.waiter(name, end) if waits else None
        before = [*self.open]
        try:
            items = self.state.receive(end, waiter, limit, delivery)
        except Refusal as refusal:
            status = refusal.status
            if waiter is not None:
                self.waiters.remove(waiter)
            if end.closed:
                assert status == CLOSED
            elif self.state.open_senders:
                assert status == WOULD_BLOCK
                assert not waits
                assert not before
            else:
                assert status == (BROKEN if self.deaths and self.on_death == "raise" else END_OF_CHANNEL)
                assert not before
            return None
        if items is None:
            assert waits
            return None
        if waiter is not None:
            self.waiters.remove(waiter)
        self.hold(items, limit)
        return None

    def extend_credit(self, sender: int, asks: bool) -> None:
        end, buffer = self.senders[sender % len(self.senders)], self.state.buffer
        before = end.credit
        assert self.state.extend_credit(end, asks=asks) == end.credit - before
        if end.credit > before:
            assert self.state.open_senders == 1
            assert len(buffer) + end.credit <= buffer.max_items

    def send_on_credit(self, sender: int, sizes: tuple[int, ...]) -> None:
        end, items = self.senders[sender % len(self.senders)], [Item("x", size) for size in sizes]
        if end.credit < len(items):
            with pytest.raises(Refusal):
                self.state.send_on_credit(end, items)
            return
        self.sent += items
        # They pass the items that are parked for want of a place.
        place = len(self.state.buffer)
        self.open[place:place] = items
        self.state.send_on_credit(end, items)

    def send_one(self, sender: int, size: int) -> None:
        end, item = self.senders[sender % len(self.senders)], Item("x", size)
        is_simple = self.places(size) and not self.state.buffer.parked_takes and self.state.open_receivers > 0
        assert self.state.send_one(end, item) == (is_simple and not end.closed)
        if item.number:
            self.sent.append(item)
            self.open.append(item)

    def receive_one(self, receiver: int) -> None:
        end = self.receivers[receiver % len(self.receivers)]
        is_simple = len(self.state.buffer) > 0 and not end.closed
        item = self.state.receive_one(end)
        assert (item is not None) == is_simple
        if item is not None:
            self.hold([item], 1)

    def withdraw(self, index: int) -> bool | None:
        waiting = [waiter for waiter in self.waiters if waiter.waits]
        if not waiting:
            return False
        waiter = waiting[index % len(waiting)]
        waiter.withdrawn = True
        count = self.state.withdraw(waiter)
        assert count is not None
        return None

    def close_sender(self, sender: int, dies: bool) -> bool | None:
        end = self.senders[sender % len(self.senders)]
        if dies:
            # A call whose end was closed before has died with nothing open.
            self.deaths += not end.closed
            self.withdraw_all(end)
        self.state.close_sender(end, "worker 1 died" if dies else "")
        return None

    def clone_sender(self, sender: int) -> bool | None:
        end = self.senders[sender % len(self.senders)]
        if end.closed or len(self.senders) > 3:
            return False
        self.senders.append(self.state.clone_sender(end))
        return None

    def close_receiver(self, receiver: int) -> bool | None:
        self.state.close_receiver(self.receivers[receiver % len(self.receivers)])
        return None

    def finish_receiver(self, receiver: int, handed_up_to: int) -> bool | None:
        """The call that has the end ends, or dies. Its older requests were handed."""
        end = self.receivers[receiver % len(self.receivers)]
        self.withdraw_all(end)
        deliveries = [*end.deliveries.values()]
        numbers = sorted(delivery.number for delivery in deliveries)
        handed = set(numbers[: handed_up_to % (len(numbers) + 1)])
        self.reopen([item for delivery in deliveries if delivery.number not in handed for item in delivery.items])
        told = self.state.finish_receiver(end, lambda number: 255 if number in handed else 0)
        assert [item.number for item in told] == sorted(item.number for item in told)
        assert {id(item) for item in told} == {
            id(item) for delivery in deliveries if delivery.number in handed for item in delivery.items
        }
        for item in told:
            del self.held[item.number]
        self.told += told
        return None

    def put_back(self, receiver: int, thread: int) -> bool | None:
        end = self.receivers[receiver % len(self.receivers)]
        delivery = end.deliveries.get(thread)
        if delivery is None:
            return False
        self.reopen(delivery.items)
        self.state.put_back(end, delivery.number, 0)
        assert thread not in end.deliveries
        return None

    # --- as a laboratory

    def steps(self) -> list[Step]:
        return OPERATIONS

    def take(self, step: Step) -> None:
        name, *args = step
        getattr(self, name)(*args)
        self.check()

    # --- the model

    def waiter(self, name: str, end: Any) -> CountingWaiter:
        waiter = CountingWaiter(name, self.answered)
        waiter.end = end
        self.waiters.append(waiter)
        return waiter

    def answered(self, waiter: CountingWaiter) -> None:
        answer = waiter.answers[0]
        if isinstance(answer, Refusal):
            if waiter.items:
                assert answer.status == (CLOSED if waiter.end.closed else BROKEN)
            else:
                ending = BROKEN if self.deaths and self.on_death == "raise" else END_OF_CHANNEL
                assert answer.status == (CLOSED if waiter.end.closed else ending)
        elif waiter.items:
            assert answer == len(waiter.items)
        else:
            self.hold(answer, math.inf)

    def hold(self, items: list[Item], limit: float) -> None:
        assert 1 <= len(items) <= limit
        for item in items:
            assert item is self.open[0], "not the first that was sent"
            self.open.pop(0)
            self.held[item.number] = item

    def reopen(self, items: list[Item]) -> None:
        for item in items:
            del self.held[item.number]
        buffered = [*self.state.buffer._items]
        self.open = sorted(buffered + items, key=lambda item: item.number) + self.open[len(buffered) :]

    def refuse(self, items: list[Item]) -> None:
        for item in items:
            self.open.remove(item)
        self.refused += items

    def release(self, items: Any) -> None:
        """Items leave: refused to their sender, dropped with the last receiver, or processed by a job."""
        for item in items:
            if self.held.pop(item.number, None) is None:
                self.open.remove(item)
        self.released += items

    def withdraw_all(self, end: Any) -> None:
        for waiter in [waiter for waiter in self.waiters if waiter.end is end]:
            if not waiter.waits:
                continue  # perhaps because the one before it has left
            waiter.withdrawn = True
            assert self.state.withdraw(waiter) is not None

    def check(self) -> None:
        buffer = self.state.buffer
        parked = [item for put in buffer._puts._waiters.values() for item in put.items]
        waiting = {waiter for waiter in self.waiters if waiter.waits}
        # Each waiter is parked or was answered, and none other is parked.
        assert waiting == {*buffer._puts._waiters, *buffer._takes._waiters}
        # Each item is in one place, and in order.
        assert self.open == [*buffer._items, *parked]
        assert len(self.sent) == len(self.open) + len(self.held) + len(self.told) + len(self.refused) + len(self.released)
        assert buffer.bytes_used == sum(item.size for item in buffer._items)
        assert all(buffer._waiters.values())
        assert sorted(map(id, waiting)) == sorted(id(waiter) for waiters in buffer._waiters.values() for waiter in waiters)
        # Nobody waits for something that is there.
        if buffer.parked_takes:
            assert not self.open
            assert self.state.open_senders
        if buffer.parked_puts:
            first = buffer._puts.first()[1].items[0]
            full = len(buffer) >= buffer.max_items
            assert full or (len(buffer) and buffer.bytes_used + first.size > buffer.max_bytes)
            assert self.state.open_receivers
        assert self.state.open_senders == sum(not end.closed for end in self.senders)
        assert self.state.open_receivers == sum(not end.closed for end in self.receivers)
        if not self.state.open_receivers:
            assert not self.open

    def finish(self) -> None:
        for index in range(len(self.senders)):
            self.close_sender(index, False)
            self.check()
        for index in range(len(self.receivers)):
            self.finish_receiver(index, 1)
            self.check()
        buffer = self.state.buffer
        assert not [waiter for waiter in self.waiters if waiter.waits]
        assert (len(buffer), buffer.parked_puts, buffer.parked_takes, buffer.bytes_used) == (0, 0, 0, 0)
        assert not any(end.deliveries for end in self.receivers if not end.closed)

    def key(self) -> Hashable:
        """The state up to the numbers of its items, of which only the order counts."""
        buffer = self.state.buffer
        delivered = [item for end in self.receivers for delivery in end.deliveries.values() for item in delivery.items]
        numbered = [*buffer._items, *delivered]
        ranks = {number: rank for rank, number in enumerate(sorted(item.number for item in numbered))}
        return (
            tuple((ranks[item.number], item.size) for item in buffer._items),
            tuple(
                (self.senders.index(put.source), tuple(item.size for item in put.items))
                for put in buffer._puts._waiters.values()
            ),
            tuple((self.receivers.index(take.source), take.limit) for take in buffer._takes._waiters.values()),
            tuple((end.closed, end.credit) for end in self.senders),
            tuple(
                (
                    end.closed,
                    tuple(
                        (thread, tuple(ranks[item.number] for item in delivery.items))
                        for thread, delivery in sorted(end.deliveries.items())
                    ),
                )
                for end in self.receivers
            ),
            bool(self.deaths),
        )


class ChannelMachine(RuleBasedStateMachine):
    @initialize(
        max_items=st.sampled_from([0, 1, 2, 3, math.inf]),
        max_bytes=st.sampled_from([1, 5, 100, 10_000]),
        on_death=st.sampled_from(["raise", "ignore"]),
    )
    def start(self, max_items: float, max_bytes: int, on_death: str) -> None:
        self.ledger = ChannelLedger(max_items, max_bytes, on_death)

    @rule(sender=st.integers(0, 3), size=st.integers(0, 7), waits=st.booleans())
    def send(self, sender: int, size: int, waits: bool) -> None:
        self.ledger.send(sender, (size,), waits)

    @rule(sender=st.integers(0, 3), sizes=st.lists(st.integers(0, 7), min_size=2, max_size=5))
    def send_many(self, sender: int, sizes: list[int]) -> None:
        self.ledger.send(sender, tuple(sizes), True)

    @rule(
        receiver=st.integers(0, 1),
        limit=st.integers(1, 4),
        waits=st.booleans(),
        thread=st.sampled_from([None, 1, 2]),
    )
    def receive(self, receiver: int, limit: int, waits: bool, thread: int | None) -> None:
        self.ledger.receive(receiver, limit, waits, thread)

    @rule(sender=st.integers(0, 3), asks=st.booleans())
    def extend_credit(self, sender: int, asks: bool) -> None:
        self.ledger.extend_credit(sender, asks)

    @rule(sender=st.integers(0, 3), sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4))
    def send_on_credit(self, sender: int, sizes: list[int]) -> None:
        self.ledger.send_on_credit(sender, tuple(sizes))

    @rule(sender=st.integers(0, 3), size=st.integers(0, 7))
    def send_one(self, sender: int, size: int) -> None:
        self.ledger.send_one(sender, size)

    @rule(receiver=st.integers(0, 1))
    def receive_one(self, receiver: int) -> None:
        self.ledger.receive_one(receiver)

    @rule(index=st.integers(0, 5))
    def withdraw(self, index: int) -> None:
        self.ledger.withdraw(index)

    @rule(sender=st.integers(0, 3), dies=st.booleans())
    def close_sender(self, sender: int, dies: bool) -> None:
        self.ledger.close_sender(sender, dies)

    @rule(sender=st.integers(0, 3))
    def clone_sender(self, sender: int) -> None:
        self.ledger.clone_sender(sender)

    @rule(receiver=st.integers(0, 1))
    def close_receiver(self, receiver: int) -> None:
        self.ledger.close_receiver(receiver)

    @rule(receiver=st.integers(0, 1), handed=st.integers(0, 3))
    def finish_receiver(self, receiver: int, handed: int) -> None:
        self.ledger.finish_receiver(receiver, handed)

    @rule(receiver=st.integers(0, 1), thread=st.integers(1, 2))
    def put_back(self, receiver: int, thread: int) -> None:
        self.ledger.put_back(receiver, thread)

    @invariant()
    def invariants(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.check()

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.finish()


TestRandomHistories = ChannelMachine.TestCase
TestRandomHistories.settings = settings(max_examples=300, stateful_step_count=40, deadline=None, database=None)

OPERATIONS: list[Step] = [
    ("send", 0, (1,), True),
    ("send", 1, (3, 1), True),
    ("send", 1, (1,), False),
    ("receive", 0, 1, True, None),
    ("receive", 0, 2, False, None),
    ("receive", 1, 2, True, 1),
    ("receive", 1, 1, True, 2),
    ("withdraw", 0),
    ("withdraw", 1),
    ("close_sender", 0, False),
    ("close_sender", 1, True),
    ("close_receiver", 0),
    ("finish_receiver", 1, 0),
    ("finish_receiver", 1, 1),
    ("put_back", 1, 1),
]


@pytest.mark.parametrize("max_items", [0, 1, 2])
def test_all_short_histories(max_items: int) -> None:
    """Two senders, a task and a job with two threads that receive: each history of six steps."""
    states = explore_everything(lambda: ChannelLedger(max_items, 3), depth=6)
    assert states > 1000


@pytest.mark.parametrize("max_items", [2, 10, 300])
def test_second_sender_beside_credit(max_items: int) -> None:
    """The buffer exceeds its bound by the credit at most, and takes nothing more until it is below it."""
    state = ChannelState(max_items, 2**30)
    one, receiver = state.add_sender(), state.add_receiver()
    credit = state.extend_credit(one)
    assert credit == min(max_items, MAX_CREDIT)
    two = state.add_sender()
    for number in range(max_items):
        assert state.send(two, [Item(number, 1)], None)
    for number in range(credit):
        assert not state.extend_credit(one, asks=True)
        state.send_on_credit(one, [Item(number, 1)])
    assert len(state.buffer) == max_items + credit
    for _ in range(credit + 1):
        for end in (one, two):
            with pytest.raises(Refusal):
                state.send(end, [Item("one too many", 1)], None)
        assert state.receive(receiver, None) is not None
    assert len(state.buffer) == max_items - 1
    assert state.send(two, [Item("fits", 1)], None)


def test_credit_is_for_a_sole_sender() -> None:
    state = ChannelState(100, 10_000_000)
    one, receive = state.add_sender(), state.add_receiver()
    assert state.extend_credit(one) == 100
    assert state.extend_credit(one) == 0
    for number in range(100):
        state.send_on_credit(one, [Item(number, 1)])
    with pytest.raises(Refusal, match=WOULD_BLOCK):
        state.send_on_credit(one, [Item("one too many", 1)])
    assert [item.payload for item in state.receive(receive, None, 49) or ()] == [*range(49)]
    assert state.extend_credit(one) == 0  # less than half of it is free
    assert state.extend_credit(one, asks=True) == 49
    for number in range(49):
        state.send_on_credit(one, [Item(number, 1)])
    state.receive(receive, None, 50)
    other = state.clone_sender(one)
    assert state.extend_credit(one) == 0
    state.close_sender(other)
    assert state.extend_credit(one) == 50
    state.close_receiver(receive)
    state.send_on_credit(one, [Item("dropped", 1)])
    assert len(state.buffer) == 0


def test_credit_is_extended_as_soon_as_half_is_free() -> None:
    """Tasks that take one item at a time look for that as seldom as possible, and in time."""
    state = ChannelState(100, 10_000_000)
    send, receive = state.add_sender(), state.add_receiver()
    extended: list[int] = []
    looks: list[None] = []

    def extend() -> None:
        looks.append(None)
        if count := state.extend_credit(send):
            extended.append(count)

    state.on_room = extend
    state.extend_credit(send)
    state.send_on_credit(send, [Item(number, 1) for number in range(100)])
    looks.clear()
    for _ in range(49):
        state.receive_one(receive)
    assert (extended, len(looks)) == ([], 0)
    state.receive_one(receive)
    assert (extended, len(looks)) == ([50], 1)


@pytest.mark.parametrize(("max_items", "max_bytes", "credit"), [(0, 10_000, 0), (1, 10_000, 0), (9, 8200, 2), (9, 4100, 0)])
def test_credit_fits_the_buffer(max_items: int, max_bytes: int, credit: int) -> None:
    state = ChannelState(max_items, max_bytes)
    state.add_receiver()
    assert state.extend_credit(state.add_sender()) == credit


def test_items_ahead_are_received_one_by_one() -> None:
    """Two of four have reached the code: the second is in hand, the others go back."""
    state = ChannelState(10, 100)
    send, job = state.add_sender(), state.add_receiver()
    assert state.may_run_ahead() == 10
    other = state.add_receiver()
    assert state.may_run_ahead() == 1
    released: list[Item] = []
    state.buffer.released = released.extend
    state.send(send, [Item(number, 1) for number in range(6)], CountingWaiter("send", lambda _: None))
    state.receive(job, None, 4, Delivery(1, 1, is_ahead=True))
    assert [item.payload for item in state.finish_receiver(job, lambda _: 2)] == [1]
    assert [item.payload for item in released] == [0]
    assert [item.payload for item in state.receive(other, None, 9) or ()] == [2, 3, 4, 5]


def test_items_ahead_are_small() -> None:
    state = ChannelState(math.inf, 2**30)
    send, job = state.add_sender(), state.add_receiver()
    assert state.may_run_ahead() == MAX_AHEAD
    for _ in range(10):
        state.send(send, [Item("x", 30_000)], None)
    for number, count in ((1, 3), (2, 3)):
        assert len(state.receive(job, None, 64, Delivery(1, number, is_ahead=True)) or ()) == count
    state.receive(job, None, 64, Delivery(1, 3))
    waiter = CountingWaiter("receive", lambda _: None)
    assert state.receive(job, waiter, 64, Delivery(1, 4, is_ahead=True)) is None
    state.send(send, [Item("x", 60_000) for _ in range(3)], CountingWaiter("send", lambda _: None))
    assert len(waiter.answers[0]) == 2


def test_an_item_above_the_byte_bound_passes_alone() -> None:
    state = ChannelState(math.inf, 10)
    send, receive = state.add_sender(), state.add_receiver()
    assert state.send(send, [Item("large", 50)], None)
    with pytest.raises(Refusal, match=WOULD_BLOCK):
        state.send(send, [Item("small", 1)], None)
    assert [item.payload for item in state.receive(receive, None) or ()] == ["large"]
    assert state.send(send, [Item("small", 1)], None)


def test_a_small_item_does_not_overtake() -> None:
    """Only the byte bound keeps the large item out. The small one has a place, and waits."""
    state = ChannelState(math.inf, 10)
    send, receive = state.add_sender(), state.add_receiver()
    waiter = CountingWaiter("large", lambda _: None)
    assert state.send(send, [Item("first", 6)], None)
    assert not state.send(send, [Item("large", 6)], waiter)
    with pytest.raises(Refusal, match=WOULD_BLOCK):
        state.send(send, [Item("small", 1)], None)
    assert state.withdraw(waiter) == 0
    assert state.send(send, [Item("small", 1)], None)
    assert [item.payload for item in state.receive(receive, None, 5) or ()] == ["first", "small"]


def test_closed_end_makes_place_for_the_others() -> None:
    state = ChannelState(math.inf, 10)
    one, other = state.add_sender(), state.add_sender()
    state.add_receiver()
    large, small = (CountingWaiter(name, lambda _: None) for name in ("large", "small"))
    assert state.send(one, [Item("first", 6)], None)
    assert not state.send(one, [Item("large", 6)], large)
    assert not state.send(other, [Item("small", 1)], small)
    state.close_sender(one)
    assert [type(answer) for answer in large.answers] == [Refusal]
    assert small.answers == [1]


def test_a_died_sender_is_told_after_the_drain() -> None:
    state = ChannelState(5, 100)
    send, receive = state.add_sender(), state.add_receiver()
    state.send(send, [Item("last", 1)], None)
    state.close_sender(send, "worker 7 died of SIGKILL")
    assert [item.payload for item in state.receive(receive, None) or ()] == ["last"]
    for _ in range(2):
        with pytest.raises(Refusal, match="worker 7 died of SIGKILL") as caught:
            state.receive(receive, None)
        assert caught.value.status == BROKEN


def test_items_of_several_threads_return_in_order() -> None:
    state = ChannelState(10, 100)
    send, job, other = state.add_sender(), state.add_receiver(), state.add_receiver()
    state.send(send, [Item(number, 1) for number in range(6)], CountingWaiter("send", lambda _: None))
    for thread, limit in ((2, 2), (1, 1), (3, 2)):
        state.receive(job, None, limit, Delivery(thread, thread))
    assert [item.payload for item in state.finish_receiver(job, lambda number: 255 * (number == 1))] == [2]
    assert [item.payload for item in state.receive(other, None, 9) or ()] == [0, 1, 3, 4, 5]
