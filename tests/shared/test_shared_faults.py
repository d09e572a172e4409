"""Faults of shared memory: a job dies while it writes to an array and ticks a counter, with each kind of worker.

| afterwards | |
|---|---|
| the contents | as the job has left them: the counter has each addition, the array each write |
| the program and other jobs | use both as before |
| the memory | is mapped by those only that have the array; no name in /dev/shm, no mapping after the last one |
"""

from __future__ import annotations

import functools
import gc
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import shared_jobs as jobs
import trio

import trio_offload
from trio_offload import BrokenWorkerError, SharedArray, SharedCounter, WorkerContext, WorkerTimeoutError

TIMEOUT = 30.0  # seconds: a test that hangs fails
CAUSES = ("SIGKILL", "SIGSEGV", "SIGSTOP and SIGKILL", "timeout", "cancelled")


@pytest.fixture
async def context(of_any_kind: Any) -> AsyncIterator[WorkerContext]:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(TIMEOUT):
            yield context


def names() -> set[str]:
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()


def mappings() -> int:
    return sum("trio-offload-shared" in line for line in Path("/proc/self/maps").read_text().splitlines())


async def end_while_it_ticks(context: WorkerContext, cause: str, array: SharedArray, counter: SharedCounter) -> None:
    """Run a job that ticks, and end it when it has ticked for a while."""
    run = functools.partial(context.run_sync, limiter=trio.CapacityLimiter(1))
    begin = counter.value
    if cause == "timeout":
        # A worker that has to start, and to import NumPy, may take longer than that.
        while counter.value == begin:
            with pytest.raises(WorkerTimeoutError):
                await run(jobs.tick_for_ever, array, counter, timeout=0.3)
        return

    async def kill(scope: trio.CancelScope) -> None:
        while counter.value < begin + 1000:  # noqa: ASYNC110  # the job brings it about
            await trio.sleep(0.001)
        if cause == "cancelled":
            scope.cancel()
            return
        (pid,) = (worker.pid for worker in context.statistics().workers if worker.state == "running")
        for name in cause.split(" and "):
            os.kill(pid, getattr(signal, name))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(kill, scope)
            with pytest.raises(trio.Cancelled if cause == "cancelled" else BrokenWorkerError):
                await run(jobs.tick_for_ever, array, counter, kill_on_cancel=True)


@pytest.mark.parametrize("cause", CAUSES)
async def test_job_dies_while_it_writes(context: WorkerContext, cause: str) -> None:
    before, mapped = names(), mappings()
    array, counter = SharedArray.allocate(1000, "int64"), SharedCounter()
    for _ in range(2):
        await end_while_it_ticks(context, cause, array, counter)
        ticks = counter.value
        written = int(array.array[999])
        # A write follows each addition.
        assert ticks - written in (0, 1, 2)
        assert ticks > 0
        counter.add(5)
        assert await context.run_sync(jobs.add, counter, 10) == ticks + 15
        array.array[0] = 3
        assert await context.run_sync(jobs.read_item, array, 0) == 3
        array.array[999] = counter.value
    assert names() == before
    array.close()
    del counter
    gc.collect()  # the caught exceptions have frames that refer to it
    assert mappings() == mapped


async def test_many_dead_tickers(context: WorkerContext) -> None:
    """Each worker has a place in the counter, which the next one gets."""
    counter = SharedCounter()
    expected = 0
    for number in range(8):
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(jobs.add_and_die, counter, 100 + number)
        expected += 100 + number
        assert counter.value == expected
