"""End to end: the spans of calls and of their jobs, with each kind of worker and each way a call may end."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import memory_jobs
import outcome
import pytest
import telemetry_jobs
import trio
from kinds import type_of
from lifeline import PATIENCE, Lifeline, wait_for_end
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode
from telemetry_support import Spans, parent_id, span_id

import trio_offload
from trio_offload import WorkerContext, open_worker_context, telemetry


async def test_a_call_has_a_span_and_its_job_a_child(kind: str, spans: Spans) -> None:
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        for _ in range(2):
            spans.exporter.clear()
            with spans.tracer.start_as_current_span("user") as user:
                begun, ended = await pool.run_sync(telemetry_jobs.times)
            call, job = spans.one("call telemetry_jobs.times"), spans.one("run telemetry_jobs.times")
            assert parent_id(call) == format(user.get_span_context().span_id, "016x")
            assert parent_id(job) == span_id(call)
            # The worker's own times.
            assert call.start_time <= job.start_time <= begun <= ended <= job.end_time <= call.end_time
        (worker,) = pool.statistics().workers
    assert dict(call.attributes or {}) == {
        "code.function.name": "telemetry_jobs.times",
        "trio_offload.worker.type": type_of(kind).value,
        "trio_offload.outcome": "returned",
    }
    assert dict(job.attributes or {}) == {
        "code.function.name": "telemetry_jobs.times",
        "trio_offload.worker.type": type_of(kind).value,
        "process.pid": worker.pid,
    }
    assert call.status.status_code is job.status.status_code is StatusCode.UNSET


async def test_the_start_of_a_worker_is_a_child_of_its_call(kind: str, spans: Spans) -> None:
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        await pool.run_sync(abs, 1)
        await pool.run_sync(abs, 1)
        (worker,) = pool.statistics().workers
    start, first = spans.one("start worker"), spans.named("call abs")[0]
    assert parent_id(start) == span_id(first)
    assert first.start_time <= start.start_time < start.end_time <= first.end_time
    assert (start.attributes or {})["process.pid"] == worker.pid


async def test_a_start_for_later_calls_begins_no_trace(spans: Spans) -> None:
    async with open_worker_context() as pool:
        await pool.prewarm(1)
    assert spans.names() == []


async def test_code_of_a_job_sees_the_span_of_its_call(kind: str, spans: Spans) -> None:
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        # The worker has not imported OpenTelemetry at the first call, and has at the second.
        for index in range(2):
            trace_id, current, is_sampled = await pool.run_sync(telemetry_jobs.current_span)
            call = spans.named("call telemetry_jobs.current_span")[index]
            assert call.context is not None
            assert (trace_id, current, is_sampled) == (format(call.context.trace_id, "032x"), span_id(call), True)
        # The next job of the worker has the context of its own call only.
        telemetry.uninstrument()
        assert (await pool.run_sync(telemetry_jobs.current_span))[1] == "0" * 16


async def test_baggage_reaches_the_job(spans: Spans) -> None:
    token = context.attach(baggage.set_baggage("tenant", "Zürich, 7 = x"))
    try:
        async with open_worker_context() as pool:
            assert await pool.run_sync(telemetry_jobs.baggage) == {"tenant": "Zürich, 7 = x"}
    finally:
        context.detach(token)


async def test_a_worker_imports_opentelemetry_only_for_a_job_that_does(spans: Spans) -> None:
    async with open_worker_context() as pool:
        assert await pool.run_sync(telemetry_jobs.loads_opentelemetry) is False


async def test_a_trace_that_is_not_sampled_goes_on_as_such() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    telemetry.instrument(tracer_provider=provider)
    try:
        async with open_worker_context() as pool:
            trace_id, _, is_sampled = await pool.run_sync(telemetry_jobs.current_span)
    finally:
        telemetry.uninstrument()
    assert int(trace_id, 16)
    assert not is_sampled


# --- endings -------------------------------------------------------------------------------------


ENDINGS: list[tuple[str, str, Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
    ("raised", "ZeroDivisionError", telemetry_jobs.invert, (0,), {}, {}),
    ("raised", "trio_offload.JobExitError", sys.exit, (3,), {}, {}),
    ("died", "trio_offload.BrokenWorkerError", jobs.kill_self, (), {}, {}),
    ("timed_out", "trio_offload.WorkerTimeoutError", jobs.endless, (), {"timeout": 0.05}, {}),
    ("over_memory", "trio_offload.WorkerMemoryError", memory_jobs.grow_for_ever, (), {}, {"memory_limit": "150MiB"}),
]


@pytest.mark.parametrize(("how", "kind_of_error", "function", "args", "call_options", "options"), ENDINGS)
async def test_an_ending_is_told_by_both_spans(
    how: str,
    kind_of_error: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    call_options: dict[str, Any],
    options: dict[str, Any],
    spans: Spans,
) -> None:
    async with open_worker_context(**options) as pool:
        with trio.fail_after(PATIENCE):
            told = await outcome.acapture(partial(pool.run_sync, function, *args, **call_options))
    assert isinstance(told, outcome.Error)
    call, job = (span for span in spans.exporter.get_finished_spans()[::-1] if span.name != "start worker")
    assert (call.name, job.name) == (f"call {function.__module__}.{function.__name__}", f"run {call.name[5:]}")
    assert (call.attributes or {})["trio_offload.outcome"] == how
    for span in (call, job):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == kind_of_error
        assert str(told.error).splitlines()[0] in (span.status.description or "")
    assert parent_id(job) == span_id(call)
    assert call.start_time <= job.start_time < job.end_time <= call.end_time
    assert [event.name for event in call.events] == []
    crash = getattr(told.error, "crash", None)
    assert [event.name for event in job.events] == ["exception", *["trio_offload.crash"] * (crash is not None)]
    assert (job.events[0].attributes or {})["exception.type"] == kind_of_error
    if crash is not None:
        facts = job.events[1].attributes or {}
        assert facts["process.pid"] == (job.attributes or {})["process.pid"] == crash.pid
        assert facts.get("trio_offload.crash.stack", "") == crash.stack


@pytest.mark.parametrize("is_killed", [True, False])
async def test_a_cancelled_call_is_no_error(is_killed: bool, line: Lifeline, spans: Spans) -> None:
    async with open_worker_context() as pool:
        async with trio.open_nursery() as nursery:
            hold = partial(pool.run_sync, jobs.hold_for_ever, line.path)
            nursery.start_soon(partial(hold, kill_on_cancel=True) if is_killed else partial(hold, grace=0.05))
            await line.pid()
            nursery.cancel_scope.cancel()
    call, job = spans.one("call jobs.hold_for_ever"), spans.one("run jobs.hold_for_ever")
    assert (call.attributes or {})["trio_offload.outcome"] == "cancelled"
    assert call.status.status_code is job.status.status_code is StatusCode.UNSET
    assert list(call.events) == list(job.events) == []


async def test_a_call_cancelled_before_it_has_a_worker_has_no_job(spans: Spans) -> None:
    async with open_worker_context() as pool:
        with trio.move_on_after(PATIENCE) as scope:
            scope.cancel()
            await pool.run_sync(abs, 1)
    assert spans.names() == ["call abs"]
    assert (spans.one("call abs").attributes or {})["trio_offload.outcome"] == "cancelled"


async def test_a_start_that_fails_is_told_by_the_call(spans: Spans) -> None:
    async with open_worker_context(init=telemetry_jobs.refuse) as pool:
        with pytest.raises(trio_offload.WorkerStartError):
            await pool.run_sync(abs, 1)
    assert spans.names() == ["call abs", "start worker"]
    call = spans.one("call abs")
    assert (call.attributes or {})["trio_offload.outcome"] == "not_run"
    assert (call.attributes or {})["error.type"] == "trio_offload.WorkerStartError"
    assert [event.name for event in call.events] == ["exception"]


async def test_arguments_that_cannot_be_pickled_are_told_by_the_call(spans: Spans) -> None:
    async with open_worker_context() as pool:
        with pytest.raises(TypeError):
            await pool.run_sync(str, threading.Lock())
    assert spans.names() == ["call str"]
    assert (spans.one("call str").attributes or {})["trio_offload.outcome"] == "not_run"


async def test_a_call_that_goes_to_another_worker_says_so(spans: Spans) -> None:
    async with open_worker_context() as pool:
        lost = await pool.run_sync(os.getpid)
        os.kill(lost, signal.SIGKILL)
        wait_for_end(lost)
        other = await pool.run_sync(os.getpid)
    call, job = spans.named("call posix.getpid")[1], spans.named("run posix.getpid")[1]
    assert [(event.name, dict(event.attributes or {})) for event in call.events] == [
        ("trio_offload.call.resent", {"process.pid": lost})
    ]
    assert (job.attributes or {})["process.pid"] == other != lost
    assert parent_id(job) == span_id(call)


# --- what a traced call leaves as it is -----------------------------------------------------------


async def test_a_traced_call_returns_the_same(kind: str, spans: Spans) -> None:
    large = bytes(range(256)) * 8192
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        assert await pool.run_sync(math.sqrt, 4) == 2
        assert await pool.run_sync(jobs.echo, large) == large
        assert await pool.run_sync(jobs.echo, bytearray(large)) == bytearray(large)
        assert await pool.run_sync(jobs.echo, [large, 1, [large, "x"], "x"]) == [large, 1, [large, "x"], "x"]
        assert await pool.run_sync(partial(max, 3), 1) == 3
        assert await pool.run_sync(lambda: large[:3]) == large[:3]
        assert await pool.run_sync(jobs.echo, 7, timeout=PATIENCE) == 7
        async with trio.open_nursery() as nursery:
            limiter = trio_offload.CapacityLimiter(1)
            nursery.start_soon(partial(pool.run_sync, jobs.echo, 1, limiter=limiter))
    # A limiter of one's own makes no second span.
    assert len(spans.named("call jobs.echo")) == len(spans.named("run jobs.echo")) == 5


async def test_a_builtin_function_sees_the_main_module(kind: str, spans: Spans) -> None:
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        name = await pool.run_sync(eval, "__name__")
    assert name in ("__main__", "__mp_main__")


async def test_the_traceback_of_a_job_begins_in_its_code(spans: Spans) -> None:
    async with open_worker_context() as pool:
        with pytest.raises(ZeroDivisionError) as told:
            await pool.run_sync(telemetry_jobs.invert, 0)
    assert told.traceback[-1].name == "invert"
    assert "traced_calls" not in "".join(str(entry.path) for entry in told.traceback)


async def test_an_async_function_that_hides_is_named(spans: Spans) -> None:
    async with open_worker_context() as pool:
        with pytest.raises(TypeError, match="<function call at"):
            await pool.run_sync(jobs.call, trio.sleep, 1)
    assert (spans.one("call jobs.call").attributes or {})["error.type"] == "TypeError"


async def test_a_copy_that_a_job_forks_tells_no_times(spans: Spans) -> None:
    async with open_worker_context() as pool:
        await pool.run_sync(telemetry_jobs.child_of_job)
    call, job = spans.one("call telemetry_jobs.child_of_job"), spans.one("run telemetry_jobs.child_of_job")
    assert call.start_time <= job.start_time < job.end_time <= call.end_time


async def test_a_function_whose_name_has_a_line_break_is_traced(spans: Spans) -> None:
    class Odd:
        def __reduce__(self) -> Any:
            return partial, (abs,)

        def __call__(self, number: int) -> int:
            return abs(number)

        def __repr__(self) -> str:
            return "two\nlines"

    async with open_worker_context() as pool:
        assert await pool.run_sync(Odd(), -3) == 3
    assert any(name.startswith("run ") for name in spans.names())


def test_switched_off_everything_is_as_before(tmp_path: Path) -> None:
    from trio_offload._actors.host import ActorHost
    from trio_offload._actors.job_calls import JobCalls
    from trio_offload._pool.pool import WorkerPool
    from trio_offload._worker import callbacks
    from trio_offload._worker.call_sender import CallSender
    from trio_offload._worker.worker import Worker

    owners = (WorkerContext, WorkerPool, CallSender, Worker, ActorHost, JobCalls)
    before = [dict(vars(owner)) for owner in owners]
    telemetry.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))
    telemetry.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))
    assert [dict(vars(owner)) for owner in owners] != before
    telemetry.uninstrument()
    telemetry.uninstrument()
    assert [dict(vars(owner)) for owner in owners] == before
    assert callbacks.observe is None
