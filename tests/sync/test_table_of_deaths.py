"""docs/talking.md says what the end of a holder, or of a waiter, does to each object: each cell of its table is tried."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import failure_jobs as jobs
import pytest
import trio
from death_support import expect_death, kill_when, pid_of_job, until
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import AbandonedLockError, BrokenBarrierError, BrokenWorkerError, WorkerContext, WorkerType

TIMEOUT = 20.0  # seconds: a test that hangs fails
PAGE = Path(__file__).resolve().parents[2] / "docs" / "talking.md"
COLUMNS: Final = ("ends", "dies", "waiter")
Check = Callable[[WorkerContext], Awaitable[None]]
checks: dict[tuple[str, str], Check] = {}


def cells() -> set[tuple[str, str]]:
    """The cells of the table that say something."""
    section = PAGE.read_text().partition("## When a worker dies")[2].partition("\n## ")[0]
    found = set()
    for line in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]:
        name, *row = (cell.strip() for cell in line.split("|"))
        found.update((name.replace("`", ""), column) for column, cell in zip(COLUMNS, row, strict=True) if cell)
    return found


def cell(row: str, column: str) -> Callable[[Check], Check]:
    """Register the check of a cell."""

    def register(check: Check) -> Check:
        checks[row, column] = check
        return check

    return register


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


# --- locks ---------------------------------------------------------------------------------------


async def abandons(context: WorkerContext, end: Callable[[Any], Awaitable[Any]]) -> None:
    for make in (trio_offload.Lock, trio_offload.RLock):
        lock = make()
        await end(lock)
        with pytest.raises(AbandonedLockError):
            await lock.acquire()
        with pytest.raises(AbandonedLockError):
            await context.run_sync(jobs.acquire, lock)
        assert lock.recover()
        await context.run_sync(jobs.acquire, lock)
        lock = make(on_abandon="release")
        await end(lock)
        await context.run_sync(jobs.acquire, lock)


@cell("Lock, RLock", "ends")
async def lock_ends(context: WorkerContext) -> None:
    await abandons(context, lambda lock: context.run_sync(jobs.keep, lock))


@cell("Lock, RLock", "dies")
async def lock_dies(context: WorkerContext) -> None:
    await abandons(context, lambda lock: expect_death(context, jobs.keep_and_die, lock))


@cell("Lock, RLock", "waiter")
async def lock_waiter(context: WorkerContext) -> None:
    lock = trio_offload.Lock()

    async def hold(release: trio.Event) -> None:
        async with lock:
            await release.wait()

    async with trio.open_nursery() as nursery:
        release = trio.Event()
        nursery.start_soon(hold, release)
        await wait_all_tasks_blocked()
        await kill_when(context, lambda: lock.statistics().tasks_waiting == 1, jobs.acquire, lock)
        assert lock.statistics().tasks_waiting == 0
        release.set()
    await context.run_sync(jobs.acquire, lock)


@cell("Condition", "ends")
async def condition_ends(context: WorkerContext) -> None:
    condition = trio_offload.Condition()
    await context.run_sync(jobs.keep, condition)
    with pytest.raises(AbandonedLockError):
        await condition.acquire()


@cell("Condition", "dies")
async def condition_dies(context: WorkerContext) -> None:
    condition = trio_offload.Condition()
    await expect_death(context, jobs.keep_and_die, condition)
    with pytest.raises(AbandonedLockError):
        await condition.acquire()
    assert condition.recover()
    await context.run_sync(jobs.acquire, condition)


@cell("Condition", "waiter")
async def condition_waiter(context: WorkerContext) -> None:
    condition = trio_offload.Condition()
    woken = []

    async def wait() -> None:
        async with condition:
            await condition.wait()
            woken.append("a task")

    died = trio.Event()

    async def die() -> None:
        await expect_death(context, jobs.wait_in, condition)
        died.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(die)
        await until(lambda: condition.statistics().tasks_waiting == 1)
        nursery.start_soon(wait)
        await until(lambda: condition.statistics().tasks_waiting == 2)
        async with condition:
            # The job is first in line. It dies with the notification, before it has the lock.
            condition.notify()
            os.kill(pid_of_job(context), signal.SIGKILL)
            # Else the lock may pass to the job before its death is known, and is abandoned then.
            await died.wait()
    assert woken == ["a task"]


# --- counters and meetings -----------------------------------------------------------------------


@cell("Semaphore", "ends")
async def semaphore_ends(context: WorkerContext) -> None:
    semaphore = trio_offload.Semaphore(2)
    await context.run_sync(jobs.keep, semaphore)
    assert semaphore.value == 1


@cell("Semaphore", "dies")
async def semaphore_dies(context: WorkerContext) -> None:
    semaphore, keeping = trio_offload.Semaphore(2), trio_offload.Semaphore(2, on_death="keep")
    await expect_death(context, jobs.keep_and_die, semaphore)
    await expect_death(context, jobs.keep_and_die, keeping)
    assert (semaphore.value, keeping.value) == (2, 1)


@cell("Semaphore", "waiter")
async def semaphore_waiter(context: WorkerContext) -> None:
    semaphore = trio_offload.Semaphore(0)
    await kill_when(context, lambda: semaphore.statistics().tasks_waiting == 1, jobs.acquire, semaphore)
    semaphore.release()
    assert semaphore.value == 1


@cell("CapacityLimiter", "ends")
async def limiter_ends(context: WorkerContext) -> None:
    limiter = trio_offload.CapacityLimiter(1)
    with pytest.warns(RuntimeWarning):
        await context.run_sync(jobs.keep, limiter)
    assert limiter.available_tokens == 1


@cell("CapacityLimiter", "dies")
async def limiter_dies(context: WorkerContext) -> None:
    limiter = trio_offload.CapacityLimiter(1)
    await expect_death(context, jobs.keep_and_die, limiter)
    assert limiter.available_tokens == 1


@cell("CapacityLimiter", "waiter")
async def limiter_waiter(context: WorkerContext) -> None:
    limiter = trio_offload.CapacityLimiter(1)
    async with limiter:
        await kill_when(context, lambda: limiter.statistics().tasks_waiting == 1, jobs.acquire, limiter)
        assert limiter.statistics().tasks_waiting == 0
    assert limiter.available_tokens == 1


@cell("Barrier", "waiter")
async def barrier_waiter(context: WorkerContext) -> None:
    barrier = trio_offload.Barrier(3)

    async def wait() -> None:
        with pytest.raises(BrokenBarrierError):
            await barrier.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await kill_when(context, lambda: barrier.n_waiting == 2, jobs.meet, barrier)
    shrinking = trio_offload.Barrier(2, on_death="shrink")
    await kill_when(context, lambda: shrinking.n_waiting == 1, jobs.meet, shrinking)
    assert await shrinking.wait() == 0
    assert shrinking.parties == 1


@cell("Event", "waiter")
async def event_waiter(context: WorkerContext) -> None:
    event = trio_offload.Event()
    await kill_when(context, lambda: event.statistics().tasks_waiting == 1, jobs.wait_for, event)
    assert event.statistics().tasks_waiting == 0
    event.set()


# --- channels, queues, callbacks -----------------------------------------------------------------


@cell("send channel", "ends")
async def sender_ends(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[str](1)
    await context.run_sync(jobs.send_one, send.move())
    assert [item async for item in receive] == ["from a job"]


@cell("send channel", "dies")
async def sender_dies(context: WorkerContext) -> None:
    for on_death, error in (("raise", trio.BrokenResourceError), ("ignore", trio.EndOfChannel)):
        send, receive = trio_offload.open_channel[int](5, on_death=on_death)
        await expect_death(context, jobs.send_and_die, send.move(), 2)
        assert [await receive.receive(), await receive.receive()] == [0, 1]
        with pytest.raises(error):
            await receive.receive()


@cell("send channel", "waiter")
async def sender_waits(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[str](0)
    await kill_when(context, lambda: send.statistics().tasks_waiting_send == 1, jobs.send_one, send)
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


@cell("receive channel", "ends")
async def receiver_ends(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[str](1)
    await send.send("an item")
    assert await context.run_sync(jobs.receive_one, receive.move()) == "an item"
    with pytest.raises(trio.BrokenResourceError):
        await send.send("too late")


@cell("receive channel", "dies")
async def receiver_dies(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[int](5)
    await send.send_many([1, 2, 3])
    with pytest.raises(BrokenWorkerError) as caught:
        await context.run_sync(jobs.receive_and_die, receive)
    assert len(caught.value.in_hand) == 1
    assert [await receive.receive(), await receive.receive()] == [2, 3]


@cell("receive channel", "waiter")
async def receiver_waits(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[str](1)
    await kill_when(context, lambda: send.statistics().tasks_waiting_receive == 1, jobs.receive_one, receive)
    await send.send("an item")
    assert await receive.receive() == "an item"


@cell("lease of a WorkQueue", "ends")
async def lease_ends(context: WorkerContext) -> None:
    queue = trio_offload.WorkQueue[str]()
    await queue.put("an item")
    with pytest.warns(RuntimeWarning, match="without settling a lease"):
        await context.run_sync(jobs.take_and_leave, queue)
    assert queue.get_nowait().item == "an item"


@cell("lease of a WorkQueue", "dies")
async def lease_dies(context: WorkerContext) -> None:
    queue = trio_offload.WorkQueue[str](on_death="retry", attempts=2)
    await queue.put("an item")
    await expect_death(context, jobs.take_and_die, queue)
    assert not queue.failed
    await expect_death(context, jobs.take_and_die, queue)
    assert [failed.item for failed in queue.failed] == ["an item"]


@cell("lease of a WorkQueue", "waiter")
async def lease_waiter(context: WorkerContext) -> None:
    queue = trio_offload.WorkQueue[str]()
    await kill_when(context, lambda: queue.statistics().tasks_waiting_get == 1, jobs.take_and_leave, queue)
    await queue.put("an item")
    assert queue.get_nowait().item == "an item"


class Slow:
    """An async function that tells when it begins, and whether it is cancelled."""

    def __init__(self) -> None:
        self.begun = trio_offload.Event()
        self.is_cancelled = False

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.is_cancelled = True
            raise


@cell("callback in progress", "ends")
async def callback_ends(context: WorkerContext) -> None:
    slow = Slow()
    await context.run_sync(jobs.call_in_thread, trio_offload.callback(slow), slow.begun)
    assert slow.is_cancelled


@cell("callback in progress", "dies")
async def callback_dies(context: WorkerContext) -> None:
    slow = Slow()
    await kill_when(context, slow.begun.is_set, jobs.call_and_be_killed, trio_offload.callback(slow))
    assert slow.is_cancelled


# --- shared memory -------------------------------------------------------------------------------


async def shared_memory(context: WorkerContext, end: Callable[..., Awaitable[Any]], job: Any) -> None:
    with trio_offload.SharedArray.allocate(4, "int64") as array:
        counter = trio_offload.SharedCounter(5)
        await end(job, array, counter)
        assert [*array.array] == [0, 0, 0, 7]
        assert counter.value == 6
        # The program and the next job use both.
        array.array[3] = 8
        counter.add(1)
        await context.run_sync(jobs.write, array, counter)
        assert ([*array.array], counter.value) == ([0, 0, 0, 7], 8)


@cell("SharedArray, SharedCounter", "ends")
async def shared_memory_ends(context: WorkerContext) -> None:
    await shared_memory(context, context.run_sync, jobs.write_and_keep)


@cell("SharedArray, SharedCounter", "dies")
async def shared_memory_dies(context: WorkerContext) -> None:
    await shared_memory(context, functools.partial(expect_death, context), jobs.write_and_die)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), sorted(cells()))
async def test_cell(context: WorkerContext, row: str, column: str) -> None:
    await checks[row, column](context)


def test_each_check_has_its_cell() -> None:
    assert set(checks) == cells()


async def test_warning_of_a_lock_that_goes_on(context: WorkerContext, caplog: pytest.LogCaptureFixture) -> None:
    lock = trio_offload.Lock(on_abandon="release")
    with caplog.at_level(logging.WARNING, "trio_offload"):
        await expect_death(context, jobs.keep_and_die, lock)
    assert "it goes to the next" in caplog.text
    async with lock:
        assert lock.locked()
