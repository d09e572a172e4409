"""End to end: a call and a start, cancelled or interrupted once at each of their checkpoints.

An operation is driven by hand: each time that it hands control to Trio is a checkpoint, and at the n-th one the test
cancels it, or presses Ctrl+C. This is repeated for n = 1, 2, … until the operation has run to its end before its n-th.
"""

from __future__ import annotations

import os
import signal
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline, count_descriptors, wait_for_end
from trio.testing import wait_all_tasks_blocked
from workers import begin_worker, template_of

from trio_offload import (
    WorkerContext,
    WorkerContextStatistics,
    current_default_worker_limiter,
    open_worker_context,
)
from trio_offload_worker._system import family


class Driver:
    """Runs a coroutine and does something at its n-th checkpoint."""

    def __init__(self, number: int, deed: Callable[[], None]) -> None:
        self._number = number
        self._deed = deed
        self.checkpoints = 0

    @property
    def reached(self) -> bool:
        return self.checkpoints >= self._number

    @types.coroutine
    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        send: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            try:
                trap = send(value)
            except StopIteration as stop:
                return stop.value
            self.checkpoints += 1
            if self.checkpoints == self._number:
                self._deed()
            try:
                send, value = coroutine.send, (yield trap)
            except BaseException as error:
                send, value = coroutine.throw, error


def belongings() -> tuple[set[int], int]:
    """Our children, and how many descriptors are open."""
    return set(family.children([os.getpid()])), count_descriptors()


def assert_only_idle_workers(context: WorkerContext, before: tuple[set[int], int]) -> None:
    """Nothing is there but the idle workers, and what they are forked off, each with a socket, a pidfd and a record."""
    idle = [worker.process.pid for worker in context._cache._idle]
    template = template_of(context)
    if template is not None:
        # A checkpoint may have been before its start.
        idle.append(template.process.pid)
    ours = belongings()[0] - before[0]
    # One may be forked ahead, and be there already.
    ahead = 0 if template is None or template._standby is None else 1
    assert ours >= set(idle)
    assert len(ours) - len(idle) <= ahead
    assert count_descriptors(context) - before[1] == 3 * len(idle)
    idle_workers = len(context._cache._idle)
    assert context.statistics() == WorkerContextStatistics(idle_workers=idle_workers, running_workers=0)


class CheckpointLimiter:
    """A limiter of the user's own, with a checkpoint on the way in and on the way out."""

    def __init__(self) -> None:
        self.inside = 0

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        self.inside += 1

    async def __aexit__(self, *_: object) -> None:
        self.inside -= 1
        await trio.lowlevel.checkpoint()


# --- what is cancelled -------------------------------------------------------------------------

Call = Callable[[WorkerContext, bool], Coroutine[Any, Any, Any]]


async def small(context: WorkerContext, cancellable: bool) -> Any:
    return await context.run_sync(jobs.echo, 5, kill_on_cancel=cancellable)


async def large(context: WorkerContext, cancellable: bool) -> Any:
    result = await context.run_sync(jobs.echo, bytes(12_000_000), kill_on_cancel=cancellable)
    return 5 if result == bytes(12_000_000) else None


async def raising(context: WorkerContext, cancellable: bool) -> Any:
    try:
        await context.run_sync(divmod, 1, 0, kill_on_cancel=cancellable)
    except ZeroDivisionError:
        return 5


async def exiting(context: WorkerContext, cancellable: bool) -> Any:
    try:
        await context.run_sync(jobs.exit_quietly, kill_on_cancel=cancellable)
    except RuntimeError:
        return 5


async def limited(context: WorkerContext, cancellable: bool) -> Any:
    limiter = CheckpointLimiter()
    try:
        return await context.run_sync(jobs.echo, 5, kill_on_cancel=cancellable, limiter=limiter)
    finally:
        assert not limiter.inside


async def waiting(context: WorkerContext, cancellable: bool) -> Any:
    """All tokens are taken at first."""
    limiter = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("somebody")
    trio.lowlevel.current_trio_token().run_sync_soon(limiter.release_on_behalf_of, "somebody")
    try:
        return await context.run_sync(jobs.echo, 5, kill_on_cancel=cancellable, limiter=limiter)
    finally:
        # Somebody's own may be given back only after the call was cancelled.
        await _shielded(wait_all_tasks_blocked)
        assert not limiter.borrowed_tokens


