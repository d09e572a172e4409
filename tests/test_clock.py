"""Guarantees: what waits for a process goes by the machine's clock, and only a deadline of the user's by Trio's.

Trio's clock is made to stand still, or to jump to the next deadline whenever the run has nothing to do. The processes are real.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from lifeline import PATIENCE, until_stopped
from running import run_script
from trio.testing import MockClock
from workers import template_of

import trio_offload
from trio_offload import (
    BrokenWorkerError,
    WorkerTimeoutError,
    WorkerType,
    _clock,
    open_worker_context,
)
from trio_offload._launch.template import Template
from trio_offload._process import pending

LATE = 0.2  # seconds; a clock that jumps passes it at once


def run_jumping(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return trio.run(function, *args, clock=MockClock(autojump_threshold=0))


def run_standing(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return trio.run(function, *args, clock=MockClock())


def wait_for_threads() -> None:
    """The thread that keeps the time ends when nobody waits any more."""
    deadline = time.monotonic() + PATIENCE
    while _clock._alarms._is_kept and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not _clock._alarms._is_kept
    assert not _clock._alarms._set


# --- of workers ------------------------------------------------------------------------------------


def test_a_worker_gets_its_time_to_leave(of_any_kind: WorkerType) -> None:
    async def main() -> float:
        async with open_worker_context(worker_type=of_any_kind) as context:
            await context.run_sync(jobs.exit_late, LATE)
            begin = time.monotonic()
        return time.monotonic() - begin

    # Otherwise it is killed, which is an error.
    assert run_jumping(main) >= LATE
    wait_for_threads()


def test_one_that_does_not_leave_is_killed_when_its_time_is_over(of_any_kind: WorkerType) -> None:
    async def main() -> None:
        with pytest.raises(BrokenWorkerError, match="1 had to be killed after the grace period"):
            async with open_worker_context(worker_type=of_any_kind, grace_period=LATE) as context:
                await context.run_sync(jobs.keep_from_leaving)

    run_standing(main)
    wait_for_threads()


def test_how_a_slow_death_ended_is_told(of_any_kind: WorkerType) -> None:
    async def main() -> None:
        async with open_worker_context(worker_type=of_any_kind) as context:
            with pytest.raises(BrokenWorkerError, match="exited with status 9"):
                await context.run_sync(jobs.close_all_and_die_late, LATE)

    run_jumping(main)
    wait_for_threads()


def test_one_whose_process_goes_on_as_another_program_is_killed(
    of_any_kind: WorkerType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio_offload._worker.peer, "_EXIT_TIMEOUT", LATE)

    async def main() -> None:
        async with open_worker_context(worker_type=of_any_kind) as context:
            with pytest.raises(BrokenWorkerError, match="stopped answering without exiting"):
                await context.run_sync(jobs.become_sleep)

    run_standing(main)


def test_a_template_gets_its_time_to_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more: a request that it does not get round to is given up with it."""
    monkeypatch.setattr(pending, "_FORK_TIMEOUT", LATE)
    monkeypatch.setattr(Template, "fork_standby", lambda self: None)

    async def main() -> None:
        async with open_worker_context(worker_type=WorkerType.FORKSERVER, retire=object) as context:
            await context.run_sync(bool)
            template = template_of(context).process
            os.kill(template.pid, signal.SIGSTOP)
            await until_stopped_by_machine(template.pid)
            with trio.CancelScope() as scope:
                scope.cancel()
                await context.run_sync(jobs.never, kill_on_cancel=True)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: context.run_sync(jobs.never, kill_on_cancel=True))
                    await trio.testing.wait_all_tasks_blocked()
                    begin = time.monotonic()
                    scope.cancel()
            assert time.monotonic() - begin >= LATE
            # A process that ends closes its descriptors first, and that has been seen.
            assert template.wait_sync(time.monotonic() + 10)
            assert template.signal is signal.SIGKILL

    run_standing(main)
    wait_for_threads()


async def until_stopped_by_machine(pid: int) -> None:
    await trio.to_thread.run_sync(trio.run, until_stopped, pid)


# --- of map ----------------------------------------------------------------------------------------


