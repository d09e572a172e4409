"""Contract: streams of generator functions, with each kind of worker."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stream_jobs as jobs
import trio
from lifeline import PATIENCE

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  # a job brings it about
        await trio.sleep(0.001)


async def collect(values: AsyncIterator[Any], got: list[Any]) -> None:
    async for value in values:
        got.append(value)  # noqa: PERF401  # values before an error count


# --- values, results, errors ---------------------------------------------------------------------


async def test_values_come_in_order_and_then_the_result(context: WorkerContext) -> None:
    async with context.stream(jobs.count, 1000) as values:
        assert [value async for value in values] == [*range(1000)]
        assert values.result == "done"
    assert values.result == "done"


async def test_a_window_of_one(context: WorkerContext) -> None:
    async with context.stream(jobs.count, 20, "all", window=1) as values:
        assert [value async for value in values] == [*range(20)]
    assert values.result == "all"


async def test_an_empty_stream(context: WorkerContext) -> None:
    async with context.stream(jobs.count, 0) as values:
        assert [value async for value in values] == []
        with pytest.raises(StopAsyncIteration):
            await anext(values)


async def test_any_iterable_can_be_streamed(context: WorkerContext) -> None:
    async with context.stream(jobs.letters, "abc") as values:
        assert [value async for value in values] == ["a", "b", "c"]
    assert values.result is None


async def test_a_partial_and_a_builtin(context: WorkerContext) -> None:
    async with context.stream(functools.partial(jobs.count, result="partial"), 2) as values:
        assert [value async for value in values] == [0, 1]
    assert values.result == "partial"
    async with context.stream(range, 3) as numbers:
        assert [value async for value in numbers] == [0, 1, 2]


async def test_an_error_comes_after_the_values_before_it(context: WorkerContext) -> None:
    got: list[Any] = []
    with pytest.raises(LookupError, match="that is all") as caught:
        async with context.stream(jobs.fail_after, 5, LookupError("that is all")) as values:
            await collect(values, got)
    assert got == [0, 1, 2, 3, 4]
    frames = [entry.name for entry in caught.traceback]
    assert frames[-1] == "fail_after"
    with pytest.raises(RuntimeError, match="has not returned"):
        values.result  # noqa: B018  # it raises


async def test_a_stream_that_has_failed_is_at_its_end(context: WorkerContext) -> None:
    async with context.stream(jobs.fail_after, 0, LookupError("that is all")) as values:
        with pytest.raises(LookupError):
            await anext(values)
        with pytest.raises(StopAsyncIteration):
            await anext(values)


async def test_a_death_comes_after_the_values_before_it(context: WorkerContext) -> None:
    got: list[Any] = []
    with pytest.raises(BrokenWorkerError) as caught:
        async with context.stream(jobs.pid_then_die) as values:
            await collect(values, got)
    assert got == [caught.value.pid]
    assert "stream_jobs.pid_then_die" in str(caught.value)


async def test_a_value_that_cannot_be_pickled_is_an_error(context: WorkerContext) -> None:
    got: list[Any] = []
    with pytest.raises(TypeError, match="pickle"):
        async with context.stream(jobs.unpicklable) as values:
            await collect(values, got)
    assert got == [1]


async def test_a_function_without_values_is_an_error(context: WorkerContext) -> None:
    with pytest.raises(TypeError, match=r"must be a generator function.*returned 3"):
        async with context.stream(jobs.number) as values:
            await anext(values)


async def test_values_are_pickled_when_they_are_yielded(context: WorkerContext) -> None:
    async with context.stream(jobs.same_list) as values:
        for length in range(1, 40):
            assert await anext(values) == [*range(length)]


async def test_large_and_small_values(context: WorkerContext) -> None:
    sizes = [1, 100, 5000, 3, 2_000_000, 7, 70_000, 0]
    async with context.stream(jobs.large, sizes) as values:
        assert [len(value) async for value in values] == sizes


# --- the window ----------------------------------------------------------------------------------


async def test_the_generator_is_never_further_ahead_than_the_window(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.watched, callback(reports.append), window=4) as values:
        await until(lambda: len(reports) == 4)
        for value in range(1, 101):
            assert await anext(values) == value
            # It goes on when the values that came together with this one are taken.
            assert reports[-1] <= value + 4
        await until(lambda: reports[-1] > 100)
        assert values.statistics().window == 4
        assert values.statistics().taken >= 96


# --- leaving early -------------------------------------------------------------------------------


async def test_leaving_early_closes_the_generator(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.watched, callback(reports.append)) as values:
        async for _ in values:
            break
    assert reports[-2:] == ["GeneratorExit", "finally"]
    assert context.statistics().idle_workers == 1
    with pytest.raises(trio.ClosedResourceError):
        await anext(values)


async def test_waits_in_the_cleanup_are_protected(context: WorkerContext) -> None:
    answers = []

    async def answer(text: str) -> None:
        await trio.lowlevel.checkpoint()
        answers.append(text)

    async with context.stream(jobs.awaits_in_cleanup, callback(answer)) as values:
        await anext(values)
    assert answers == ["finally"]


async def test_an_error_of_the_cleanup_is_raised_by_the_block(context: WorkerContext) -> None:
    with pytest.raises(ValueError, match="cleanup"):
        async with context.stream(jobs.fails_in_cleanup) as values:
            await anext(values)


async def test_a_generator_that_does_not_yield_is_told(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.never_yields_again, callback(reports.append)) as values:
        await anext(values)
    assert reports == ["Cancelled"]
    assert context.statistics().idle_workers == 1


async def test_a_generator_that_ignores_it_is_killed_after_the_grace(context: WorkerContext) -> None:
    reports: list[Any] = []
    async with context.stream(jobs.ignores_all, callback(reports.append), grace=0.05) as values:
        pid = await anext(values)
        await until(lambda: reports)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_exception_in_the_block_closes_the_generator(context: WorkerContext) -> None:
    reports: list[Any] = []
    with pytest.raises(KeyError, match="mine"):
        async with context.stream(jobs.watched, callback(reports.append)) as values:
            await anext(values)
            raise KeyError("mine")
    assert reports[-2:] == ["GeneratorExit", "finally"]


async def test_a_cancelled_block_closes_the_generator(context: WorkerContext) -> None:
    reports: list[Any] = []
    with trio.CancelScope() as scope:
        async with context.stream(jobs.watched, callback(reports.append)) as values:
            async for _ in values:
                scope.cancel()
    assert scope.cancelled_caught
    # The callbacks' task is cancelled with the block, so they may not be heard.
    assert context.statistics().idle_workers == 1


async def test_a_cancelled_wait_loses_nothing(context: WorkerContext) -> None:
    async with context.stream(jobs.count, 100) as values:
        got = []
        while len(got) < 100:
            with trio.move_on_after(0.0005):
                got.append(await anext(values))
        assert got == [*range(100)]


async def test_a_stream_that_is_never_iterated(context: WorkerContext) -> None:
    async with context.stream(jobs.count, 100) as values:
        pass
    with pytest.raises(RuntimeError, match="has not returned"):
        values.result  # noqa: B018  # it raises


# --- the token, the workers ----------------------------------------------------------------------


async def test_streams_lend_their_tokens(context: WorkerContext) -> None:
    limiter = trio.CapacityLimiter(1)
    async with (
        context.stream(jobs.count, 1000, limiter=limiter, window=2) as first,
        context.stream(jobs.count, 1000, limiter=limiter, window=2) as second,
    ):
        async for value in first:
            assert value == await anext(second)
            assert await context.run_sync(jobs.number, limiter=limiter) == 3


async def test_handles_can_be_values(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[Any](10)
    async with context.stream(jobs.channels, send.move()) as values:
        got = [value async for value in values]
    assert got[1::2] == [0, 1, 2]
    for channel in got[::2]:
        await channel.send("sent")
        channel.close()
    assert [value async for value in receive] == ["sent"] * 3


# --- wrong uses ----------------------------------------------------------------------------------


async def test_wrong_arguments_are_refused() -> None:
    async def asynchronous() -> list[int]:
        return [1]

    with pytest.raises(TypeError, match="is asynchronous"):
        trio_offload.stream(asynchronous)  # type: ignore[call-overload]
    with pytest.raises(
        TypeError, match=r"got <generator .* write stream\(fn, argument\) instead of stream\(fn\(argument\)\)"
    ):
        trio_offload.stream(jobs.count(3))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="window must be 1 or more, got 0"):
        trio_offload.stream(jobs.count, 3, window=0)
    with pytest.raises(ValueError, match="grace must be 0 seconds or more"):
        trio_offload.stream(jobs.count, 3, grace=-1)


async def test_a_stream_needs_a_block() -> None:
    values = trio_offload.stream(jobs.count, 3)
    with pytest.raises(TypeError, match="inside a block"):
        async for _ in values:
            pass


async def test_a_stream_is_entered_once(context: WorkerContext) -> None:
    values = context.stream(jobs.count, 3)
    async with values:
        with pytest.raises(RuntimeError, match="entered once"):
            await values.__aenter__()


async def test_a_closed_context_is_an_error() -> None:
    async with trio_offload.open_worker_context() as context:
        pass
    with pytest.raises(trio.ClosedResourceError):
        async with context.stream(jobs.count, 3) as values:
            await anext(values)


async def test_an_argument_that_cannot_be_pickled_is_an_error(context: WorkerContext) -> None:
    with pytest.raises(TypeError, match="pickle"):
        async with context.stream(jobs.letters, threading.Lock()) as values:  # type: ignore[arg-type]
            await anext(values)


def test_the_function_has_the_options_of_the_method() -> None:
    method = inspect.signature(WorkerContext.stream).parameters
    assert list(inspect.signature(trio_offload.stream).parameters.values()) == list(method.values())[1:]


async def test_the_default_context_streams() -> None:
    async with trio_offload.cache_scope(), trio_offload.stream(jobs.count, 3) as values:
        assert [value async for value in values] == [0, 1, 2]
