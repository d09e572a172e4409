"""Contract: locks and the like between tasks. What Trio has too is tried with Trio's own class beside ours."""

from __future__ import annotations

import copy
import gc
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_offload
from trio_offload import AbandonedLockError, BrokenBarrierError, DeadlockError
from trio_offload._wait_graph import WAITS

BOTH = pytest.mark.parametrize("library", [trio, trio_offload], ids=lambda library: library.__name__)
OURS: dict[str, Callable[[], Any]] = {
    "Lock": trio_offload.Lock,
    "RLock": trio_offload.RLock,
    "Semaphore": lambda: trio_offload.Semaphore(1),
    "BoundedSemaphore": lambda: trio_offload.BoundedSemaphore(1),
    "CapacityLimiter": lambda: trio_offload.CapacityLimiter(1),
    "Condition": trio_offload.Condition,
}
TELLS_ENDS = hasattr(trio.lowlevel, "add_parking_lot_breaker")


@pytest.fixture(autouse=True)
def _nobody_is_left_waiting() -> Any:
    yield
    gc.collect()
    assert len(WAITS) == 0


async def acquire(lock: Any, log: list[Any], name: Any) -> None:
    """Note when the lock is there, and release it at once."""
    await lock.acquire()
    log.append(name)
    lock.release()


# --- all of them: acquire, wait, give up ----------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
async def test_acquire_and_release(name: str) -> None:
    lock = OURS[name]()
    with assert_checkpoints():
        await lock.acquire()
    lock.release()
    lock.acquire_nowait()
    lock.release()
    with assert_checkpoints():
        async with lock:
            if name != "RLock":
                with pytest.raises((trio.WouldBlock, RuntimeError)):
                    lock.acquire_nowait()
    lock.acquire_nowait()
    lock.release()


@pytest.mark.parametrize("name", OURS)
async def test_handed_over_in_order(name: str, autojump_clock: Any) -> None:
    """No barging: who comes after the release does not get it before those that wait."""
    lock = OURS[name]()
    log: list[Any] = []
    async with trio.open_nursery() as nursery:
        await lock.acquire()
        for number in range(3):
            nursery.start_soon(acquire, lock, log, number)
            await wait_all_tasks_blocked()
        assert lock.statistics().tasks_waiting == 3 if name != "Condition" else True
        lock.release()
        with pytest.raises(trio.WouldBlock):
            lock.acquire_nowait()
        await acquire(lock, log, "late")
    assert log == [0, 1, 2, "late"]


@pytest.mark.parametrize("name", OURS)
async def test_given_up_wait_takes_nothing(name: str) -> None:
    lock = OURS[name]()
    log: list[Any] = []
    async with trio.open_nursery() as nursery:
        await lock.acquire()
        with trio.CancelScope() as scope:
            nursery.start_soon(acquire, lock, log, "second")
            await wait_all_tasks_blocked()
            scope.cancel()
            await acquire(lock, log, "cancelled before")
        with trio.move_on_after(0.001):
            async with trio.open_nursery() as inner:
                inner.start_soon(acquire, lock, log, "cancelled while it waits")
        lock.release()
    assert log == ["second"]
    lock.acquire_nowait()
    lock.release()


@pytest.mark.parametrize("is_released_first", [False, True])
@pytest.mark.parametrize("name", OURS)
async def test_released_and_cancelled_at_once(name: str, is_released_first: bool) -> None:
    """The wait is over, or it is cancelled: never both."""
    lock = OURS[name]()
    log: list[str] = []
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            await lock.acquire()
            log.append("acquired")

    await lock.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for step in (lock.release, scope.cancel) if is_released_first else (scope.cancel, lock.release):
            step()
    assert log == ["acquired"] * is_released_first
    assert scope.cancelled_caught is not is_released_first
    if not is_released_first:
        lock.acquire_nowait()


@pytest.mark.parametrize("name", OURS)
async def test_cancelled_before_it_begins(name: str) -> None:
    lock = OURS[name]()
    with trio.CancelScope() as scope:
        scope.cancel()
        await lock.acquire()
    assert scope.cancelled_caught
    lock.acquire_nowait()


@pytest.mark.parametrize("name", [*OURS, "Event", "Barrier"])
async def test_handle_refuses_other_picklers(name: str) -> None:
    handle: Any = {**OURS, "Event": trio_offload.Event, "Barrier": lambda: trio_offload.Barrier(2)}[name]()
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pass it as an argument of a job"):
            function(handle)
    assert f"trio_offload.{name}" in repr(handle)


# --- Lock and RLock -------------------------------------------------------------------------------------------


