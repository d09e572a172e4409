"""Contract: what stops users of aioprocessing, or loses their items, does not happen here. One test for each."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import failure_jobs as jobs
import pytest
import trio
from death_support import expect_death, kill_when
from kinds import environment_of
from lock_support import held_by_another
from running import run_script
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import AbandonedLockError, FailedItemsError, WorkerContext, WorkerType

TIMEOUT = 20.0  # seconds: a test that hangs fails


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    with trio.fail_after(TIMEOUT):
        yield


# --- the twelve ----------------------------------------------------------------------------------


async def test_release_while_another_task_waits() -> None:
    """There the release waits in the event loop behind the acquire of the other task: it stops for ever."""
    lock = trio_offload.Lock()
    order = []

    async def wait() -> None:
        async with lock:
            order.append("second")

    with deadline():
        async with trio.open_nursery() as nursery:
            await lock.acquire()
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            order.append("first")
            lock.release()
    assert order == ["first", "second"]


async def test_rlock_excludes_tasks() -> None:
    """There both tasks are inside at once, because they share a thread."""
    lock = trio_offload.RLock()
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with lock, lock:
            inside += 1
            await wait_all_tasks_blocked()
            assert inside == 1
            inside -= 1

    with deadline():
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(enter)


async def test_receive_that_has_timed_out_takes_no_item(context: WorkerContext) -> None:
    """There the abandoned threads take two of the four items."""
    send, receive = trio_offload.open_channel[int](10)
    for _ in range(2):
        with trio.move_on_after(0.01):
            await receive.receive()
        assert await context.run_sync(jobs.receive_late, receive, 0.01) == "nothing"
    for number in range(4):
        await send.send(number)
    send.close()
    assert [number async for number in receive] == [0, 1, 2, 3]


async def test_acquire_that_has_timed_out_takes_no_lock(context: WorkerContext) -> None:
    """There the abandoned thread takes the lock, and holds it for ever."""
    lock = trio_offload.Lock()
    async with held_by_another(lock):
        assert await context.run_sync(jobs.acquire_late, lock, 0.01) == "not acquired"

        async def give_up() -> None:
            with trio.move_on_after(0.01):
                await lock.acquire()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
    assert not lock.locked()
    assert await context.run_sync(jobs.acquire_late, lock, TIMEOUT) == "acquired"


async def test_send_beside_many_that_receive() -> None:
    """There `coro_put` never runs if as many `coro_get` as processors are pending."""
    send, receive = trio_offload.open_channel[int](0)
    got = []

    async def take() -> None:
        got.append(await receive.receive())

    with deadline():
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(take)
            await wait_all_tasks_blocked()
            for number in range(50):
                await send.send(number)
    assert sorted(got) == list(range(50))


PROGRAM = """
import sys, trio, trio_offload

def job(receive):
    receive.receive()

async def main():
    send, receive = trio_offload.open_channel(1)
    options = {"worker_type": sys.argv[1]}
    async with trio_offload.open_worker_context(**options) as context, trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, job, receive)
        while send.statistics().tasks_waiting_receive < 1:
            await trio.sleep(0.001)
        with trio.move_on_after(0.01):
            await receive.receive()
        nursery.cancel_scope.cancel()
    print("the end")

if __name__ == "__main__":
    trio.run(main)
"""


def test_program_ends_after_a_cancelled_receive(kind: str, tmp_path: Path) -> None:
    """There it does not end: the thread of the `coro_get` is joined at the exit."""
    ended = run_script(tmp_path, PROGRAM, kind.replace("loop", "spawn"), environment=environment_of(kind))
    assert ended.lines() == ["the end"]


async def test_200_events_without_a_thread() -> None:
    """There they are 200 threads."""
    events = [trio_offload.Event() for _ in range(200)]
    threads = threading.active_count()
    with deadline():
        async with trio.open_nursery() as nursery:
            for event in events:
                nursery.start_soon(event.wait)
            await wait_all_tasks_blocked()
            assert threading.active_count() == threads
            for event in events:
                event.set()


async def test_killed_with_the_lock(context: WorkerContext) -> None:
    """There it is held for ever."""
    lock = trio_offload.Lock()
    await expect_death(context, jobs.die_with, lock)
    with pytest.raises(AbandonedLockError) as caught:
        await lock.acquire()
    assert caught.value.signal == signal.SIGKILL
    assert lock.recover()
    assert await context.run_sync(jobs.acquire_late, lock, TIMEOUT) == "acquired"


async def test_killed_while_it_waits_for_an_event(context: WorkerContext) -> None:
    """There `set()` then blocks for ever in the program."""
    event = trio_offload.Event()
    await kill_when(context, lambda: event.statistics().tasks_waiting == 1, jobs.wait_for, event)
    assert event.statistics().tasks_waiting == 0
    event.set()
    await event.wait()
    assert await context.run_sync(jobs.wait_for, event)


async def test_killed_while_it_receives(context: WorkerContext) -> None:
    """There it dies with the lock of the queue's reader: all others find the queue empty."""
    send, receive = trio_offload.open_channel[str](1)
    await kill_when(context, lambda: receive.statistics().tasks_waiting_receive == 1, jobs.receive_one, receive)
    await send.send("for a task")
    assert await receive.receive() == "for a task"
    await send.send("for a job")
    assert await context.run_sync(jobs.receive_one, receive) == "for a job"


async def test_all_that_was_sent_arrives_after_a_death(context: WorkerContext) -> None:
    """There 1 of 1,001 items arrives: the rest is in a thread of the dead process."""
    send, receive = trio_offload.open_channel[int](2000)
    await expect_death(context, jobs.send_and_die, send.move(), 1001)
    got = []
    with pytest.raises(trio.BrokenResourceError, match="send_and_die"):
        async for number in receive:
            got.append(number)  # noqa: PERF401  # the loop ends with an exception
    assert got == list(range(1001))


async def test_join_after_a_consumer_has_left(context: WorkerContext) -> None:
    """There `join()` never returns."""
    queue = trio_offload.WorkQueue[str]()
    await queue.put("an item")
    with pytest.warns(RuntimeWarning, match="without settling a lease"):
        assert await context.run_sync(jobs.take_and_leave, queue) == "an item"
    queue.close()
    assert await context.run_sync(jobs.finish_all, queue) == ["an item"]
    await queue.join()


async def test_join_after_a_consumer_has_died(context: WorkerContext) -> None:
    queue = trio_offload.WorkQueue[str]()
    await queue.put("an item")
    await expect_death(context, jobs.take_and_die, queue)
    with pytest.raises(FailedItemsError, match="SIGKILL"):
        await queue.join()
    assert [failed.item for failed in queue.failed] == ["an item"]
