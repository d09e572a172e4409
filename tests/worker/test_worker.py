"""Contract: what a worker promises to whoever uses it. The fake of ``fakes.py`` and the real one pass the same suite.

``test_worker_table.py`` drives the real one through every row of the protocol's table with a peer that says anything.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fakes
import jobs
import pytest
import trio
from fakes import run_call
from lifeline import PATIENCE, Gate, Lifeline, until_stopped, wait_for_end
from trio.testing import wait_all_tasks_blocked
from workers import begin_worker, make_launcher, start_worker

from trio_offload import BrokenWorkerError, WorkerContext, WorkerStartError, WorkerType, open_worker_context
from trio_offload._interpreter import locate as _locate
from trio_offload._launch.spawn import SpawnLauncher
from trio_offload._pickling.calls import dump_call
from trio_offload._pickling.payload import Payload
from trio_offload._transport.channel import Channel
from trio_offload._worker.call_sender import MAX_IN_FLIGHT
from trio_offload._worker.launcher import Launcher
from trio_offload._worker.states import CallNotRun, State
from trio_offload._worker.worker import Worker


class FakeSide:
    """How the suite makes a fake do what it wants."""

    def __init__(self) -> None:
        self.plan = fakes.Plan()

    def begin(self) -> Any:
        return self.plan.begin()

    def begin_unstartable(self) -> Any:
        self.plan.fail_start = WorkerStartError("no")
        return self.begin()

    async def started_and_retired(self) -> Any:
        worker = self.begin()
        await worker.finish(cancellable=False)
        worker.retired = True
        return worker

    def waiting_call(self) -> Payload:
        return dump_call(fakes.block, ())

    async def begun(self) -> None:
        await wait_all_tasks_blocked()

    def let_finish(self) -> None:
        self.plan.release.set()

    def breaking_call(self) -> Payload:
        self.plan.breaks = True
        return dump_call(bool, ())


class RealSide:
    """The same with a process, which is spawned or forked."""

    def __init__(self, line: Lifeline, gate: Gate, worker_type: WorkerType = WorkerType.SPAWN) -> None:
        self.line = line
        self.gate = gate
        self.worker_type = worker_type
        self.launchers: list[Launcher] = []

    def begin(self, retire: Callable[[], Any] = bool, init: Callable[[], Any] = bool) -> Worker:
        self.launchers.append(make_launcher(math.inf, init, retire, worker_type=self.worker_type))
        return self.launchers[-1].begin()

    def begin_unstartable(self) -> Worker:
        return self.begin(init=jobs.abort)

    def close(self) -> None:
        for launcher in self.launchers:
            for peer in launcher.close():
                assert peer.wait_sync(time.monotonic() + PATIENCE)

    async def started_and_retired(self) -> Worker:
        worker = self.begin(retire=object)
        await worker.finish(cancellable=False)
        await run_call(worker, dump_call(bool, ()), cancellable=False)
        # It retires now. That it has said so is certain once it has ended; nobody may have reaped it for that.
        wait_for_end(worker.process.pid)
        return worker

    def waiting_call(self) -> Payload:
        return dump_call(jobs.pass_gate, (self.line.path, self.gate.path))

    async def begun(self) -> None:
        await self.line.pid()

    def let_finish(self) -> None:
        self.gate.open()

    def breaking_call(self) -> Payload:
        return dump_call(jobs.exit_quietly, ())


@pytest.fixture(params=["fake", "real", "forked"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeSide()
        return
    worker_type = WorkerType.FORKSERVER if request.param == "forked" else WorkerType.SPAWN
    if worker_type is WorkerType.FORKSERVER and not _locate.runtime().is_native:
        pytest.skip("templates need the worker executable, and here workers are run in Python")
    with closing(Lifeline(tmp_path / "line")) as line, closing(Gate(tmp_path / "gate")) as gate:
        side = RealSide(line, gate, worker_type)
        yield side
        side.close()


CALL = dump_call(int, ("5",))


async def see_off(worker: Any) -> None:
    worker.ask_to_retire()
    with trio.fail_after(PATIENCE):
        await worker.wait()


async def test_started_worker_is_idle_and_answers_calls(side: Any) -> None:
    worker = side.begin()
    assert worker.state is not State.IDLE
    await worker.finish(cancellable=False)
    assert worker.state is State.IDLE
    assert worker.hear()
    assert not worker.process.ended
    for _ in range(3):
        assert await run_call(worker, CALL, cancellable=True) == (5, None)
        assert worker.state is State.IDLE
    await see_off(worker)


async def test_what_a_job_raises_is_an_outcome_and_the_worker_lives_on(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    value, error = await run_call(worker, dump_call(divmod, (1, 0)), cancellable=False)
    assert value is None
    assert isinstance(error, ZeroDivisionError)
    assert worker.state is State.IDLE
    assert await run_call(worker, CALL, cancellable=False) == (5, None)
    await see_off(worker)


async def test_worker_takes_calls_between_start_and_end_only(side: Any) -> None:
    worker = side.begin()
    with pytest.raises(RuntimeError, match="no call in the state STARTING, with 0 in flight"):
        worker.submit(CALL)
    await worker.finish(cancellable=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_call(worker, side.waiting_call(), cancellable=False))
        await side.begun()
        assert worker.state is State.RUNNING
        assert not worker.gone()
        side.let_finish()
    await see_off(worker)
    with pytest.raises(RuntimeError, match="no call in the state ENDED, with 0 in flight"):
        worker.submit(CALL)


async def test_a_worker_that_is_asked_leaves_well(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    worker.ask_to_retire()
    assert worker.state is State.RETIRING
    assert not worker.hear()
    worker.ask_to_retire()
    with trio.fail_after(PATIENCE):
        await worker.wait()
    assert worker.state is State.ENDED
    assert worker.gone()
    assert worker.process.ended
    assert worker.process.exitcode == 0
    worker.ask_to_retire()
    worker.kill()
    assert worker.process.exitcode == 0


async def test_a_worker_that_retired_by_itself_is_heard(side: Any) -> None:
    worker = await side.started_and_retired()
    assert worker.state is State.IDLE, "the parent has not looked yet"
    assert not worker.hear()
    assert worker.state is State.RETIRING
    assert worker.gone()
    assert worker.state is State.ENDED
    assert worker.process.exitcode == 0


async def test_a_call_to_a_worker_that_has_retired_is_not_run(side: Any) -> None:
    worker = await side.started_and_retired()
    with pytest.raises(CallNotRun):
        await run_call(worker, CALL, cancellable=False)
    assert worker.state in (State.RETIRING, State.ENDED)
    assert worker.gone()
    assert worker.process.exitcode == 0


async def test_the_end_can_be_awaited_blocking_with_a_deadline(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    worker.ask_to_retire()
    assert worker.wait_sync(time.monotonic() + PATIENCE)
    assert worker.state is State.ENDED
    assert worker.wait_sync(-math.inf), "it has ended, so there is nothing to wait for"


async def test_a_killed_worker_ends(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    worker.kill()
    worker.kill()
    with trio.fail_after(PATIENCE):
        await worker.wait()
    assert worker.state is State.ENDED
    assert worker.process.exitcode == -signal.SIGKILL


async def test_a_cancelled_call_has_ended_the_worker_when_it_returns(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_call(worker, side.waiting_call(), cancellable=True))
        await side.begun()
        nursery.cancel_scope.cancel()
    assert worker.state is State.ENDED
    assert worker.process.ended
    assert worker.process.exitcode == -signal.SIGKILL


async def test_a_call_that_may_not_be_cancelled_runs_to_its_end(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            assert (await run_call(worker, side.waiting_call(), cancellable=False))[1] is None
            assert worker.state is State.IDLE
            seen.append("finished")

        seen: list[str] = []
        nursery.start_soon(call)
        await side.begun()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert worker.state is State.RUNNING
            side.let_finish()
    assert seen == ["finished"]
    await see_off(worker)


async def test_a_worker_that_breaks_says_so_and_has_ended(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    with pytest.raises(BrokenWorkerError) as caught:
        await run_call(worker, side.breaking_call(), cancellable=False)
    assert caught.value.process is worker.process
    assert worker.state is State.ENDED
    assert worker.process.ended


async def test_second_call_in_flight_is_answered_in_order(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    with pytest.raises(RuntimeError, match="no call to answer"):
        await worker.answer()
    for _ in range(3):
        worker.submit(CALL)
        assert worker.state is State.RUNNING
        worker.submit(dump_call(divmod, (1, 0)))
        assert await worker.answer() == (5, None)
        assert worker.state is State.RUNNING
        worker.submit(dump_call(int, ("7",)))
        assert isinstance((await worker.answer())[1], ZeroDivisionError)
        assert await worker.answer() == (7, None)
        assert worker.state is State.IDLE
    assert await run_call(worker, CALL, cancellable=False) == (5, None)
    await see_off(worker)


async def test_so_many_calls_may_be_in_flight_and_no_more(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    for number in range(MAX_IN_FLIGHT):
        worker.submit(dump_call(int, (str(number),)))
    with pytest.raises(RuntimeError, match=f"in the state RUNNING, with {MAX_IN_FLIGHT} in flight"):
        worker.submit(CALL)
    for number in range(MAX_IN_FLIGHT):
        assert await worker.answer() == (number, None)
    assert worker.state is State.IDLE
    await see_off(worker)


async def test_retired_worker_runs_no_call_in_flight(side: Any) -> None:
    worker = await side.started_and_retired()
    worker.submit(CALL)
    worker.submit(CALL)
    with pytest.raises(CallNotRun):
        await worker.answer()
    assert worker.state in (State.RETIRING, State.ENDED)
    assert worker.gone()
    assert worker.process.exitcode == 0


async def test_a_worker_that_breaks_with_two_calls_in_flight_has_ended(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    worker.submit(side.breaking_call())
    worker.submit(CALL)
    with pytest.raises(BrokenWorkerError) as caught:
        await worker.answer()
    assert caught.value.process is worker.process
    assert worker.state is State.ENDED
    assert worker.process.ended


async def test_cancel_ends_worker_with_two_calls_in_flight(side: Any) -> None:
    worker = side.begin()
    await worker.finish(cancellable=False)
    async with trio.open_nursery() as nursery:
        worker.submit(side.waiting_call())
        worker.submit(CALL)
        nursery.start_soon(worker.answer)
        await side.begun()
        nursery.cancel_scope.cancel()
    assert worker.state is State.ENDED
    assert worker.process.ended


async def test_a_failed_start_leaves_nothing(side: Any) -> None:
    worker = side.begin_unstartable()
    with pytest.raises(WorkerStartError):
        await worker.finish(cancellable=False)
    assert worker.state is State.ENDED
    assert worker.process.ended


@pytest.mark.parametrize("cancellable", [True, False])
async def test_a_start_can_be_cancelled_if_it_says_so(side: Any, cancellable: bool) -> None:
    worker = side.begin()
    with trio.CancelScope() as scope:
        scope.cancel()
        await worker.finish(cancellable=cancellable)
    assert scope.cancelled_caught == cancellable
    assert worker.state is (State.ENDED if cancellable else State.IDLE)
    assert worker.gone() == cancellable
    if not cancellable:
        await see_off(worker)


# --- only a process can ------------------------------------------------------------------------


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The workers that contexts have made, in order."""
    made: list[Worker] = []

    begin = SpawnLauncher.begin

    def noting(launcher: SpawnLauncher, *call: Any) -> Worker:
        made.append(begin(launcher, *call))
        return made[-1]

    monkeypatch.setattr(SpawnLauncher, "begin", noting)
    return made


