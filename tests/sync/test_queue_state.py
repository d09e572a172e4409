"""The state of a work queue, without processes: random histories, and all short ones."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
from channel_support import CountingWaiter
from ledger import Step, explore_at_random, explore_everything

from trio_offload._sync.bounded_buffer import CLOSED, END_OF_CHANNEL, WOULD_BLOCK, Item, Refusal
from trio_offload._sync.queue_state import LeaseState, QueueState

STEPS: list[Step] = [
    ("put", 1, True),
    ("put", 2, False),
    ("get", "a", True),
    ("get", "b", True),
    ("get", "b", False),
    ("done", 0),
    ("done", 1),
    ("give_back", 0),
    ("give_back", 1),
    ("fail", 0),
    ("fail", 1),
    ("join",),
    ("withdraw", 0),
    ("withdraw", 1),
    ("close",),
]


class QueueLedger:
    """A queue, and a model of it: the items that wait in order, those that are leased, and who waits."""

    def __init__(self, max_items: float, max_bytes: float, attempts: int) -> None:
        self.state = QueueState(max_items, max_bytes, attempts)
        self.state.buffer.released = self.refuse
        self.attempts = attempts
        self.waiters: list[CountingWaiter] = []
        self.put_items: list[Item] = []
        self.waiting: list[Item] = []  # in the buffer, or parked
        self.leases: list[LeaseState] = []
        self.done_items: list[Item] = []
        self.failed: list[Item] = []
        self.refused: list[Item] = []

    def steps(self) -> list[Step]:
        return STEPS

    def take(self, step: Step) -> None:
        name, *args = step
        getattr(self, name)(*args)
        self.check()

    def put(self, size: int, waits: bool) -> None:
        item = Item("x", size)
        waiter = self.waiter("put", [item]) if waits else None
        self.put_items.append(item)
        self.waiting.append(item)
        try:
            done = self.state.put([item], waiter)
        except Refusal as refusal:
            status = refusal.status
            assert status == (CLOSED if self.state.closed else WOULD_BLOCK)
            assert self.state.closed or not waits
            self.refuse([item])
            done = True
        assert done or waits
        if done and waiter is not None:
            self.waiters.remove(waiter)

    def get(self, owner: str, waits: bool) -> None:
        waiter = self.waiter(f"get {owner}", []) if waits else None
        try:
            lease = self.state.get(owner, waiter)
        except Refusal as refusal:
            status = refusal.status
            assert not self.waiting
            over = self.state.closed and not self.leases
            assert status == (END_OF_CHANNEL if over else WOULD_BLOCK)
            assert over or not waits
            lease = None
            waits = False
        if lease is not None:
            assert lease.owner == owner
            self.lease(lease)
        if waiter is not None and (lease is not None or not waits):
            self.waiters.remove(waiter)

    def done(self, index: int) -> None:
        if index < len(self.leases):
            lease = self.leases.pop(index)
            self.done_items.append(lease.item)
            self.state.done(lease)
            with pytest.raises(Refusal, match="the lease is over"):
                self.state.done(lease)

    def give_back(self, index: int) -> None:
        if index < len(self.leases):
            lease = self.leases.pop(index)
            self.reopen(lease.item)
            self.state.give_back(lease)

    def fail(self, index: int) -> None:
        if index < len(self.leases):
            lease = self.leases.pop(index)
            if lease.item.attempts + 1 < self.attempts:
                self.reopen(lease.item)
            else:
                self.failed.append(lease.item)
            self.state.fail(lease, "worker 7 died")

    def join(self) -> None:
        waiter = self.waiter("join", [])
        if self.state.join(waiter):
            assert not self.waiting
            assert not self.leases
            self.waiters.remove(waiter)

    def withdraw(self, index: int) -> None:
        waiting = [waiter for waiter in self.waiters if waiter.waits]
        if index < len(waiting):
            waiting[index].withdrawn = True
            assert self.state.withdraw(waiting[index]) == 0

    def close(self) -> None:
        self.state.close()

    # --- the model

    def waiter(self, name: str, items: list[Item]) -> CountingWaiter:
        waiter = CountingWaiter(name, self.answered)
        waiter.items = items
        self.waiters.append(waiter)
        return waiter

    def answered(self, waiter: CountingWaiter) -> None:
        answer = waiter.answers[0]
        if waiter.name == "join":
            assert not self.waiting
            assert not self.leases
        elif isinstance(answer, Refusal):
            assert self.state.closed
            assert answer.status == (CLOSED if waiter.items else END_OF_CHANNEL)
        elif waiter.items:
            assert answer == 1
        else:
            assert waiter.name == f"get {answer.owner}"
            self.lease(answer)

    def lease(self, lease: LeaseState) -> None:
        assert lease.item is self.waiting.pop(0), "not the first that was put"
        self.leases.append(lease)

    def reopen(self, item: Item) -> None:
        buffered = [*self.state.buffer._items]
        self.waiting = sorted([*buffered, item], key=lambda item: item.number) + self.waiting[len(buffered) :]

    def refuse(self, items: Any) -> None:
        for item in items:
            self.waiting.remove(item)
        self.refused += items

    def check(self) -> None:
        state, buffer = self.state, self.state.buffer
        parked = [item for put in buffer._puts._waiters.values() for item in put.items]
        assert self.waiting == [*buffer._items, *parked]
        assert self.leases == [*state.leases]
        assert [failed.item for failed in state.failed] == self.failed
        places = (self.waiting, self.leases, self.done_items, self.failed, self.refused)
        assert len(self.put_items) == sum(map(len, places))
        assert {waiter for waiter in self.waiters if waiter.waits} == {
            *buffer._puts._waiters,
            *buffer._takes._waiters,
            *state._joins,
        }
        if state.parked_joins:
            assert self.waiting or self.leases
        if buffer.parked_takes:
            assert not self.waiting
            assert self.leases or not state.closed
        if buffer.parked_puts:
            assert len(buffer) >= buffer.max_items or buffer.bytes_used
            assert not state.closed
        assert all(item.attempts < self.attempts for item in self.waiting)

    def finish(self) -> None:
        self.close()
        self.check()
        while self.waiting or self.leases:
            if not self.leases:
                self.get("z", False)
            self.fail(0)
            self.check()
        assert not [waiter for waiter in self.waiters if waiter.waits]
        assert self.state.unfinished == 0

    def key(self) -> Hashable:
        buffer, state = self.state.buffer, self.state
        items = [*buffer._items, *(lease.item for lease in self.leases)]
        ranks = {number: rank for rank, number in enumerate(sorted(item.number for item in items))}
        return (
            tuple((ranks[item.number], item.size, item.attempts) for item in buffer._items),
            tuple(item.size for put in buffer._puts._waiters.values() for item in put.items),
            tuple(take.source for take in buffer._takes._waiters.values()),
            tuple((lease.owner, ranks[lease.item.number], lease.item.attempts) for lease in self.leases),
            (state.closed, state.parked_joins, bool(self.failed)),
        )


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("max_items", [1, 3])
def test_queue_in_random_histories(max_items: int, attempts: int) -> None:
    explore_at_random(lambda: QueueLedger(max_items, 3, attempts))


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("max_items", [1, 2])
def test_queue_in_all_short_histories(max_items: int, attempts: int) -> None:
    assert explore_everything(lambda: QueueLedger(max_items, 3, attempts), depth=6) > 500


def test_poisonous_item_fails_after_its_attempts() -> None:
    state = QueueState(10, 100, attempts=3)
    state.put([Item("poison", 1)], None)
    state.put([Item("next", 1)], None)
    for attempt in range(3):
        lease: Any = state.get("job", None)
        assert (lease.item.payload, lease.item.attempts) == ("poison", attempt)
        state.fail(lease, f"death {attempt}")
    assert [(failed.item.payload, failed.reason) for failed in state.failed] == [("poison", "death 2")]
    lease = state.get("job", None)
    assert lease.item.payload == "next"


def test_getters_of_a_closed_queue_wait_for_its_leases() -> None:
    """A lease may be given back, so its item may still come."""
    state = QueueState(10, 100)
    state.put([Item("only", 1)], None)
    lease: Any = state.get("a", None)
    state.close()
    waiter = CountingWaiter("b", lambda _: None)
    assert state.get("b", waiter) is None
    state.give_back(lease)
    (second,) = waiter.answers
    assert second.item is lease.item
    last = CountingWaiter("c", lambda _: None)
    assert state.get("c", last) is None
    state.done(second)
    assert [answer.status for answer in last.answers] == [END_OF_CHANNEL]
