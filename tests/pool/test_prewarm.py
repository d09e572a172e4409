"""End to end: workers that are there before they are needed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline, until_stopped
from running import run_script

from trio_offload import (
    WorkerStartError,
    cache_scope,
    default_context_statistics,
    open_worker_context,
    prewarm,
    retire_when,
    run_sync,
)
from trio_offload._worker.launcher import Launcher
from trio_offload._worker.worker import Worker


def fail() -> None:
    raise ValueError("no")


async def test_workers_are_up_and_idle() -> None:
    async with open_worker_context() as context:
        assert await context.prewarm(3) == 3
        statistics = context.statistics()
        assert (statistics.idle_workers, statistics.running_workers) == (3, 0)
        pids = {worker.pid for worker in statistics.workers}
        assert [(worker.state, worker.jobs) for worker in statistics.workers] == [("idle", 0)] * 3
        assert await context.run_sync(os.getpid) in pids


async def test_only_what_is_missing_is_started(line: Lifeline, gate: Gate) -> None:
    async with open_worker_context() as context:
        assert await context.prewarm(0) == 0
        await context.run_sync(bool)
        assert await context.prewarm(1) == 0
        assert await context.prewarm(2) == 1
        assert await context.prewarm(1) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.pass_gate, line.path, gate.path)
            await line.pid()
            # The running one is not idle.
            assert await context.prewarm(2) == 1
            gate.open()
        assert context.statistics().idle_workers == 3


@pytest.mark.parametrize(("workers", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)])
async def test_what_is_no_number_of_workers(workers: Any, error: type[Exception]) -> None:
    async with open_worker_context() as context:
        with pytest.raises(error, match="workers must be"):
            await context.prewarm(workers)


async def test_an_init_that_raises_leaves_nothing() -> None:
    async with open_worker_context(init=fail) as context:
        with pytest.raises(WorkerStartError, match="init") as told:
            await context.prewarm(3)
        assert isinstance(told.value.__cause__, ValueError)
        assert context.statistics().idle_workers == 0


async def test_cancelled_while_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Worker] = []
    begin = Launcher.begin

    def begin_stopped(launcher: Launcher, call: Any = None) -> Worker:
        worker = begin(launcher, call)
        begun.append(worker)
        if len(begun) == 2:
            # It will never be ready.
            os.kill(worker.process.pid, signal.SIGSTOP)
        return worker

    monkeypatch.setattr(Launcher, "begin", begin_stopped)
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.prewarm, 3)
            with trio.fail_after(PATIENCE):
                while context.statistics().idle_workers < 1:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            await until_stopped(begun[1].process.pid)
            nursery.cancel_scope.cancel()
        # The one that was ready stays, the others are gone.
        assert [worker.process.is_alive() for worker in begun] == [True, False, False]
        assert context.statistics().idle_workers == 1


async def test_a_context_that_closes_waits_for_it_and_then_refuses() -> None:
    async with trio.open_nursery() as nursery:
        started: list[int] = []
        async with open_worker_context() as context:

            async def warm() -> None:
                started.append(await context.prewarm(2))

            nursery.start_soon(warm)
            # Until it has entered.
            await trio.testing.wait_all_tasks_blocked()
        assert started == [2]
    with pytest.raises(trio.ClosedResourceError):
        await context.prewarm(1)


async def test_it_is_a_checkpoint() -> None:
    async with open_worker_context() as context:
        with trio.move_on_after(0) as scope:
            await context.prewarm(1)
        assert scope.cancelled_caught
        assert context.statistics().idle_workers == 0


async def test_in_a_scope_and_in_the_default_context() -> None:
    async with cache_scope():
        assert await prewarm(2) == 2
        assert default_context_statistics().idle_workers == 2


def test_in_the_default_context(tmp_path: Path) -> None:
    text = """
    import os
    import trio, trio_offload

    async def main():
        print(await trio_offload.prewarm(2), trio_offload.default_context_statistics().idle_workers)

    if __name__ == "__main__":
        trio.run(main)
    """
    ended = run_script(tmp_path, text)
    assert ended.lines() == ["2 2"]
    assert ended.stderr == ""


# --- spares --------------------------------------------------------------------------------------


async def test_who_is_about_to_leave_has_a_successor_already() -> None:
    async with open_worker_context(retire=retire_when(jobs=2)) as context:
        first = await context.run_sync(os.getpid)
        assert len(context._cache._spares) == 0
        assert await context.run_sync(os.getpid) == first
        (spare,) = context._cache._spares
        assert await context.run_sync(os.getpid) == spare.process.pid != first


async def test_one_spare_for_each_that_leaves() -> None:
    async with open_worker_context(retire=retire_when(jobs=1)) as context:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(context.run_sync, bool)
        spares = {spare.process.pid for spare in context._cache._spares}
        assert 1 <= len(spares) <= 3
        # They are brought up by whoever wants idle workers.
        await context.prewarm(len(spares))
        assert {worker.pid for worker in context.statistics().workers} == spares


async def test_a_spare_that_nobody_wanted_leaves_no_trouble(line: Lifeline) -> None:
    for _ in range(5):
        async with open_worker_context(retire=retire_when(jobs=1)) as context:
            await context.run_sync(bool)


async def test_a_spare_that_does_not_start_is_told_to_who_wants_it(tmp_path: Path) -> None:
    async with open_worker_context(init=(tmp_path / "once").mkdir, retire=retire_when(jobs=1)) as context:
        await context.run_sync(bool)
        with pytest.raises(WorkerStartError, match="init") as told:
            await context.run_sync(bool)
        assert isinstance(told.value.__cause__, FileExistsError)


async def test_a_spare_that_was_killed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The call, which has not begun, gets a worker of its own."""
    async with open_worker_context(retire=retire_when(jobs=1)) as context:
        await context.run_sync(bool)
        (spare,) = context._cache._spares
        os.kill(spare.process.pid, signal.SIGKILL)
        assert await context.run_sync(os.getpid) != spare.process.pid
    (logged,) = [record.getMessage() for record in caplog.records]
    assert re.match(
        rf"a worker that was started ahead of the call failed: worker {spare.process.pid} died of SIGKILL", logged
    )


def test_spares_at_the_end_of_the_program(tmp_path: Path) -> None:
    text = """
    import trio, trio_offload

    if __name__ == "__main__":
        trio_offload.configure_default_context(retire=trio_offload.retire_when(jobs=1))
        print(trio.run(trio_offload.run_sync, int, "5"))
    """
    ended = run_script(tmp_path, text)
    assert ended.lines() == ["5"]
    assert ended.stderr == ""


async def test_run_sync_uses_what_was_warmed() -> None:
    async with cache_scope():
        await prewarm(1)
        (worker,) = default_context_statistics().workers
        assert await run_sync(os.getpid) == worker.pid