@BOTH
async def test_lock_belongs_to_a_task(library: Any) -> None:
    lock = library.Lock()
    assert not lock.locked()
    assert not lock.statistics().locked
    with pytest.raises(RuntimeError, match="can't release a Lock you don't own"):
        lock.release()
    async with lock:
        assert lock.locked()
        statistics = lock.statistics()
        assert (statistics.locked, statistics.owner, statistics.tasks_waiting) == (True, trio.lowlevel.current_task(), 0)
        with pytest.raises(RuntimeError, match="attempt to re-acquire an already held Lock"):
            await lock.acquire()
        with pytest.raises(RuntimeError, match="attempt to re-acquire an already held Lock"):
            lock.acquire_nowait()

        async def release() -> None:
            with pytest.raises(RuntimeError, match="can't release a Lock you don't own"):
                lock.release()
            with pytest.raises(trio.WouldBlock):
                lock.acquire_nowait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(release)
    assert lock.statistics().owner is None


async def test_rlock_is_held_until_the_last_release() -> None:
    lock = trio_offload.RLock()
    log: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            lock.acquire_nowait()
            nursery.start_soon(acquire, lock, log, "other")
            await wait_all_tasks_blocked()
            lock.release()
            await wait_all_tasks_blocked()
            assert log == []
            assert lock.locked()
    assert log == ["other"]
    with pytest.raises(RuntimeError):
        lock.release()


@pytest.mark.parametrize("make", [trio_offload.Lock, trio_offload.RLock])
async def test_deadlock_of_two_tasks(make: Any) -> None:
    first, second = make(), make()

    async def other() -> None:
        async with second:
            await first.acquire()
            first.release()

    async with trio.open_nursery() as nursery:
        async with first:
            nursery.start_soon(other)
            await wait_all_tasks_blocked()
            with pytest.raises(
                DeadlockError, match=r"deadlock: the task .* would wait for the .*other.* depends on the task"
            ):
                await second.acquire()
            assert second.statistics().tasks_waiting == 0
    async with first, second:
        pass


@pytest.mark.skipif(not TELLS_ENDS, reason="this Trio does not tell who ends with a lock")
@pytest.mark.parametrize("make", [trio_offload.Lock, trio_offload.RLock])
async def test_task_that_ends_with_a_lock(make: Any) -> None:
    lock = make()

    async def wait() -> None:
        with pytest.raises(AbandonedLockError, match="ended without releasing it"):
            await lock.acquire()

    async def hold() -> None:
        await lock.acquire()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
    assert lock.statistics().abandoned
    assert not lock.locked()
    assert "abandoned" in repr(lock)
    with pytest.raises(trio.BrokenResourceError, match=r"recover\(\)") as caught:
        lock.acquire_nowait()
    assert (caught.value.pid, caught.value.signal) == (None, None)  # type: ignore[attr-defined]
    assert lock.recover()
    assert not lock.recover()
    async with lock:
        pass


