"""The numbers of ``statistics().counters``: what each counts, that they only grow, and that threads lose none."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import attrs
import jobs
import memory_jobs
import pytest
import trio
from fakes import Plan
from kinds import type_of, use_loops
from lifeline import PATIENCE, Gate, Lifeline
from running import run_script

import trio_offload
from trio_offload import (
    BrokenWorkerError,
    WorkerContext,
    WorkerContextCounters,
    WorkerMemoryError,
    WorkerStartError,
    WorkerTimeoutError,
    open_worker_context,
    retire_when,
)
from trio_offload._pool.tracker import Counters


def counts(context: WorkerContext) -> dict[str, int]:
    """The numbers that are not zero, without times."""
    counters = attrs.asdict(context.statistics().counters)
    return {name: number for name, number in counters.items() if number and not name.startswith("seconds")}


def fail() -> None:
    raise ValueError("no")


async def test_each_outcome_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch, line: Lifeline, gate: Gate) -> None:
    if kind == "loop":
        use_loops(monkeypatch)
    async with open_worker_context(worker_type=type_of(kind)) as context:
        assert context.statistics().counters == WorkerContextCounters()
        for _ in range(3):
            await context.run_sync(bool)
        assert counts(context) == {"calls_returned": 3, "workers_started": 1}
        with pytest.raises(ValueError, match="no"):
            await context.run_sync(fail)
        assert counts(context) == {"calls_returned": 3, "calls_raised": 1, "workers_started": 1}
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(jobs.kill_self)
        expected = {"calls_returned": 3, "calls_raised": 1, "calls_died": 1, "workers_started": 1, "workers_died": 1}
        assert counts(context) == expected
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await context.run_sync(jobs.hold_for_ever, line.path, kill_on_cancel=True)

            nursery.start_soon(call)
            await line.line()
            nursery.cancel_scope.cancel()
        expected |= {"calls_cancelled": 1, "workers_started": 2, "workers_killed": 1}
        assert counts(context) == expected
        async with context.map(jobs.hold_for_ever, [line.path], timeout=0.01, return_outcomes=True) as results:
            async for outcome in results:
                with pytest.raises(WorkerTimeoutError):
                    outcome.unwrap()
        expected |= {"calls_timed_out": 1, "workers_started": 3, "workers_killed": 2}
        assert counts(context) == expected
        await context.run_sync(bool)
        os.kill(context.statistics().workers[0].pid, signal.SIGKILL)
        expected |= {"calls_returned": 4, "workers_started": 4, "workers_died": 2}
        with trio.fail_after(PATIENCE):
            while counts(context) != expected or context._cache._leaving:  # noqa: ASYNC110
                await trio.sleep(0.002)


async def test_a_job_above_the_memory_limit() -> None:
    async with open_worker_context(memory_limit="300 MB") as context:
        with pytest.raises(WorkerMemoryError):
            await context.run_sync(memory_jobs.grow_for_ever)
        assert counts(context) == {"calls_over_memory": 1, "workers_started": 1, "workers_died": 1}


async def test_starts_that_fail() -> None:
    async with open_worker_context(init=fail) as context:
        for _ in range(2):
            with pytest.raises(WorkerStartError):
                await context.run_sync(bool)
        with pytest.raises(WorkerStartError):
            await context.prewarm(1)
        assert counts(context) == {"workers_failed_to_start": 3}


async def test_workers_that_retire() -> None:
    async with open_worker_context(retire=retire_when(jobs=1)) as context:
        for _ in range(3):
            await context.run_sync(bool)
        # The successor is not ready, as far as the parent knows.
        assert counts(context) == {"calls_returned": 3, "workers_started": 3, "workers_retired": 3}
    assert counts(context) == {"calls_returned": 3, "workers_started": 3, "workers_retired": 3}


async def test_nothing_is_lost_at_the_end() -> None:
    async with open_worker_context() as context:
        await context.prewarm(2)
        await context.run_sync(bool)
    assert counts(context) == {"calls_returned": 1, "workers_started": 2, "workers_retired": 2}


async def test_items_of_a_map() -> None:
    async with open_worker_context() as context:
        async with context.map(abs, range(100)) as results:
            assert len([result async for result in results]) == 100
        assert counts(context)["calls_returned"] == 100
        async with context.map(abs, range(100), chunk_size=50) as results:
            assert len([result async for result in results]) == 100
        assert counts(context)["calls_returned"] == 102


async def test_times(line: Lifeline, gate: Gate) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_worker_context() as context:
        await context.run_sync(bool)
        before = context.statistics().counters
        assert before.seconds_waited > 0  # for the worker
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: context.run_sync(jobs.pass_gate, line.path, gate.path, limiter=limiter))
            await line.line()
            await trio.sleep(0.05)  # what is measured
            gate.open(2)
        after = context.statistics().counters
        assert after.seconds_waited - before.seconds_waited >= 0.049
        assert after.seconds_run - before.seconds_run >= 0.049


@pytest.mark.parametrize("outcome", ["closed", "cancelled", "not pickled", "timed", "new worker"])
async def test_a_wait_counts_whatever_comes_of_the_call(outcome: str) -> None:
    """A worker keeps the waits of the calls that it runs. These have none, or had none yet."""
    limiter, context = trio.CapacityLimiter(1), open_worker_context()
    async with context as pool, trio.open_nursery() as nursery:
        if outcome == "timed":
            await pool.run_sync(bool)
        await limiter.acquire_on_behalf_of("somebody")
        before = pool.statistics().counters.seconds_waited

        async def call() -> None:
            function = (lambda: None) if outcome == "not pickled" else bool
            with contextlib.suppress(pickle.PicklingError, AttributeError, trio.ClosedResourceError):
                await pool.run_sync(function, limiter=limiter, timeout=PATIENCE if outcome == "timed" else None)

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.05)  # what is measured
        if outcome == "cancelled":
            nursery.cancel_scope.cancel()
        elif outcome == "closed":
            nursery.start_soon(context.__aexit__, None, None, None)
            await trio.testing.wait_all_tasks_blocked()
        limiter.release_on_behalf_of("somebody")
    assert pool.statistics().counters.seconds_waited - before >= 0.049


@pytest.mark.parametrize("limiter", [trio.Semaphore(1), trio.Lock()], ids=["semaphore", "lock"])
async def test_the_wait_for_another_kind_of_limiter(limiter: Any, line: Lifeline, gate: Gate) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        before = context.statistics().counters.seconds_waited
        async with limiter, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(bool, limiter=limiter))
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.05)  # what is measured
            nursery.cancel_scope.shield = True
            limiter.release()
            await trio.testing.wait_all_tasks_blocked()
            await limiter.acquire()
        assert context.statistics().counters.seconds_waited - before >= 0.049


async def test_they_only_grow_while_threads_call_and_read(plan: Plan) -> None:
    async with open_worker_context() as context:
        done = threading.Event()
        seen: list[tuple[float, ...]] = []

        def read() -> None:
            while not done.is_set():
                seen.append(attrs.astuple(context.statistics().counters))

        async def call() -> None:
            for number in range(300):
                await context.run_sync(bool)
                if not number % 10:
                    # It leaves, and its numbers move on.
                    context._cache.dismiss()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, read)
            async with trio.open_nursery() as callers:
                for _ in range(3):
                    callers.start_soon(trio.to_thread.run_sync, trio.run, call)
            done.set()
        for before, after in itertools.pairwise(seen):
            assert all(old <= new for old, new in zip(before, after, strict=True))
        assert context.statistics().counters.calls_returned == 900
        assert context.statistics().counters.workers_started == len(plan.workers)


def test_many_events_are_added_up_without_a_reader() -> None:
    counters = Counters()
    for _ in range(10_000):
        counters.add(WorkerContextCounters(calls_died=1))
    assert len(counters._pending) < 1000
    assert counters.read(list).calls_died == 10_000


def test_a_reader_in_a_signal_handler_does_not_wait() -> None:
    counters = Counters()
    counters.add(WorkerContextCounters(calls_died=1))
    assert counters.read(list).calls_died == 1
    with counters._lock:
        counters.add(WorkerContextCounters(calls_died=1))
        assert counters.read(list).calls_died == 1
    assert counters.read(list).calls_died == 2


def test_a_fork_of_the_program_begins_at_zero(tmp_path: Path) -> None:
    text = """
    import os
    import trio, trio_offload

    if __name__ == "__main__":
        trio.run(trio_offload.run_sync, bool)
        child = os.fork()
        trio.run(trio_offload.run_sync, bool)
        print(trio_offload.default_context_statistics().counters.calls_returned, flush=True)
        if child:
            os.waitpid(child, 0)
    """
    assert sorted(run_script(tmp_path, text).lines()) == ["1", "2"]


async def test_equality_is_as_before(plan: Plan) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        assert context.statistics() == trio_offload.WorkerContextStatistics(1, 0)