async def test_stopped_worker_does_not_exceed_deadline() -> None:
    worker = await start_worker(math.inf)
    os.kill(worker.process.pid, signal.SIGSTOP)
    worker.ask_to_retire()
    assert not worker.wait_sync(time.monotonic() + 0.05)
    assert not worker.gone()
    assert worker.state is State.RETIRING
    os.kill(worker.process.pid, signal.SIGCONT)
    assert worker.wait_sync(time.monotonic() + PATIENCE)


class BlindChannel:
    """A channel that never sees what a worker has said before it was asked: each call crosses with the retirement."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def receive_nowait(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


@pytest.mark.parametrize("size", [0, 20_000_000], ids=["small", "larger than the socket"])
async def test_each_job_runs_once_when_retirement_crosses_the_dispatch(
    starts: list[Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    monkeypatch.setattr("trio_offload._worker.peer.Channel", lambda *arguments: BlindChannel(Channel(*arguments)))
    journal = tmp_path / "journal"
    numbers = [str(number) for number in range(8)]
    async with open_worker_context(retire=object) as context:
        for number in numbers:
            ballast = bytes(size)
            assert await context.run_sync(jobs.append, str(journal), number, ballast) == number
            if starts[-1].state is State.IDLE:
                wait_for_end(starts[-1].process.pid)
    assert journal.read_text().split() == numbers
    assert len(starts) == len(numbers)


@pytest.mark.parametrize("size", [0, 20_000_000], ids=["small", "larger than the socket"])
async def test_a_call_that_crosses_with_the_idle_timeout_runs_once(starts: list[Worker], tmp_path: Path, size: int) -> None:
    journal = tmp_path / "journal"
    async with open_worker_context(idle_timeout=0.3) as context:
        pid = await context.run_sync(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        await until_stopped(pid)
        # Its time passes while it is stopped. What it does first when it goes on, reading or leaving, is its affair.
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.append, str(journal), "once", bytes(size))
            await wait_all_tasks_blocked()
            os.kill(pid, signal.SIGCONT)
    assert journal.read_text().split() == ["once"]
    assert len(starts) in (1, 2)


@pytest.mark.parametrize("size", [1, 20_000_000], ids=["small", "larger than the socket"])
async def test_recycling_after_each_job_strands_none(starts: list[Worker], size: int) -> None:
    """More jobs than workers, each in a process of its own, with results that the socket does not take at once."""
    limiter = trio.CapacityLimiter(3)
    results: list[bytes] = []

    async def call(context: WorkerContext, number: int) -> None:
        results.append(await context.run_sync(bytes.ljust, bytes([number]), size, limiter=limiter))

    async with open_worker_context(retire=object) as context:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(call, context, number)
    assert sorted(result[0] for result in results) == list(range(12))
    assert {len(result) for result in results} == {size}
    assert len(starts) == 12


async def test_large_call_does_not_wait_for_retired_worker(tmp_path: Path) -> None:
    """It has said RETIRED, and something that a job left behind keeps its process from ending."""
    with closing(Lifeline(tmp_path / "line")) as line, closing(Gate(tmp_path / "gate")) as gate:
        worker = await start_worker(math.inf, bool, jobs.leaves_slowly)
        worker._channel = BlindChannel(worker._channel)  # type: ignore[assignment]
        await run_call(worker, dump_call(jobs.leave_slowly, (line.path, gate.path)), cancellable=False)
        await line.pid()
        with trio.fail_after(PATIENCE), pytest.raises(CallNotRun):
            await run_call(worker, dump_call(len, (bytes(20_000_000),)), cancellable=True)
        assert not worker.gone(), "it has not ended yet"
        gate.open()
        await worker.wait()
        assert worker.process.exitcode == 0


async def test_a_new_worker_does_not_time_out_before_its_first_call(starts: list[Worker]) -> None:
    """Otherwise a short idle timeout on a busy machine would start workers for ever, and none would run the job."""
    worker = await start_worker(0, bool, bool)
    await trio.sleep(0.2)
    assert worker.hear()
    assert await run_call(worker, CALL, cancellable=False) == (5, None)
    wait_for_end(worker.process.pid)
    assert not worker.hear()
    assert worker.gone()
    assert worker.process.exitcode == 0


@pytest.mark.parametrize("retire", [bool, jobs.never], ids=["plain", "with a retire of its own"])
async def test_worker_that_died_idle_has_not_run_call(retire: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    worker = await start_worker(math.inf, bool, retire)
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_for_end(worker.process.pid)
    with pytest.raises(CallNotRun):
        await run_call(worker, CALL, cancellable=False)
    assert worker.state is State.ENDED
    assert worker.process.exitcode == -signal.SIGKILL
    assert "SIGKILL" in caplog.text


async def test_call_in_flight_crosses_with_retirement(tmp_path: Path) -> None:
    """The second call is in the worker's socket when it says RETIRED: it is not read, and its caller is told."""
    journal = tmp_path / "journal"
    worker = await start_worker(math.inf, bool, object)
    for text in ("first", "second"):
        worker.submit(dump_call(jobs.append, (str(journal), text)))
    assert await worker.answer() == ("first", None)
    with pytest.raises(CallNotRun):
        await worker.answer()
    await worker.wait()
    assert worker.process.exitcode == 0
    assert journal.read_text().split() == ["first"]


