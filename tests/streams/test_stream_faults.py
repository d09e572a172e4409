"""Faults of streams: a worker dies, or the consumer is cancelled, at each moment. With each kind of worker."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stream_jobs as jobs
import trio
from lifeline import PATIENCE, Gate, wait_for_end
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


async def rest_of(values: AsyncIterator[Any]) -> tuple[list[Any], BaseException | None]:
    got: list[Any] = []
    try:
        async for value in values:
            got.append(value)  # noqa: PERF401  # values before an error count
    except BrokenWorkerError as error:
        return got, error
    return got, None


async def worker_of(context: WorkerContext) -> int:
    (worker,) = context.statistics().workers
    return worker.pid


async def test_killed_while_the_consumer_waits(context: WorkerContext, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    async with context.stream(jobs.waits_at, gate.path, 3) as values:
        assert [await anext(values) for _ in range(3)] == [0, 1, 2]

        async def kill() -> None:
            await wait_all_tasks_blocked(0.01)
            os.kill(await worker_of(context), signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            got, error = await rest_of(values)
    gate.close()
    assert (got, type(error)) == ([], BrokenWorkerError)


async def test_killed_while_it_waits_for_room(context: WorkerContext) -> None:
    async with context.stream(jobs.count, 1000, window=8) as values:
        assert await anext(values) == 0
        while not context.statistics().waiting:  # noqa: ASYNC110  # the job brings it about
            await trio.sleep(0.001)
        (waiting,) = context.statistics().waiting
        assert waiting.operation == "room"
        pid = await worker_of(context)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        got, error = await rest_of(values)
    # What it had sent comes first.
    assert got == [*range(1, len(got) + 1)]
    assert len(got) >= 7
    assert isinstance(error, BrokenWorkerError)


async def test_killed_with_unread_values_in_its_socket(context: WorkerContext, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    async with context.stream(jobs.waits_at, gate.path, 1, 5) as values:
        assert await anext(values) == 0
        pid = await worker_of(context)
        gate.open()
        wait_for_end(pid)  # blocks this thread, so nothing is read meanwhile
        got, error = await rest_of(values)
    gate.close()
    assert got == [0, 1, 2, 3, 4]
    assert isinstance(error, BrokenWorkerError)


async def test_killed_in_the_cleanup(context: WorkerContext) -> None:
    with pytest.raises(BrokenWorkerError) as caught:
        async with context.stream(jobs.dies_in_cleanup) as values:
            await anext(values)
    assert caught.value.signal == signal.SIGKILL


async def test_cancelled_at_any_moment(context: WorkerContext) -> None:
    begun = 0
    for number in range(60):
        with trio.move_on_after(number * 0.0002):
            async with context.stream(jobs.count, 10_000, window=4) as values:
                expected = 0
                async for value in values:
                    assert value == expected
                    expected += 1
                    begun += 1
    assert begun
    assert context.statistics().running_workers == 0
    assert context.statistics().waiting == ()
    assert await context.run_sync(jobs.number) == 3


async def test_left_at_any_value(context: WorkerContext) -> None:
    for number in range(40):
        async with context.stream(jobs.count, 10_000, window=4) as values:
            for expected in range(number):
                assert await anext(values) == expected
    assert context.statistics().counters.workers_started == 1


async def test_several_streams_by_turns(context: WorkerContext) -> None:
    limiter = trio.CapacityLimiter(4)
    got: dict[int, int] = {}

    async def consume(number: int) -> None:
        async with context.stream(jobs.count, 300 + number, window=1 + number % 5, limiter=limiter) as values:
            got[number] = len([value async for value in values])

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(consume, number)
    assert got == {number: 300 + number for number in range(12)}


async def test_two_consumers_are_refused(context: WorkerContext, tmp_path: Any) -> None:
    gate = Gate(tmp_path / "gate")
    async with context.stream(jobs.waits_at, gate.path, 0) as values, trio.open_nursery() as nursery:
        nursery.start_soon(values.__anext__)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await anext(values)
        nursery.cancel_scope.cancel()
        gate.open()
    gate.close()


async def test_a_callback_in_a_generator(context: WorkerContext) -> None:
    answers: list[int] = []

    async def answer(number: int) -> int:
        await trio.lowlevel.checkpoint()
        answers.append(number)
        return number * number

    async with context.stream(jobs.squares, callback(answer), 20) as values:
        assert [value async for value in values] == [number * number for number in range(20)]
    assert answers == [*range(20)]