@pytest.mark.skipif(not TELLS_ENDS, reason="this Trio does not tell who ends with a lock")
async def test_task_that_ends_with_a_lock_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    lock = trio_offload.Lock(on_abandon="release")
    log: list[Any] = []

    async def hold() -> None:
        await lock.acquire()
        nursery.start_soon(acquire, lock, log, "next")
        await wait_all_tasks_blocked()

    with caplog.at_level(logging.WARNING, "trio_offload"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
    assert log == ["next"]
    assert "ended without releasing it; it goes to the next" in caplog.text


async def test_lock_from_threads() -> None:
    """The owner is the task that started the thread."""
    lock = trio_offload.Lock()

    def work() -> None:
        trio.from_thread.run(lock.acquire)
        trio.from_thread.run_sync(lock.release)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(trio.to_thread.run_sync, work)
    assert not lock.locked()


# --- Semaphore ------------------------------------------------------------------------------------------------


@BOTH
async def test_semaphore_counts(library: Any) -> None:
    semaphore = library.Semaphore(2, max_value=2)
    assert (semaphore.value, semaphore.max_value) == (2, 2)
    with pytest.raises(ValueError, match="semaphore released too many times"):
        semaphore.release()
    async with semaphore:
        semaphore.acquire_nowait()
        assert semaphore.value == 0
        with pytest.raises(trio.WouldBlock):
            semaphore.acquire_nowait()
        assert semaphore.statistics().tasks_waiting == 0
        semaphore.release()
    unbounded = library.Semaphore(0)
    unbounded.release()
    assert (unbounded.value, unbounded.max_value) == (1, None)


async def test_bounded_semaphore() -> None:
    semaphore = trio_offload.BoundedSemaphore(3)
    assert isinstance(semaphore, trio_offload.Semaphore)
    assert (semaphore.value, semaphore.max_value) == (3, 3)


# --- CapacityLimiter ------------------------------------------------------------------------------------------


@BOTH
async def test_limiter_lends_one_token_each(library: Any) -> None:
    limiter = library.CapacityLimiter(2)
    async with limiter:
        with pytest.raises(RuntimeError, match="already holding"):
            limiter.acquire_nowait()
        with pytest.raises(RuntimeError, match="already holding"):
            await limiter.acquire()
        limiter.acquire_on_behalf_of_nowait("a")
        assert (limiter.borrowed_tokens, limiter.available_tokens, limiter.total_tokens) == (2, 0, 2)
        statistics = limiter.statistics()
        assert (statistics.borrowed_tokens, statistics.total_tokens, statistics.tasks_waiting) == (2, 2, 0)
        assert set(statistics.borrowers) == {trio.lowlevel.current_task(), "a"}
        limiter.release_on_behalf_of("a")
        await limiter.acquire_on_behalf_of("b")
        limiter.release_on_behalf_of("b")
        with pytest.raises(RuntimeError, match="isn't holding"):
            limiter.release_on_behalf_of("b")
    with pytest.raises(RuntimeError, match="isn't holding"):
        limiter.release()


@BOTH
async def test_limiter_grows_and_shrinks(library: Any) -> None:
    limiter = library.CapacityLimiter(1)
    log: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with limiter:
            nursery.start_soon(acquire, limiter, log, "waits")
            await wait_all_tasks_blocked()
            limiter.total_tokens = 0
            await wait_all_tasks_blocked()
            assert (log, limiter.available_tokens) == ([], -1)
            limiter.total_tokens = 2
            await wait_all_tasks_blocked()
            assert log == ["waits"]
    limiter.total_tokens = math.inf
    assert limiter.available_tokens == math.inf


@pytest.mark.parametrize("total", [1.5, "1", None])
@BOTH
def test_limiter_of_a_wrong_type(library: Any, total: Any) -> None:
    with pytest.raises(TypeError, match=r"total_tokens must be an int or math\.inf"):
        library.CapacityLimiter(total)


@pytest.mark.leaves_default_workers
async def test_limiter_limits_jobs() -> None:
    limiter = trio_offload.CapacityLimiter(1)
    assert await trio_offload.run_sync(abs, -5, limiter=limiter) == 5
    assert limiter.borrowed_tokens == 0


# --- Event ----------------------------------------------------------------------------------------------------


@BOTH
async def test_event_ends_all_waits(library: Any) -> None:
    event = library.Event()
    log: list[Any] = []

    async def wait(number: int) -> None:
        await event.wait()
        log.append(number)

    assert not event.is_set()
    with pytest.raises(NotImplementedError):
        bool(event)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait, number)
        with trio.move_on_after(0.001):
            await event.wait()
        await wait_all_tasks_blocked()
        assert event.statistics().tasks_waiting == 3
        event.set()
        event.set()
        assert event.is_set()
    assert sorted(log) == [0, 1, 2]
    with assert_checkpoints():
        await event.wait()


async def test_event_is_cleared() -> None:
    event = trio_offload.Event()
    event.set()
    event.clear()
    assert not event.is_set()
    with trio.move_on_after(0.001) as scope:
        await event.wait()
    assert scope.cancelled_caught


# --- Condition ------------------------------------------------------------------------------------------------


@BOTH
async def test_condition_notifies_in_order(library: Any) -> None:
    condition = library.Condition()
    log: list[Any] = []

    async def wait(number: int) -> None:
        async with condition:
            await condition.wait()
            log.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        async with condition:
            assert condition.locked()
            condition.notify()
            condition.notify(2)
        await wait_all_tasks_blocked()
        assert log == [0, 1, 2]
        assert condition.statistics().tasks_waiting == 2
        assert not condition.statistics().lock_statistics.locked
        condition.acquire_nowait()
        condition.notify_all()
        condition.release()
    assert log == [0, 1, 2, 3, 4]


@BOTH
async def test_condition_needs_its_lock(library: Any) -> None:
    condition = library.Condition()
    with pytest.raises(RuntimeError, match="must hold the lock to wait"):
        await condition.wait()
    for notify in (condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError, match="must hold the lock to notify"):
            notify()
    with pytest.raises(TypeError, match="lock must be a"):
        library.Condition("lock")


@BOTH
async def test_cancelled_condition_has_its_lock_again(library: Any) -> None:
    condition = library.Condition()
    async with condition:
        with trio.move_on_after(0.001) as scope:
            await condition.wait()
        assert scope.cancelled_caught
        assert condition.statistics().lock_statistics.owner is trio.lowlevel.current_task()


