"""End to end: a job that times out, and the stack of where it was."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import signal
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import timeout_jobs
import trio
import trio.testing
from fakes import Plan, pass_gate
from lifeline import PATIENCE, Gate, Lifeline, until_stopped
from workers import start_worker

from trio_offload import (
    WorkerContext,
    WorkerTimeoutError,
    WorkerType,
    _clock,
    open_worker_context,
    retire_when,
    run_sync,
)
from trio_offload._pickling.calls import dump_call
from trio_offload._pool import timed_call
from trio_offload._process import stacks
from trio_offload._process.process import WorkerProcess
from trio_offload._process.record import RecordFile
from trio_offload._worker import time_limit
from trio_offload_worker._system.linux import STACKS

TIMEOUT = 1000.0  # of calls whose time the test ends itself


class Times:
    """The deadlines of calls. They pass when the test says so."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.scopes: list[trio.CancelScope] = []

    def move_on_after(self, seconds: float) -> trio.CancelScope:
        self.begun.append(seconds)
        self.scopes.append(trio.CancelScope())
        return self.scopes[-1]

    def end(self) -> None:
        self.scopes[-1].cancel()


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    times = Times()
    clock = types.SimpleNamespace(now=_clock.now, move_on_after=times.move_on_after)
    monkeypatch.setattr(time_limit, "_clock", clock)
    return times


async def timed_out(context: WorkerContext, times: Times, line: Lifeline, job: Callable[..., Any]) -> WorkerTimeoutError:
    """The error of a job whose time ends when it has taken its line."""
    errors: list[WorkerTimeoutError] = []

    async def call() -> None:
        with pytest.raises(WorkerTimeoutError) as told:
            await context.run_sync(job, line.path, timeout=TIMEOUT)
        errors.append(told.value)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            pid = await line.pid()
            if job is timeout_jobs.stop:
                await until_stopped(pid)
            times.end()
        await line.ended()
    return errors[0]


# --- the stack -----------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [jobs.hold_for_ever, jobs.spin, jobs.hold_the_gil])
async def test_a_timeout_tells_where_the_job_was(of_any_kind: WorkerType, times: Times, line: Lifeline, job: Any) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        pid = await context.run_sync(os.getpid)
        error = await timed_out(context, times, line, job)
        crash = error.crash
        assert crash is not None
        assert (crash.pid, crash.exitcode, crash.signal) == (pid, -signal.SIGKILL, signal.SIGKILL)
        assert (error.timeout, crash.timeout, crash.stack_problem) == (TIMEOUT, TIMEOUT, "")
        assert f"in {job.__name__}" in crash.stack
        assert crash.function == f"jobs.{job.__name__}"
        assert 0 <= crash.age < PATIENCE
        assert crash.rss is not None
        assert str(error).startswith(f"jobs.{job.__name__} timed out: it took more than 1000 seconds")
        shown = "".join(traceback.format_exception(error))
        assert "Python stack at the timeout:" in shown
        assert f"in {job.__name__}" in shown
        assert await context.run_sync(jobs.echo, 5) == 5
        assert pickle.loads(pickle.dumps(error)).crash == crash


NO_STACK: list[Any] = [
    (timeout_jobs.stop, "the worker was stopped"),
    (timeout_jobs.block_the_signal, "the job blocks the signal that asks for it"),
    (timeout_jobs.ignore_the_signal, "the job has removed the handler that writes it"),
    (timeout_jobs.let_the_signal_kill, "the job has removed the handler that writes it"),
    (timeout_jobs.replace_the_handler, "the worker did not write it within 0.15 seconds"),
    (timeout_jobs.close_the_record, "the job has closed the file for it"),
    (timeout_jobs.end_itself, "the worker ended by itself at that moment"),
]


