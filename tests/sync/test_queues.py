"""Work queues between tasks, and cancelled jobs."""

from __future__ import annotations

import channel_jobs as jobs
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_offload import FailedItemsError, WorkQueue, callback, open_worker_context


async def test_work_is_done_once() -> None:
    queue = WorkQueue[int](3)
    done = []

    async def work() -> None:
        async for lease in queue:
            with lease:
                await trio.lowlevel.checkpoint()
                done.append(lease.item)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(work)
        for number in range(20):
            await queue.put(number)
        queue.close()
        await queue.join()
        assert sorted(done) == list(range(20))
    assert queue.failed == ()


async def test_join_waits_for_leases() -> None:
    queue = WorkQueue[str]()
    with assert_checkpoints():
        await queue.join()
    queue.put_nowait("a")
    lease = queue.get_nowait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.join)
        await wait_all_tasks_blocked()
        statistics = queue.statistics()
        assert (statistics.leased, statistics.tasks_waiting_join, statistics.current_buffer_used) == (1, 1, 0)
        lease.done()
    for method in (lease.done, lease.give_back, lease.fail):
        with pytest.raises(RuntimeError, match="the lease is over"):
            method()


async def test_cancelled_holder_gives_back() -> None:
    """Its item is not to blame."""
    queue = WorkQueue[str]()
    await queue.put("a")
    with trio.CancelScope() as scope, await queue.get():
        scope.cancel()
        await trio.sleep_forever()
    assert queue.get_nowait().item == "a"
    assert queue.failed == ()


@pytest.mark.parametrize("runs_in", ["worker", "thread"])
async def test_cancelled_job_gives_back(runs_in: str) -> None:
    queue = WorkQueue[str]()
    await queue.put("a")
    scope = trio.CancelScope()

    async def wait() -> None:
        scope.cancel()
        await trio.sleep_forever()

    with trio.fail_after(20):
        async with open_worker_context() as context:
            run = context.run_sync if runs_in == "worker" else trio.to_thread.run_sync
            with scope:
                await run(jobs.call_with_lease, queue.handle, callback(wait))
    assert scope.cancelled_caught
    assert queue.get_nowait().item == "a"
    assert queue.failed == ()


async def test_give_back_goes_to_the_front() -> None:
    queue = WorkQueue[str]()
    for item in "abc":
        await queue.put(item)
    lease = await queue.get()
    second = await queue.get()
    second.give_back()
    lease.give_back()
    assert [queue.get_nowait().item for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_exception_in_the_block_is_a_failure(attempts: int) -> None:
    queue = WorkQueue[str](on_death="retry", attempts=attempts)
    await queue.put("poison")
    for _ in range(attempts):
        with pytest.raises(LookupError), await queue.get():
            raise LookupError("bad item")
    with pytest.raises(trio.WouldBlock):
        queue.get_nowait()
    with pytest.raises(FailedItemsError, match="an item of a work queue has failed: LookupError: bad item") as caught:
        await queue.join()
    assert [failed.item for failed in caught.value.failed] == ["poison"]
    assert [failed.reason for failed in queue.failed] == ["LookupError: bad item"]


async def test_default_is_one_attempt() -> None:
    queue = WorkQueue[str]()
    await queue.put("a")
    await queue.put("b")
    queue.get_nowait().fail("reason 1")
    queue.get_nowait().fail()
    with pytest.raises(FailedItemsError, match="reason 1, and 1 more"):
        await queue.join()


async def test_closed_queue() -> None:
    queue = WorkQueue[int](1)
    await queue.put(1)
    async with trio.open_nursery() as nursery:

        async def put() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await queue.put(2)

        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        queue.close()
    with pytest.raises(trio.ClosedResourceError):
        queue.put_nowait(3)
    lease = await queue.get()
    with pytest.raises(trio.WouldBlock):
        queue.get_nowait()  # the lease may be given back
    lease.done()
    with pytest.raises(trio.EndOfChannel):
        await queue.get()


async def test_cancelled_waits_take_nothing() -> None:
    queue = WorkQueue[int](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.get)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await queue.put(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.put, 2)
        nursery.start_soon(queue.join)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0):
        await queue.get()
    statistics = queue.statistics()
    assert (statistics.current_buffer_used, statistics.leased) == (1, 0)
    assert (statistics.tasks_waiting_put, statistics.tasks_waiting_get, statistics.tasks_waiting_join) == (0, 0, 0)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="max_buffer_size must be >= 1, got 0"):
        WorkQueue[int](0)
    with pytest.raises(ValueError, match="attempts must be 1 or more, got 0"):
        WorkQueue[int](attempts=0)
    with pytest.raises(TypeError, match="attempts must be an integer, got 1"):
        WorkQueue[int](attempts=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_death must be one of 'fail', 'retry', got 'x'"):
        WorkQueue[int](on_death="x")
