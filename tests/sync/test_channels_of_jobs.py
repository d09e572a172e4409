"""Contract: channels and work queues between tasks and jobs, with each kind of worker."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import channel_jobs as jobs
import pytest
import trio
from kinds import type_of, use_loops
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, FailedItemsError, ReceiveChannel, WorkerContext, WorkQueue, open_channel

TIMEOUT = 20.0  # seconds: a test that hangs fails


@pytest.fixture(params=["spawn", "forkserver", "fork", "loop"])
async def context(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerContext]:
    if request.param == "loop":
        use_loops(monkeypatch)
    async with trio_offload.open_worker_context(worker_type=type_of(request.param)) as context:
        with trio.fail_after(TIMEOUT):
            yield context


async def expect_death(context: WorkerContext, function: Any, *args: Any) -> BrokenWorkerError:
    with pytest.raises(BrokenWorkerError) as caught:
        await context.run_sync(function, *args)
    return caught.value


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  # a job brings it about
        await trio.sleep(0.001)


# --- each method ---------------------------------------------------------------------------------


async def test_each_method_in_a_job(context: WorkerContext) -> None:
    send, receive = open_channel[Any](2)
    results = await context.run_sync(jobs.each_method, send.move(), receive.move())
    assert results == [
        None,
        None,
        "WouldBlock",
        "TimeoutError: the request has timed out",
        2,
        1,
        2,
        "WouldBlock",
        "TimeoutError: the request has timed out",
        2,
        "ClosedResourceError: this channel is closed",
        "ClosedResourceError: this channel is closed",
        ["a"],
        ["b", "c"],
        "EndOfChannel: all send channels are closed",
        "ValueError: max_items must be positive, got 0",
    ]
    statistics = send.statistics()
    assert (statistics.open_send_channels, statistics.open_receive_channels) == (0, 0)


async def test_each_method_of_a_queue_in_a_job(context: WorkerContext) -> None:
    queue = WorkQueue[str](2)
    results = await context.run_sync(jobs.each_method_of_queue, queue)
    timed_out = "TimeoutError: the request has timed out"
    assert results == [
        *(None, None, "WouldBlock", timed_out, "a", "b", "WouldBlock", timed_out, timed_out, 2),
        "RuntimeError: the lease is over: it was done, given back or failed before",
        "a",
        "EndOfChannel: the work queue is closed, and each item is finished",
        "ClosedResourceError: the work queue is closed",
        "FailedItemsError: an item of a work queue has failed: its holder says so",
    ]
    assert [(failed.item, failed.reason) for failed in queue.failed] == [("b", "its holder says so")]


# --- the stream ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100, math.inf])
async def test_job_to_task(context: WorkerContext, size: float) -> None:
    send, receive = open_channel[int](size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.produce, send.move(), list(range(50)))
        assert [item async for item in receive] == list(range(50))


@pytest.mark.parametrize("size", [0, 3, math.inf])
async def test_task_to_job(context: WorkerContext, size: float) -> None:
    send, receive = open_channel[int](size)
    async with trio.open_nursery() as nursery:
        received: list[int] = []

        async def consume() -> None:
            received.extend(await context.run_sync(jobs.consume, receive.move()))

        nursery.start_soon(consume)
        async with send:
            for number in range(50):
                await send.send(number)
    assert received == list(range(50))


async def test_job_to_job(context: WorkerContext) -> None:
    """The bytes pass through this program unread: their class is known to jobs only."""
    first, second = open_channel[Any](3), open_channel[Any](3)
    limiter = trio.CapacityLimiter(2)
    async with trio.open_nursery() as nursery:

        async def run(function: Any, *args: Any) -> None:
            await context.run_sync(function, *args, limiter=limiter)

        nursery.start_soon(run, jobs.pass_on, first[1].move(), second[0].move())
        nursery.start_soon(run, jobs.produce, first[0].move(), ["x" * 10, b"y" * 300_000, bytearray(300_000), 5])
        assert [item async for item in second[1]] == ["x" * 10, b"y" * 300_000, bytearray(300_000), 5]


async def test_many_items_at_once(context: WorkerContext) -> None:
    send, receive = open_channel[int](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.produce_many, send.move(), 1000)
        received: list[int] = []
        with pytest.raises(trio.EndOfChannel):
            while True:
                received += await receive.receive_many(7)
        assert received == list(range(1000))


async def test_large_items(context: WorkerContext) -> None:
    send, receive = open_channel[bytes](2, "4MiB")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.produce, send.move(), [bytes(2_000_000)] * 5)
        async for item in receive:
            assert item == bytes(2_000_000)
            assert receive.statistics().current_buffer_bytes < 4_300_000
    send, receive = open_channel[bytes](2)
    async with trio.open_nursery() as nursery:
        sizes: list[int] = []

        async def consume() -> None:
            sizes.extend(await context.run_sync(jobs.size_of_each, receive.move()))

        nursery.start_soon(consume)
        async with send:
            for size in (10, 3_000_000, 10):
                await send.send(bytes(size))
    assert sizes == [10, 3_000_000, 10]


async def test_threads_of_a_job(context: WorkerContext) -> None:
    send, receive = open_channel[Any](2)
    received = await context.run_sync(jobs.by_threads, send.move(), receive.move(), 8, 20)
    assert sorted(received) == [(number, item) for number in range(8) for item in range(20)]


async def test_errors_come_to_whom_they_belong(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    assert await context.run_sync(jobs.send_unpicklable, send) in ("TypeError", "PicklingError")
    await send.send(jobs.Unloadable())
    await send.send(1)
    assert await context.run_sync(jobs.receive_unloadable, receive) == ["LookupError: not today", 1]
    receive.close()
    assert await context.run_sync(jobs.try_send, send) == "BrokenResourceError: all receive channels are closed"


# --- life and death ------------------------------------------------------------------------------


async def test_clone_closes_with_the_call(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    assert await context.run_sync(jobs.produce, send, [1]) == 1
    with pytest.raises(LookupError):
        await context.run_sync(jobs.produce, send, [2], "raise")
    assert send.statistics().open_send_channels == 1
    assert await context.run_sync(jobs.consume_some, receive, 2) == [1, 2]
    assert receive.statistics().open_receive_channels == 1
    send.close()
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()


async def test_producer_that_died(context: WorkerContext) -> None:
    send, receive = open_channel[Any](math.inf)
    error = await expect_death(context, jobs.produce, send.move(), list(range(1001)), "die")
    assert [receive.receive_nowait() for _ in range(1001)] == list(range(1001))
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match=f"worker {error.pid}, which ran channel_jobs.produce, "):
            await receive.receive()


async def test_death_is_ignored_on_demand(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5, on_death="ignore")
    await expect_death(context, jobs.produce, send.move(), [1], "die")
    assert [item async for item in receive] == [1]


async def test_consumer_that_died(context: WorkerContext) -> None:
    """The item in its hand is told, and not received again."""
    send, receive = open_channel[Any](5)
    await send.send_many(["a", "b", "c"])
    error = await expect_death(context, jobs.consume_and_die, receive, 2)
    (in_hand,) = error.in_hand
    assert (in_hand.items(), in_hand.count, in_hand.received) == (["b"], 1, 2)
    assert receive.receive_nowait() == "c"
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_item_that_was_not_handed_goes_back(context: WorkerContext) -> None:
    """The worker is stopped, gets an item, and is killed before it reads it."""
    send, receive = open_channel[Any](5)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            error = await expect_death(context, jobs.consume, receive)
            assert error.in_hand == ()

        nursery.start_soon(run)
        await until(lambda: receive.statistics().tasks_waiting_receive)
        (worker,) = context.statistics().workers
        os.kill(worker.pid, signal.SIGSTOP)
        await send.send_many(["a", "b"])
        assert receive.statistics().current_buffer_used == 1
        os.kill(worker.pid, signal.SIGKILL)
    assert [receive.receive_nowait(), receive.receive_nowait()] == ["a", "b"]


async def test_only_receiver_has_items_ahead(context: WorkerContext) -> None:
    """Items that have come with others, and that the job has not received, go back to the channel."""
    send, receive = open_channel[int](20)
    await send.send_many(range(20))
    first, receive = receive, receive.clone()
    first.close()
    assert await context.run_sync(jobs.receive_in_many_ways, receive.move()) == [0, 1, [2, 3], [*range(4, 13)]]
    with pytest.raises(trio.BrokenResourceError):
        send.send_nowait(0)


@pytest.mark.parametrize("way", ["ends", "closes", "dies"])
async def test_items_ahead_go_back(context: WorkerContext, way: str) -> None:
    send, receive = open_channel[int](20)
    gate_send, gate = open_channel[Any](1)
    await send.send_many(range(20))
    state = receive._state
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            if way == "dies":
                error = await expect_death(context, jobs.receive_three, receive.move(), gate, way)
                assert [(in_hand.items(), in_hand.received) for in_hand in error.in_hand] == [([2], 3), (["go"], 1)]
                return
            items = await context.run_sync(jobs.receive_three, receive.move(), gate, way)
            assert items == [0, 1, 2, *(["ClosedResourceError: this channel is closed"] if way == "closes" else [])]

        nursery.start_soon(run)
        await until(lambda: gate.statistics().tasks_waiting_receive)
        assert send.statistics().current_buffer_used == 0
        # A second receiver from now on, so that the items do not end with the first.
        other = ReceiveChannel[int](state, state.add_receiver())
        await gate_send.send("go")
    assert await other.receive_many(99) == [*range(3, 20)]


async def test_item_that_kills_is_not_received_again(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    await send.send(jobs.Deadly())
    await send.send("next")
    error = await expect_death(context, jobs.consume, receive)
    assert [in_hand.count for in_hand in error.in_hand] == [1]
    assert receive.receive_nowait() == "next"


async def test_thread_that_outlives_its_job(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    await context.run_sync(jobs.leave_thread_waiting, receive)
    assert receive.statistics().tasks_waiting_receive == 0
    await send.send(1)
    assert receive.receive_nowait() == 1


async def test_cancelled_job_takes_nothing(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    words_send, words = open_channel[str](1)
    with trio.move_on_after(TIMEOUT) as scope:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                result = await context.run_sync(jobs.receive_until_cancelled, receive, words_send)
                assert result.startswith("Cancelled: the call of this job is cancelled Cancelled")

            nursery.start_soon(run)
            await until(lambda: receive.statistics().tasks_waiting_receive)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert words.receive_nowait() == "last words"
    await send.send(1)
    assert receive.receive_nowait() == 1


async def test_cancellation_reaches_a_job_that_never_pauses(context: WorkerContext) -> None:
    """Its messages come so fast that its caller need not wait for the next one."""
    send, receive = open_channel[int](1000)
    received = 0
    scope = trio.CancelScope()

    async def produce() -> None:
        with scope:
            await context.run_sync(jobs.produce_forever, send.move())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for number in receive:
            assert number == received
            received += 1
            if received == 5000:
                scope.cancel()
    assert scope.cancelled_caught
    assert received >= 5000


async def test_items_of_many_kinds_in_order(context: WorkerContext) -> None:
    """Runs of small items, between items with handles, buffers and other lengths."""
    send, receive = open_channel[Any](500)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.produce_kinds, send.move(), 2000)
        number = 0
        async for item in receive:
            if number % 140 == 139:
                assert type(item) is trio_offload.SendChannel
                item.close()
            else:
                assert item == jobs.item_of_kind(number)
            number += 1
    assert number == 2000


async def test_killed_consumer_takes_nothing(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await context.run_sync(jobs.consume, receive, kill_on_cancel=True)

        nursery.start_soon(run)
        await until(lambda: receive.statistics().tasks_waiting_receive)
        nursery.cancel_scope.cancel()
    assert receive.statistics().open_receive_channels == 1
    assert receive.statistics().tasks_waiting_receive == 0
    await send.send(1)
    assert receive.receive_nowait() == 1


async def test_signal_handler_that_raises_loses_nothing(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    words_send, words = open_channel[str](5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.receive_with_alarm, receive, words_send.move())
        assert await words.receive() == "AlarmError"
        await send.send("item")
        assert await words.receive() == "item"


# --- ends as values ------------------------------------------------------------------------------


async def test_end_that_a_job_returns_stays_open(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    back = await context.run_sync(jobs.return_it, send.move())
    assert send.statistics().open_send_channels == 1
    await back.send(1)
    back.close()
    assert [item async for item in receive] == [1]


async def test_end_through_a_channel(context: WorkerContext) -> None:
    """From a task to a job, from a job to a task, and from job to job."""
    outer_send, outer_receive = open_channel[Any](5)
    for first, second in (("task", "job"), ("job", "task"), ("job", "job")):
        send, receive = open_channel[str](5)
        if first == "task":
            await outer_send.send({"end": send})
        else:
            await context.run_sync(jobs.send_it, outer_send, send)
        send.close()
        assert receive.statistics().open_send_channels == 1
        if second == "job":
            await context.run_sync(jobs.use_end_from, outer_receive)
        else:
            with (await outer_receive.receive())["end"] as end:
                await end.send("from the other job")
        assert [item async for item in receive] == ["from the other job"]


async def test_moved_end_of_a_call_that_never_begins(context: WorkerContext) -> None:
    send, receive = open_channel[Any](5)
    with pytest.raises(Exception, match="pickle"):
        await context.run_sync(jobs.produce, send.move(), [trio.lowlevel.current_task()])
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()
    with pytest.raises(trio.ClosedResourceError):
        await context.run_sync(jobs.produce, send, [1])


# --- work queues ---------------------------------------------------------------------------------


async def test_work_of_several_jobs(context: WorkerContext) -> None:
    queue = WorkQueue[int](5)
    done: list[int] = []
    limiter = trio.CapacityLimiter(3)

    async def run() -> None:
        done.extend(await context.run_sync(jobs.work, queue, limiter=limiter))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run)
        for number in range(100):
            await queue.put(number)
        queue.close()
        await queue.join()
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize(("on_death", "deaths"), [("fail", 1), ("retry", 2)])
async def test_holder_that_dies(context: WorkerContext, on_death: str, deaths: int) -> None:
    queue = WorkQueue[str](on_death=on_death, attempts=2)
    for item in ("a", "poison", "b"):
        await queue.put(item)
    queue.close()
    for _ in range(deaths):
        error = await expect_death(context, jobs.work_and_die, queue, "poison")
    assert await context.run_sync(jobs.work_and_die, queue, "poison") == ["b"]
    with pytest.raises(FailedItemsError, match=r"which ran channel_jobs\.work_and_die, ") as caught:
        await queue.join()
    assert [failed.item for failed in caught.value.failed] == ["poison"]
    assert str(error.pid) in caught.value.failed[0].reason


async def test_lease_of_a_job_that_ends(context: WorkerContext) -> None:
    queue = WorkQueue[str]()
    await queue.put("a")
    with pytest.warns(RuntimeWarning, match="without settling a lease"):
        assert await context.run_sync(jobs.forget_lease, queue) == "a"
    assert queue.get_nowait().item == "a"


async def test_lease_that_was_not_handed(context: WorkerContext) -> None:
    queue = WorkQueue[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_death, context, jobs.work, queue)
        await until(lambda: queue.statistics().tasks_waiting_get)
        (worker,) = context.statistics().workers
        os.kill(worker.pid, signal.SIGSTOP)
        await queue.put("a")
        assert queue.statistics().leased == 1
        os.kill(worker.pid, signal.SIGKILL)
    assert queue.failed == ()
    assert queue.get_nowait().item == "a"
    await wait_all_tasks_blocked()