async def test_condition_restores_an_rlock() -> None:
    lock = trio_offload.RLock()
    condition = trio_offload.Condition(lock)

    async def notify() -> None:
        async with condition:
            condition.notify()

    async with trio.open_nursery() as nursery:
        async with condition, lock:
            nursery.start_soon(notify)
            await condition.wait()
            lock.release()
            assert lock.locked()
            lock.acquire_nowait()
    assert not lock.locked()


async def test_condition_waits_for_a_predicate() -> None:
    condition = trio_offload.Condition()
    items: list[int] = []

    async def put() -> None:
        for number in range(3):
            async with condition:
                items.append(number)
                condition.notify()

    async with trio.open_nursery() as nursery:
        async with condition:
            nursery.start_soon(put)
            assert await condition.wait_for(lambda: len(items) > 1 and items) is items


async def test_notification_of_a_cancelled_waiter_goes_on() -> None:
    """Trio's own loses it."""
    condition = trio_offload.Condition()
    log: list[Any] = []

    async def wait(number: int, scope: trio.CancelScope) -> None:
        with scope:
            async with condition:
                await condition.wait()
                log.append(number)

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait, 2, second)
        await wait_all_tasks_blocked()
        async with condition:
            condition.notify()
            first.cancel()
            await wait_all_tasks_blocked()
    assert log == [2]


@pytest.mark.skipif(not TELLS_ENDS, reason="this Trio does not tell who ends with a lock")
async def test_condition_of_an_abandoned_lock() -> None:
    condition = trio_offload.Condition()
    started = trio.Event()

    async def wait() -> None:
        with pytest.raises(AbandonedLockError):
            async with condition:
                started.set()
                await condition.wait()

    async def hold() -> None:
        await started.wait()
        await condition.acquire()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(hold)
    assert condition.recover()
    async with condition:
        condition.notify()


# --- Barrier --------------------------------------------------------------------------------------------------


async def test_barrier_lets_all_pass() -> None:
    barrier = trio_offload.Barrier(3)
    indexes: list[int] = []

    async def arrive() -> None:
        indexes.append(await barrier.wait())

    for _ in range(2):
        indexes.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            nursery.start_soon(arrive)
            await wait_all_tasks_blocked()
            assert (barrier.n_waiting, barrier.parties, barrier.statistics().tasks_waiting) == (2, 3, 2)
            with assert_checkpoints():
                assert await barrier.wait() == 2
        assert sorted(indexes) == [0, 1]
        assert (barrier.n_waiting, barrier.broken) == (0, False)


@pytest.mark.parametrize("how", ["abort", "reset", "give up"])
async def test_barrier_breaks(how: str) -> None:
    barrier = trio_offload.Barrier(3)

    async def arrive() -> None:
        with pytest.raises(BrokenBarrierError):
            await barrier.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrive)
        await wait_all_tasks_blocked()
        if how == "give up":
            with trio.move_on_after(0.001):
                await barrier.wait()
        else:
            getattr(barrier, how)()
    assert barrier.broken is (how != "reset")
    if barrier.broken:
        with pytest.raises(BrokenBarrierError, match=r"reset\(\)"):
            await barrier.wait()
        barrier.reset()
    assert (barrier.broken, barrier.n_waiting) == (False, 0)


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: trio_offload.Lock(on_abandon="brake"), ValueError, "on_abandon must be 'break' or 'release', got 'brake'"),  # type: ignore[arg-type]
        (lambda: trio_offload.Semaphore(1.0), TypeError, "initial_value must be an int, got 1.0"),  # type: ignore[arg-type]
        (lambda: trio_offload.Semaphore(-1), ValueError, "initial_value must be >= 0, got -1"),
        (lambda: trio_offload.Semaphore(2, max_value=1), ValueError, "max_value must be >= initial_value, got 1"),
        (lambda: trio_offload.Semaphore(1, max_value="1"), TypeError, "max_value must be None or an int, got '1'"),  # type: ignore[arg-type]
        (lambda: trio_offload.Semaphore(1, on_death="?"), ValueError, "on_death must be 'return' or 'keep', got '?'"),  # type: ignore[arg-type]
        (lambda: trio_offload.CapacityLimiter(-1), ValueError, "total_tokens must be >= 0, got -1"),
        (lambda: trio_offload.Barrier("2"), TypeError, "parties must be an int, got '2'"),  # type: ignore[arg-type]
        (lambda: trio_offload.Barrier(0), ValueError, "parties must be >= 1, got 0"),
        (lambda: trio_offload.Barrier(2, on_death="?"), ValueError, "on_death must be 'break' or 'shrink', got '?'"),  # type: ignore[arg-type]
        (lambda: trio_offload.Condition(trio.Lock()), TypeError, "lock must be a trio_offload.Lock or trio_offload.RLock"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_of_locks(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)
