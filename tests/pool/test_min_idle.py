"""Workers that are kept ready for the next calls, with real workers and with fakes."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from fakes import Plan
from kinds import environment_of, type_of, use_loops
from lifeline import PATIENCE, Gate, Lifeline
from running import run_script
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_offload import (
    BrokenWorkerError,
    WorkerContext,
    WorkerStartError,
    cache_scope,
    default_context_statistics,
    open_worker_context,
    retire_when,
)
from trio_offload._pool import keeper


def idle_pids(context: WorkerContext) -> set[int]:
    return {worker.pid for worker in context.statistics().workers if worker.state == "idle"}


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)


def fail_from_second(path: str) -> None:
    """The first worker that calls this is the last to start."""
    with open(path, "x") as file:
        file.write("one")


async def test_it_has_them_when_it_opens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "loop":
        use_loops(monkeypatch)
    async with open_worker_context(min_idle=2, worker_type=type_of(kind)) as context:
        await until(lambda: context.statistics().idle_workers == 2)
        ready = idle_pids(context)
        assert await context.run_sync(os.getpid) in ready


async def test_one_that_is_taken_is_replaced_while_its_call_runs(
    kind: str, monkeypatch: pytest.MonkeyPatch, line: Lifeline, gate: Gate
) -> None:
    if kind == "loop":
        use_loops(monkeypatch)
    async with open_worker_context(min_idle=1, worker_type=type_of(kind)) as context:
        await until(lambda: context.statistics().idle_workers == 1)
        ready = idle_pids(context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.pass_gate, line.path, gate.path)
            assert await line.pid() in ready
            await until(lambda: context.statistics().idle_workers == 1)
            assert not idle_pids(context) & ready
            gate.open()


async def test_one_that_dies_in_a_call_is_replaced(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "loop":
        use_loops(monkeypatch)
    async with open_worker_context(min_idle=1, worker_type=type_of(kind)) as context:
        for _ in range(3):
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(jobs.kill_self)
        await until(lambda: context.statistics().idle_workers >= 1)


async def test_one_that_dies_idle_is_replaced_without_a_call() -> None:
    async with open_worker_context(min_idle=1) as context:
        await until(lambda: context.statistics().idle_workers == 1)
        (before,) = idle_pids(context)
        os.kill(before, signal.SIGKILL)
        # Only the task looks. `statistics` would notice it too.
        await until(lambda: len(context._cache) == 1 and context._cache._idle[0].process.pid != before)
        assert before not in idle_pids(context)


async def test_one_that_retires_is_replaced() -> None:
    async with open_worker_context(min_idle=1, retire=retire_when(jobs=1)) as context:
        pids = set()
        for _ in range(4):
            await until(lambda: context.statistics().idle_workers >= 1)
            ready = idle_pids(context)
            pid = await context.run_sync(os.getpid)
            assert pid in ready
            pids.add(pid)
        assert len(pids) == 4


async def test_those_that_are_kept_do_not_time_out_and_others_do(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_INTERVAL", 0.001)
    async with open_worker_context(0, min_idle=2) as context:
        await wait_all_tasks_blocked()
        await context.prewarm(5)
        for worker in plan.workers:
            worker.expires_at = -math.inf
        await until(lambda: len(context._cache) == 2)
        # The two that worked last.
        assert [worker.state.name for worker in plan.workers].count("IDLE") == 2
        assert len(plan.workers) == 5


async def test_prewarming_needs_only_those_above(plan: Plan) -> None:
    async with open_worker_context(min_idle=3) as context:
        await wait_all_tasks_blocked()
        assert await context.prewarm(3) == 0
        assert await context.prewarm(5) == 2
        await wait_all_tasks_blocked()
        assert len(plan.workers) == context.statistics().idle_workers == 5


async def test_closed_while_they_start(line: Lifeline) -> None:
    # Each says that it is there, and its init does not return.
    with trio.fail_after(PATIENCE):
        async with open_worker_context(min_idle=2, init=_init_of(line.path)):
            await line.line()
        await line.ended()


class _init_of:  # noqa: N801
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        jobs.hold_for_ever(self.path)


async def test_a_start_that_fails_is_put_off_and_logged_once(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    plan.fail_start = WorkerStartError("it did not start")
    async with open_worker_context(min_idle=3) as context:
        await wait_all_tasks_blocked()
        begun = len(plan.workers)
        assert begun == 3
        for _ in range(5):
            # The call tries by itself, and says why not.
            with pytest.raises(WorkerStartError, match="it did not start"):
                await context.run_sync(bool)
            await wait_all_tasks_blocked()
        assert len(plan.workers) == begun + 5
        keeping = context._pool.keeper
        assert keeping is not None
        # The next try is one worker, and later than the last.
        keeping._retry_at = 0
        keeping._wake()
        await wait_all_tasks_blocked()
        assert len(plan.workers) == begun + 6
        assert keeping._delay == 2
        plan.fail_start = None
        keeping._retry_at = 0
        keeping._wake()
        await wait_all_tasks_blocked()
        assert context.statistics().idle_workers == 3
        await context.run_sync(bool)
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    (line,) = logged
    assert line == (
        "no idle worker could be started for min_idle: it did not start. The next attempt is in 1 seconds, later ones up to "
        "60 seconds apart"
    )


async def test_the_delay_grows_to_a_limit(plan: Plan) -> None:
    plan.fail_start = WorkerStartError("no")
    async with open_worker_context(min_idle=1) as context:
        keeping = context._pool.keeper
        assert keeping is not None
        delays = []
        for _ in range(9):
            await wait_all_tasks_blocked()
            delays.append(keeping._delay)
            keeping._retry_at = 0
            keeping._wake()
        assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_one_that_ends_before_a_call_is_a_failed_start(plan: Plan) -> None:
    async with open_worker_context(min_idle=1) as context:
        keeping = context._pool.keeper
        assert keeping is not None
        await wait_all_tasks_blocked()
        for count in range(1, 4):
            assert len(plan.workers) == count
            plan.workers[-1].retired = True
            plan.workers[-1].process.dismissed = False
            keeping._wake()
            await wait_all_tasks_blocked()
            assert len(plan.workers) == count
            assert keeping._delay == 2 ** (count - 1)
            keeping._retry_at = 0
            keeping._wake()
            await wait_all_tasks_blocked()
        # One that has had a call is sound.
        await context.run_sync(bool)
        keeping._wake()
        await wait_all_tasks_blocked()
        assert keeping._delay == 0


async def test_a_failed_start_ahead_is_not_the_calls(plan: Plan) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        spare = plan.begin()
        spare.finish = _refuse  # type: ignore[method-assign,assignment]
        context._cache.push_spare(spare)  # type: ignore[arg-type]
        context._cache._idle.clear()
        assert await context.run_sync(bool) is False
        assert plan.calls[-1][0] is plan.workers[-1] is not spare


async def _refuse(*, cancellable: bool) -> None:
    raise WorkerStartError("it has died since")


async def test_calls_fail_by_themselves_if_init_does(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    async with open_worker_context(min_idle=1, init=_failing(str(path))) as context:
        await until(lambda: context.statistics().idle_workers == 1)
        assert await context.run_sync(bool) is False
        with pytest.raises(BrokenWorkerError, match="SIGKILL"):
            await context.run_sync(jobs.kill_self)
        for _ in range(3):
            with pytest.raises(WorkerStartError) as told:
                await context.run_sync(bool)
            assert isinstance(told.value.__cause__, FileExistsError)


class _failing:  # noqa: N801
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        fail_from_second(self.path)


async def test_in_a_scope() -> None:
    async with cache_scope(min_idle=2):
        await until(lambda: default_context_statistics().idle_workers == 2)


async def test_a_clock_that_jumps_does_not_jump_for_it() -> None:
    clock = MockClock(autojump_threshold=0)
    outcome: list[float] = []

    async def main() -> None:
        async with open_worker_context(min_idle=1) as context:
            await context.run_sync(bool)
            outcome.append(trio.current_time())

    thread = threading.Thread(target=lambda: trio.run(main, clock=clock))
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert outcome == [0.0]


async def test_several_threads_share_it() -> None:
    """The run that has the task ends. Another, which uses the context, takes over."""
    async with open_worker_context(min_idle=2) as context:
        keeping = context._pool.keeper
        assert keeping is not None
        await until(lambda: context.statistics().idle_workers == 2)

        async def use() -> None:
            for _ in range(50):
                await context.run_sync(bool)

        async def use_in_thread() -> None:
            await trio.to_thread.run_sync(trio.run, use)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use_in_thread)
            nursery.start_soon(use)
        await until(lambda: context.statistics().idle_workers >= 2)


def test_the_default_context_in_two_runs_and_in_a_fork(tmp_path: Path, kind: str) -> None:
    text = f"""
    import os
    import trio, trio_offload

    async def main():
        await trio_offload.run_sync(bool)
        with trio.fail_after({PATIENCE}):
            while trio_offload.default_context_statistics().idle_workers < 2:
                await trio.sleep(0.002)
        print("ready", flush=True)

    if __name__ == "__main__":
        trio_offload.configure_default_context(min_idle=2, worker_type={type_of(kind).value!r})
        trio.run(main)
        trio.run(main)
        child = os.fork()
        trio.run(main)
        if child:
            print(os.waitpid(child, 0)[1])
    """
    ended = run_script(tmp_path, text, environment=environment_of(kind))
    assert sorted(ended.lines()) == ["0"] + ["ready"] * 4, ended


def test_a_context_that_is_replaced_keeps_none(tmp_path: Path) -> None:
    text = """
    import trio, trio.testing, trio_offload, warnings
    from trio_offload._default import default_context

    async def main():
        await trio_offload.run_sync(bool)
        old = default_context._current
        warnings.simplefilter("ignore")
        trio_offload.configure_default_context()
        await trio.sleep(0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await trio_offload.run_sync(bool)
        print(len(old._cache), old._pool.keeper._token)

    if __name__ == "__main__":
        trio_offload.configure_default_context(min_idle=2)
        trio.run(main)
    """
    assert run_script(tmp_path, text).lines() == ["0 None"]


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)])
async def test_what_is_no_number(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="min_idle must be"):
        async with open_worker_context(min_idle=value):
            pass


async def test_without_it_there_is_no_task(plan: Plan) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        await wait_all_tasks_blocked()
        assert context._pool.keeper is None
        assert len(plan.workers) == 1