def test_an_item_gets_its_time(of_any_kind: WorkerType) -> None:
    async def main() -> None:
        async with open_worker_context(worker_type=of_any_kind) as context:
            async with context.map(jobs.sleep_and_return, [LATE, 0], timeout=1000, workers=1) as results:
                assert [result async for result in results] == [LATE, 0]

    run_jumping(main)
    wait_for_threads()


def test_one_that_takes_longer_is_ended(of_any_kind: WorkerType) -> None:
    async def main() -> None:
        async with open_worker_context(worker_type=of_any_kind) as context:
            async with context.map(jobs.sleep_and_return, [1000.0], timeout=LATE, workers=1) as results:
                with pytest.raises(WorkerTimeoutError):
                    await anext(results)

    run_standing(main)
    wait_for_threads()


def test_a_call_that_takes_longer_is_ended(of_any_kind: WorkerType) -> None:
    """It leaves its stack, although the clock of the run stands still."""

    async def main() -> None:
        async with open_worker_context(worker_type=of_any_kind) as context:
            with pytest.raises(WorkerTimeoutError) as told:
                await context.run_sync(jobs.sleep_and_return, 1000.0, timeout=LATE)
            assert told.value.crash is not None
            assert "in sleep_and_return" in told.value.crash.stack

    run_standing(main)
    wait_for_threads()


def test_a_call_gets_its_time(of_any_kind: WorkerType) -> None:
    async def main() -> None:
        async with open_worker_context(worker_type=of_any_kind) as context:
            assert await context.run_sync(jobs.sleep_and_return, LATE, timeout=1000) == LATE

    run_jumping(main)
    wait_for_threads()


# --- of the user -----------------------------------------------------------------------------------


def test_a_deadline_of_the_users_is_by_trios_clock() -> None:
    """As round a thread: a clock that jumps when Trio has nothing to do does so while a job runs."""

    async def main() -> float:
        async with open_worker_context() as context:
            await context.run_sync(bool)
            begin = trio.current_time()
            with trio.move_on_after(3600) as scope:
                await context.run_sync(jobs.sleep_and_return, 1000.0, kill_on_cancel=True)
            assert scope.cancelled_caught
            return trio.current_time() - begin

    assert run_jumping(main) == 3600


def test_what_waits_for_processes_does_not_move_trios_clock(of_any_kind: WorkerType) -> None:
    async def main() -> float:
        begin = trio.current_time()
        async with open_worker_context(worker_type=of_any_kind) as context:
            async with context.map(abs, range(5), timeout=5) as results:
                assert [result async for result in results] == list(range(5))
            await context.run_sync(jobs.exit_late, LATE)
        return trio.current_time() - begin

    assert run_jumping(main) == 0


# --- the thread that keeps the time ----------------------------------------------------------------


def test_the_ordinary_clock_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clock._alarms, "set", None)

    async def main() -> None:
        with _clock.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        with _clock.move_on_after(-1) as scope:
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        await _clock.sleep(0.01)

    trio.run(main)


def test_several_runs_have_their_time_kept_at_once() -> None:
    problems: list[BaseException] = []

    async def main() -> None:
        begin = time.monotonic()
        with _clock.move_on_after(math.inf), _clock.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                for number in range(1, 4):
                    nursery.start_soon(_clock.sleep, LATE * number)
        assert LATE * 3 <= time.monotonic() - begin < PATIENCE
        assert not scope.cancelled_caught

    def run() -> None:
        try:
            run_standing(main)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not problems
    wait_for_threads()


def test_earliest_deadline_may_be_set_last() -> None:
    async def main() -> None:
        with _clock.move_on_after(1000.0), _clock.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught

    run_standing(main)
    wait_for_threads()


def test_without_a_thread_trios_clock_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)

    async def main() -> None:
        with _clock.move_on_after(1000.0) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught

    run_jumping(main)
    assert not _clock._alarms._set


def test_a_fork_keeps_its_own_time(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        """
        import os, trio, trio.testing
        from trio_offload import _clock

        async def main():
            with _clock.move_on_after(1000.0):
                pid = os.fork()
                if pid == 0:
                    os._exit(10 + _clock._alarms._is_kept + len(_clock._alarms._set))
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        trio.run(main, clock=trio.testing.MockClock())
        """,
    )
    assert ended.lines() == ["10"], ended
