"""Streams of async generator functions, which run under Trio in the worker, with each kind of worker."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import async_stream_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


async def until(reports: list[Any], report: Any) -> None:
    while report not in reports:
        await trio.lowlevel.checkpoint()


async def test_values_in_order(context: WorkerContext) -> None:
    for window in (1, 4, 1000):
        async with context.stream(jobs.count, 500, window=window) as values:
            assert [value async for value in values] == [*range(500)]
        assert values.result is None
    assert context.statistics().counters.workers_started == 1


async def test_values_of_all_sizes(context: WorkerContext) -> None:
    values = [1, "text", [2, {"a": 3}], b"x" * 5_000_000, None, ("y" * 10_000,), 0.5]
    async with context.stream(jobs.mixed, values) as stream:
        assert [value async for value in stream] == values


async def test_other_async_iterables(context: WorkerContext) -> None:
    async with context.stream(jobs.Letters, "abc") as letters:
        assert [letter async for letter in letters] == ["a", "b", "c"]
    async with context.stream(functools.partial(jobs.count, end=3)) as numbers:
        assert [number async for number in numbers] == [0, 1, 2]


async def test_generator_is_at_most_a_window_ahead(context: WorkerContext) -> None:
    asked: list[int] = []
    async with context.stream(jobs.ask_in_threads, callback(asked.append), 100, window=8, chunk=1) as values:
        async for _ in values:
            taken = values.statistics().taken
            await wait_all_tasks_blocked(0.002)
            assert len(asked) <= taken + 8
            if len(asked) > 30:
                break


async def test_error_comes_after_the_values(context: WorkerContext) -> None:
    got: list[int] = []
    with pytest.raises(LookupError, match="no row"):
        async with context.stream(jobs.fail_after, 30, LookupError("no row")) as values:
            async for value in values:
                got.append(value)  # noqa: PERF401  # values before an error count
    assert got == [*range(30)]


@pytest.mark.parametrize("window", [1, 100])
async def test_stream_that_is_left_closes_the_generator(context: WorkerContext, window: int) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.report_end, callback(reports.append), window=window) as values:
        assert await anext(values) == 0
    # It is told at a yield, or at a wait for room. Its cleanup may wait.
    assert reports == ["GeneratorExit", "finally"]
    assert await context.run_sync(abs, -1) == 1
    assert context.statistics().counters.workers_started == 1


async def test_generator_that_waits_is_cancelled(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.wait_for_ever, callback(reports.append, wait=False)) as values:
        assert await anext(values) == 1
        await until(reports, "waits")
    assert reports[0] == "waits"
    with trio.CancelScope() as scope:
        async with context.stream(jobs.wait_for_ever, callback(reports.append, wait=False)) as values:
            await anext(values)
            scope.cancel()
            await anext(values)
    assert scope.cancelled_caught
    assert await context.run_sync(abs, -1) == 1
    assert context.statistics().counters.workers_started == 1


async def test_error_of_the_cleanup(context: WorkerContext) -> None:
    with pytest.raises(ValueError, match="cleanup"):
        async with context.stream(jobs.fail_in_cleanup) as values:
            await anext(values)


async def test_grace_kills(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.ignore_all, callback(reports.append), grace=0.01) as values:
        await anext(values)
        await until(reports, "goes on")
    await context.run_sync(abs, -1)
    assert context.statistics().counters.workers_started == 2


async def test_tasks_of_the_generator_go_on(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.tick, callback(reports.append), window=1) as values:
        assert await anext(values) == 0
        await until(reports, 2)  # although the generator waits for room
        assert [value async for value in values] == [1, 2]


async def test_death_comes_after_the_values(context: WorkerContext) -> None:
    got: list[int] = []
    with pytest.raises(BrokenWorkerError):
        async with context.stream(jobs.die_after, 5) as values:
            async for value in values:
                got.append(value)  # noqa: PERF401  # values before an error count
    assert got == [0, 1, 2, 3, 4]
