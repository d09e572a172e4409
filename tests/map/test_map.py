"""Collaboration, with workers that are fakes, and end to end: ``map``.

In the first part a job is finished when the test opens the gate of its item, so the order of events is the test's.
"""

from __future__ import annotations

import functools
import itertools
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jobs
import map_jobs
import pytest
import trio
from bad_jobs import BaseBoom, Boom
from fakes import FakeWorker, Plan, pass_gate
from kinds import use_loops
from lifeline import PATIENCE, Lifeline
from outcome import Error, Value
from trio.testing import MockClock, wait_all_tasks_blocked
from workers import start_worker

import trio_offload
from trio_offload import (
    BrokenWorkerError,
    JobExitError,
    RemoteError,
    WorkerContext,
    WorkerMemoryError,
    WorkerStartError,
    WorkerTimeoutError,
    WorkerType,
    _clock,
    _context,
    open_worker_context,
)
from trio_offload._map import chunks as _chunks
from trio_offload._map import lane as _lane
from trio_offload._map.pace import MAX_BYTES, MAX_ITEMS, AdaptiveBatching
from trio_offload._map.results import ResultQueue, Results
from trio_offload._map.source import Chunk
from trio_offload._options import ContextOptions, MapSettings
from trio_offload._process.process import WorkerProcess
from trio_offload._worker.call_sender import MAX_IN_FLIGHT
from trio_offload_worker._jobs.retire import RetireWhen


class Counted:
    """Counts the items that are read from it."""

    def __init__(self, items: Any) -> None:
        self._items = iter(items)
        self.read = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self.read += 1
        return item


async def one_by_one(items: Any) -> AsyncIterator[Any]:
    for item in items:
        await trio.lowlevel.checkpoint()
        yield item


