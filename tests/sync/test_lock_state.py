"""Contract: the state machines of locks and conditions, without I/O, compared with a model in every history."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

import pytest
from ledger import OWNERS, FakeWaiter, Step, explore_at_random, explore_everything, outcome

from trio_offload._exceptions import AbandonedLockError, DeadlockError
from trio_offload._sync.condition_state import ConditionState
from trio_offload._sync.lock_state import LockState, OnAbandon
from trio_offload._wait_graph import Outcome, WaitGraph

DEATH: Any = SimpleNamespace(pid=4711, function="jobs.hold", cause="was killed by SIGKILL", signal=signal.SIGKILL)


class LockModel:
    """Locks, each with a condition, as lists."""

    def __init__(self, count: int, is_reentrant: bool, on_abandon: OnAbandon) -> None:
        self.is_reentrant, self.on_abandon = is_reentrant, on_abandon
        self.holder: list[tuple[str, int, bool] | None] = [None] * count
        self.queue: list[list[tuple[str, int, bool]]] = [[] for _ in range(count)]
        self.sleeping: list[list[tuple[str, int]]] = [[] for _ in range(count)]
        self.broken: list[bool] = [False] * count
        self.log: list[Step] = []

    def is_waiting(self, owner: str) -> bool:
        return owner in {entry[0] for entry in [*itertools.chain(*self.queue), *itertools.chain(*self.sleeping)]}

    def waits_for(self, owner: str) -> str | None:
        for number, queue in enumerate(self.queue):
            holder = self.holder[number]
            if holder and any(owner == entry[0] for entry in queue):
                return holder[0]
        return None

    def would_never_end(self, owner: str, lock: int) -> bool:
        holder = self.holder[lock]
        current = holder and holder[0]
        while current and current != owner:
            current = self.waits_for(current)
        return current == owner

    def acquire(self, owner: str, lock: int) -> str:
        holder = self.holder[lock]
        if self.broken[lock]:
            return "AbandonedLockError"
        if holder is None:
            self.holder[lock] = (owner, 1, False)
        elif holder[0] == owner:
            if not self.is_reentrant:
                return "RuntimeError"
            self.holder[lock] = (owner, holder[1] + 1, holder[2])
        elif self.would_never_end(owner, lock):
            return "DeadlockError"
        else:
            self.queue[lock].append((owner, 1, False))
            return "parked"
        return "taken"

    def release(self, owner: str, lock: int) -> str | None:
        holder = self.holder[lock]
        if holder is None or holder[0] != owner:
            return "RuntimeError"
        if holder[1] > 1:
            self.holder[lock] = (owner, holder[1] - 1, holder[2])
        else:
            self.hand_over(lock)
        return None

    def hand_over(self, lock: int) -> None:
        self.holder[lock] = None
        if self.queue[lock]:
            self.holder[lock] = self.queue[lock].pop(0)
            self.log.append((self.holder[lock][0], "done", None))  # type: ignore[index]

    def withdraw(self, owner: str) -> None:
        for lock, queue in enumerate(self.queue):
            for entry in list(queue):
                if entry[0] == owner:
                    queue.remove(entry)
                    if entry[2]:
                        self.wake_first(lock)
            self.sleeping[lock] = [entry for entry in self.sleeping[lock] if entry[0] != owner]

    def wait(self, owner: str, lock: int) -> str | None:
        holder = self.holder[lock]
        if holder is None or holder[0] != owner:
            return "RuntimeError"
        self.sleeping[lock].append((owner, holder[1]))
        self.hand_over(lock)
        return "parked"

    def notify(self, owner: str, lock: int, count: int | None) -> str | None:
        holder = self.holder[lock]
        if holder is None or holder[0] != owner:
            return "RuntimeError"
        for _ in range(len(self.sleeping[lock]) if count is None else count):
            self.wake_first(lock)
        return None

    def wake_first(self, lock: int) -> None:
        while self.sleeping[lock]:
            owner, depth = self.sleeping[lock].pop(0)
            if self.holder[lock] is None:
                self.holder[lock] = (owner, depth, True)
                self.log.append((owner, "done", None))
            elif self.would_never_end(owner, lock):
                self.log.append((owner, "failed", "DeadlockError"))
                continue
            else:
                self.queue[lock].append((owner, depth, True))
            return

    def gone(self, owner: str) -> None:
        self.withdraw(owner)
        for lock, holder in enumerate(self.holder):
            if holder is None or holder[0] != owner:
                continue
            if self.on_abandon == "release":
                self.hand_over(lock)
                if holder[2]:
                    self.wake_first(lock)
            else:
                self.holder[lock], self.broken[lock] = None, True
                for entry in (*self.queue[lock], *self.sleeping[lock]):
                    self.log.append((entry[0], "failed", "AbandonedLockError"))
                self.queue[lock], self.sleeping[lock] = [], []


class Locks:
    """Two locks with a condition each, three owners."""

    def __init__(self, *, is_reentrant: bool = False, on_abandon: OnAbandon = "break", conditions: bool = True) -> None:
        self.graph = WaitGraph()
        self.log: list[Step] = []
        self.locks = [
            LockState(f"lock {number}", self.graph, is_reentrant=is_reentrant, on_abandon=on_abandon) for number in range(2)
        ]
        self.conditions = [ConditionState(lock) for lock in self.locks] if conditions else []
        self.model = LockModel(2, is_reentrant, on_abandon)
        self.waiters: dict[str, tuple[FakeWaiter, Callable[[FakeWaiter], object]]] = {}

    def steps(self) -> list[Step]:
        steps: list[Step] = [("recover", lock) for lock in range(2)]
        for owner in OWNERS:
            steps += [("gone", owner, True), ("gone", owner, False)]
            if self.model.is_waiting(owner):
                steps.append(("withdraw", owner))
                continue
            for lock in range(2):
                steps += [("acquire", owner, lock), ("release", owner, lock)]
                if self.conditions:
                    steps += [("wait", owner, lock), ("notify", owner, lock, 1), ("notify", owner, lock, None)]
        return steps

    def take(self, step: Step) -> None:
        name, *args = step
        if name == "recover":
            (lock,) = args
            assert self.locks[lock].recover() is self.model.broken[lock]
            self.model.broken[lock] = False
        elif name == "gone":
            owner, died = args
            held = [holder is not None and holder[0] == owner for holder in self.model.holder]
            self.model.gone(owner)
            self.withdraw(owner)
            assert [lock.gone(owner, DEATH if died else None) is not None for lock in self.locks] == held
        else:
            assert outcome(getattr(self, name), *args) == getattr(self.model, name)(*args), step
        self.check()

    def acquire(self, owner: str, lock: int) -> str:
        if self.locks[lock].try_acquire(owner):
            return "taken"
        waiter = FakeWaiter(owner, self.log)
        self.locks[lock].park(waiter)
        self.waiters[owner] = waiter, self.locks[lock].withdraw
        return "parked"

    def release(self, owner: str, lock: int) -> None:
        self.locks[lock].release(owner)

    def withdraw(self, owner: str) -> None:
        waiter, withdraw = self.waiters.get(owner, (None, None))
        if waiter is not None and withdraw is not None:
            withdraw(waiter)

    def wait(self, owner: str, lock: int) -> str:
        waiter = FakeWaiter(owner, self.log)
        self.conditions[lock].park(waiter)
        self.waiters[owner] = waiter, self.conditions[lock].withdraw
        return "parked"

    def notify(self, owner: str, lock: int, count: int | None) -> None:
        self.conditions[lock].notify(owner, count)

    def check(self) -> None:
        assert self.log == self.model.log
        for number, lock in enumerate(self.locks):
            holder = self.model.holder[number]
            assert (lock.holder, lock.depth) == (holder[:2] if holder else (None, 0))
            assert lock.waiting_owners() == [entry[0] for entry in self.model.queue[number]]
            assert (lock.abandonment is not None) is self.model.broken[number]
            assert lock.holder is not None or not lock.waiting
        for number, condition in enumerate(self.conditions):
            assert condition.waiting_owners() == [entry[0] for entry in self.model.sleeping[number]]
        assert len(self.graph) == sum(lock.waiting for lock in self.locks)
        for owner in OWNERS:
            # Each chain of waits ends: nobody waits for itself.
            current = self.model.waits_for(owner)
            while current:
                assert current != owner
                current = self.model.waits_for(current)

    def key(self) -> Hashable:
        model = self.model
        return tuple(model.holder), str(model.queue), str(model.sleeping), tuple(model.broken)

    def finish(self) -> None:
        for owner in OWNERS:
            self.take(("gone", owner, True))
        for lock in self.locks:
            assert lock.holder is None
            assert not lock.waiting
            assert not lock.sleepers
            lock.recover()
            assert lock.try_acquire("next")
        assert len(self.graph) == 0


@pytest.mark.parametrize("is_reentrant", [False, True])
@pytest.mark.parametrize("on_abandon", ["break", "release"])
def test_random_histories(is_reentrant: bool, on_abandon: OnAbandon) -> None:
    explore_at_random(lambda: Locks(is_reentrant=is_reentrant, on_abandon=on_abandon))


@pytest.mark.parametrize("on_abandon", ["break", "release"])
def test_all_histories_of_locks(on_abandon: OnAbandon) -> None:
    """Three owners, two locks, six steps."""
    assert explore_everything(lambda: Locks(on_abandon=on_abandon, conditions=False)) > 100


def test_all_histories_of_conditions() -> None:
    assert explore_everything(Locks, depth=4) > 100


# --- messages -------------------------------------------------------------------------------------------------


def test_deadlock_names_the_chain() -> None:
    graph = WaitGraph()
    log: list[Step] = []
    locks = [LockState(f"lock {number}", graph) for number in range(3)]
    for owner, lock in zip(OWNERS, locks, strict=True):
        assert lock.try_acquire(owner)
    locks[1].park(FakeWaiter("a", log))
    locks[2].park(FakeWaiter("b", log))
    with pytest.raises(DeadlockError) as caught:
        locks[0].park(FakeWaiter("c", log))
    assert str(caught.value) == (
        "deadlock: c would wait for lock 0, which depends on a, which waits for lock 1, which depends on b, "
        "which waits for lock 2, which depends on c"
    )
    assert (locks[0].waiting, len(graph), log) == (0, 2, [])


def test_deadlock_through_a_callback() -> None:
    """A job waits for its callback, which is a task, and that wants the job's lock."""
    graph = WaitGraph()
    lock = LockState("lock", graph)
    assert lock.try_acquire("job")
    graph.add("job", Outcome("a callback", "task"))
    with pytest.raises(DeadlockError, match="task would wait for lock, which depends on job, which waits for a callback"):
        lock.park(FakeWaiter("task", []))


