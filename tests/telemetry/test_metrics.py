"""End to end: the metrics, beside what ``statistics()`` says at the same moment."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

import jobs
import pytest
import telemetry_jobs
import trio
import trio.testing
from kinds import type_of
from lifeline import Gate, Lifeline
from telemetry_support import Metrics, Spans

import trio_offload
from trio_offload import WorkerContext, open_worker_context, telemetry

TABLE = {
    "trio_offload.call.active {call}",
    "trio_offload.call.count {call}",
    "trio_offload.call.duration s",
    "trio_offload.call.wait_time s",
    "trio_offload.call.waiting {call}",
    "trio_offload.job.duration s",
    "trio_offload.job.waiting {job}",
    "trio_offload.worker.busy_time s",
    "trio_offload.worker.count {worker}",
    "trio_offload.worker.ended {worker}",
    "trio_offload.worker.failed_starts {worker}",
    "trio_offload.worker.memory By",
    "trio_offload.worker.started {worker}",
}


async def test_metrics_are_the_statistics(kind: str, line: Lifeline, gate: Gate, metrics: Metrics) -> None:
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, jobs.pass_gate, line.path, gate.path)
            busy = await line.pid()
            try:
                await pool.run_sync(abs, 1)
                with pytest.raises(ZeroDivisionError):
                    await pool.run_sync(telemetry_jobs.invert, 0)
                points, statistics = metrics.points(), pool.statistics()
                assert set(points) == TABLE
                value = partial(metrics.value, trio_offload__worker__type=type_of(kind).value)
                assert value("trio_offload.worker.count {worker}", trio_offload__worker__state="idle") == 1
                assert value("trio_offload.worker.count {worker}", trio_offload__worker__state="running") == 1
                assert value("trio_offload.call.active {call}") == statistics.running_workers == 1
                assert value("trio_offload.call.count {call}", trio_offload__outcome="returned") == 1
                assert value("trio_offload.call.count {call}", trio_offload__outcome="raised") == 1
                assert value("trio_offload.worker.started {worker}") == 2
                memory = {point.attributes["process.pid"]: point.value for point in points["trio_offload.worker.memory By"]}
                assert memory == {worker.pid: worker.rss for worker in statistics.workers}
                assert busy in memory
            finally:
                # Or a failure would wait for the job.
                gate.open()
        assert value("trio_offload.call.active {call}") == 0


async def test_counters_outlive_their_contexts(metrics: Metrics) -> None:
    total = 0.0
    for number in (1, 2):
        async with open_worker_context() as pool:
            await pool.run_sync(abs, 1)
            with pytest.raises(trio_offload.WorkerTimeoutError):
                await pool.run_sync(jobs.endless, timeout=0.01)
        assert metrics.value("trio_offload.call.count {call}", trio_offload__outcome="returned") == number
        assert metrics.value("trio_offload.call.count {call}", trio_offload__outcome="timed_out") == number
        assert metrics.value("trio_offload.worker.ended {worker}", trio_offload__worker__end="killed") == number
        busy = metrics.value("trio_offload.worker.busy_time s")
        assert busy > total
        total = busy
    # No context is left.
    assert not metrics.points().get("trio_offload.worker.memory By")


async def test_types_of_workers_are_counted_apart(metrics: Metrics) -> None:
    async with open_worker_context() as pool, open_worker_context(worker_type="fork") as forks:
        await pool.run_sync(abs, 1)
        for _ in range(2):
            await forks.run_sync(abs, 1)
        returned = partial(metrics.value, "trio_offload.call.count {call}", trio_offload__outcome="returned")
        assert returned(trio_offload__worker__type="spawn") == 1
        assert returned(trio_offload__worker__type="fork") == 2


async def test_contexts_of_one_type_are_added_up(metrics: Metrics) -> None:
    async with open_worker_context() as one, open_worker_context() as two:
        await one.run_sync(abs, 1)
        await two.run_sync(abs, 1)
        assert metrics.value("trio_offload.worker.count {worker}", trio_offload__worker__state="idle") == 2


async def test_a_start_that_fails_is_counted(metrics: Metrics) -> None:
    async with open_worker_context(init=telemetry_jobs.refuse) as pool:
        with pytest.raises(trio_offload.WorkerStartError):
            await pool.run_sync(abs, 1)
    assert metrics.value("trio_offload.worker.failed_starts {worker}") == 1


async def test_a_job_that_waits_for_the_program_is_counted(metrics: Metrics) -> None:
    counted: list[int] = []

    async def count() -> None:
        counted.append(metrics.value("trio_offload.job.waiting {job}"))

    async with open_worker_context() as pool:
        await pool.run_sync(telemetry_jobs.ask, trio_offload.callback(count))
        assert metrics.value("trio_offload.job.waiting {job}") == 0
    assert counted == [1]


async def test_calls_that_wait_are_counted(line: Lifeline, gate: Gate, metrics: Metrics) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_worker_context() as pool, trio.open_nursery() as nursery:
        nursery.start_soon(partial(pool.run_sync, jobs.pass_gate, line.path, gate.path, limiter=limiter))
        await line.pid()
        assert metrics.value("trio_offload.call.waiting {call}") == 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                for _ in range(2):
                    waiting.start_soon(partial(pool.run_sync, abs, 1, limiter=limiter))
                await trio.testing.wait_all_tasks_blocked()
                assert metrics.value("trio_offload.call.waiting {call}") == 2
                scope.cancel()
        assert metrics.value("trio_offload.call.waiting {call}") == 0
        gate.open()


async def test_durations_are_those_of_the_spans(exporters: tuple[Spans, Metrics]) -> None:
    spans, metrics = exporters
    async with open_worker_context() as pool:
        for number in (1, 0):
            with trio.CancelScope():
                try:
                    await pool.run_sync(telemetry_jobs.invert, number)
                except ZeroDivisionError:
                    pass
    points = metrics.points()
    runs = spans.named("run telemetry_jobs.invert")
    (jobs_of_function,) = points["trio_offload.job.duration s"]
    assert jobs_of_function.count == 2
    assert jobs_of_function.sum == pytest.approx(sum(run.end_time - run.start_time for run in runs) / 1e9)
    outcomes = {point.attributes["trio_offload.outcome"]: point for point in points["trio_offload.call.duration s"]}
    assert outcomes.keys() == {"returned", "raised"}
    assert outcomes["raised"].attributes["error.type"] == "ZeroDivisionError"
    for point, call in zip(outcomes.values(), spans.named("call telemetry_jobs.invert"), strict=True):
        assert point.count == 1
        assert point.sum == pytest.approx((call.end_time - call.start_time) / 1e9, abs=0.05)


@pytest.mark.leaves_default_workers
async def test_the_default_context_is_counted(metrics: Metrics) -> None:
    before = trio_offload.default_context_statistics().counters.calls_returned
    await trio_offload.run_sync(abs, 1)
    assert metrics.value("trio_offload.call.count {call}", trio_offload__outcome="returned") == before + 1


async def test_another_thread_may_read(metrics: Metrics) -> None:
    failures: list[BaseException] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                metrics.points()
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(5):
            async with open_worker_context(retire=trio_offload.retire_when(jobs=2)) as pool:
                async with pool.map(abs, range(20), workers=2) as results:
                    assert [result async for result in results] == list(range(20))
    finally:
        is_over.set()
        await trio.to_thread.run_sync(thread.join)
    assert failures == []


async def test_switched_off_the_instruments_yield_nothing(metrics: Metrics) -> None:
    async with open_worker_context() as pool:
        await pool.run_sync(abs, 1)
        telemetry.uninstrument()
        await pool.run_sync(os.getpid)
        points = metrics.points()
    assert {name for name, values in points.items() if values} == {
        "trio_offload.call.duration s",
        "trio_offload.call.waiting {call}",
        "trio_offload.job.duration s",
    }
    (point,) = points["trio_offload.call.duration s"]
    assert point.count == 1


def test_without_a_reader_a_closed_context_is_not_kept(metrics: Metrics) -> None:
    import gc
    import weakref

    pools: list[weakref.ref[Any]] = []

    async def main() -> None:
        context: WorkerContext
        async with open_worker_context() as context:
            await context.run_sync(abs, 1)
            pools.append(weakref.ref(context._pool))

    trio.run(main)
    gc.collect()
    assert pools[0]() is None
