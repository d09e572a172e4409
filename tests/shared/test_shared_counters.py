"""Contract: ``SharedCounter``, with each kind of worker: nothing that was added is lost."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import shared_jobs as jobs
import trio
from running import in_fork

import trio_offload
from trio_offload import BrokenWorkerError, SharedCounter, WorkerContext
from trio_offload._shared import counters

TIMEOUT = 30.0  # seconds: a test that hangs fails


@pytest.fixture
async def context(of_any_kind: Any) -> AsyncIterator[WorkerContext]:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(TIMEOUT):
            yield context


async def test_added_on_both_sides(context: WorkerContext) -> None:
    counter = SharedCounter(100)
    counter.add()
    assert await context.run_sync(jobs.add, counter, 10) == 111
    assert await context.run_sync(jobs.add, counter, 5, -2) == 101
    counter.add(-1)
    assert counter.value == 100
    assert repr(counter) == "<trio_offload.SharedCounter: 100>"
    assert await context.run_sync(jobs.identity, counter) is counter


async def test_jobs_threads_and_tasks_at_once(context: WorkerContext) -> None:
    counter = SharedCounter()
    threads = [threading.Thread(target=jobs.add, args=(counter, 20_000)) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(context.run_sync, jobs.add_in_threads, counter, 4, 5_000)
        for thread in threads:
            thread.start()
        for _ in range(1_000):
            counter.add()
            await trio.lowlevel.checkpoint()
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
    assert counter.value == 3 * 4 * 5_000 + 2 * 20_000 + 1_000


def test_what_cannot_be_added() -> None:
    counter = SharedCounter(5)
    for wrong in ("1", 1.5, None):
        with pytest.raises(TypeError, match="a SharedCounter adds integers, got "):
            counter.add(wrong)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="has 64 bits"):
        counter.add(2**70)
    with pytest.raises(TypeError, match="a SharedCounter adds integers, got 'x'"):
        SharedCounter("x")  # type: ignore[arg-type]
    assert counter.value == 5


async def test_in_signal_handlers(context: WorkerContext) -> None:
    counter = SharedCounter()
    handled = await context.run_sync(jobs.add_in_handler, counter, 200_000)
    assert handled > 0
    assert counter.value == 200_000 + handled


async def test_worker_that_dies_has_added(context: WorkerContext) -> None:
    counter = SharedCounter()
    for _ in range(2):
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(jobs.add_and_die, counter, 1_000)
    assert counter.value == 2_000


async def test_copy_that_a_job_forks(context: WorkerContext) -> None:
    counter = SharedCounter()
    assert await context.run_sync(jobs.add_in_fork, counter) == "RuntimeError"
    assert counter.value == 0


async def test_each_worker_keeps_its_word(context: WorkerContext) -> None:
    counter = SharedCounter()
    places = [await context.run_sync(jobs.place, counter) for _ in range(3)]
    assert places == [8, 8, 8]


async def test_word_of_a_worker_that_has_ended_is_used_again(of_any_kind: Any) -> None:
    counter = SharedCounter()
    for number in range(1, 4):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            assert await context.run_sync(jobs.place, counter) == 8
            assert await context.run_sync(jobs.add, counter, 10) == 10 * number
        del context
        gc.collect()


async def test_more_workers_than_words(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """They add by messages."""
    monkeypatch.setattr(counters, "_WORDS", 1)
    counter = SharedCounter()
    assert await context.run_sync(jobs.place, counter) is None
    assert await context.run_sync(jobs.add, counter, 10, 3) == 30
    assert await context.run_sync(jobs.add, counter, 10, -1) == 20
    assert counter.value == 20


async def test_in_a_map(context: WorkerContext) -> None:
    counter = SharedCounter()
    async with context.map(jobs.place, [counter] * 50) as results:
        assert {place async for place in results} <= {8, 16, 24, 32}


async def test_in_init(of_any_kind: Any) -> None:
    counter = SharedCounter()
    async with trio_offload.open_worker_context(worker_type=of_any_kind, init=partial(jobs.keep, counter)) as context:
        assert await context.run_sync(jobs.add_to_kept, 7) == 7
        assert await context.run_sync(jobs.add_to_kept, 7) == 14
    assert counter.value == 14


async def test_copy_in_a_fork() -> None:
    counter = SharedCounter()
    async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType.FORK) as context:
        await context.run_sync(lambda: jobs.add(counter, 5))
    assert counter.value == 5


async def test_in_a_thread_of_trio() -> None:
    counter = SharedCounter()
    assert await trio.to_thread.run_sync(jobs.add, counter, 5) == 5


def test_fork_of_the_program() -> None:
    counter = SharedCounter()
    counter.add()

    def add() -> int:
        with pytest.raises(RuntimeError, match="a fork of the process cannot add"):
            counter.add()
        return 5

    assert in_fork(add) == 5
    assert counter.value == 1