async def crossing(context: WorkerContext, cancellable: bool) -> Any:
    """The idle worker has died, which is found out when the call is sent."""
    for worker in context._cache._idle:
        os.kill(worker.process.pid, signal.SIGKILL)
        wait_for_end(worker.process.pid)
    return await context.run_sync(jobs.echo, 5, kill_on_cancel=cancellable)


async def _shielded(operation: Callable[[], Awaitable[None]]) -> None:
    with trio.CancelScope(shield=True):
        await operation()


CALLS = [small, large, raising, exiting, limited, waiting, crossing]


@asynccontextmanager
async def opened(warm: bool) -> AsyncIterator[tuple[WorkerContext, tuple[set[int], int]]]:
    async with open_worker_context() as context:
        # The first use opens what stays open: the epoll instance's own descriptors, the executable's place.
        before = belongings()
        if warm:
            assert await context.run_sync(jobs.echo, 5) == 5
        yield context, before


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_is_cancelled_at_each_checkpoint(call: Call, warm: bool) -> None:
    cancelled = 0
    for number in range(1, 10_000):
        async with opened(warm) as (context, before):
            with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
                driver = Driver(number, scope.cancel)
                assert await driver.run(call(context, True)) == 5
            cancelled += scope.cancelled_caught
            assert current_default_worker_limiter().borrowed_tokens == 0
            assert_only_idle_workers(context, before)
            # It is as good as new.
            assert await context.run_sync(jobs.echo, 6) == 6
            assert_only_idle_workers(context, before)
        if not driver.reached:
            break
    assert cancelled
    assert number > 1


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("call", [small, large, raising, exiting])
async def test_cancel_is_deferred_without_kill_on_cancel(call: Call, warm: bool) -> None:
    for number in range(1, 10_000):
        async with opened(warm) as (context, before):
            with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
                driver = Driver(number, scope.cancel)
                assert await driver.run(call(context, False)) == 5
            assert not scope.cancelled_caught
            assert_only_idle_workers(context, before)
        if not driver.reached:
            break
    assert number > 1


@pytest.mark.usefixtures("worker_type")
async def test_cancellation_between_workers_runs_nothing(tmp_path: Path) -> None:
    """Also without kill_on_cancel: a call for which one worker after the other is gone must not be beyond reach."""
    journal = tmp_path / "journal"
    cancelled = 0
    for number in range(1, 10_000):
        journal.write_text("")
        async with opened(True) as (context, before):
            (worker,) = context._cache._idle
            os.kill(worker.process.pid, signal.SIGKILL)
            wait_for_end(worker.process.pid)
            with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
                driver = Driver(number, scope.cancel)
                await driver.run(context.run_sync(jobs.append, str(journal), "run"))
            cancelled += scope.cancelled_caught
            assert journal.read_text().split() == ([] if scope.cancelled_caught else ["run"])
            assert_only_idle_workers(context, before)
        if not driver.reached:
            break
    assert cancelled


async def test_a_start_is_cancelled_at_each_checkpoint() -> None:
    before = belongings()
    for number in range(1, 10_000):
        worker = begin_worker()
        with trio.CancelScope() as scope:
            driver = Driver(number, scope.cancel)
            await driver.run(worker.finish(cancellable=True))
        assert scope.cancelled_caught == driver.reached
        if not driver.reached:
            break
        assert worker.process.exitcode == -signal.SIGKILL
        assert belongings() == before
    worker.ask_to_retire()
    await worker.wait()
    assert number > 1


async def test_entry_is_a_checkpoint_for_a_cancelled_scope_only() -> None:
    """A call that is not cancelled does not lose its turn before it has begun."""
    async with open_worker_context() as context:
        with trio.CancelScope() as scope:
            scope.cancel()
            await context.run_sync(bool)
        assert scope.cancelled_caught
        assert not context._cache._idle


# --- Ctrl+C --------------------------------------------------------------------------------------


