"""Contract: locks and the like between tasks and jobs, with each kind of worker."""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import lock_jobs as jobs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import (
    AbandonedLockError,
    BrokenBarrierError,
    BrokenWorkerError,
    DeadlockError,
    WorkerContext,
    WorkerTimeoutError,
)
from trio_offload._wait_graph import WAITS

TIMEOUT = 20.0  # seconds: a test that hangs fails


@pytest.fixture
async def context(of_any_kind: Any) -> AsyncIterator[WorkerContext]:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(TIMEOUT):
            yield context


async def start(nursery: trio.Nursery, results: dict[str, Any], name: str, afn: Any, *args: Any) -> None:
    """Start a call whose result, or exception, comes under its name."""

    async def call() -> None:
        try:
            results[name] = await afn(*args)
        except Exception as error:
            results[name] = error

    nursery.start_soon(call)


@pytest.fixture(autouse=True)
def _nobody_is_left_waiting() -> Iterator[None]:
    yield
    assert len(WAITS) == 0


@asynccontextmanager
async def held_by_another(lock: Any) -> AsyncIterator[None]:
    """Let another task hold the lock: one that waits for a job would make it a deadlock."""

    async def hold(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with lock:
                task_status.started(scope)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        scope = await nursery.start(hold)
        yield
        scope.cancel()


def value(found: Any) -> jobs.Outcome:
    return "value", found


DONE = value(None)
NOT_OWNED = ("RuntimeError", "can't release a Lock you don't own")


# --- each method, in a job ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [trio_offload.Lock, trio_offload.RLock])
async def test_lock_in_a_job(context: WorkerContext, make: Any) -> None:
    lock = make()
    steps = ["locked", "acquire", "locked", "release", "release", "acquire_nowait", "release", "recover"]
    done = await context.run_sync(jobs.do, lock, *((step,) for step in steps))
    assert done == [value(False), DONE, value(True), DONE, NOT_OWNED, DONE, DONE, value(False)]
    assert not lock.locked()
    (statistics,) = await context.run_sync(jobs.with_lock, lock, jobs.do, lock, ("statistics",))
    assert statistics[1].pop("owner").startswith("the job lock_jobs.with_lock in worker ")
    assert statistics == value({"locked": True, "tasks_waiting": 0, "abandoned": False})
    async with held_by_another(lock):
        done = await context.run_sync(jobs.do, lock, ("acquire_nowait",), ("acquire", 0.01), ("release",), ("locked",))
        assert [kind for kind, _ in done] == ["WouldBlock", "TimeoutError", "RuntimeError", "value"]
        assert lock.statistics().tasks_waiting == 0
    assert await context.run_sync(jobs.kind_of, lock) == f"trio_offload_worker.handles.{make.__name__}"


async def test_lock_twice_in_a_job(context: WorkerContext) -> None:
    lock = trio_offload.Lock()
    done = await context.run_sync(jobs.with_lock, lock, jobs.do, lock, ("acquire",), ("acquire_nowait",))
    assert done == [("RuntimeError", "attempt to re-acquire an already held Lock")] * 2
    rlock = trio_offload.RLock()
    assert await context.run_sync(jobs.nested, rlock) == [True, True, False]
    assert not rlock.locked()


async def test_semaphore_in_a_job(context: WorkerContext) -> None:
    semaphore = trio_offload.Semaphore(2)
    steps = ["value", "max_value", "acquire", "acquire_nowait", "value", "acquire_nowait", "release", "value", "statistics"]
    done = await context.run_sync(jobs.do, semaphore, *((step,) for step in steps), ("release",))
    assert done[5][0] == "WouldBlock"
    assert done[:5] == [value(2), value(None), DONE, DONE, value(0)]
    assert done[6:] == [DONE, value(1), value({"tasks_waiting": 0}), DONE]
    assert semaphore.value == 2
    assert await context.run_sync(jobs.with_lock, semaphore, jobs.do, semaphore, ("value",)) == [value(1)]
    bounded = trio_offload.BoundedSemaphore(1)
    done = await context.run_sync(
        jobs.do, bounded, ("release",), ("acquire",), ("acquire", 0.01), ("release",), ("max_value",)
    )
    assert done[0] == ("ValueError", "semaphore released too many times")
    assert [kind for kind, _ in done[1:]] == ["value", "TimeoutError", "value", "value"]
    assert bounded.value == 1


async def test_limiter_in_a_job(context: WorkerContext) -> None:
    limiter = trio_offload.CapacityLimiter(2)
    done = await context.run_sync(
        jobs.do,
        limiter,
        ("total_tokens",),
        ("acquire",),
        ("acquire",),
        ("acquire_on_behalf_of", "a"),
        ("available_tokens",),
        ("borrowed_tokens",),
        ("acquire_on_behalf_of_nowait", "b"),
        ("acquire_on_behalf_of", "b", 0.01),
        ("release_on_behalf_of", "a"),
        ("release_on_behalf_of", "a"),
        ("acquire_on_behalf_of_nowait", "b"),
        ("release_on_behalf_of", "b"),
        ("release",),
        ("release",),
        ("acquire_nowait",),
        ("release",),
    )
    none = "this borrower isn't holding any of this CapacityLimiter's tokens"
    assert done[2] == ("RuntimeError", "this borrower is already holding one of this CapacityLimiter's tokens")
    assert [kind for kind, _ in done[6:8]] == ["WouldBlock", "TimeoutError"]
    assert done[:2] + done[3:6] == [value(2), DONE, DONE, value(0), value(2)]
    assert done[8:] == [DONE, ("RuntimeError", none), DONE, DONE, DONE, ("RuntimeError", none), DONE, DONE]
    assert limiter.borrowed_tokens == 0
    await context.run_sync(setattr, limiter, "total_tokens", 5)
    assert limiter.total_tokens == 5
    (statistics,) = await context.run_sync(jobs.with_lock, limiter, jobs.do, limiter, ("statistics",))
    assert statistics[1].pop("borrowers")[0].startswith("the job lock_jobs.with_lock in worker")
    assert statistics == value({"borrowed_tokens": 1, "total_tokens": 5, "tasks_waiting": 0})


async def test_event_in_a_job(context: WorkerContext) -> None:
    event = trio_offload.Event()
    steps: list[tuple[Any, ...]] = [("is_set",), ("wait", 0.01), ("set",), ("is_set",), ("wait",), ("clear",), ("is_set",)]
    done = await context.run_sync(jobs.do, event, *steps, ("statistics",), ("__bool__",))
    assert done[1][0] == "TimeoutError"
    assert done[-1][0] == "NotImplementedError"
    assert done[:1] + done[2:-1] == [value(False), DONE, value(True), DONE, DONE, value(False), value({"tasks_waiting": 0})]


async def test_event_is_seen_without_a_request(context: WorkerContext) -> None:
    event, ready = trio_offload.Event(), trio_offload.Event()
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            await start(nursery, results, name, context.run_sync, jobs.poll, event, ready)
        await ready.wait()
        event.set()
    assert min(results.values()) >= 1
    event.clear()
    event.set()
    assert await context.run_sync(jobs.poll, event, ready) == 1
    assert await context.run_sync(jobs.toggle, event) == [True, True, False, False] * 3


async def test_more_events_than_flags(context: WorkerContext) -> None:
    """Each of these goes with one call. Those without a flag are asked for."""
    events = [trio_offload.Event() for _ in range(300)]
    for event in events[::3]:
        event.set()
    expected = [event.is_set() for event in events]
    assert await context.run_sync(jobs.are_set, events) == expected
    assert sum(event._flag == 0 for event in events) >= 300 - 191
    # The flags of events that are gone serve others.
    del events, event
    gc.collect()
    events = [trio_offload.Event() for _ in range(180)]
    assert await context.run_sync(jobs.are_set, events) == [False] * 180
    assert all(event._flag for event in events)
    assert all(not event._boards for event in events)


async def test_condition_in_a_job(context: WorkerContext) -> None:
    condition = trio_offload.Condition()
    steps: list[tuple[Any, ...]] = [
        ("notify",),
        ("notify_all",),
        ("wait",),
        ("acquire",),
        ("locked",),
        ("wait", 0.01),
        ("locked",),
    ]
    done = await context.run_sync(
        jobs.do, condition, *steps, ("notify",), ("notify_all",), ("release",), ("acquire_nowait",), ("release",)
    )
    assert done[:3] == [
        ("RuntimeError", "must hold the lock to notify"),
        ("RuntimeError", "must hold the lock to notify"),
        ("RuntimeError", "must hold the lock to wait"),
    ]
    assert done[5][0] == "TimeoutError"
    assert done[3:5] + done[6:] == [DONE, value(True), value(True), DONE, DONE, DONE, DONE, DONE]
    (statistics, recovered) = await context.run_sync(jobs.do, condition, ("statistics",), ("recover",))
    assert statistics[1]["tasks_waiting"] == 0
    assert recovered == value(False)
    assert not condition.locked()


async def test_barrier_in_a_job(context: WorkerContext) -> None:
    barrier = trio_offload.Barrier(2)
    facts = [("parties",), ("n_waiting",), ("broken",)]
    done = await context.run_sync(
        jobs.do, barrier, *facts, ("abort",), ("broken",), ("wait",), ("reset",), *facts, ("statistics",)
    )
    assert done[5] == ("BrokenBarrierError", "the barrier is broken; call reset() to use it again")
    fresh = [value(2), value(0), value(False)]
    assert done[:5] + done[6:] == [*fresh, DONE, value(True), DONE, *fresh, value({"tasks_waiting": 0})]
    assert (await context.run_sync(jobs.do, barrier, ("wait", 0.01)))[0][0] == "TimeoutError"
    assert barrier.broken
    assert await context.run_sync(jobs.meet, barrier, "reset") == DONE
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await start(nursery, results, "job", context.run_sync, jobs.meet, barrier)
        while not barrier.n_waiting:
            await trio.lowlevel.checkpoint()
        assert await barrier.wait() == 1
    assert results == {"job": 0}


# --- handles as arguments and results -------------------------------------------------------------------------


HANDLES: dict[str, Any] = {
    "Lock": trio_offload.Lock,
    "RLock": trio_offload.RLock,
    "Semaphore": functools.partial(trio_offload.Semaphore, 1),
    "BoundedSemaphore": functools.partial(trio_offload.BoundedSemaphore, 1),
    "CapacityLimiter": functools.partial(trio_offload.CapacityLimiter, 1),
    "Event": trio_offload.Event,
    "Condition": trio_offload.Condition,
    "Barrier": functools.partial(trio_offload.Barrier, 1),
}


@pytest.mark.parametrize("name", HANDLES)
async def test_handle_comes_back_as_itself(context: WorkerContext, name: str) -> None:
    handle = HANDLES[name]()
    assert await context.run_sync(jobs.identity, handle) is handle
    (inside,) = await context.run_sync(jobs.identity, [handle])
    assert inside is handle
    # It is granted again each time.
    assert (await context.run_sync(jobs.do, handle, ("statistics",)))[0][0] == "value"
    # A job can pickle it for the parent only.
    with pytest.raises(TypeError, match="can be pickled only by trio-offload"):
        await context.run_sync(pickle.dumps, handle)


# --- waiting, in order ----------------------------------------------------------------------------------------


async def test_jobs_and_tasks_wait_in_one_queue(context: WorkerContext) -> None:
    lock = trio_offload.Lock()
    order: list[str] = []
    say = trio_offload.callback(order.append)

    async def task(name: str) -> None:
        async with lock:
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with lock:
            for number, name in enumerate(["job 1", "task 1", "job 2", "task 2"]):
                if name.startswith("job"):
                    nursery.start_soon(context.run_sync, jobs.with_lock, lock, say, name)
                else:
                    nursery.start_soon(task, name)
                while lock.statistics().tasks_waiting <= number:
                    await trio.lowlevel.checkpoint()
            assert order == []
    assert order == ["job 1", "task 1", "job 2", "task 2"]


async def test_jobs_exclude_each_other(context: WorkerContext, tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    lock = trio_offload.Lock()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(context.run_sync, jobs.append_pid, lock, str(tmp_path / "count"), 20)
    assert (tmp_path / "count").read_text() == "60"


async def test_threads_of_a_job_exclude_each_other(context: WorkerContext) -> None:
    lock = trio_offload.Lock()
    assert await context.run_sync(jobs.in_threads, lock, 4) == [1] * 40
    assert not lock.locked()


async def test_condition_between_jobs_and_tasks(context: WorkerContext) -> None:
    condition = trio_offload.Condition()
    ready = trio_offload.Semaphore(0)
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            await start(nursery, results, name, context.run_sync, jobs.wait_for_notification, condition, ready)
            await ready.acquire()
            while condition.locked():
                await trio.lowlevel.checkpoint()
        await context.run_sync(jobs.notify, condition, 1)
        while len(results) < 1:
            await trio.lowlevel.checkpoint()
        assert results == {"first": "notified"}
        async with condition:
            condition.notify_all()
    assert results == dict.fromkeys(("first", "second", "third"), "notified")


async def test_condition_of_an_rlock_in_a_job(context: WorkerContext) -> None:
    lock = trio_offload.RLock()
    condition, ready = trio_offload.Condition(lock), trio_offload.Event()
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await start(nursery, results, "job", context.run_sync, jobs.wait_nested, condition, lock, ready)
        await ready.wait()
        async with condition:
            condition.notify()
    assert results == {"job": True}
    assert not lock.locked()


async def test_job_waits_for_a_predicate(context: WorkerContext) -> None:
    condition, event = trio_offload.Condition(), trio_offload.Event()
    async with trio.open_nursery() as nursery:
        results: dict[str, Any] = {}
        await start(nursery, results, "job", context.run_sync, jobs.wait_for_items, condition, event)
        while not condition.statistics().tasks_waiting:
            await trio.lowlevel.checkpoint()
        event.set()
        await context.run_sync(jobs.notify, condition, None)
    assert results == {"job": True}


# --- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["return", "raise", "kill", "exit"])
@pytest.mark.parametrize("make", [trio_offload.Lock, trio_offload.RLock])
async def test_holder_that_ends(context: WorkerContext, make: Any, how: str) -> None:
    lock = make()
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        async with lock:
            await start(nursery, results, "holder", context.run_sync, jobs.hold, lock, how)
            while not lock.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
            await start(nursery, results, "task", lock.acquire)
            await wait_all_tasks_blocked()
            await start(nursery, results, "job", context.run_sync, jobs.with_lock, lock, abs, 1)
            while lock.statistics().tasks_waiting < 3:
                await trio.lowlevel.checkpoint()
    expected: Any = {"return": type(None), "raise": LookupError, "kill": BrokenWorkerError, "exit": BrokenWorkerError}[how]
    assert isinstance(results["holder"], expected)
    assert not lock.locked()
    for name in ("task", "job"):
        assert isinstance(results[name], AbandonedLockError)
    told = results["task"]
    assert told.function == "lock_jobs.hold"
    assert isinstance(told.pid, int)
    assert told.signal == (signal.SIGKILL if how == "kill" else None)
    with pytest.raises(trio.BrokenResourceError):
        await lock.acquire()
    assert (await context.run_sync(jobs.do, lock, ("acquire",), ("recover",), ("acquire",), ("release",)))[1:] == [
        value(True),
        DONE,
        DONE,
    ]


async def test_abandoned_lock_tells_a_job_the_facts(context: WorkerContext) -> None:
    lock = trio_offload.Lock()
    await context.run_sync(jobs.hold, lock)
    with pytest.raises(AbandonedLockError, match=r"the job lock_jobs\.hold in worker \d+ ended without releasing it"):
        await context.run_sync(jobs.with_lock, lock, abs, 1)


async def test_waiter_that_dies_leaves_the_queue(context: WorkerContext) -> None:
    lock, ready = trio_offload.Lock(), trio_offload.Event()
    async with lock:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(ready.wait)
                async with trio.open_nursery() as inner:
                    inner.start_soon(
                        functools.partial(
                            context.run_sync, jobs.wait_to_be_killed, lock, ready, "acquire", kill_on_cancel=True
                        )
                    )
                    while not lock.statistics().tasks_waiting:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        assert lock.statistics().tasks_waiting == 0
    async with lock:
        pass


@pytest.mark.parametrize(("how", "left"), [("return", 1), ("kill", 3)])
async def test_tokens_of_a_semaphore_at_the_end(context: WorkerContext, how: str, left: int) -> None:
    semaphore = trio_offload.Semaphore(3)
    keeps = trio_offload.Semaphore(3, on_death="keep")
    for found in (semaphore, keeps):
        if how == "kill":
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(jobs.acquire_many, found, 2, how)
        else:
            await context.run_sync(jobs.acquire_many, found, 2, how)
    assert semaphore.value == left
    assert keeps.value == 1


async def test_tokens_of_a_limiter_at_the_end(context: WorkerContext) -> None:
    limiter = trio_offload.CapacityLimiter(5)
    with pytest.warns(RuntimeWarning, match="ended with a token of <trio_offload.CapacityLimiter") as caught:
        await context.run_sync(jobs.borrow, limiter, "return")
    assert len(caught) == 2
    assert limiter.borrowed_tokens == 0
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.borrow, limiter, "kill")
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("on_death", ["break", "shrink"])
async def test_party_that_dies(context: WorkerContext, on_death: Any) -> None:
    barrier = trio_offload.Barrier(3, on_death=on_death)
    released = trio_offload.Semaphore(0)
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await start(nursery, results, "task", barrier.wait)
        await start(nursery, results, "dies", context.run_sync, jobs.wait_and_die, barrier, released)
        while barrier.n_waiting < 2:
            await trio.lowlevel.checkpoint()
        released.release()
        while "dies" not in results:
            await trio.lowlevel.checkpoint()
        if on_death == "shrink":
            assert (barrier.parties, barrier.n_waiting) == (2, 1)
            assert await context.run_sync(jobs.meet, barrier) == 1
    assert isinstance(results["dies"], BrokenWorkerError)
    if on_death == "shrink":
        assert results["task"] == 0
    else:
        assert isinstance(results["task"], BrokenBarrierError)
        assert barrier.broken


async def test_notification_of_a_dead_waiter_goes_on(context: WorkerContext) -> None:
    condition, ready = trio_offload.Condition(), trio_offload.Semaphore(0)
    log: list[str] = []

    async def wait() -> None:
        async with condition:
            await condition.wait()
            log.append("notified")

    async def be_killed(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await context.run_sync(jobs.wait_for_notification, condition, ready, kill_on_cancel=True)

    async with trio.open_nursery() as nursery:
        scope = await nursery.start(be_killed)
        await ready.acquire()
        while condition.statistics().tasks_waiting < 1:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(wait)
        while condition.statistics().tasks_waiting < 2:
            await trio.lowlevel.checkpoint()
        async with condition:
            condition.notify()
            scope.cancel()
            while condition.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
    assert log == ["notified"]


async def test_last_words_of_a_job_count(context: WorkerContext) -> None:
    """What it released before it died is released: its socket is read to the end first."""
    lock, event = trio_offload.Lock(), trio_offload.Event()
    semaphore, limiter = trio_offload.Semaphore(1), trio_offload.CapacityLimiter(1)
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.last_words, lock, semaphore, event, limiter)
    assert event.is_set()
    assert (semaphore.value, limiter.borrowed_tokens) == (1, 0)
    async with lock:
        pass


@pytest.mark.parametrize("how", ["timeout", "cancel", "grace"])
async def test_holder_that_is_killed(context: WorkerContext, how: str) -> None:
    lock, held = trio_offload.Lock(), trio_offload.Event()
    results: dict[str, Any] = {}
    options: dict[str, Any] = {
        "timeout": {"timeout": 0.3},
        "cancel": {"kill_on_cancel": True},
        "grace": {"grace": 0.05},
    }[how]

    async def call() -> None:
        with pytest.raises(WorkerTimeoutError) if how == "timeout" else scope:
            await context.run_sync(jobs.hold_until_killed, lock, held, **options)

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await held.wait()
        await start(nursery, results, "task", lock.acquire)
        await wait_all_tasks_blocked()
        if how != "timeout":
            scope.cancel()
    told = results["task"]
    assert isinstance(told, AbandonedLockError)
    assert (told.function, told.signal) == ("lock_jobs.hold_until_killed", signal.SIGKILL)
    assert lock.recover()


async def test_money_is_conserved(context: WorkerContext, tmp_path: Path) -> None:
    """Jobs and tasks move money between accounts; each pair of locks is taken in order."""
    locks = [trio_offload.Lock() for _ in range(3)]
    for number in range(3):
        (tmp_path / str(number)).write_text("100")
    random = Random(7)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            first, second = random.sample(range(3), 2)
            args = locks, str(tmp_path), first, second, random.randrange(10)
            nursery.start_soon(context.run_sync, jobs.move, *args)
    assert sum(int((tmp_path / str(number)).read_text()) for number in range(3)) == 300
    assert not any(lock.locked() for lock in locks)


# --- cycles ---------------------------------------------------------------------------------------------------


async def test_deadlock_of_a_job_and_a_task(context: WorkerContext) -> None:
    first, second, ready = trio_offload.Lock(), trio_offload.Lock(), trio_offload.Event()
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        async with second:
            await start(nursery, results, "job", context.run_sync, jobs.acquire_then, first, second, ready)
            while not second.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
            with pytest.raises(DeadlockError, match=r"the task .* would wait for the Lock .* depends on the job lock_jobs"):
                await first.acquire()
    assert results == {"job": "acquired"}


async def test_deadlock_of_two_jobs(context: WorkerContext) -> None:
    first, second = trio_offload.Lock(), trio_offload.Lock()
    events = trio_offload.Event(), trio_offload.Event()
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await start(nursery, results, "a", context.run_sync, jobs.acquire_then, first, second, events[0])
        await events[0].wait()
        await start(nursery, results, "b", context.run_sync, jobs.acquire_then, second, first, events[1])
    assert sorted(text.partition(":")[0] for text in results.values()) in (["DeadlockError", "acquired"], ["acquired"] * 2)


async def test_deadlock_of_a_job_and_its_callback(context: WorkerContext) -> None:
    """The job waits for its callback, and the callback for the job's lock."""
    lock = trio_offload.Lock()

    async def callback() -> None:
        async with lock:
            pass

    told = await context.run_sync(jobs.call_with_lock, lock, trio_offload.callback(callback))
    assert told.startswith("DeadlockError: deadlock: the task ")
    assert ", which depends on the job lock_jobs.call_with_lock in worker " in told
    assert ", which waits for its callback, which depends on the task " in told
    assert not lock.locked()


async def test_deadlock_of_a_job_and_its_caller(context: WorkerContext) -> None:
    """The caller holds a lock, waits for the job, and the job wants the lock."""
    lock = trio_offload.Lock()
    async with lock:
        with pytest.raises(
            DeadlockError,
            match=r"the task .* the end of its job, which depends on the job lock_jobs\.with_lock .* which waits for the Lock",
        ):
            await context.run_sync(jobs.with_lock, lock, abs, 1)
    assert await context.run_sync(jobs.with_lock, lock, abs, -1) == 1


async def test_deadlock_through_a_nested_job(context: WorkerContext) -> None:
    """A job holds a lock; its callback calls another job, which wants the lock."""
    lock = trio_offload.Lock()

    async def callback() -> None:
        await context.run_sync(jobs.with_lock, lock, abs, 1, limiter=trio.CapacityLimiter(1))

    told = await context.run_sync(jobs.call_with_lock, lock, trio_offload.callback(callback))
    assert told.startswith("DeadlockError: deadlock: the task ")
    assert told.count(", which depends on ") == 3


# --- statistics -----------------------------------------------------------------------------------------------


async def test_statistics_name_those_that_wait(context: WorkerContext) -> None:
    lock, event = trio_offload.Lock(), trio_offload.Event()
    async with trio.open_nursery() as nursery:
        async with held_by_another(lock):
            nursery.start_soon(context.run_sync, jobs.with_lock, lock, abs, 1)
            while not lock.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(context.run_sync, jobs.do, event, ("wait",))
            while not event.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
            first, second = context.statistics().waiting
            pids = {worker.pid for worker in context.statistics().workers}
            assert {first.pid, second.pid} == pids
            assert (first.function, first.operation) == ("lock_jobs.with_lock", "acquire")
            assert "locked by the task" in str(first.handle)
            assert "hold" in str(first.handle)
            assert (second.function, second.operation) == ("lock_jobs.do", "wait")
            assert "trio_offload.Event" in str(second.handle)
            assert first.seconds >= second.seconds >= 0
            event.set()
    assert context.statistics().waiting == ()


async def test_stall_is_reported_once(of_any_kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with trio_offload.open_worker_context(worker_type=of_any_kind, stall_report=0.08) as context:
        with trio.fail_after(TIMEOUT):
            await assert_stall_is_reported_once(context, caplog)


async def assert_stall_is_reported_once(context: WorkerContext, caplog: pytest.LogCaptureFixture) -> None:
    lock, event = trio_offload.Lock(), trio_offload.Event()
    limiter = trio.CapacityLimiter(3)
    reported = trio.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reported.set()

    handler = Handler()
    logger = logging.getLogger("trio_offload")
    logger.addHandler(handler)
    try:
        async with trio.open_nursery() as nursery:
            async with held_by_another(lock):
                for fn, *args in ((jobs.with_lock, lock, abs, 1), (jobs.do, event, ("wait",))):
                    nursery.start_soon(functools.partial(context.run_sync, fn, *args, limiter=limiter))
                await reported.wait()
                # It is told once; each look would tell it again.
                await trio.sleep(0.2)
                event.set()
    finally:
        logger.removeHandler(handler)
    (record,) = caplog.records
    lines = record.getMessage().splitlines()
    assert lines[0] == "all jobs that run have waited for this program for 0.08 seconds:"
    assert len(lines) == 3
    assert any("which runs lock_jobs.with_lock, for 0 s: acquire of <trio_offload.Lock" in line for line in lines)
    assert any("locked by the task" in line for line in lines)


async def test_computing_job_is_no_stall(of_any_kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is a consumer that waits for items, or an event."""
    async with trio_offload.open_worker_context(worker_type=of_any_kind, stall_report=0.02) as context:
        with trio.fail_after(TIMEOUT):
            await assert_computing_job_is_no_stall(context, caplog)


async def assert_computing_job_is_no_stall(context: WorkerContext, caplog: pytest.LogCaptureFixture) -> None:
    lock, event = trio_offload.Lock(), trio_offload.Event()
    limiter = trio.CapacityLimiter(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(context.run_sync, jobs.do, event, ("wait",), limiter=limiter))
        await trio.sleep(0.1)
        assert caplog.records == []
        nursery.start_soon(functools.partial(context.run_sync, time.sleep, 0.4, limiter=limiter))
        async with held_by_another(lock):
            nursery.start_soon(functools.partial(context.run_sync, jobs.with_lock, lock, abs, 1, limiter=limiter))
            await trio.sleep(0.2)
            assert caplog.records == []
        event.set()


async def test_stall_report_of_each_context(caplog: pytest.LogCaptureFixture) -> None:
    """The smallest counts, also if it comes last. Waits of a context without reports are not shown."""
    lock, event = trio_offload.Lock(), trio_offload.Event()
    reported = trio.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reported.set()

    handler, logger = Handler(), logging.getLogger("trio_offload")
    logger.addHandler(handler)
    try:
        async with (
            trio_offload.open_worker_context(stall_report=None) as silent,
            trio_offload.open_worker_context(stall_report=math.inf) as endless,
            trio_offload.open_worker_context(stall_report=3600) as slow,
            trio_offload.open_worker_context(stall_report=0.05) as quick,
            trio.open_nursery() as nursery,
        ):
            assert (silent.stall_report, endless.stall_report) == (None, None)
            with trio.fail_after(TIMEOUT):
                async with held_by_another(lock):
                    for waiting, context in enumerate((silent, endless, slow, quick)):
                        nursery.start_soon(context.run_sync, jobs.do, event, ("wait",))
                        while event.statistics().tasks_waiting == waiting:
                            await trio.lowlevel.checkpoint()
                    nursery.start_soon(quick.run_sync, jobs.with_lock, lock, abs, 1)
                    await reported.wait()
                    event.set()
    finally:
        logger.removeHandler(handler)
    (record,) = caplog.records
    lines = record.getMessage().splitlines()
    assert lines[0] == "all jobs that run have waited for this program for 0.05 seconds:"
    assert sorted(line.partition(": ")[2].split()[0] for line in lines[1:]) == ["acquire", "wait", "wait"]


# --- cancellation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (trio_offload.Lock, "acquire"),
        (trio_offload.RLock, "acquire"),
        (functools.partial(trio_offload.Semaphore, 0), "acquire"),
        (functools.partial(trio_offload.CapacityLimiter, 0), "acquire"),
        (trio_offload.Event, "wait"),
        (functools.partial(trio_offload.Barrier, 2), "wait"),
    ],
)
async def test_cancelled_wait_of_a_job(context: WorkerContext, make: Any, method: str) -> None:
    handle, ready = make(), trio_offload.Event()
    if "Lock" in repr(handle):
        await handle.acquire()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            results: dict[str, Any] = {}
            await start(nursery, results, "job", context.run_sync, jobs.wait_blocked, handle, ready, method)
            with trio.CancelScope(shield=True):
                await ready.wait()
                while not handle.statistics().tasks_waiting:
                    await trio.lowlevel.checkpoint()
            scope.cancel()
    assert results == {"job": "cancelled"}
    assert handle.statistics().tasks_waiting == 0
    if "Lock" in repr(handle):
        handle.release()


# --- items of a map -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 8])
async def test_item_that_keeps_a_lock(context: WorkerContext, chunk_size: int) -> None:
    """Its end is the end of a holder, although its call may go on with other items."""
    lock = trio_offload.Lock()
    items = [(lock, item) for item in range(8)]
    limiter = trio.CapacityLimiter(1)
    async with context.starmap(jobs.hold_in_item, items, chunk_size=chunk_size, limiter=limiter) as results:
        found = [result async for result in results]
    assert found == ["acquired"] + ["AbandonedLockError"] * 7
    assert lock.recover()


async def test_items_share_a_lock(context: WorkerContext) -> None:
    """It comes with each item, or in the function."""
    lock = trio_offload.Lock()
    items = [(lock, item) for item in range(1, 41)]
    async with context.starmap(jobs.hold_in_item, items, chunk_size=5) as results:
        assert [result async for result in results] == ["acquired"] * 40
    function = functools.partial(jobs.hold_in_item, lock)
    async with context.map(function, range(1, 41), chunk_size=5) as results:
        assert [result async for result in results] == ["acquired"] * 40
    assert not lock.locked()


# --- waits that end for another reason ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (trio_offload.Lock, "acquire"),
        (functools.partial(trio_offload.Semaphore, 0), "acquire"),
        (functools.partial(trio_offload.CapacityLimiter, 0), "acquire"),
        (trio_offload.Event, "wait"),
    ],
)
async def test_wait_that_a_signal_handler_ends(context: WorkerContext, make: Any, method: str) -> None:
    handle = make()
    pids: list[int] = []
    results: dict[str, Any] = {}
    if isinstance(handle, trio_offload.Lock):
        await handle.acquire()
    async with trio.open_nursery() as nursery:
        said = trio_offload.callback(pids.append)
        await start(nursery, results, "job", context.run_sync, jobs.interrupted, handle, method, said)
        while not handle.statistics().tasks_waiting:
            await trio.lowlevel.checkpoint()
        os.kill(pids[0], signal.SIGUSR1)
    assert results == {"job": "interrupted"}
    assert handle.statistics().tasks_waiting == 0
    if isinstance(handle, trio_offload.Lock):
        handle.release()
        async with handle:
            pass


async def test_condition_that_a_signal_handler_ends(context: WorkerContext) -> None:
    condition = trio_offload.Condition()
    pids: list[int] = []
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        said = trio_offload.callback(pids.append)
        await start(nursery, results, "job", context.run_sync, jobs.interrupted_condition, condition, said)
        while not condition.statistics().tasks_waiting:
            await trio.lowlevel.checkpoint()
        os.kill(pids[0], signal.SIGUSR1)
    assert results == {"job": ["interrupted", "can't release a Lock you don't own"]}
    assert not condition.locked()


async def test_event_is_set_after_its_waiter_died(context: WorkerContext) -> None:
    """With multiprocessing, `set` would wait for the dead process."""
    event, ready = trio_offload.Event(), trio_offload.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                functools.partial(context.run_sync, jobs.wait_to_be_killed, event, ready, "wait", kill_on_cancel=True)
            )
            while not event.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert event.statistics().tasks_waiting == 0
    event.set()
    await context.run_sync(jobs.do, event, ("wait",))


async def test_timed_out_acquire_takes_nothing(context: WorkerContext) -> None:
    """With aioprocessing, the thread that waited in vain takes the lock later, for nobody."""
    lock = trio_offload.Lock()
    async with held_by_another(lock):
        done = await context.run_sync(jobs.do, lock, ("acquire", 0.01))
        assert done[0][0] == "TimeoutError"
    assert not lock.locked()
    async with lock:
        pass


async def test_timeouts_race_with_the_release(context: WorkerContext) -> None:
    """A withdrawal crosses the reply: the lock is the job's then, or it is not."""
    lock = trio_offload.Lock()
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for seed in range(3):
            await start(nursery, results, str(seed), context.run_sync, jobs.race, lock, 100, seed)
        while len(results) < 3:
            async with lock:
                await trio.sleep(0.0005)
            await trio.sleep(0.0005)
    assert sum(results.values()) > 0
    assert lock.statistics().tasks_waiting == 0
    assert not lock.locked()


async def test_many_waits_need_no_thread(context: WorkerContext) -> None:
    before = threading.active_count()
    events = [trio_offload.Event() for _ in range(200)]
    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(event.wait)
        await wait_all_tasks_blocked()
        assert threading.active_count() == before
        await context.run_sync(jobs.set_all, events)
