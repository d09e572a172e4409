"""End to end: jobs that call back, and jobs that hear of a cancellation, in workers of every kind and in threads."""

from __future__ import annotations

import contextvars
import functools
import gc
import os
import warnings
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import talking_jobs as jobs
import trio
import trio.lowlevel
from lifeline import PATIENCE, Lifeline

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback, open_worker_context
from trio_offload._wait_graph import WAITS

setting: Final = contextvars.ContextVar("setting", default="unset")


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


# --- calling back --------------------------------------------------------------------------------


async def test_closure_is_called_from_a_job(context: WorkerContext) -> None:
    seen = []

    def note(*values: Any) -> int:
        seen.append(values)
        return len(seen)

    assert await context.run_sync(jobs.call_back, callback(note), 1, "two") == 1
    assert await context.run_sync(jobs.call_back_often, callback(lambda number: number + 1), 200) == list(range(1, 201))
    assert seen == [(1, "two")]


async def test_async_callback_has_the_callers_context_and_scopes(context: WorkerContext) -> None:
    setting.set("the caller's")

    async def ask() -> tuple[str, str]:
        await trio.lowlevel.checkpoint()
        return setting.get(), trio.lowlevel.current_task().parent_nursery.parent_task.name  # type: ignore[union-attr]

    value, _ = await context.run_sync(jobs.call_back, callback(ask))
    assert value == "the caller's"


async def test_function_by_name(context: WorkerContext) -> None:
    assert await context.run_sync(jobs.pid_of_parent) == os.getpid()
    assert await context.run_sync(jobs.sleep_in_parent, 0) == "slept"


async def test_exception_of_a_callback_is_raised_in_the_job(context: WorkerContext) -> None:
    def fail() -> None:
        raise LookupError("not here")

    assert await context.run_sync(jobs.catch, callback(fail)) == ("LookupError", "not here")
    with pytest.raises(LookupError, match="not here"):
        await context.run_sync(jobs.call_back, callback(fail))
    assert await context.run_sync(jobs.double, 4) == 8


async def test_callback_without_a_wait(context: WorkerContext) -> None:
    seen: list[int] = []
    assert await context.run_sync(jobs.call_back_often, callback(seen.append, wait=False), 100) == [None] * 100
    assert seen == list(range(100))

    def fail(number: int) -> None:
        raise LookupError(f"not {number}")

    with pytest.raises(LookupError, match="not 0"):
        await context.run_sync(jobs.call_back_often, callback(fail, wait=False), 100)


@pytest.mark.parametrize("make", [trio.CapacityLimiter, trio_offload.CapacityLimiter])
async def test_callback_runs_a_job_with_the_only_token(context: WorkerContext, make: Any) -> None:
    """A job that waits lends its token; so do the jobs that it waits for."""
    limiter = make(1)

    async def nest(depth: int) -> int:
        if not depth:
            return 0
        function = callback(functools.partial(nest, depth - 1))
        return 1 + await context.run_sync(jobs.call_back, function, limiter=limiter)

    assert await nest(4) == 4
    assert limiter.total_tokens == 1
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("make", [trio.CapacityLimiter, trio_offload.CapacityLimiter])
@pytest.mark.parametrize("most", [0, 1, 3])
async def test_callback_beyond_the_bound_of_loans(of_any_kind: WorkerType, most: int, make: Any) -> None:
    """It is the callback that needs one more worker; those above it go on."""
    limiter = make(2)
    outcomes: list[tuple[str, str]] = []

    async def nest() -> None:
        outcomes.append(await context.run_sync(jobs.catch, callback(nest), limiter=limiter))

    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind, max_waiting_jobs=most) as context:
            await nest()
            assert len(context.statistics().workers) == 2 + most
    (name, message), *others = outcomes
    assert (name, message.partition(",")[0]) == ("DeadlockError", "the callback needs a token of its limiter")
    assert others == [("", "")] * (1 + most)
    assert (limiter.total_tokens, limiter.borrowed_tokens) == (2, 0)


async def test_wait_beyond_the_bound_of_loans(of_any_kind: WorkerType) -> None:
    """A job that waits for something else keeps its token, and nothing fails."""
    limiter = trio.CapacityLimiter(2)
    asked, heard = trio.Event(), trio.Event()
    running = 0

    async def ask() -> None:
        nonlocal running
        running += 1
        if running == 2:
            asked.set()
        await heard.wait()

    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind, max_waiting_jobs=1) as context:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(functools.partial(context.run_sync, jobs.call_back, callback(ask), limiter=limiter))
                await asked.wait()
                # The lent token is enough for one more job. Another one waits until the first has ended.
                assert await context.run_sync(jobs.double, 4, limiter=limiter) == 8
                await trio.sleep(0.1)  # for several looks
                assert limiter.total_tokens == 3
                heard.set()
    assert (limiter.total_tokens, limiter.borrowed_tokens) == (2, 0)


