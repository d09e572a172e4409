"""Contract: the state machines of semaphores, limiters, events and barriers, without I/O, compared with models."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
from ledger import OWNERS, FakeWaiter, Step, explore_at_random, explore_everything, outcome

from trio_offload._sync.barrier_state import BarrierState
from trio_offload._sync.barrier_state import OnDeath as OnDeathOfParty
from trio_offload._sync.event_state import EventState
from trio_offload._sync.limiter_state import LimiterState
from trio_offload._sync.parking import Parking
from trio_offload._sync.semaphore_state import OnDeath, SemaphoreState


class Bench:
    """The parts that all laboratories share: waiters of the machine, the model's queue, and both logs."""

    machine: Any

    def __init__(self) -> None:
        self.log: list[Step] = []
        self.expected: list[Step] = []
        self.queue: list[str] = []
        self.waiters: dict[str, FakeWaiter] = {}

    def park(self, owner: str, *details: Any) -> str:
        self.waiters[owner] = FakeWaiter(owner, self.log)
        self.machine.park(self.waiters[owner], *details)
        return "parked"

    def take(self, step: Step) -> None:
        name, *args = step
        assert outcome(getattr(self, name), *args) == getattr(self, f"expect_{name}")(*args), step
        self.check()

    def check(self) -> None:
        assert self.log == self.expected
        assert self.machine.waiting_owners() == self.queue

    def withdraw(self, owner: str) -> None:
        self.machine.withdraw(self.waiters[owner])

    def expect_withdraw(self, owner: str) -> None:
        self.queue.remove(owner)

    def idle(self) -> list[str]:
        return [owner for owner in OWNERS if owner not in self.queue]

    def expect_done(self, results: Callable[[int], Any] = lambda index: None) -> None:
        self.expected += [(owner, "done", results(index)) for index, owner in enumerate(self.queue)]
        self.queue.clear()


class Semaphores(Bench):
    """Owners are accounts; the owner `c` has none, as a task has none."""

    def __init__(self, value: int, max_value: int | None, on_death: OnDeath) -> None:
        super().__init__()
        self.machine = SemaphoreState(value, max_value, on_death)
        self.value, self.max_value, self.on_death = value, max_value, on_death
        self.taken = {"a": 0, "b": 0}

    def steps(self) -> list[Step]:
        steps: list[Step] = [("withdraw", owner) for owner in self.queue]
        steps += [(name, owner) for name in ("acquire", "release") for owner in self.idle()]
        return steps + [("gone", owner, died) for owner in "ab" for died in (True, False)]

    def account(self, owner: str) -> str | None:
        return None if owner == "c" else owner

    def acquire(self, owner: str) -> str:
        if self.machine.try_acquire(self.account(owner)):
            return "taken"
        return self.park(owner, self.account(owner))

    def expect_acquire(self, owner: str) -> str:
        if not self.value:
            self.queue.append(owner)
            return "parked"
        self.value -= 1
        self.enter(owner)
        return "taken"

    def enter(self, owner: str) -> None:
        if owner in self.taken:
            self.taken[owner] += 1

    def release(self, owner: str) -> None:
        self.machine.release(self.account(owner))

    def expect_release(self, owner: str) -> str | None:
        if self.value == self.max_value:
            return "ValueError"
        if self.taken.get(owner):
            self.taken[owner] -= 1
        self.give_back()
        return None

    def give_back(self) -> None:
        if self.queue:
            first = self.queue.pop(0)
            self.enter(first)
            self.expected.append((first, "done", None))
        else:
            self.value += 1

    def gone(self, owner: str, died: bool) -> int:
        if owner in self.waiters:
            self.machine.withdraw(self.waiters[owner])
        return int(self.machine.gone(owner, died=died))

    def expect_gone(self, owner: str, died: bool) -> int:
        if owner in self.queue:
            self.queue.remove(owner)
        taken, self.taken[owner] = self.taken[owner], 0
        returned = 0
        if died and self.on_death == "return":
            while taken and (self.queue or self.value != self.max_value):
                taken, returned = taken - 1, returned + 1
                self.give_back()
        return returned

    def check(self) -> None:
        super().check()
        assert self.machine.value == self.value
        assert not (self.value and self.queue)
        assert {owner: self.machine.taken(owner) for owner in "ab"} == self.taken

    def key(self) -> Hashable:
        # More tokens than three owners take in the steps that are left make no difference.
        return min(self.value, 6), tuple(self.taken.values()), tuple(self.queue)

    def finish(self) -> None:
        for owner in "ab":
            self.take(("gone", owner, True))
        for owner in list(self.queue):
            self.take(("withdraw", owner))
        assert self.machine.accounts() == []