@pytest.mark.parametrize(("job", "problem"), NO_STACK)
async def test_without_a_stack_it_says_why_and_nothing_is_left(
    of_any_kind: WorkerType, times: Times, line: Lifeline, job: Any, problem: str
) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        error = await timed_out(context, times, line, job)
        assert error.crash is not None
        assert error.crash.stack == ""
        assert problem in error.crash.stack_problem
        assert f"No Python stack: {problem}" in "".join(traceback.format_exception(error))
        assert error.crash.signal is signal.SIGKILL
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_the_record_is_kept_and_the_trace_has_the_name(times: Times, line: Lifeline, tmp_path: Path) -> None:
    folder, trace = tmp_path / "crashes", tmp_path / "trace.json"
    async with open_worker_context(crash_dir=folder, trace=trace) as context:
        error = await timed_out(context, times, line, jobs.hold_for_ever)
    assert error.crash is not None
    (path,) = folder.iterdir()
    assert json.loads(path.read_text()) == error.crash.as_dict()
    assert error.crash.as_dict()["timeout"] == TIMEOUT
    outcomes = [event["args"]["outcome"] for event in json.loads(trace.read_text()) if event.get("cat") == "job"]
    assert outcomes == ["WorkerTimeoutError"]


async def test_an_item_of_a_map_has_it_too(times: Times, line: Lifeline) -> None:
    async with open_worker_context() as context:
        async with context.map(jobs.hold_for_ever, [line.path], timeout=TIMEOUT) as results:
            await line.pid()
            times.end()
            with pytest.raises(WorkerTimeoutError) as told:
                await anext(results)
    assert told.value.crash is not None
    assert "in hold_for_ever" in told.value.crash.stack
    assert (told.value.item_index, told.value.crash.item_index) == (0, 0)


async def test_the_wait_for_a_stack_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps the worker from writing it."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(stacks, "_clock", types.SimpleNamespace(now=lambda: now, sleep=sleep))
    deaf = types.SimpleNamespace(pid=os.getpid(), send=lambda _: True, poll=lambda: False, ended=False)
    before = signal.signal(STACKS, lambda *_: None)
    record = RecordFile()
    try:
        problem = await stacks.write_stacks(deaf, record)  # type: ignore[arg-type]
        assert problem == "the worker did not write it within 0.15 seconds"
        assert now == pytest.approx(stacks.STACKS_TIMEOUT, abs=0.002)
        deaf.send = lambda _: bool(os.write(record.fileno(), b"x"))
        now = 0.0
        assert await stacks.write_stacks(deaf, record) == ""  # type: ignore[arg-type]
        assert now == pytest.approx(0.016, abs=0.002)
    finally:
        record.close()
        signal.signal(STACKS, before)


# --- cancellation --------------------------------------------------------------------------------


async def test_a_cancellation_does_not_wait_for_the_stack(
    of_any_kind: WorkerType, times: Times, line: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "STACKS_TIMEOUT", math.inf)
    asked, send = trio.Event(), WorkerProcess.send

    def send_and_tell(process: WorkerProcess, number: int) -> bool:
        asked.set()
        return send(process, number)

    monkeypatch.setattr(WorkerProcess, "send", send_and_tell)
    async with open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as calls:

                    async def call() -> None:
                        job = timeout_jobs.block_the_signal
                        await context.run_sync(job, line.path, timeout=TIMEOUT, kill_on_cancel=True)

                    calls.start_soon(call)
                    await line.pid()
                    times.end()
                    await asked.wait()
                    calls.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
            await line.ended()


@pytest.mark.parametrize("kills", [True, False])
async def test_a_timeout_and_a_cancellation_at_once(times: Times, line: Lifeline, kills: bool) -> None:
    """The cancellation wins, unless the call ignores it."""
    errors: list[WorkerTimeoutError] = []
    async with open_worker_context() as context:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    try:
                        await context.run_sync(jobs.hold_for_ever, line.path, timeout=TIMEOUT, kill_on_cancel=kills)
                    except WorkerTimeoutError as error:
                        errors.append(error)

                nursery.start_soon(call)
                await line.pid()
                nursery.cancel_scope.cancel()
                times.end()
            await line.ended()
    assert ["in hold_for_ever" in error.crash.stack for error in errors if error.crash] == ([] if kills else [True])


# --- the time ------------------------------------------------------------------------------------


async def test_an_answer_that_has_arrived_counts_after_the_time() -> None:
    worker = await start_worker(math.inf)
    try:
        worker.submit(dump_call(jobs.echo, (5,)))
        worker.flush()
        assert worker._channel is not None
        await trio.lowlevel.wait_readable(worker._channel._socket)
        assert await time_limit.answer_in_time(worker, _clock.now() - 10, 1) == (5, None)
    finally:
        await worker.end()