@trio.lowlevel.enable_ki_protection
def press_ctrl_c() -> None:
    """While protected code runs, Trio puts KeyboardInterrupt off until the main task awaits something."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("cancellable", [True, False], ids=["kill_on_cancel", "not cancellable"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("call", [small, large, raising, exiting, crossing])
def test_ctrl_c_at_each_checkpoint_of_a_call_leaves_a_whole_pool(call: Call, warm: bool, cancellable: bool) -> None:
    async def main(number: int) -> tuple[bool, bool]:
        interrupted = False
        async with opened(warm) as (context, before):
            # A worker that runs another task's job is none of the interrupt's business.
            driver = Driver(number, press_ctrl_c)
            try:
                assert await driver.run(call(context, cancellable)) == 5
                # One that came at the very end.
                await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                interrupted = True
            assert_only_idle_workers(context, before)
            assert await context.run_sync(jobs.echo, 6) == 6
            assert_only_idle_workers(context, before)
        return driver.reached, interrupted

    for number in range(1, 10_000):
        reached, interrupted = trio.run(main, number)
        assert reached == interrupted
        if not reached:
            break
    assert number > 1


@pytest.mark.parametrize("step", ["close", "end of a worker"])
def test_ctrl_c_at_each_checkpoint_of_an_end_does_not_stop_it(step: str) -> None:
    async def main(number: int) -> tuple[bool, bool]:
        interrupted = False
        before = belongings()
        manager = open_worker_context()
        context = await manager.__aenter__()
        async with trio.open_nursery() as nursery:
            limiter = trio.CapacityLimiter(3)
            for _ in range(3):
                nursery.start_soon(lambda: context.run_sync(jobs.echo, 5, limiter=limiter))
        driver = Driver(number, press_ctrl_c)
        try:
            if step == "close":
                await driver.run(manager.__aexit__(None, None, None))
            else:
                await driver.run(context._cache._idle.pop().end())
            await trio.lowlevel.checkpoint()
        except KeyboardInterrupt:
            interrupted = True
        if step != "close":
            assert context.statistics().idle_workers == 2
            await manager.__aexit__(None, None, None)
        assert belongings() == before
        return driver.reached, interrupted

    for number in range(1, 10_000):
        reached, interrupted = trio.run(main, number)
        assert reached == interrupted
        if not reached:
            break
    assert number > 1


def test_ctrl_c_in_closing_context_is_raised_after_calls(tmp_path: Path) -> None:
    async def interrupt(context: WorkerContext, gate: Gate) -> None:
        await wait_all_tasks_blocked()
        press_ctrl_c()
        await wait_all_tasks_blocked()
        assert context.statistics().running_workers == 1
        gate.open()

    async def use_context(nursery: trio.Nursery, line: Lifeline, gate: Gate) -> None:
        async with open_worker_context() as context:
            nursery.start_soon(context.run_sync, jobs.pass_gate, line.path, gate.path)
            await line.pid()
            nursery.start_soon(interrupt, context, gate)

    async def main(line: Lifeline, gate: Gate) -> None:
        before = belongings()
        async with trio.open_nursery() as nursery:
            with pytest.raises(KeyboardInterrupt):
                await use_context(nursery, line, gate)
        assert belongings() == before

    with closing(Lifeline(tmp_path / "line")) as line, closing(Gate(tmp_path / "gate")) as gate:
        trio.run(main, line, gate)


# --- only who was meant --------------------------------------------------------------------------


async def test_cancelling_one_call_leaves_the_others_alone(tmp_path: Path) -> None:
    limiter = trio.CapacityLimiter(10)
    results: list[int] = []
    with closing(Gate(tmp_path / "gate")) as gate, closing(Lifeline(tmp_path / "line")) as line:
        with closing(Lifeline(tmp_path / "cancelled")) as cancelled:
            async with open_worker_context() as context:

                async def call(line: Lifeline) -> None:
                    results.append(
                        await context.run_sync(jobs.pass_gate, line.path, gate.path, kill_on_cancel=True, limiter=limiter)
                    )

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call, line)
                    nursery.start_soon(call, line)
                    others = {await line.pid(), await line.pid()}
                    async with trio.open_nursery() as inner:
                        inner.start_soon(call, cancelled)
                        await cancelled.pid()
                        inner.cancel_scope.cancel()
                    assert await cancelled.ended() == []
                    assert context.statistics().running_workers == 2
                    gate.open(2)
                assert set(results) == others
                assert context.statistics() == WorkerContextStatistics(idle_workers=2, running_workers=0)
            assert limiter.borrowed_tokens == 0


async def test_closing_a_context_cannot_be_cancelled(tmp_path: Path) -> None:
    with closing(Lifeline(tmp_path / "line")) as line, closing(Gate(tmp_path / "gate")) as gate:
        async with trio.open_nursery() as nursery:
            async with open_worker_context() as context:
                nursery.start_soon(context.run_sync, jobs.pass_gate, line.path, gate.path)
                pid = await line.pid()
                nursery.cancel_scope.cancel()

                async def open_gate() -> None:
                    with trio.CancelScope(shield=True):
                        await wait_all_tasks_blocked()
                        assert context.statistics().running_workers == 1
                        gate.open()

                nursery.start_soon(open_gate)
            assert pid not in belongings()[0]
        assert await line.ended() == []