class Limiters(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.machine = LimiterState(1)
        self.total = 1
        self.borrowers: list[str] = []

    def steps(self) -> list[Step]:
        steps: list[Step] = [("withdraw", owner) for owner in self.queue]
        steps += [(name, owner) for name in ("acquire", "release") for owner in self.idle()]
        steps += [("acquire_again", owner) for owner in self.queue]
        return steps + [("gone", owner) for owner in OWNERS] + [("resize", total) for total in range(4)]

    def acquire(self, owner: str) -> str:
        return "taken" if self.machine.try_acquire(owner) else self.park(owner, owner)

    def expect_acquire(self, owner: str) -> str:
        if owner in self.borrowers:
            return "RuntimeError"
        if len(self.borrowers) < self.total:
            self.borrowers.append(owner)
            return "taken"
        self.queue.append(owner)
        return "parked"

    def acquire_again(self, owner: str) -> None:
        self.machine.try_acquire(owner)

    def expect_acquire_again(self, owner: str) -> str:
        return "RuntimeError"

    def release(self, owner: str) -> None:
        self.machine.release(owner)

    def expect_release(self, owner: str) -> str | None:
        return None if self.expect_gone(owner) else "RuntimeError"

    def gone(self, owner: str) -> bool:
        if owner in self.waiters:
            self.machine.withdraw(self.waiters[owner])
        return bool(self.machine.gone(owner))

    def expect_gone(self, owner: str) -> bool:
        if owner in self.queue:
            self.queue.remove(owner)
        was_borrower = owner in self.borrowers
        if was_borrower:
            self.borrowers.remove(owner)
        self.lend()
        return was_borrower

    def lend(self) -> None:
        while self.queue and len(self.borrowers) < self.total:
            self.borrowers.append(self.queue.pop(0))
            self.expected.append((self.borrowers[-1], "done", None))

    def resize(self, total: int) -> None:
        self.machine.total_tokens = total

    def expect_resize(self, total: int) -> None:
        self.total = total
        self.lend()

    def check(self) -> None:
        super().check()
        assert list(self.machine.borrowers) == self.borrowers
        assert not self.queue or len(self.borrowers) >= self.total

    def key(self) -> Hashable:
        return self.total, tuple(self.borrowers), tuple(self.queue)

    def finish(self) -> None:
        for owner in OWNERS:
            self.take(("gone", owner))
        assert not self.machine.borrowers
        assert self.machine.waiting == 0


class Events(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.machine = EventState()
        self.is_set = False

    def steps(self) -> list[Step]:
        return [
            ("set",),
            ("clear",),
            *(("withdraw", owner) for owner in self.queue),
            *(("wait", owner) for owner in self.idle()),
        ]

    def set(self) -> None:
        self.machine.set()

    def expect_set(self) -> None:
        self.is_set = True
        self.expect_done()

    def clear(self) -> None:
        self.machine.clear()

    def expect_clear(self) -> None:
        self.is_set = False

    def wait(self, owner: str) -> str:
        return "set" if self.machine.is_set else self.park(owner)

    def expect_wait(self, owner: str) -> str:
        if self.is_set:
            return "set"
        self.queue.append(owner)
        return "parked"

    def check(self) -> None:
        super().check()
        assert self.machine.is_set is self.is_set
        assert not (self.is_set and self.queue)

    def key(self) -> Hashable:
        return self.is_set, tuple(self.queue)

    def finish(self) -> None:
        for owner in list(self.queue):
            self.take(("withdraw", owner))
        assert self.machine.waiting == 0


class Barriers(Bench):
    def __init__(self, parties: int, on_death: OnDeathOfParty) -> None:
        super().__init__()
        self.machine = BarrierState(parties, on_death)
        self.parties, self.on_death = parties, on_death
        self.is_broken = False

    def steps(self) -> list[Step]:
        return [
            ("abort",),
            ("reset",),
            *((name, owner) for name in ("withdraw", "die") for owner in self.queue),
            *(("arrive", owner) for owner in self.idle()),
        ]

    def arrive(self, owner: str) -> Any:
        index = self.machine.try_pass()
        return self.park(owner) if index is None else index

    def expect_arrive(self, owner: str) -> Any:
        if self.is_broken:
            return "BrokenBarrierError"
        if len(self.queue) + 1 < self.parties:
            self.queue.append(owner)
            return "parked"
        index = len(self.queue)
        self.expect_done(lambda index: index)
        return index

    def break_(self) -> None:
        self.is_broken = True
        self.expected += [(owner, "failed", "BrokenBarrierError") for owner in self.queue]
        self.queue.clear()

    def expect_withdraw(self, owner: str) -> None:
        self.queue.remove(owner)
        self.break_()

    def die(self, owner: str) -> None:
        self.machine.withdraw(self.waiters[owner], died=True)

    def expect_die(self, owner: str) -> None:
        if self.on_death == "break":
            self.expect_withdraw(owner)
            return
        self.queue.remove(owner)
        self.parties -= 1
        if len(self.queue) == self.parties:
            self.expect_done(lambda index: index)

    def abort(self) -> None:
        self.machine.abort()

    expect_abort = break_

    def reset(self) -> None:
        self.machine.reset()

    def expect_reset(self) -> None:
        self.break_()
        self.is_broken = False

    def check(self) -> None:
        super().check()
        assert (self.machine.parties, self.machine.is_broken) == (self.parties, self.is_broken)
        assert not (self.is_broken and self.queue)
        assert self.parties >= 1
        assert len(self.queue) < self.parties

    def key(self) -> Hashable:
        return self.parties, self.is_broken, tuple(self.queue)

    def finish(self) -> None:
        for owner in list(self.queue):
            if owner in self.queue:
                self.take(("die", owner))
        assert self.machine.waiting == 0


LABORATORIES: dict[str, Callable[[], Any]] = {
    "semaphore": lambda: Semaphores(1, None, "return"),
    "bounded semaphore": lambda: Semaphores(2, 2, "return"),
    "semaphore that keeps": lambda: Semaphores(1, 2, "keep"),
    "limiter": Limiters,
    "event": Events,
    "barrier": lambda: Barriers(3, "break"),
    "barrier that shrinks": lambda: Barriers(3, "shrink"),
    "barrier of one": lambda: Barriers(1, "break"),
}


@pytest.mark.parametrize("name", LABORATORIES)
def test_random_histories_of_counts(name: str) -> None:
    explore_at_random(LABORATORIES[name])


@pytest.mark.parametrize("name", LABORATORIES)
def test_all_histories_of_counts(name: str) -> None:
    """Three owners, six steps."""
    assert explore_everything(LABORATORIES[name]) > 1


def test_parking_removes_from_the_middle() -> None:
    parking: Parking[int] = Parking()
    waiters = [FakeWaiter(owner, []) for owner in OWNERS]
    for number, waiter in enumerate(waiters):
        parking.add(waiter, number)
    assert parking.remove(waiters[1]) == 1
    assert parking.remove(waiters[1]) is None
    assert waiters[1] not in parking
    assert parking.pop() == (waiters[0], 0)
    assert parking.clear() == [(waiters[2], 2)]
    assert len(parking) == 0
