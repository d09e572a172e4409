"""End to end: async callbacks for which the job does not wait. Its call does."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import AsyncIterator

import pytest
import talking_jobs as jobs
import trio
import trio.testing
from lifeline import PATIENCE

from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback, open_worker_context


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


async def test_call_waits_for_them(context: WorkerContext) -> None:
    done: list[int] = []

    async def note(number: int) -> None:
        await trio.testing.wait_all_tasks_blocked()
        done.append(number)

    assert await context.run_sync(jobs.call_back_often, callback(note, wait=False), 20) == [None] * 20
    assert sorted(done) == list(range(20))
    assert await context.run_sync(jobs.double, 4) == 8


async def test_exception_after_the_end_of_the_job(context: WorkerContext) -> None:
    async def fail() -> None:
        await trio.testing.wait_all_tasks_blocked()
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        await context.run_sync(jobs.call_back, callback(fail, wait=False))
    assert await context.run_sync(jobs.double, 4) == 8


async def test_cancelled_while_only_they_run(context: WorkerContext) -> None:
    """The job has returned, so its value counts."""
    limiter = trio.CapacityLimiter(1)
    ended: list[str] = []
    values: list[object] = []

    async def wait(_number: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def call() -> None:
        function = callback(wait, wait=False)
        values.append(await context.run_sync(jobs.call_back_often, function, 3, limiter=limiter))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        while limiter.total_tokens == 1:  # noqa: ASYNC110 (until the token is lent, at the end of the job)
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert ended == ["cancelled"] * 3
    assert values == [[None] * 3]
    assert (limiter.total_tokens, limiter.borrowed_tokens) == (1, 0)


async def test_they_may_use_the_only_token(context: WorkerContext) -> None:
    limiter = trio.CapacityLimiter(1)
    results: list[int] = []

    async def double(number: int) -> None:
        results.append(await context.run_sync(jobs.double, number, limiter=limiter))

    await context.run_sync(jobs.call_back_often, callback(double, wait=False), 3, limiter=limiter)
    assert sorted(results) == [0, 2, 4]
    assert (limiter.total_tokens, limiter.borrowed_tokens) == (1, 0)


async def test_death_cancels_them(context: WorkerContext) -> None:
    began = trio.Event()
    ended: list[str] = []

    async def wait() -> None:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def kill(pid: int) -> None:
        await began.wait()
        os.kill(pid, signal.SIGKILL)
        await trio.sleep_forever()

    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.call_both, callback(wait, wait=False), callback(kill))
    assert ended == ["cancelled"]


@pytest.mark.parametrize("chunk_size", [1, 5])
async def test_items_of_a_map(context: WorkerContext, chunk_size: int) -> None:
    done: list[int] = []

    async def note(number: int) -> None:
        await trio.testing.wait_all_tasks_blocked()
        done.append(number)

    function = functools.partial(jobs.tell_item, callback(note, wait=False))
    async with context.map(function, range(20), chunk_size=chunk_size, workers=2) as results:
        assert [result async for result in results] == list(range(20))
    assert sorted(done) == list(range(20))