def test_cycle_of_others_is_not_followed_forever() -> None:
    graph = WaitGraph()
    graph.add_unchecked("a", Outcome("b's end", "b"))
    graph.add_unchecked("b", Outcome("a's end", "a"))
    assert graph.cycle("c", Outcome("a's end", "a")) == []


def test_abandoned_by_a_dead_worker() -> None:
    lock = LockState("a Lock", WaitGraph())
    assert lock.try_acquire("job")
    lock.gone("job", DEATH)
    with pytest.raises(AbandonedLockError, match=r"which ran jobs\.hold, was killed by SIGKILL.*recover") as caught:
        lock.try_acquire("other")
    assert (caught.value.pid, caught.value.function, caught.value.signal) == (4711, "jobs.hold", signal.SIGKILL)


def test_abandoned_by_a_job_that_returned() -> None:
    lock = LockState("a Lock", WaitGraph())
    call = SimpleNamespace(pid=4711, function="jobs.hold")
    job = type("Job", (), {"call": call, "__str__": lambda self: "the job jobs.hold"})()
    assert lock.try_acquire(job)
    lock.gone(job, None)
    with pytest.raises(AbandonedLockError, match=r"the job jobs\.hold ended without releasing it") as caught:
        lock.try_acquire("other")
    assert (caught.value.pid, caught.value.function, caught.value.signal) == (4711, "jobs.hold", None)