async def collect(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


async def collect_into(found: list[Any], results: AsyncIterator[Any]) -> None:
    """As far as it comes."""
    async for result in results:
        found += [result]


def notes_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def items_run(plan: Plan) -> list[Any]:
    """The items of the single calls, in the order in which they began."""
    return [item for _, item in plan.begun]


@pytest.mark.parametrize("source", [iter, one_by_one], ids=["iterable", "async iterable"])
@pytest.mark.parametrize("chunk_size", [1, 3, "auto"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "as completed"])
async def test_every_item_has_its_result(plan: Plan, source: Any, chunk_size: Any, ordered: bool) -> None:
    async with trio_offload.map(
        map_jobs.double, source(range(100)), chunk_size=chunk_size, ordered=ordered, workers=3
    ) as results:
        found = await collect(results)
        assert await collect(results) == []
    assert (found if ordered else sorted(found)) == list(range(0, 200, 2))
    assert 1 <= len(plan.workers) <= 3


@pytest.mark.parametrize("items", [[], ()])
async def test_no_items_need_no_worker(plan: Plan, items: Any) -> None:
    async with trio_offload.map(map_jobs.double, items) as results:
        assert await collect(results) == []
    async with trio_offload.map(map_jobs.double, one_by_one(items)) as results:
        assert await collect(results) == []
    assert not plan.workers


async def test_results_come_in_the_order_of_the_items(plan: Plan) -> None:
    found = []
    async with trio_offload.map(pass_gate, range(3), workers=3) as results:
        async with trio.open_nursery() as nursery:

            async def consume() -> None:
                await collect_into(found, results)

            nursery.start_soon(consume)
            await wait_all_tasks_blocked()
            for item, expected in ((2, []), (1, []), (0, [0, 1, 2])):
                plan.gate(item).set()
                await wait_all_tasks_blocked()
                assert found == expected


async def test_as_completed_each_result_comes_at_once(plan: Plan) -> None:
    async with trio_offload.map(pass_gate, range(3), workers=3, ordered=False) as results:
        for item in (2, 0, 1):
            plan.gate(item).set()
            assert await results.__anext__() == item
        with pytest.raises(StopAsyncIteration):
            await results.__anext__()


# --- how far it reads ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["iterable", "async iterable"])
@pytest.mark.parametrize(("chunk_size", "window"), [(1, 5), (2, 5), (1, 1), (10, 3), (1, None)])
async def test_a_slow_consumer_stops_the_workers(plan: Plan, is_async: bool, chunk_size: int, window: int | None) -> None:
    source = Counted(itertools.count())
    items = one_by_one(source) if is_async else source
    async with trio_offload.map(map_jobs.double, items, chunk_size=chunk_size, window=window, workers=2) as results:
        # For each of the two workers at most twice what may be in flight to it.
        bound = window or 2 * MAX_IN_FLIGHT * 2 * chunk_size
        await wait_all_tasks_blocked()
        assert 0 < source.read <= bound
        assert trio_offload.default_context_statistics().running_workers == 0, "nothing is held while there is no room"
        before = source.read
        for number in range(3 * bound):
            assert await results.__anext__() == 2 * number
            await wait_all_tasks_blocked()
            assert source.read <= number + 1 + bound
        assert source.read > before


async def test_one_slow_item_holds_no_more_than_the_window(plan: Plan) -> None:
    source = Counted(itertools.count())
    for item in range(1, 50):
        plan.gate(item).set()
    async with trio_offload.map(pass_gate, source, window=6, workers=2) as results:
        await wait_all_tasks_blocked()
        assert source.read == 6
        plan.gate(0).set()
        assert [await results.__anext__() for _ in range(6)] == list(range(6))


async def test_a_consumer_may_use_the_same_limiter(plan: Plan) -> None:
    """A map that waits for its consumer must not hold what the consumer waits for."""
    limiter = trio.CapacityLimiter(1)
    with trio.fail_after(PATIENCE):
        async with trio_offload.map(map_jobs.double, range(100), limiter=limiter) as results:
            async for result in results:
                assert await trio_offload.run_sync(map_jobs.double, result, limiter=limiter) == 2 * result
    assert limiter.borrowed_tokens == 0


async def test_an_endless_map_lets_others_have_their_turn(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lane, "_LANE_TIME_SLICE", 0.0)
    limiter = trio.CapacityLimiter(1)
    done = trio.Event()

    async def call() -> None:
        assert await trio_offload.run_sync(map_jobs.double, 4, limiter=limiter) == 8
        done.set()

    with trio.fail_after(PATIENCE):
        async with (
            trio.open_nursery() as nursery,
            trio_offload.map(map_jobs.double, itertools.count(), limiter=limiter) as results,
        ):
            nursery.start_soon(call)
            async for _ in results:
                if done.is_set():
                    break


async def test_a_token_that_nobody_waits_for_is_kept(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a lane lets go of it, its worker runs dry."""
    monkeypatch.setattr(_lane, "_LANE_TIME_SLICE", 1e-6)
    turns = []
    serve = _lane.Lane.serve

    async def counted(self: _lane.Lane, chunk: Any) -> None:
        turns.append(chunk)
        await serve(self, chunk)

    monkeypatch.setattr(_lane.Lane, "serve", counted)
    async with trio_offload.map(map_jobs.double, range(100), limiter=trio.CapacityLimiter(1), window=200) as results:
        assert await collect(results) == [2 * item for item in range(100)]
    assert len(turns) == 1


async def test_of_many_results_others_have_their_turns_in_between(plan: Plan) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with (
        trio.open_nursery() as nursery,
        trio_offload.map(map_jobs.double, range(50_000), workers=1, chunk_size=50_000) as results,
    ):
        assert await results.__anext__() == 0
        nursery.start_soon(count_turns)
        before, found = turns, 1
        async for _ in results:
            found += 1
        assert found == 50_000
        # All were there; the task has no turn before its first.
        assert turns - before >= 50_000 // 2048 - 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fails_at", [None, 0, 3000, 4999])
@pytest.mark.parametrize("outcomes", [False, True])
async def test_items_leave_the_window_as_their_results_are_handed_out(fails_at: int | None, outcomes: bool) -> None:
    class Work:
        is_over = True

        def __init__(self) -> None:
            self.left: list[int] = []

        def problem(self) -> None: ...
        def stop(self) -> None: ...
        def stop_after(self, start: int) -> None: ...
        def note(self, error: BaseException, chunk: Chunk, indexes: list[int]) -> None: ...

        def consumed(self, count: int) -> None:
            self.left.append(count)

    work = Work()
    queue: ResultQueue[Any] = ResultQueue(work, MapSettings(return_outcomes=outcomes))
    results = Results(queue)
    failures: dict[int, BaseException] = {} if fails_at is None else {fails_at: ValueError("its own")}
    queue.deposit(Chunk(0, list(range(5000))), list(range(5000)), failures)
    found = []
    try:
        async for value in results:
            assert sum(work.left) <= len(found), "only what has been handed out has left"
            found.append(value)
    except ValueError:
        assert fails_at is not None
        assert not outcomes
    assert len(found) == (5000 if outcomes or fails_at is None else fails_at)
    assert sum(work.left) == 5000
    # In parts, unless there was nothing to hand out.
    assert max(work.left) < 5000 or not found


@pytest.mark.parametrize("make", [trio.CapacityLimiter, trio_offload.CapacityLimiter])
@pytest.mark.parametrize("tokens", [1, 2, 3])
async def test_each_worker_in_use_holds_a_token(plan: Plan, tokens: int, make: Any) -> None:
    limiter = make(tokens)
    async with trio_offload.map(pass_gate, range(10), limiter=limiter) as results:
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == tokens
        assert trio_offload.default_context_statistics().running_workers == tokens
        assert plan.running == tokens
        for item in range(10):
            plan.gate(item).set()
        assert await collect(results) == list(range(10))
        assert limiter.borrowed_tokens == 0
        assert trio_offload.default_context_statistics().running_workers == 0


async def test_default_limiter_counts_without_workers_option(plan: Plan) -> None:
    limiter = trio_offload.current_default_worker_limiter()
    limiter.total_tokens = 2
    async with trio_offload.map(pass_gate, range(10)):
        await wait_all_tasks_blocked()
        assert (plan.running, limiter.borrowed_tokens) == (2, 2)
    async with trio_offload.map(pass_gate, range(10), workers=4):
        await wait_all_tasks_blocked()
        assert (plan.running, limiter.borrowed_tokens) == (4, 0)
    async with trio_offload.map(pass_gate, range(10), workers=4, limiter=trio.CapacityLimiter(3)):
        await wait_all_tasks_blocked()
        assert plan.running == 3


async def test_any_async_context_manager_limits(plan: Plan) -> None:
    inside = []

    @asynccontextmanager
    async def limit() -> AsyncIterator[None]:
        inside.append(1)
        yield
        inside.pop()

    class Limiter:
        def __init__(self) -> None:
            self._managers: list[Any] = []

        async def __aenter__(self) -> None:
            self._managers.append(limit())
            await self._managers[-1].__aenter__()

        async def __aexit__(self, *error: object) -> None:
            await self._managers.pop().__aexit__(None, None, None)

    async with trio_offload.map(pass_gate, range(3), limiter=Limiter(), workers=2) as results:
        await wait_all_tasks_blocked()
        assert len(inside) == 2
        for item in range(3):
            plan.gate(item).set()
        assert await collect(results) == [0, 1, 2]
    assert not inside


async def test_few_items_start_few_workers(plan: Plan) -> None:
    async with trio_offload.map(pass_gate, range(2), workers=50) as results:
        await wait_all_tasks_blocked()
        assert len(plan.workers) == 2
        plan.gate(0).set()
        plan.gate(1).set()
        assert await collect(results) == [0, 1]


# --- the end, early ------------------------------------------------------------------------------


async def test_leaving_the_block_ends_what_runs(plan: Plan) -> None:
    limiter = trio.CapacityLimiter(2)
    source = Counted(itertools.count())
    plan.gate(0).set()
    async with trio_offload.map(pass_gate, source, limiter=limiter) as results:
        async for result in results:
            assert result == 0
            break
        await wait_all_tasks_blocked()
        assert plan.running == 2
    assert plan.running == 0
    assert limiter.borrowed_tokens == 0
    assert [worker.killed for worker in plan.workers] == [True, True]
    assert trio_offload.default_context_statistics().running_workers == 0
    with pytest.raises(trio.ClosedResourceError):
        await results.__anext__()
    with pytest.raises(trio.ClosedResourceError):
        await collect(results)


async def test_what_the_block_raises_comes_out_as_it_is(plan: Plan) -> None:
    with pytest.raises(Boom, match="of the block"):
        async with trio_offload.map(pass_gate, range(5), workers=2):
            await wait_all_tasks_blocked()
            raise Boom("of the block")
    with trio.CancelScope() as scope:
        with pytest.raises(Boom):
            async with trio_offload.map(pass_gate, range(5), workers=2):
                await wait_all_tasks_blocked()
                scope.cancel()
                raise Boom("of the block")
    assert not plan.running


async def test_a_cancelled_block_ends_what_runs(plan: Plan) -> None:
    with trio.CancelScope() as scope:
        async with trio_offload.map(pass_gate, range(5), workers=2) as results:
            await wait_all_tasks_blocked()
            scope.cancel()
            await collect(results)
    assert scope.cancelled_caught
    assert not plan.running


class Steps(trio.abc.Instrument):
    """Does something at the n-th step that any task makes."""

    def __init__(self, number: int, deed: Callable[[], None]) -> None:
        self._left = number
        self._deed = deed

    @property
    def reached(self) -> bool:
        return self._left <= 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._deed()


@pytest.mark.parametrize("is_async", [False, True], ids=["iterable", "async iterable"])
async def test_it_may_be_cancelled_at_each_step(plan: Plan, is_async: bool) -> None:
    limiter = trio.CapacityLimiter(2)
    cancelled = 0
    for number in range(1, 10_000):
        items = one_by_one(range(6)) if is_async else range(6)
        context = WorkerContext._create(ContextOptions())
        with trio.CancelScope() as scope:
            steps = Steps(number, scope.cancel)
            trio.lowlevel.add_instrument(steps)
            try:
                async with context.map(map_jobs.double, items, limiter=limiter, chunk_size=2) as results:
                    assert await collect(results) == [0, 2, 4, 6, 8, 10]
            finally:
                trio.lowlevel.remove_instrument(steps)
        cancelled += scope.cancelled_caught
        assert not plan.running
        assert limiter.borrowed_tokens == 0
        assert context.statistics().running_workers == 0
        with trio.fail_after(PATIENCE):
            await context._pool.close(context.grace_period)
            if is_async:
                await items.aclose()  # type: ignore[union-attr]
        if not steps.reached:
            break
    assert cancelled > 10


async def test_a_wait_that_is_cancelled_loses_no_result(plan: Plan) -> None:
    async with trio_offload.map(pass_gate, range(3), workers=1) as results:
        for item in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await results.__anext__()
            assert scope.cancelled_caught
            plan.gate(item).set()
            assert await results.__anext__() == item


async def test_a_loop_goes_on_where_another_was_left(plan: Plan) -> None:
    found = []
    async with trio_offload.map(map_jobs.double, range(10), chunk_size=5, workers=1) as results:
        for _ in range(3):
            async for result in results:
                found.append(result)
                if len(found) % 4 == 0:
                    break
    assert found == list(range(0, 20, 2))


async def test_a_map_is_entered_once(plan: Plan) -> None:
    manager = trio_offload.map(map_jobs.double, range(2))
    async with manager as results:
        assert await collect(results) == [0, 2]
    with pytest.raises(RuntimeError, match="once"):
        async with manager:
            pass


async def test_waiting_task_learns_that_block_is_left(plan: Plan) -> None:
    async with trio.open_nursery() as nursery:

        async def consume() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await collect(results)

        async with trio_offload.map(pass_gate, range(3), workers=1) as results:
            nursery.start_soon(consume)
            await wait_all_tasks_blocked()


def test_ctrl_c_ends_what_runs_and_comes_out_as_it_is() -> None:
    plan = Plan()

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_context, "launcher_for", plan.launcher_for)
            async with open_worker_context() as context:
                async with context.map(pass_gate, range(5), workers=2) as results:
                    await wait_all_tasks_blocked()
                    signal.raise_signal(signal.SIGINT)
                    await collect(results)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert not plan.running
    assert all(worker.state.name == "ENDED" for worker in plan.workers)


def test_ctrl_c_gets_through_to_a_source_that_does_not_end() -> None:
    def endless() -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGINT)
        while True:
            pass

    plan = Plan()
    found: list[int] = []

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_context, "launcher_for", plan.launcher_for)
            async with open_worker_context() as context:
                async with context.map(map_jobs.double, endless(), workers=1) as results:
                    await collect_into(found, results)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert found == [2]
    assert not plan.running


# --- where items come from -----------------------------------------------------------------------


def breaking_off(count: int) -> Iterator[int]:
    yield from range(count)
    raise Boom("of the source")


@pytest.mark.parametrize("is_async", [False, True], ids=["iterable", "async iterable"])
@pytest.mark.parametrize("return_outcomes", [False, True])
@pytest.mark.parametrize("count", [0, 1, 7])
async def test_a_source_that_raises_is_told_after_what_came_before(
    plan: Plan, is_async: bool, return_outcomes: bool, count: int
) -> None:
    source = one_by_one(breaking_off(count)) if is_async else breaking_off(count)
    found = []
    async with trio_offload.map(
        map_jobs.double, source, chunk_size=3, workers=2, return_outcomes=return_outcomes
    ) as results:
        with pytest.raises(Boom, match="of the source"):
            await collect_into(found, results)
        assert await collect(results) == []
    assert [result.unwrap() if return_outcomes else result for result in found] == list(range(0, 2 * count, 2))


async def test_an_iterable_whose_iter_raises(plan: Plan) -> None:
    class Unwilling:
        def __iter__(self) -> Iterator[int]:
            raise Boom("of iter")

    async with trio_offload.map(map_jobs.double, Unwilling()) as results:
        with pytest.raises(Boom, match="of iter"):
            await collect(results)


@pytest.mark.parametrize("early", [False, True])
async def test_an_async_generator_is_read_by_one_task_and_closed(plan: Plan, early: bool) -> None:
    tasks = set()
    closed = []

    async def generate() -> AsyncIterator[int]:
        try:
            for item in itertools.count() if early else range(10):
                tasks.add(trio.lowlevel.current_task())
                with trio.CancelScope():
                    await trio.lowlevel.checkpoint()
                    yield item
        finally:
            closed.append(True)

    async with trio_offload.map(map_jobs.double, generate(), workers=3, chunk_size=2) as results:
        async for result in results:
            if early and result >= 10:
                break
    assert closed == [True]
    assert len(tasks) == 1


async def test_the_end_of_an_async_generator_may_take_its_time(plan: Plan) -> None:
    """It waits at its `yield`, as nobody wants an item of it; so it is closed, and not cancelled."""
    closed = []

    async def generate() -> AsyncIterator[int]:
        try:
            for item in itertools.count():
                yield item
        finally:
            await trio.lowlevel.checkpoint()
            closed.append(True)

    async with trio_offload.map(map_jobs.double, generate(), workers=1):
        await wait_all_tasks_blocked()
    assert closed == [True]


async def test_an_async_generator_that_raises_while_it_is_closed(plan: Plan) -> None:
    async def generate() -> AsyncIterator[int]:
        try:
            for item in itertools.count():
                yield item
        finally:
            raise Boom("at the end")

    with pytest.raises(Boom, match="at the end"):
        async with trio_offload.map(map_jobs.double, generate()) as results:
            await results.__anext__()
    with pytest.raises(ValueError, match="of the block"):
        async with trio_offload.map(map_jobs.double, generate()) as results:
            await results.__anext__()
            raise ValueError("of the block")


async def test_a_channel_stays_its_owners(plan: Plan) -> None:
    send, receive = trio.open_memory_channel[int](10)
    async with send, receive:
        async with trio_offload.map(map_jobs.double, receive) as results:
            for item in range(3):
                await send.send(item)
                assert await results.__anext__() == 2 * item
        await send.send(7)
        assert await receive.receive() == 7


async def test_nothing_is_held_while_a_source_has_nothing(plan: Plan) -> None:
    send, receive = trio.open_memory_channel[int](10)
    limiter = trio.CapacityLimiter(1)
    async with send, receive, trio_offload.map(map_jobs.double, receive, limiter=limiter) as results:
        for item in range(3):
            await wait_all_tasks_blocked()
            assert limiter.borrowed_tokens == 0
            await send.send(item)
            assert await results.__anext__() == 2 * item


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4])
async def test_the_first_error_ends_it_after_what_comes_before(plan: Plan, chunk_size: int) -> None:
    found = []
    source = Counted(itertools.count())
    function = functools.partial(map_jobs.raise_at, 6)
    # Given, because the default one grows if the workers are quick.
    window = 8 * 2 * chunk_size
    async with trio_offload.map(function, source, workers=2, chunk_size=chunk_size, window=window) as results:
        with pytest.raises(Boom) as caught:
            await collect_into(found, results)
        assert "(item 6 of a map of map_jobs.raise_at: 6)" in notes_of(caught.value)
        assert await collect(results) == []
        await wait_all_tasks_blocked()
        assert not plan.running
        # Seven have left the window.
        assert source.read <= 7 + window
    assert found == list(range(6))


async def test_as_completed_the_first_error_ends_it_at_once(plan: Plan) -> None:
    plan.gate("bad").set()
    async with trio_offload.map(pass_gate, ["waits", "bad"], workers=2, ordered=False) as results:
        plan.breaks_at.add("bad")
        with pytest.raises(BrokenWorkerError) as caught:
            await collect(results)
        assert "item 1" in notes_of(caught.value)
        await wait_all_tasks_blocked()
        assert not plan.running


@pytest.mark.parametrize("chunk_size", [1, 4])
async def test_errors_may_be_outcomes(plan: Plan, chunk_size: int) -> None:
    function = functools.partial(map_jobs.raise_at, 6)
    async with trio_offload.map(function, range(10), workers=2, chunk_size=chunk_size, return_outcomes=True) as results:
        found = await collect(results)
    assert [result.value if isinstance(result, Value) else "error" for result in found] == [*range(6), "error", 7, 8, 9]
    assert isinstance(found[6].error, Boom)
    assert "item 6 of" in notes_of(found[6].error)


async def test_a_function_that_cannot_be_pickled_is_told_at_the_start(plan: Plan) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        async with trio_offload.map(functools.partial(map_jobs.double, threading.Lock()), [1]):
            pass
    assert not plan.workers


@pytest.mark.parametrize("chunk_size", [1, 5])
async def test_an_item_that_cannot_be_pickled_fails_alone(plan: Plan, chunk_size: int) -> None:
    items = [1, "2", threading.Lock(), [4], (5, 6)]
    async with trio_offload.map(jobs.echo, items, chunk_size=chunk_size, workers=2, return_outcomes=True) as results:
        found = await collect(results)
    assert isinstance(found[2], Error)
    assert "cannot pickle" in str(found[2].error)
    assert "item 2 of a map of jobs.echo" in notes_of(found[2].error)
    assert [result.unwrap() for result in found[:2] + found[3:]] == [1, "2", [4], (5, 6)]


async def test_if_no_worker_can_be_started_that_is_told_once(plan: Plan) -> None:
    plan.fail_start = WorkerStartError("no worker")
    for return_outcomes in (False, True):
        async with trio_offload.map(
            map_jobs.double, itertools.count(), workers=3, return_outcomes=return_outcomes
        ) as results:
            with pytest.raises(WorkerStartError, match="no worker"):
                await collect(results)
            assert await collect(results) == []
    assert len(plan.workers) <= 6


async def test_if_some_workers_can_be_started_they_do_it_all(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    async with trio_offload.map(pass_gate, range(6), workers=3) as results:
        await trio.lowlevel.checkpoint()
        while not plan.running:
            await trio.lowlevel.checkpoint()
        plan.fail_start = WorkerStartError("no more")
        for item in range(6):
            plan.gate(item).set()
        assert await collect(results) == list(range(6))
    assert len([worker for worker in plan.workers if worker.state.name == "ENDED"]) <= 3


class Late:
    """Has the first worker that is started fail, once the test lets it; all others start."""

    def __init__(self, plan: Plan) -> None:
        self.fails = trio.Event()
        self._begin = plan.begin
        self._is_first = True

    def __call__(self) -> FakeWorker:
        worker = self._begin()
        if self._is_first:
            self._is_first = False
            finish = worker.finish

            async def fail(*, cancellable: bool) -> None:
                await self.fails.wait()
                worker.plan.fail_start = WorkerStartError("this one cannot be had")
                try:
                    await finish(cancellable=cancellable)
                finally:
                    worker.plan.fail_start = None

            worker.finish = fail  # type: ignore[method-assign]
        return worker


@pytest.mark.parametrize("source", [iter, one_by_one], ids=["iterable", "async iterable"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_chunk_of_unavailable_worker_is_run_by_another(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, source: Any, ordered: bool
) -> None:
    """By one that waits for something to do, while the reader of an async iterable waits for room."""
    late = Late(plan)
    monkeypatch.setattr(plan, "begin", late)
    for item in range(1, 8):
        plan.gate(item).set()
    async with trio_offload.map(pass_gate, source(range(8)), workers=2, window=2, ordered=ordered) as results:
        found: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect_into, found, results)
            await wait_all_tasks_blocked()
            # Nobody can go on but with that chunk.
            assert found == ([] if ordered else list(range(1, len(found) + 1)))
            plan.gate(0).set()
            late.fails.set()
            with trio.fail_after(PATIENCE):
                while len(found) < 8:
                    await trio.lowlevel.checkpoint()
    assert sorted(found) == list(range(8))
    assert found == sorted(found) or not ordered


@pytest.mark.parametrize("source", [iter, one_by_one], ids=["iterable", "async iterable"])
async def test_an_idle_worker_is_used_before_a_map_gives_up(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    """The lane that has had it has come to its end, since there was nothing left to do."""
    late = Late(plan)
    monkeypatch.setattr(plan, "begin", late)
    for item in range(8):
        plan.gate(item).set()
    async with trio_offload.map(pass_gate, source(range(8)), workers=2, ordered=False) as results:
        found = [await anext(results) for _ in range(7)]
        await wait_all_tasks_blocked()
        assert len(plan.workers) == 2
        late.fails.set()
        found += await collect(results)
    assert sorted(found) == list(range(8))
    assert len(plan.workers) == 2


async def test_a_closed_context_refuses(plan: Plan) -> None:
    async with open_worker_context() as context:
        pass
    with pytest.raises(trio.ClosedResourceError):
        async with context.map(map_jobs.double, [1]):
            pass


async def test_a_context_that_is_closed_meanwhile(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is finished, as with calls; nothing more is begun when the worker's turn is over."""
    monkeypatch.setattr(_lane, "_LANE_TIME_SLICE", 0.0)
    context = WorkerContext._create(ContextOptions())
    async with context.map(pass_gate, range(10), workers=1) as results:
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context._pool.close, context.grace_period)
            await wait_all_tasks_blocked()
            for item in range(10):
                plan.gate(item).set()
            found = []
            with pytest.raises(trio.ClosedResourceError, match="closed"):
                while True:
                    found.append(await results.__anext__())
    assert found == [0]


# --- workers that leave and break ----------------------------------------------------------------


@pytest.mark.parametrize("item", range(5))
async def test_call_crossing_retirement_goes_elsewhere(plan: Plan, item: int) -> None:
    """Also one that was on its way while the last one before it was run."""
    plan.retires_after.add(item)
    for number in range(5):
        plan.gate(number).set()
    async with trio_offload.map(pass_gate, range(5), workers=1) as results:
        assert await collect(results) == list(range(5))
    assert items_run(plan) == list(range(5)), "each is run once"
    assert len(plan.workers) == (1 if item == 4 else 2)
    if 0 < item < 4:
        assert plan.most_in_flight > 1


@pytest.mark.parametrize("chunk_size", [1, 2])
async def test_workers_that_exit_at_once_are_not_replaced_forever(plan: Plan, chunk_size: int) -> None:
    plan.born_retired = True
    async with trio_offload.map(map_jobs.double, range(4), workers=1, chunk_size=chunk_size) as results:
        with pytest.raises(BrokenWorkerError, match="exited before they began it, one after the other"):
            await collect(results)
    assert len(plan.workers) == 5


@pytest.mark.parametrize("item", range(5))
async def test_a_worker_that_breaks_takes_one_item_with_it(plan: Plan, item: int) -> None:
    plan.breaks_at.add(item)
    for number in range(5):
        plan.gate(number).set()
    async with trio_offload.map(pass_gate, range(5), workers=1, return_outcomes=True) as results:
        found = await collect(results)
    assert isinstance(found[item].error, BrokenWorkerError)
    assert [result.unwrap() for index, result in enumerate(found) if index != item] == [n for n in range(5) if n != item]
    assert items_run(plan) == list(range(5)), "each is run once, also that which was on its way"


@pytest.mark.parametrize("item", range(6))
@pytest.mark.parametrize("return_outcomes", [False, True])
async def test_a_worker_that_breaks_in_a_chunk(plan: Plan, item: int, return_outcomes: bool) -> None:
    """The results before the item that broke it are lost; what is behind it is run by another one."""
    plan.breaks_at.add(item)
    for number in range(6):
        plan.gate(number).set()
    found: list[Any] = []
    async with trio_offload.map(pass_gate, range(6), workers=1, chunk_size=3, return_outcomes=return_outcomes) as results:
        if return_outcomes:
            found = await collect(results)
        else:
            with pytest.raises(BrokenWorkerError) as caught:
                await collect_into(found, results)
            assert ("lost" in str(caught.value)) == (item % 3 > 0)
    first = item - item % 3
    assert [result.unwrap() if return_outcomes else result for result in found[:first]] == list(range(first))
    if return_outcomes:
        assert [result.unwrap() for result in found[item + 1 :]] == list(range(item + 1, 6))
        for index in range(first, item):
            assert "result of an item was lost" in str(found[index].error)
            assert found[index].error.__cause__ is found[item].error
        assert str(found[item].error) == "it broke"
        assert f"item {item} of a map" in notes_of(found[item].error)


async def test_a_worker_that_breaks_in_a_chunk_nobody_knows_where(plan: Plan) -> None:
    plan.breaks = True
    async with trio_offload.map(map_jobs.double, range(4), workers=1, chunk_size=4, return_outcomes=True) as results:
        found = await collect(results)
    assert [str(result.error) for result in found] == ["it broke"] * 4
    for index in range(4):
        assert f"(item {index} of a map of map_jobs.double: {index})" in notes_of(found[index].error)


async def test_what_has_been_read_comes_before_anything_new_is_sent(plan: Plan) -> None:
    plan.has_answers = True
    async with trio_offload.map(map_jobs.double, range(30), workers=1) as results:
        assert await collect(results) == [2 * number for number in range(30)]
    # Each group begins when all of the one before it have been answered.
    assert plan.flights[0] == 0
    assert all(after in (0, before + 1) for before, after in itertools.pairwise(plan.flights))
    assert plan.most_in_flight > 1


@pytest.mark.parametrize("kind", [range, list, tuple, dict.fromkeys, set])
async def test_towards_the_end_few_items_are_behind_a_slow_one(plan: Plan, kind: Callable[[Any], Any]) -> None:
    """Where it is known how many there are."""
    items = range(100)
    for item in items:
        if item != 90:
            plan.gate(item).set()
    async with (
        trio_offload.map(pass_gate, items if kind is range else kind(items), workers=2, ordered=False) as results,
        trio.open_nursery() as nursery,
    ):
        found: list[Any] = []
        nursery.start_soon(collect_into, found, results)
        await wait_all_tasks_blocked()
        missing = len(items) - len(found)
        plan.gate(90).set()
    assert len(found) == len(items)
    # A quarter of what was left when the first of those with it was sent, and itself.
    assert 1 <= missing <= 4


async def test_a_list_may_grow_while_it_is_read(plan: Plan) -> None:
    items = list(range(50))
    async with trio_offload.map(map_jobs.double, items, workers=1) as results:
        for number in range(100):
            assert await results.__anext__() == 2 * number
            if len(items) < 100:
                items += range(len(items), len(items) + 2)
        with pytest.raises(StopAsyncIteration):
            await results.__anext__()


async def test_a_foreseen_retirement_has_nothing_sent_ahead(plan: Plan) -> None:
    plan.foreseen = True
    policy = trio_offload.retire_when(jobs=1)
    async with open_worker_context(retire=policy) as context, context.map(map_jobs.double, range(5), workers=1) as results:
        assert await collect(results) == [0, 2, 4, 6, 8]
    assert plan.most_in_flight == 1


# --- time ----------------------------------------------------------------------------------------


@pytest.fixture
def machine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock, which a timeout goes by, is Trio's."""
    monkeypatch.setattr(_clock, "now", trio.current_time)
    monkeypatch.setattr(_clock, "move_on_after", trio.move_on_after)


async def test_item_over_time_fails_and_others_run(plan: Plan, autojump_clock: MockClock, machine_clock: None) -> None:
    for item in (0, 1, 3, 4):
        plan.gate(item).set()
    async with trio_offload.map(pass_gate, range(5), workers=1, timeout=7, return_outcomes=True) as results:
        begin = trio.current_time()
        found = await collect(results)
        assert trio.current_time() - begin == pytest.approx(7)
    error = found[2].error
    assert type(error) is WorkerTimeoutError
    assert isinstance(error, trio.TooSlowError)
    assert error.timeout == 7
    assert "within 7 seconds" in str(error)
    assert "item 2 of a map" in notes_of(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert [result.unwrap() for index, result in enumerate(found) if index != 2] == [0, 1, 3, 4]
    assert items_run(plan) == list(range(5))


async def test_the_time_does_not_count_while_the_item_waits(
    plan: Plan, autojump_clock: MockClock, machine_clock: None
) -> None:
    """Neither for a token nor behind another item."""
    limiter = trio.CapacityLimiter(1)

    async def open_gates() -> None:
        for item in range(6):
            await trio.sleep(5)
            plan.gate(item).set()

    async with trio.open_nursery() as nursery:
        limiter.acquire_on_behalf_of_nowait("somebody")
        async with trio_offload.map(pass_gate, range(6), limiter=limiter, timeout=7) as results:
            await trio.sleep(100)
            limiter.release_on_behalf_of("somebody")
            nursery.start_soon(open_gates)
            assert await collect(results) == list(range(6))


def test_the_pace_begins_with_one_grows_and_shrinks() -> None:
    pace = AdaptiveBatching(None)
    assert pace.size == 1
    sizes = []
    for _ in range(8):
        items = pace.size
        pace.measured(items, items * 1e-6, 100)
        sizes.append(pace.size)
    assert sizes == [8, 64, 512, 4096, 16384, 16384, 16384, 16384]
    pace.measured(16384, 16.384, 100)
    assert pace.size == 20, "of a millisecond each"
    pace.measured(20, 20.0, 100)
    assert pace.size == 1
    pace.measured(0, 0.0, 0)
    assert pace.size == 1


def test_calls_in_flight_grow_with_short_calls() -> None:
    pace = AdaptiveBatching(10)
    assert (pace.in_flight, pace.window_chunks) == (1, 8)
    seen = []
    for calls in (1, 1, 2, 4, 8, 16):
        pace.answered(calls, calls * 1e-6, waits=False)
        seen.append((pace.in_flight, pace.window_chunks))
    assert seen == [(2, 8), (3, 8), (5, 10), (9, 18), (16, 32), (16, 32)]


@pytest.mark.parametrize(
    ("calls", "each", "waits", "expected"),
    [
        (1, 0.0, False, 16),
        (4, 0.0001, False, 16),
        (4, 0.0004, False, 5),
        (4, 0.0009, False, 2),
        (1, 0.05, False, 2),
        (1, 0.05, True, 2),
        (2, 0.05, True, 16),
        (1, 0.1, False, 1),
        (2, 0.1, True, 1),
    ],
)
def test_the_shorter_a_call_the_more_are_sent_ahead(calls: int, each: float, waits: bool, expected: int) -> None:
    """One alone says nothing of a worker that waits: it had no other."""
    pace = AdaptiveBatching(10)
    for _ in range(20):
        pace.answered(1, 0.0, waits=False)
    pace.answered(calls, calls * each, waits=waits)
    assert pace.in_flight == expected
    assert pace.window_chunks == max(8, 2 * expected)
    assert pace.size == 10


def test_the_pace_minds_bytes_and_the_time_that_it_takes_to_read() -> None:
    pace = AdaptiveBatching(None)
    for _ in range(8):
        pace.measured(pace.size, 1e-6, pace.size * MAX_BYTES // 4)
    assert pace.size == 4
    pace = AdaptiveBatching(None)
    for _ in range(8):
        pace.measured(pace.size, 1e-6, 1)
    assert pace.size == MAX_ITEMS
    pace.read(100, 1.0)
    assert pace.size == 1
    pace.read(1, 1e-6)
    assert pace.size == 1000
    pace.read(1, 0.0)
    assert pace.size == MAX_ITEMS


def test_a_given_chunk_size_stays() -> None:
    pace = AdaptiveBatching(7)
    pace.measured(7, 100.0, 10**9)
    assert pace.size == 7


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"chunk_size": 0}, ValueError),
        ({"chunk_size": -1}, ValueError),
        ({"chunk_size": 2.5}, TypeError),
        ({"chunk_size": True}, TypeError),
        ({"chunk_size": "large"}, TypeError),
        ({"chunk_size": None}, TypeError),
        ({"workers": 0}, ValueError),
        ({"workers": "two"}, TypeError),
        ({"window": 0}, ValueError),
        ({"window": 1.5}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": 1, "chunk_size": 5}, ValueError),
        ({"fn": None}, TypeError),
        ({"items": 5}, TypeError),
    ],
)
async def test_wrong_arguments_are_refused_by_name(plan: Plan, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        trio_offload.map(**{"fn": map_jobs.double, "items": [1], **arguments})


# --- with processes ------------------------------------------------------------------------------


@pytest.fixture(params=["native", "loop", "fork"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All kinds of worker."""
    if request.param == "loop":
        use_loops(monkeypatch)
    elif request.param == "fork":
        open_context = functools.partial(trio_offload.open_worker_context, worker_type=trio_offload.WorkerType.FORK)
        monkeypatch.setitem(globals(), "open_worker_context", open_context)
    return str(request.param)


@pytest.mark.parametrize("chunk_size", [1, 7, "auto"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "as completed"])
async def test_many_items(kind: str, chunk_size: Any, ordered: bool) -> None:
    async with open_worker_context() as context:
        async with context.map(map_jobs.double, range(2000), workers=2, chunk_size=chunk_size, ordered=ordered) as results:
            found = await collect(results)
        assert context.statistics().running_workers == 0
        assert context.statistics().idle_workers <= 2
    assert (found if ordered else sorted(found)) == list(range(0, 4000, 2))


@pytest.mark.parametrize(
    "items",
    [list(range(300)), range(2**70, 2**70 + 900, 3), range(50, -250, -1), range(0), range(1)],
    ids=["a list", "a far range", "a range that falls", "an empty range", "a range of one"],
)
@pytest.mark.parametrize("chunk_size", [7, 300])
async def test_a_range_travels_as_one_and_gives_what_a_list_does(kind: str, items: Any, chunk_size: int) -> None:
    async with open_worker_context() as context:
        async with context.map(map_jobs.double, items, workers=2, chunk_size=chunk_size) as results:
            assert await collect(results) == [2 * number for number in items]


@pytest.mark.leaves_default_workers
async def test_the_default_context_and_a_scope() -> None:
    async with trio_offload.map(map_jobs.pid_and, range(4), workers=1) as results:
        pids = {pid async for pid, _ in results}
    assert len(pids) == 1
    async with trio_offload.cache_scope():
        async with trio_offload.map(map_jobs.pid_and, range(4), workers=1) as results:
            others = {pid async for pid, _ in results}
    assert pids.isdisjoint(others)


async def test_what_travels_badly_fails_alone(kind: str) -> None:
    """In one chunk, and each as it would by itself."""
    items = [
        "raises",
        "is well",
        "raises what does not pickle",
        "does not pickle",
        "fails to pickle",
        "fails to unpickle",
        "exits",
        "is asynchronous",
        "is well too",
    ]
    async with open_worker_context() as context:
        for chunk_size in (1, len(items)):
            async with context.map(
                map_jobs.be_odd, items, chunk_size=chunk_size, workers=1, return_outcomes=True
            ) as results:
                found = dict(zip(items, await collect(results), strict=True))
            assert found["is well"] == Value("is well")
            assert found["is well too"] == Value("is well too")
            errors = {item: result.error for item, result in found.items() if isinstance(result, Error)}
            assert {item: type(error) for item, error in errors.items()} == {
                "raises": Boom,
                "raises what does not pickle": RemoteError,
                "does not pickle": TypeError,
                "fails to pickle": BaseBoom,
                "fails to unpickle": Boom,
                "exits": JobExitError,
                "is asynchronous": TypeError,
            }
            assert "(while the worker pickled the result)" in notes_of(errors["does not pickle"])
            assert "(while unpickling the result of a job)" in notes_of(errors["fails to unpickle"])
            assert "runs synchronous functions" in str(errors["is asynchronous"])
            traceback = errors["raises"].__traceback__
            names = []
            while traceback is not None:
                names.append(traceback.tb_frame.f_code.co_name)
                traceback = traceback.tb_next
            assert names[-1] == "be_odd"
            assert not {"run", "_run_plain", "_run_pickled", "_run_quickly"} & set(names)
        assert context.statistics().idle_workers == 1, "the worker lives on"


async def test_an_exception_that_is_raised_again_does_not_grow() -> None:
    async with open_worker_context() as context:
        async with context.map(
            map_jobs.raise_the_same, range(20), chunk_size=20, workers=1, return_outcomes=True
        ) as results:
            found = await collect(results)
    for result in found:
        depth, traceback = 0, result.error.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        assert depth <= 3


async def test_items_of_a_chunk_are_not_one_object() -> None:
    same = [1, 2, 3]
    async with open_worker_context() as context:
        async with context.map(map_jobs.turn, [same] * 4, chunk_size=4, workers=1) as results:
            found = await collect(results)
    assert found == [[3, 2, 1]] * 4
    assert len(set(map(id, found))) == 4


@pytest.mark.parametrize("chunk_size", [1, 8])
async def test_a_fault_in_a_chunk_is_told_precisely(kind: str, tmp_path: Path, chunk_size: int) -> None:
    journal = tmp_path / "journal"
    function = functools.partial(map_jobs.write_down_and_fail, str(journal), 3, "segfault")
    async with open_worker_context() as context:
        async with context.map(function, range(8), chunk_size=chunk_size, workers=1, return_outcomes=True) as results:
            found = await collect(results)
    error = found[3].error
    assert type(error) is BrokenWorkerError
    assert error.signal is signal.SIGSEGV
    assert "in segfault" in error.crash.stack
    assert "item 3 of a map of map_jobs.write_down_and_fail: 3" in notes_of(error)
    assert [result.unwrap() for result in found[4:]] == [4, 5, 6, 7]
    if chunk_size == 1:
        assert [result.unwrap() for result in found[:3]] == [0, 1, 2]
    else:
        assert ["SIGSEGV" in str(result.error) and "lost" in str(result.error) for result in found[:3]] == [True] * 3
        assert found[0].error.crash is error.crash
    assert journal.read_text().split() == [str(number) for number in range(8)], "each was run once"


@pytest.mark.parametrize("bad", [0, 700, 1999])
async def test_a_fault_among_quick_items_costs_few_that_were_not_begun(bad: int) -> None:
    async with open_worker_context() as context:
        async with context.map(
            functools.partial(map_jobs.fail_quickly, bad), range(2000), chunk_size=2000, workers=1, return_outcomes=True
        ) as results:
            found = await collect(results)
    assert isinstance(found[bad].error, BrokenWorkerError)
    assert all(isinstance(result, Error) for result in found[: bad + 1])
    begun = [number for number, result in enumerate(found) if isinstance(result, Error)]
    assert begun == list(range(len(begun)))
    assert len(begun) <= bad + 64
    assert [result.unwrap() for result in found[len(begun) :]] == list(range(len(begun), 2000))


async def test_a_memory_limit_is_told_of_the_item_that_reached_it() -> None:
    function = functools.partial(map_jobs.take_memory_at, 1)
    async with open_worker_context(memory_limit="150MB") as context:
        async with context.map(function, range(3), chunk_size=3, workers=1, return_outcomes=True) as results:
            found = await collect(results)
    assert type(found[1].error) is WorkerMemoryError
    assert "item 1 of a map" in notes_of(found[1].error)
    assert found[2] == Value(2)


async def test_a_copy_that_an_item_forks_off_runs_none_of_the_others(kind: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with open_worker_context() as context:
        async with context.map(
            functools.partial(map_jobs.fork_at, str(journal), 2), range(40), chunk_size=40, workers=1
        ) as results:
            assert await collect(results) == list(range(40))
        # A worker is as good as before.
        async with context.map(map_jobs.double, range(200), chunk_size=200, workers=1) as results:
            assert await collect(results) == list(range(0, 400, 2))
    assert journal.read_text().split() == [str(number) for number in range(40)]


@pytest.mark.parametrize("chunk_size", [1, 3])
async def test_leaving_the_block_ends_a_job_with_its_family(kind: str, line: Lifeline, chunk_size: int) -> None:
    async with open_worker_context() as context:
        async with context.map(
            functools.partial(map_jobs.hold_at, line.path, 2), range(3), chunk_size=chunk_size, workers=1
        ):
            await line.pid()
            assert line.held()
        await line.ended()
        assert context.statistics().workers == ()


async def test_time_runs_out_for_one_item_only(line: Lifeline) -> None:
    # The first second may be over before a new worker has imported the function, on a busy machine.
    async with open_worker_context() as context:
        async with context.map(
            functools.partial(map_jobs.hold_at, line.path, 2), range(5), timeout=1.5, workers=1, return_outcomes=True
        ) as results:
            found = await collect(results)
        await line.ended()
    assert type(found[2].error) is WorkerTimeoutError
    assert [result.unwrap() for index, result in enumerate(found) if index != 2] == [0, 1, 3, 4]


@pytest.mark.parametrize("worker_type", list(WorkerType))
async def test_item_begun_before_kill_is_not_rerun(
    worker_type: WorkerType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes the item that took too long, and those behind it, while this process is about to kill it."""
    journal, gate = tmp_path / "journal", tmp_path / "gate"
    kill = WorkerProcess.kill

    def run() -> list[int]:
        return list(map(int, journal.read_text().split()))

    def kill_late(process: WorkerProcess) -> None:
        gate.touch()
        while 11 not in run():
            time.sleep(0.01)
        kill(process)

    async with open_worker_context(worker_type=worker_type) as context:
        wait = functools.partial(map_jobs.write_down_behind_gate, str(journal), str(gate), 10)
        async with context.map(wait, range(50), timeout=1, workers=1, return_outcomes=True) as results:
            found = [await results.__anext__() for _ in range(10)]
            monkeypatch.setattr(WorkerProcess, "kill", kill_late)
            found.append(await results.__anext__())
            monkeypatch.undo()
            found += await collect(results)
    assert run() == list(range(50))
    late = [index for index, result in enumerate(found) if isinstance(result, Error)]
    assert late[:2] == [10, 11]
    assert late == list(range(10, 10 + len(late)))
    assert str(found[11].error).startswith("the item before this one timed out: it took more than 1 seconds")
    assert {type(found[index].error) for index in late} == {WorkerTimeoutError}


@pytest.mark.parametrize("worker_type", list(WorkerType))
@pytest.mark.parametrize("retire", [object, trio_offload.retire_when(jobs=1), trio_offload.retire_when(jobs=2)])
async def test_what_is_prepared_for_a_timeout_is_no_job(worker_type: WorkerType, retire: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    async with open_worker_context(retire=retire, worker_type=worker_type, trace=trace) as context:
        async with context.map(map_jobs.pid_and, range(4), workers=1, timeout=1000) as results:
            pids, items = zip(*await collect(results), strict=True)
    assert items == (0, 1, 2, 3)
    each = retire.jobs if isinstance(retire, RetireWhen) else 1
    assert [len(list(group)) for _, group in itertools.groupby(pids)] == [each] * (4 // each)
    assert trace.read_text().count('"cat":"job"') == 4


async def test_what_is_prepared_for_a_timeout_is_not_counted() -> None:
    async with open_worker_context() as context:
        async with context.map(map_jobs.double, range(3), workers=1, timeout=1000) as results:
            assert await collect(results) == [0, 2, 4]
        (worker,) = context.statistics().workers
        assert worker.jobs == 3


async def test_a_process_for_each_item(tmp_path: Path) -> None:
    """The second call is on its way when the worker retires after the first: each time."""
    journal = tmp_path / "journal"
    async with open_worker_context(retire=object) as context:
        async with context.map(
            functools.partial(map_jobs.write_down, str(journal)), range(8), workers=2, chunk_size="auto"
        ) as results:
            assert await collect(results) == list(range(8))
        async with context.map(map_jobs.pid_and, range(4), workers=2, chunk_size=1) as results:
            assert len({pid async for pid, _ in results}) == 4
    assert sorted(map(int, journal.read_text().split())) == list(range(8))


async def test_workers_that_are_told_to_retire_after_some_jobs() -> None:
    async with open_worker_context(retire=trio_offload.retire_when(jobs=3)) as context:
        async with context.map(map_jobs.pid_and, range(12), workers=1) as results:
            pids = [pid async for pid, _ in results]
    assert [len(list(group)) for _, group in itertools.groupby(pids)] == [3, 3, 3, 3]


@pytest.mark.parametrize("size", [200_000, 6_000_000], ids=["as much as fits", "larger than the socket"])
@pytest.mark.parametrize("chunk_size", [1, 2])
async def test_large_items_and_results_pass_each_other(kind: str, size: int, chunk_size: int) -> None:
    with trio.fail_after(PATIENCE):
        async with open_worker_context() as context:
            items = (bytes([number]) * size for number in range(8))
            async with context.map(jobs.echo, items, workers=1, chunk_size=chunk_size) as results:
                async for number, result in _enumerated(results):
                    assert (len(result), result[0], result[-1]) == (size, number, number)


async def _enumerated(results: AsyncIterator[Any]) -> AsyncIterator[tuple[int, Any]]:
    number = 0
    async for result in results:
        yield number, result
        number += 1


async def test_arrays_in_a_chunk_are_the_consumers_own(kind: str) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.full(size, size) for size in (10, 100_000, 20)]
    async with open_worker_context() as context:
        async with context.map(jobs.add_one, arrays, chunk_size=3, workers=1) as results:
            found = await collect(results)
    for array, before in zip(found, arrays, strict=True):
        assert (array == before + 1).all()
        array[0] = 0


async def test_functions_that_travel_by_value() -> None:
    pytest.importorskip("cloudpickle")
    async with open_worker_context() as context:
        for chunk_size in (1, 4):
            async with context.map(lambda item: [item], range(8), chunk_size=chunk_size, workers=2) as results:
                assert await collect(results) == [[number] for number in range(8)]


async def test_functions_that_look_at_their_caller(kind: str) -> None:
    async with open_worker_context() as context:
        async with context.map(eval, ["__name__", "1 + 1"], chunk_size=2, workers=1) as results:
            alone = [await context.run_sync(eval, "__name__"), 2]
            assert await collect(results) == alone


async def test_slow_items_of_a_measured_chunk_are_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A chunk that was chosen for quick items does not keep slow ones from other workers for long."""
    # Every chunk takes longer than that.
    monkeypatch.setattr(_chunks, "_CHUNK_TIME_LIMIT", 0.0)
    journal = tmp_path / "journal"
    async with open_worker_context() as context:
        function = functools.partial(map_jobs.write_down, str(journal))
        async with context.map(function, range(400), chunk_size="auto", workers=2) as results:
            assert await collect(results) == list(range(400))
    assert sorted(map(int, journal.read_text().split())) == list(range(400)), "each was run once"


async def test_a_job_that_closes_the_record_costs_precision_only(kind: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with open_worker_context() as context:
        await context.run_sync(map_jobs.close_the_record)
        function = functools.partial(map_jobs.write_down_and_fail, str(journal), 2, "SIGKILL")
        async with context.map(function, range(4), chunk_size=4, workers=1, return_outcomes=True) as results:
            found = await collect(results)
    assert all(isinstance(result.error, BrokenWorkerError) for result in found)
    assert journal.read_text().split() == ["0", "1", "2"]


async def test_a_worker_leaves_well_after_a_chunk() -> None:
    worker = await start_worker()
    assert worker.progress.count == 0
    worker.ask_to_retire()
    await worker.wait()
    assert worker.process.exitcode == 0