async def test_retired_worker_is_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await start_worker(math.inf, bool, object)
    await run_call(worker, CALL)
    wait_for_end(worker.process.pid)
    sent: list[Any] = []

    def send_at_once(channel: Channel, parts: Any) -> list[Any]:
        sent.append(parts)
        return []

    monkeypatch.setattr(Channel, "send_at_once", send_at_once)
    worker.submit(CALL)
    worker.submit(CALL)
    worker.flush()
    with pytest.raises(CallNotRun):
        await worker.answer()
    assert not sent
    await worker.wait()


async def test_call_behind_broken_one_has_not_begun(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    worker = await start_worker(math.inf)
    worker.submit(dump_call(jobs.segfault, ()))
    worker.submit(dump_call(jobs.append, (str(journal), "second")))
    with pytest.raises(BrokenWorkerError, match=r"SIGSEGV while it ran jobs\.segfault"):
        await worker.answer()
    assert not journal.exists()


@pytest.mark.parametrize("size", [300_000, 20_000_000], ids=["as much as fits", "larger than the socket"])
async def test_both_sides_may_write_large_payloads_at_once(size: int) -> None:
    """The worker does not read while it writes its answer: the parent has to, while it writes the next call."""
    worker = await start_worker(math.inf)
    with trio.fail_after(PATIENCE):
        worker.submit(dump_call(jobs.echo, (bytes([0]) * size,)))
        for number in range(1, 6):
            worker.submit(dump_call(jobs.echo, (bytes([number]) * size,)))
            result, _ = await worker.answer()
            assert (result[0], result[-1], len(result)) == (number - 1, number - 1, size)
        assert await worker.answer() == (bytes([5]) * size, None)
    await see_off(worker)


@pytest.mark.parametrize("size", [0, 20_000_000], ids=["small", "larger than the socket"])
async def test_a_worker_that_died_idle_has_not_run_the_calls_in_flight(size: int) -> None:
    worker = await start_worker(math.inf)
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_for_end(worker.process.pid)
    worker.submit(dump_call(len, (bytes(size),)))
    worker.submit(dump_call(len, (bytes(size),)))
    with pytest.raises(CallNotRun):
        await worker.answer()
    assert worker.state is State.ENDED


async def test_the_time_of_an_idle_worker_begins_with_its_last_answer() -> None:
    worker = begin_worker(600)
    assert worker.expires_at == math.inf
    await worker.finish(cancellable=False)
    first = worker.expires_at
    assert 0 < first - time.monotonic() <= 600
    await run_call(worker, CALL, cancellable=False)
    assert worker.expires_at > first
    await see_off(worker)


async def test_answers_that_come_before_the_end_are_counted(line: Lifeline) -> None:
    """What was answered, and the call behind it, must not be run by another worker."""
    worker = await start_worker(math.inf)
    worker.submit(CALL)
    worker.submit(dump_call(jobs.hold_for_ever, (line.path,)))
    worker.submit(CALL)
    worker.flush()
    await line.pid()
    await worker.end_in_flight()
    assert worker.answered_too_late == 1
    assert worker.state is State.ENDED
    await line.ended()


@pytest.mark.parametrize("has_deadline", [True, False])
async def test_an_answer_that_is_there_when_it_is_cancelled(has_deadline: bool) -> None:
    worker = await start_worker(math.inf)
    worker.submit(CALL)
    worker.flush()
    assert worker._channel is not None
    await trio.lowlevel.wait_readable(worker._channel._socket)
    result = None
    with trio.CancelScope() as scope:
        scope.cancel()
        result = await worker.answer(deadline=scope if has_deadline else None)
    assert result == ((5, None) if has_deadline else None)
    assert worker.state is (State.IDLE if has_deadline else State.ENDED)
    if has_deadline:
        await see_off(worker)