async def test_the_time_begins_when_the_function_is_imported(
    of_any_kind: WorkerType, times: Times, line: Lifeline, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while the call waits for a token, a worker or an import."""
    source = f"import jobs\nif __import__('os').getpid() != {os.getpid()}: jobs.pass_gate({line.path!r}, {gate.path!r})\n"
    (tmp_path / "slowly_imported.py").write_text(source + "def echo(value):\n    return value\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slowly_imported", raising=False)
    limiter = trio.CapacityLimiter(1)
    results: list[Any] = []
    async with open_worker_context(worker_type=of_any_kind) as context:
        # A fork has what this program has imported.
        await context.run_sync(bool)
        import slowly_imported  # type: ignore[import-not-found]

        async def call() -> None:
            results.append(await context.run_sync(slowly_imported.echo, 5, timeout=TIMEOUT, limiter=limiter))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                async with limiter:
                    nursery.start_soon(call)
                    await trio.testing.wait_all_tasks_blocked()
                    assert times.begun == []
                await line.pid()
                assert times.begun == []
                gate.open()
        assert results == [5]
        assert times.begun == [pytest.approx(TIMEOUT, abs=PATIENCE)]


async def test_the_import_is_asked_for_once(plan: Plan) -> None:
    for item in (1, 2):
        plan.gate(item).set()
    assert await run_sync(pass_gate, 1, timeout=TIMEOUT) == 1
    assert await run_sync(pass_gate, 2, timeout=TIMEOUT) == 2
    assert len(plan.workers) == 1
    assert len(plan.calls) == 3


class Data:
    """A large object. Its pickle would be sent twice."""

    def method(self) -> int:
        return 5

    __call__ = method


class Delegate(Data):
    """Pickles as something else."""

    def __reduce__(self) -> tuple[Any, ...]:
        return jobs.make_function, (5,)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (jobs.echo, jobs.echo),
        (jobs.cached, jobs.cached),
        (functools.partial(functools.partial(jobs.echo, bytes(10**6)), 5), jobs.echo),
        (Data().method, Data),
        (Data(), Data),
        (Data, Data),
        (Delegate(), None),
        (math.sqrt, math.sqrt),
        ("x".join, str),
        (dict.fromkeys, dict),
    ],
)
def test_what_a_worker_imports_before_the_time_begins(function: Any, part: Any) -> None:
    """The function or its class, without the data that it is bound to."""
    assert timed_call._importable_part(function) is part


async def test_objects_of_all_kinds_are_called_in_time() -> None:
    async with open_worker_context() as context:
        for _ in range(2):
            assert await context.run_sync(jobs.cached, 5, timeout=TIMEOUT) == 5
            assert await context.run_sync(Data().method, timeout=TIMEOUT) == 5
            assert await context.run_sync("-".join, ["a", "b"], timeout=TIMEOUT) == "a-b"
            assert await context.run_sync(Unhashable(), timeout=TIMEOUT) == 5


class Unhashable(Data):
    """Has no hash."""

    __slots__ = ("__qualname__",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.__qualname__ = "Unhashable"


async def test_workers_retire_as_without_a_timeout() -> None:
    async with open_worker_context(retire=retire_when(jobs=2)) as context:
        pids = [await context.run_sync(os.getpid, timeout=TIMEOUT) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize("forever", [None, math.inf])
async def test_without_a_limit_there_is_no_deadline(times: Times, forever: float | None) -> None:
    async with open_worker_context() as context:
        assert await context.run_sync(jobs.echo, 5, timeout=forever) == 5
        with pytest.raises(ValueError, match="no"):
            await context.run_sync(jobs.raise_it, ValueError("no"), timeout=TIMEOUT)
    assert len(times.begun) == 1


@pytest.mark.parametrize(("wrong", "kind"), [(0, ValueError), (-1, ValueError), (math.nan, ValueError), ("3", TypeError)])
async def test_a_timeout_is_a_positive_number_of_seconds(wrong: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^timeout must be"):
        await run_sync(bool, timeout=wrong)