async def test_what_a_job_said_before_its_death_counts(context: WorkerContext) -> None:
    seen: list[int] = []
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.die_after, callback(seen.append, wait=False), 5)
    assert seen == [5]


@pytest.mark.parametrize("chunk_size", [1, 5])
async def test_callbacks_of_a_map(context: WorkerContext, chunk_size: int) -> None:
    seen: list[int] = []
    function = functools.partial(jobs.tell_item, callback(seen.append))
    async with context.map(function, range(40), chunk_size=chunk_size, workers=2) as results:
        assert [result async for result in results] == list(range(40))
    assert sorted(seen) == list(range(40))
    note = callback(seen.append)
    async with context.map(
        jobs.tell_pair, [(note, item) for item in range(40)], chunk_size=chunk_size, workers=2
    ) as results:
        assert [result async for result in results] == list(range(40))
    assert sorted(seen) == sorted([*range(40), *range(40)])


async def test_handle_comes_back_as_itself(context: WorkerContext) -> None:
    handle = callback(len)
    assert await context.run_sync(jobs.return_it, [handle]) == [handle]


@pytest.mark.parametrize("copy", ["pickle", "copy"])
async def test_handle_outside_of_a_job(copy: str) -> None:
    import copy as copying
    import pickle

    with pytest.raises(TypeError, match="pass it as an argument of a job"):
        (pickle.dumps if copy == "pickle" else copying.copy)(callback(len))


async def test_handle_of_another_run() -> None:
    handle = callback(len)
    async with open_worker_context() as context:
        assert await context.run_sync(jobs.call_back, handle, "abc") == 3

    async def use() -> None:
        async with open_worker_context() as context:
            await context.run_sync(jobs.call_back, handle, "abc")

    with pytest.raises(RuntimeError, match="belongs to another run of Trio"):
        await trio.to_thread.run_sync(trio.run, use)


async def test_jobs_run_in_threads_unchanged() -> None:
    async def add(left: int, right: int) -> int:
        await trio.lowlevel.checkpoint()
        return left + right

    run = trio.to_thread.run_sync
    assert await run(jobs.call_back, callback(add), 1, 2) == 3
    assert await run(jobs.call_back, callback(len), "abc") == 3
    assert await run(jobs.pid_of_parent) == os.getpid()
    assert await run(jobs.sleep_in_parent, 0) == "slept"


# --- hearing of a cancellation -------------------------------------------------------------------


@pytest.mark.parametrize("job", [jobs.wait_for_ever, jobs.spin_until_cancelled, jobs.sleep_until_cancelled])
@pytest.mark.parametrize("options", [{}, {"grace": 60}, {"kill_on_cancel": True, "grace": 60}])
async def test_job_lets_the_cancellation_escape(
    context: WorkerContext, line: Lifeline, job: Any, options: dict[str, Any]
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(job, line.path, **options))
            await line.pid()
            scope.cancel()
    assert scope.cancelled_caught
    assert await line.ended() == ["Cancelled"]
    statistics = context.statistics()
    assert (statistics.idle_workers, statistics.running_workers) == (1, 0), "its worker lives on"


async def test_job_finishes_although_it_is_cancelled(context: WorkerContext, line: Lifeline) -> None:
    results = []

    async def call() -> None:
        results.append(await context.run_sync(jobs.swallow_cancelled, line.path))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await line.pid()
        nursery.cancel_scope.cancel()
    assert results == ["finished, True"]


async def test_error_of_a_cancelled_job_is_raised(context: WorkerContext, line: Lifeline) -> None:
    async def call() -> None:
        with pytest.raises(ValueError, match="half done"):
            await context.run_sync(jobs.fail_when_cancelled, line.path, grace=PATIENCE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await line.pid()
        nursery.cancel_scope.cancel()
    assert await line.ended() == ["Cancelled"]


async def test_clean_up_is_shielded(context: WorkerContext, line: Lifeline) -> None:
    seen: list[str] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.clean_up_when_cancelled, line.path, callback(seen.append))
            await line.pid()
            scope.cancel()
    assert scope.cancelled_caught
    assert seen == ["cleaned up"]


@pytest.mark.parametrize("kill_on_cancel", [True, False])
async def test_job_that_ignores_it_is_killed_after_its_grace(
    context: WorkerContext, line: Lifeline, kill_on_cancel: bool
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: context.run_sync(jobs.ignore_cancelled, line.path, kill_on_cancel=kill_on_cancel, grace=0.01)
            )
            await line.pid()
            scope.cancel()
    assert scope.cancelled_caught
    assert context.statistics().counters.workers_killed == 1


