"""Progress of jobs, end to end: shown while they run, with the last step always, in workers of every kind and in threads."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import progress_jobs as jobs
import pytest
import trio
import trio.testing
from lifeline import PATIENCE, Lifeline

import trio_offload
from trio_offload import BrokenWorkerError, JobProgress, WorkerContext, WorkerTimeoutError, WorkerType, open_worker_context
from trio_offload._worker import watch

STEPS: Final = [(number, 5) for number in range(1, 6)]
LAST: Final = (5, 5, None)

setting: Final = contextvars.ContextVar("setting", default="unset")


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


class Shown:
    """A function for `progress`. It keeps its arguments, and sets an event at a certain step."""

    def __init__(self, awaited: tuple[Any, ...] | None = None) -> None:
        self.steps: list[tuple[Any, ...]] = []
        self.event = trio_offload.Event()
        self._awaited = awaited

    def __call__(self, done: float, total: float | None, note: str | None) -> None:
        self.steps.append((done, total, note))
        if (done, total, note) == self._awaited:
            self.event.set()


# --- while a job runs ----------------------------------------------------------------------------


async def test_steps_are_shown_while_the_job_runs(context: WorkerContext) -> None:
    shown = Shown(LAST)
    assert await context.run_sync(jobs.tell_and_wait, STEPS, shown.event, progress=shown) == "seen"
    assert shown.steps[-1] == LAST
    assert shown.steps == sorted(shown.steps)


async def test_each_change_is_shown_once(context: WorkerContext) -> None:
    steps = [(1, None, None), (1, None, "halt"), (2, None, None), (2, 4.5, "on"), (2, 4.5, "on"), (0.5, 4.5, None)]
    expected = [(1, None, None), (1, None, "halt"), (2, None, "halt"), (2, 4.5, "on"), (0.5, 4.5, "on")]
    shown = Shown()
    changed = trio.Event()

    def show(*step: Any) -> None:
        nonlocal changed
        shown(*step)
        changed.set()
        changed = trio.Event()

    async def wait() -> None:
        if shown.steps != expected[:4]:
            await changed.wait()

    # One step is a repetition, which nobody hears of.
    await context.run_sync(jobs.tell_each_and_wait, [*steps[:4], *steps[5:]], trio_offload.callback(wait), progress=show)
    assert shown.steps == expected


async def test_last_step_of_a_quick_job_is_shown(context: WorkerContext) -> None:
    for number in (1, 1000):
        shown = Shown()
        steps = [(step, number, f"step {step}") for step in range(number + 1)]
        assert await context.run_sync(jobs.tell, steps, progress=shown) == number + 1
        assert shown.steps[-1] == (number, number, f"step {number}")
    shown = Shown()
    assert await context.run_sync(jobs.track_all, 100, progress=shown) == 4950
    assert shown.steps[-1] == (100, 100, None)


async def test_job_without_progress_shows_nothing(context: WorkerContext) -> None:
    await context.run_sync(jobs.tell, STEPS)
    shown = Shown()
    assert await context.run_sync(abs, -3, progress=shown) == 3
    assert await context.run_sync(abs, -3, progress=None) == 3
    assert shown.steps == []


async def test_clock_of_the_machine_counts(autojump_clock: trio.testing.MockClock) -> None:
    shown = Shown(LAST)
    async with open_worker_context() as context:
        assert await context.run_sync(jobs.tell_and_wait, STEPS, shown.event, progress=shown) == "seen"


async def test_function_runs_in_the_callers_context(context: WorkerContext) -> None:
    setting.set("the caller's")
    seen = []

    def show(done: float, total: float | None, note: str | None) -> None:
        seen.append(setting.get())
        setting.set("the function's")

    await context.run_sync(jobs.tell, STEPS, progress=show)
    assert seen
    assert set(seen) == {"the caller's"}
    assert setting.get() == "the caller's"


async def test_of_a_job_that_tells_of_a_job(context: WorkerContext) -> None:
    shown = Shown()
    assert await context.run_sync(jobs.pass_on, [*STEPS, (5, 5, "inner")], progress=shown) == 6
    assert shown.steps[-1] == (5, 5, "inner")


async def test_thread_of_an_earlier_job_is_not_heard() -> None:
    async with open_worker_context() as context:
        await context.run_sync(jobs.leave_a_thread)
        shown = Shown()
        await context.run_sync(jobs.tell_beside_the_thread, progress=shown)
        assert shown.steps[-1] == (5, 10, None)


async def test_copy_of_a_worker_is_not_heard(context: WorkerContext) -> None:
    shown = Shown()
    assert await context.run_sync(jobs.tell_in_a_copy, [(1, 3), (2, 3), (3, 3, "a copy")], progress=shown) == 7
    assert shown.steps[-1] == (1, 3, None)


async def test_parts_of_a_step_belong_together(context: WorkerContext, line: Lifeline) -> None:
    """Each step of the busy job changes all of them, and the worker is killed in the middle."""
    seen: list[tuple[Any, ...]] = []

    def show(*step: Any) -> None:
        seen.append(step)
        looks = [worker.progress for _ in range(300) for worker in context.statistics().workers]
        seen.extend((look.done, look.total, look.note) for look in looks if look is not None)
        if len(seen) > 1000:
            scope.cancel()

    with trio.CancelScope() as scope:
        await context.run_sync(jobs.tell_related_numbers, line.path, progress=show, kill_on_cancel=True)
    assert scope.cancelled_caught
    await line.ended()
    assert [step for step in seen if step != (step[0], 2 * step[0], str(3 * step[0]))] == []
    assert seen[-1][0] > 0


# --- in a job that does not return ---------------------------------------------------------------


async def test_last_step_before_an_exception(context: WorkerContext) -> None:
    shown = Shown()
    with pytest.raises(LookupError, match="after the steps"):
        await context.run_sync(jobs.tell_and_raise, STEPS, progress=shown)
    assert shown.steps[-1] == LAST


async def test_last_step_before_a_death(context: WorkerContext) -> None:
    shown = Shown()
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.tell_and_die, [*STEPS, (6, 5, "last words")], progress=shown)
    assert shown.steps[-1] == (6, 5, "last words")


async def test_last_step_before_a_timeout(context: WorkerContext, line: Lifeline) -> None:
    shown = Shown()
    with pytest.raises(WorkerTimeoutError):
        await context.run_sync(jobs.tell_and_hang, STEPS, line.path, progress=shown, timeout=0.3)
    assert (await line.ended())[1:] == ["told"]
    assert shown.steps[-1] == LAST


async def test_last_step_before_a_cancellation(context: WorkerContext, line: Lifeline) -> None:
    shown = Shown()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: context.run_sync(jobs.tell_and_hang, STEPS, line.path, progress=shown, kill_on_cancel=True)
            )
            await line.pid()
            assert await line.line() == "told"
            scope.cancel()
    assert scope.cancelled_caught
    assert await line.ended() == []
    assert shown.steps[-1] == LAST


async def test_job_that_goes_on_after_a_cancellation_is_still_shown(context: WorkerContext, line: Lifeline) -> None:
    shown = Shown(LAST)
    results = []

    async def call() -> None:
        job = jobs.tell_until_cancelled
        results.append(await context.run_sync(job, STEPS, line.path, shown.event, progress=shown))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await line.pid()
        nursery.cancel_scope.cancel()
    assert results == ["finished"]
    assert shown.steps[-1] == LAST


# --- errors of the function ----------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"timeout": 1000}, {"grace": 1000}, {"kill_on_cancel": True}])
async def test_error_of_the_function_ends_the_job(context: WorkerContext, line: Lifeline, more: dict[str, Any]) -> None:
    def fail(*step: Any) -> None:
        raise LookupError("not shown")

    with pytest.raises(LookupError, match="not shown"):
        await context.run_sync(jobs.tell_and_hang, STEPS, line.path, progress=fail, **more)
    await line.ended()
    counters = context.statistics().counters
    assert (counters.calls_cancelled, counters.calls_died, counters.workers_killed) == (1, 0, 1)
    assert await context.run_sync(abs, -1) == 1


async def test_error_of_the_function_at_the_last_step(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    # A look while the job runs would end the worker.
    monkeypatch.setattr(watch, "INTERVAL", 1000)

    def fail(*step: Any) -> None:
        raise LookupError("not shown")

    with pytest.raises(LookupError, match="not shown"):
        await context.run_sync(jobs.tell, STEPS, progress=fail)
    # The worker has done its job.
    (worker,) = context.statistics().workers
    assert (worker.jobs, worker.state) == (1, "idle")


async def test_error_of_the_function_after_a_cancellation(context: WorkerContext, line: Lifeline) -> None:
    """The job has been told, and its caller waits behind a shield."""

    def fail_at_the_end(done: float, total: float | None, note: str | None) -> None:
        if done == 5:
            raise LookupError("not shown")

    errors = []

    async def call() -> None:
        with pytest.raises(LookupError, match="not shown") as caught:
            await context.run_sync(
                jobs.tell_until_cancelled, STEPS, line.path, trio_offload.Event(), progress=fail_at_the_end
            )
        errors.append(caught)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await line.pid()
        nursery.cancel_scope.cancel()
    assert len(errors) == 1
    await line.ended()
    assert await context.run_sync(abs, -1) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_ctrl_c_in_the_function(error: type[BaseException], line: Lifeline) -> None:
    def fail(*step: Any) -> None:
        raise error

    async with open_worker_context() as context:
        with pytest.raises(error):
            await context.run_sync(jobs.tell_and_hang, STEPS, line.path, progress=fail)
        await line.ended()


async def test_wrong_function() -> None:
    wrong: Any = 5
    async with open_worker_context() as context:
        with pytest.raises(TypeError, match="progress must be a callable with three arguments, got 5"):
            await context.run_sync(abs, -1, progress=wrong)
        with pytest.raises(TypeError, match="progress must be a synchronous function, got the asynchronous <function show"):
            await context.run_sync(abs, -1, progress=show_later)


async def show_later(done: float, total: float | None, note: str | None) -> None: ...


# --- elsewhere -----------------------------------------------------------------------------------


async def test_statistics_have_it(context: WorkerContext) -> None:
    seen: list[Any] = []

    def show(*step: Any) -> None:
        seen.append([worker.progress for worker in context.statistics().workers])
        event.set()

    event = trio_offload.Event()
    await context.run_sync(jobs.tell_and_wait, [(3, 4, "look")], event, progress=show)
    assert seen[0] == [JobProgress(3, 4, "look")]
    assert [worker.progress for worker in context.statistics().workers] == [None]

    async def look() -> None:
        seen.append([worker.progress for worker in context.statistics().workers])

    wait: Callable[[], Any] = trio_offload.callback(look)
    await context.run_sync(jobs.tell_each_and_wait, [(0.5,), (1, 2)], wait)
    assert seen[-2:] == [[JobProgress(0.5, None, None)], [JobProgress(1, 2, None)]]


async def test_of_a_stream(context: WorkerContext) -> None:
    shown = Shown()
    async with context.stream(jobs.yield_and_tell, 100, progress=shown) as numbers:
        assert [number async for number in numbers] == list(range(100))
    assert shown.steps[-1] == (100, 100, None)


async def test_error_of_the_function_ends_a_stream(context: WorkerContext) -> None:
    def fail(*step: Any) -> None:
        raise LookupError("not shown")

    async with context.stream(jobs.yield_and_tell, 10**9, progress=fail) as numbers:
        with pytest.raises(LookupError, match="not shown"):
            async for _ in numbers:
                pass
    wrong: Any = 5
    with pytest.raises(TypeError, match="progress must be a callable with three arguments, got 5"):
        context.stream(jobs.yield_and_tell, 10, progress=wrong)
    with pytest.raises(TypeError, match="progress must be a synchronous function"):
        context.stream(jobs.yield_and_tell, 10, progress=show_later)


async def test_in_a_thread() -> None:
    assert await trio.to_thread.run_sync(jobs.tell, [*STEPS, (5, 5, "note")]) == 6
    assert await trio.to_thread.run_sync(jobs.track_all, 100) == 4950
