"""Generator methods of actors, called by jobs: with each kind of worker."""

from __future__ import annotations

import functools
import gc
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import actor_stream_jobs as jobs
import pytest
import trio
from actor_stream_jobs import Source
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, DeadlockError, WorkerContext, callback
from trio_offload._actors.relays import Relay

Open = Callable[..., AbstractAsyncContextManager[Any]]


class Reports:
    """Notes what a generator or a job reports."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.handle = callback(self.all.append)

    async def until(self, report: Any) -> None:
        while report not in self.all:
            await trio.lowlevel.checkpoint()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


# --- values --------------------------------------------------------------------------------------


async def test_job_iterates(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as source:
        assert await context.run_sync(jobs.collect, source, "count", 100) == ([*range(100)], "done")
        assert await context.run_sync(functools.partial(jobs.collect, source, "count", 0, result=[5])) == ([], [5])
        assert await context.run_sync(jobs.collect_with_window, source, 1, "count", 20) == [*range(20)]
        assert await context.run_sync(jobs.collect_with_window, source, 1000, "count", 3000) == [*range(3000)]
        assert await context.run_sync(jobs.collect_with_window, source, 4, "plain") == [1, 2]
        assert await source.add() == 1
        assert source.statistics().pending == 0


async def test_ended_streams_leave_nothing(open_actor: Open, context: WorkerContext) -> None:
    """A job that goes on does not collect the streams that it has ended. The server keeps the last."""

    async def alive() -> int:
        # The end of a closed generator is a message of its actor.
        await wait_all_tasks_blocked()
        gc.collect()
        return sum(type(found) is Relay for found in gc.get_objects())

    async with open_actor(Source) as source:
        assert max(await context.run_sync(jobs.end_each, source, callback(alive))) <= 1


async def test_values_of_all_sizes(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as source:
        values = [1, "text", [1, {"a": 2}], b"x" * 100_000, None, ("y" * 10_000,), bytearray(b"z" * 300_000), 2.5]
        assert await context.run_sync(jobs.collect, source, "values", values) == (values, None)
        sizes = [10, 5_000_000, 20, 100_000, 3_000_000, 0]
        found, _ = await context.run_sync(jobs.collect, source, "large", sizes)
        assert [len(value) for value in found] == sizes


async def test_handles_among_values_and_results(open_actor: Open, context: WorkerContext) -> None:
    lock = trio_offload.Lock()
    async with open_actor(Source) as source, open_actor(Source) as other:
        values = [lock, 1, other, lock]
        assert await context.run_sync(jobs.collect, source, "values", values) == (values, None)
        assert await context.run_sync(functools.partial(jobs.collect, source, "count", 1, result=lock)) == ([0], lock)


async def test_several_jobs_take_turns(open_actor: Open, context: WorkerContext) -> None:
    results: list[Any] = []

    async def collect() -> None:
        results.append(await context.run_sync(jobs.collect, source, "count", 50, limiter=trio.CapacityLimiter(1)))

    async with open_actor(Source) as source:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(collect)
        assert results == [([*range(50)], "done")] * 4


async def test_many_streams_of_one_job(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as source, open_actor(Source) as other:
        # Each value of the outer stream comes from a call of the inner actor.
        assert await context.run_sync(jobs.collect, source, "call_each", other, 40) == ([*range(1, 41)], None)


async def test_generator_is_never_further_ahead_than_the_window(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    ahead: list[int] = []

    async def step(taken: int) -> None:
        await wait_all_tasks_blocked(0.005)
        ahead.append(max([number for number in reports.all if number != "finally"], default=0) + 1 - taken)

    async with open_actor(Source) as source:
        arguments = (callback(step), source, 12, "watched", reports.handle)
        assert await context.run_sync(jobs.take_step_by_step, *arguments) == [*range(12)]
        # The value before is not taken until the next is asked for, and one more is about to be yielded.
        assert 8 <= max(ahead) <= 17


async def test_actor_iterates_over_another_actor(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as first, open_actor(Source) as second:
        assert await context.run_sync(jobs.collect, first, "pass_on", second, "count", 30) == ([*range(30)], "done")
        async with first.stream.pass_on(second, "count", 30) as values:
            assert [value async for value in values] == [*range(30)]
        assert values.result == "done"


# --- errors --------------------------------------------------------------------------------------


async def test_error_comes_after_the_values_before_it(open_actor: Open, context: WorkerContext) -> None:
    run = functools.partial(context.run_sync, jobs.collect_until_error)
    async with open_actor(Source) as source:
        assert await run(source, "fail_after", 30, LookupError("no row")) == ([*range(30)], "LookupError", "no row")
        values, kind, text = await run(source, "unpicklable")
        assert (values, kind) == ([1], "TypeError")
        assert "pickle" in text
        values, kind, text = await run(source, "count")
        assert (values, kind) == ([], "TypeError")
        assert "missing 1 required positional argument" in text
        assert await source.add() == 1


async def test_mistakes(open_actor: Open, context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[Any](5)
    async with open_actor(Source) as source, send, receive:
        result, passed, window, name, value = await context.run_sync(jobs.misuse, source, send)
        assert result.startswith("RuntimeError: the generator has not returned")
        assert passed.startswith("TypeError: the values of an actor's generator are for the job that has called it")
        assert window == "ValueError: window must be a positive integer, got 0"
        assert name == "AttributeError: Source has no method 'nothing'"
        assert "or return an iterable" in value


async def test_generator_methods_of_shared_objects_are_refused(context: WorkerContext) -> None:
    async with trio_offload.share(Source()) as shared:
        _, kind, text = await context.run_sync(refused, shared)
        assert (kind, text) == ("TypeError", "Source.count is a generator function: only an actor streams it")


def refused(shared: Any) -> tuple[list[Any], str, str]:
    try:
        shared.count(3)
    except Exception as error:
        return [], type(error).__name__, str(error)
    return [], "", ""


# --- leaving early -------------------------------------------------------------------------------


async def test_loop_that_is_left_closes_the_generator(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    async with open_actor(Source) as source:
        assert await context.run_sync(jobs.take, source, 3, "watched", reports.handle) == [0, 1, 2]
        assert await source.add() == 1  # it waits for the turn
        assert reports.all[-2:] == ["GeneratorExit", "finally"]


async def test_block_waits_for_the_generators_end(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    async with open_actor(Source) as source:
        assert await context.run_sync(jobs.take_in_block, source, reports.handle, "watched", reports.handle) == ""
        assert reports.all[-3:] == ["GeneratorExit", "finally", "left"]
        assert await context.run_sync(jobs.take_in_block, source, reports.handle, "fail_in_cleanup") == "cleanup"
        assert await source.add() == 1


async def test_end_of_the_job_closes_the_generator(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    async with open_actor(Source) as source:
        assert await context.run_sync(jobs.take_and_keep, source, 2, "watched", reports.handle) == [0, 1]
        assert await source.add() == 1
        assert reports.all[-1] == "finally"


async def test_cancelled_job_closes_the_generator(open_actor: Open, context: WorkerContext) -> None:
    reports, event = Reports(), trio_offload.Event()
    async with open_actor(Source) as source:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(context.run_sync, jobs.catch_cancellation, reports.handle, source, "wait_after", 3, event)
                await until(lambda: event.statistics().tasks_waiting)
                scope.cancel()
        assert scope.cancelled_caught
        assert reports.all == ["Cancelled"]
        assert await source.add() == 1
        assert event.statistics().tasks_waiting == 0


async def test_stream_that_is_left_before_its_turn_never_begins(open_actor: Open, context: WorkerContext) -> None:
    reports, event = Reports(), trio_offload.Event()
    async with open_actor(Source) as source:
        async with source.stream.wait_after(1, event) as values:
            assert await anext(values) == 0
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(context.run_sync, jobs.collect, source, "watched", reports.handle)
                    await until(lambda: context.statistics().waiting)
                    assert source.statistics().pending == 1
                    scope.cancel()
            assert source.statistics().pending == 0
        assert await source.add() == 1
        assert reports.all == []


async def test_grace_kills_a_deaf_generator(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    async with open_actor(Source, grace=0.01) as source:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(context.run_sync, jobs.collect, source, "deaf_after", 1, reports.handle)
                await reports.until("deaf")
                scope.cancel()
        with pytest.raises(trio.BrokenResourceError, match="did not end within its grace"):
            while True:
                await source.add()


async def test_end_of_the_block_is_told(open_actor: Open, context: WorkerContext) -> None:
    outcomes: dict[str, Any] = {}
    event = trio_offload.Event()

    async def collect(name: str, *args: Any) -> None:
        limiter = trio.CapacityLimiter(1)
        outcomes[name] = await context.run_sync(jobs.collect_until_error, source, name, *args, limiter=limiter)

    async with trio.open_nursery() as nursery:
        async with open_actor(Source) as source:
            nursery.start_soon(collect, "wait_after", 1, event)
            await until(lambda: event.statistics().tasks_waiting)
            nursery.start_soon(collect, "count", 5)
            await until(lambda: source.statistics().pending)
            nursery.start_soon(set_when_blocked, event)
    assert outcomes["count"] == ([], "ClosedResourceError", "the actor Source is closed: its block has ended")
    assert outcomes["wait_after"] == ([0], "", "")


async def set_when_blocked(event: trio_offload.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()


# --- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["SIGKILL", "SIGSEGV"])
async def test_actor_dies_behind_its_values(open_actor: Open, context: WorkerContext, cause: str) -> None:
    run = functools.partial(context.run_sync, jobs.collect_until_error)
    async with open_actor(Source) as source:
        values, kind, text = await run(source, "die_after", 5, cause)
        assert (values, kind) == ([0, 1, 2, 3, 4], "BrokenResourceError")
        assert f"died of {cause} while it ran actor_stream_jobs.Source.die_after" in text
    async with open_actor(Source, restart="fresh") as source:
        assert (await run(source, "die_after", 5, cause))[1] == "BrokenResourceError"
        assert await run(source, "count", 5) == ([0, 1, 2, 3, 4], "", "")


async def test_actor_is_killed_while_it_waits_for_room(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    async with open_actor(Source) as source:

        async def step(taken: int) -> None:
            if taken == 2:
                await wait_all_tasks_blocked(0.01)
                os.kill(source.statistics().pid, signal.SIGKILL)

        with pytest.raises(Exception, match=r"died of SIGKILL while it ran .*Source\.watched"):
            arguments = (callback(step), source, 100, "watched", reports.handle)
            await context.run_sync(jobs.take_step_by_step, *arguments)


async def dies(context: WorkerContext, *call: Any) -> None:
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(*call)


async def test_job_dies_in_its_loop(open_actor: Open, context: WorkerContext) -> None:
    reports = Reports()
    async with open_actor(Source) as source:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dies, context, jobs.take_and_wait, reports.handle, source, 3, "watched", reports.handle)
            await reports.until("inside")
            (worker,) = context.statistics().workers
            os.kill(worker.pid, signal.SIGKILL)
        assert await source.add() == 1  # the actor lives
        assert reports.all[-2:] == ["GeneratorExit", "finally"]
        assert source.statistics().restarts == 0


async def test_job_dies_while_it_waits_for_a_value(open_actor: Open, context: WorkerContext) -> None:
    event = trio_offload.Event()
    async with open_actor(Source) as source:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dies, context, jobs.collect, source, "wait_after", 3, event)
            await until(lambda: event.statistics().tasks_waiting and context.statistics().waiting)
            (worker,) = context.statistics().workers
            os.kill(worker.pid, signal.SIGKILL)
        assert await source.add() == 1
        assert event.statistics().tasks_waiting == 0


async def test_handler_that_raises_loses_no_value(open_actor: Open, context: WorkerContext) -> None:
    event = trio_offload.Event()
    pids: list[int] = []
    results: list[Any] = []
    async with open_actor(Source) as source:

        async def run() -> None:
            arguments = (source, callback(pids.append), "wait_after", 5, event, 50)
            results.append(await context.run_sync(jobs.interrupted, *arguments))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await until(lambda: event.statistics().tasks_waiting and context.statistics().waiting)
            os.kill(pids[0], signal.SIGUSR1)
            await until(lambda: len(pids) == 2)  # the handler has raised
            event.set()
    assert results == [([*range(55)], 1)]


# --- deadlocks -----------------------------------------------------------------------------------


async def test_actor_that_iterates_over_itself(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as source:
        values, kind, text = await context.run_sync(jobs.collect_until_error, source, "pass_on", source, "count", 3)
        assert (values, kind) == ([], "DeadlockError")
        assert "would wait for the actor Source" in text
        assert await source.add() == 1
        assert source.statistics().pending == 0


async def test_two_actors_that_iterate_over_each_other(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as first, open_actor(Source) as second:
        with pytest.raises(DeadlockError, match="would wait for the actor Source"):
            async with first.stream.pass_on(second, "pass_on", first, "count", 3) as values:
                await anext(values)
        assert (await first.add(), await second.add()) == (1, 1)


async def test_job_that_calls_the_actor_in_its_loop(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Source) as source:
        kind, text = await context.run_sync(jobs.call_within, source, 4)
        assert kind == "DeadlockError"
        assert "the consumer of its stream" in text
        assert await source.add() < 10


async def test_task_that_calls_the_actor_in_its_loop(open_actor: Open) -> None:
    async with open_actor(Source) as source:
        with pytest.raises(DeadlockError):
            async with source.stream(window=4).count(1000) as values:
                async for _ in values:
                    await source.add()
        assert await source.add() < 10


# --- threads -------------------------------------------------------------------------------------


async def test_job_in_a_thread() -> None:
    in_thread = trio.to_thread.run_sync
    lock, reports = trio_offload.Lock(), Reports()
    async with trio_offload.open_actor(Source) as source:
        handle = source.handle
        assert await in_thread(jobs.collect, handle, "count", 100) == ([*range(100)], "done")
        assert await in_thread(jobs.collect_with_window, handle, 3, "count", 10) == [*range(10)]
        assert await in_thread(jobs.collect, handle, "values", [lock, b"x" * 100_000]) == ([lock, b"x" * 100_000], None)
        assert await in_thread(jobs.take, handle, 3, "watched", reports.handle) == [0, 1, 2]
        assert await source.add() == 1
        assert reports.all[-1] == "finally"
        assert await in_thread(jobs.take_in_block, handle, reports.all.append, "fail_in_cleanup") == "cleanup"
        values, kind, _ = await in_thread(jobs.collect_until_error, handle, "fail_after", 3, LookupError("no row"))
        assert (values, kind) == ([0, 1, 2], "LookupError")
        values, kind, _ = await in_thread(jobs.collect_until_error, handle, "die_after", 3)
        assert (values, kind) == ([0, 1, 2], "BrokenResourceError")