async def test_cancellation_with_a_timeout(context: WorkerContext, line: Lifeline) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(jobs.sleep_until_cancelled, line.path, timeout=PATIENCE))
            await line.pid()
            scope.cancel()
    assert scope.cancelled_caught
    assert await line.ended() == ["Cancelled"]


async def test_timeout_of_a_job_that_was_told(context: WorkerContext, line: Lifeline) -> None:
    errors = []

    async def call() -> None:
        try:
            await context.run_sync(jobs.ignore_cancelled, line.path, timeout=0.5)
        except trio_offload.WorkerTimeoutError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await line.pid()
        nursery.cancel_scope.cancel()
    assert len(errors) == 1


@pytest.mark.parametrize("kill_on_cancel", [False, True])
async def test_late_job_without_a_grace_is_not_told(context: WorkerContext, kill_on_cancel: bool) -> None:
    """It stays where it is until its stacks are written. Then it is killed, and its clean-up does not begin."""
    event = trio_offload.Event()
    told: list[str] = []
    with pytest.raises(trio_offload.WorkerTimeoutError):
        await context.run_sync(jobs.wait_and_tell, event, callback(told.append), timeout=0.3, kill_on_cancel=kill_on_cancel)
    assert told == []
    assert event.statistics().tasks_waiting == 0


@pytest.mark.parametrize("grace", [None, PATIENCE])
async def test_late_job_in_a_callback_stays_there(context: WorkerContext, line: Lifeline, grace: float | None) -> None:
    """The callback is cancelled at the deadline, but the stacks show the job where it was."""
    cancelled = trio.Event()

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with pytest.raises(trio_offload.WorkerTimeoutError) as caught:
        await context.run_sync(jobs.call_back_and_tell, line.path, callback(wait), timeout=0.3, grace=grace)
    assert cancelled.is_set()
    assert caught.value.crash is not None
    assert "in call_back_and_tell" in caught.value.crash.stack
    assert "in go_on" not in caught.value.crash.stack
    # Only with a grace is it told, once the stacks are written.
    assert (await line.ended())[1:] == ([] if grace is None else ["Cancelled"])
    assert len(WAITS) == 0


async def test_no_async_callback_of_a_late_job_is_left_unawaited(context: WorkerContext) -> None:
    """What a job has said counts, also if it is read after its caller's wait."""

    async def note() -> None:
        await trio.lowlevel.checkpoint()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(trio_offload.WorkerTimeoutError):
            await context.run_sync(jobs.call_back_until_killed, callback(note, wait=False), timeout=0.3)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def test_value_of_a_late_job_is_dropped(context: WorkerContext, line: Lifeline) -> None:
    with pytest.raises(trio_offload.WorkerTimeoutError):
        await context.run_sync(jobs.swallow_cancelled, line.path, timeout=0.3, grace=PATIENCE)
    assert (await line.ended())[-1] == "Cancelled"


async def test_running_items_of_a_map_are_told(context: WorkerContext, line: Lifeline) -> None:
    function = functools.partial(jobs.hold_with_clean_up, line.path)
    async with context.map(function, range(10), workers=2, grace=PATIENCE):
        await line.pid()
        await line.pid()
    assert sorted(await line.ended()) == ["cancelled 0", "cancelled 1"]


async def test_item_that_timed_out_is_told(context: WorkerContext, line: Lifeline) -> None:
    function = functools.partial(jobs.hold_with_clean_up, line.path)
    with pytest.raises(trio_offload.WorkerTimeoutError):
        async with context.map(function, [7], timeout=0.1, grace=PATIENCE) as results:
            async for _ in results:
                pass
    assert (await line.ended())[-1] == "cancelled 7"


@pytest.mark.parametrize("value", [-1, float("nan"), "1", True])
async def test_wrong_grace(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="grace must be"):
        await trio_offload.run_sync(jobs.double, 1, grace=value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("WouldBlock", trio.WouldBlock),
        ("EndOfChannel", trio.EndOfChannel),
        ("BrokenResourceError", trio.BrokenResourceError),
        ("ClosedResourceError", trio.ClosedResourceError),
        ("AbandonedLockError", trio_offload.AbandonedLockError),
        ("DeadlockError", trio_offload.DeadlockError),
        ("BrokenBarrierError", trio_offload.BrokenBarrierError),
    ],
)
async def test_errors_of_jobs_become_those_of_their_parent(name: str, kind: type[Exception]) -> None:
    async with open_worker_context() as context:
        with pytest.raises(kind, match="told by a job") as caught:
            await context.run_sync(jobs.raise_for_the_parent, name)
    assert caught.traceback[-1].name == "raise_for_the_parent"
