"""Workers without a process: they keep the contract of ``trio_offload._worker.Worker`` within this process."""

from __future__ import annotations

import math
import pickle
import threading
from typing import Any

import outcome
import trio

from trio_offload import BrokenWorkerError
from trio_offload._payload import Payload
from trio_offload._worker import CallNotRun, State, WorkerSettings, WorkerStatistics


def block() -> None:
    """A job that a fake runs until its plan's ``release`` is set."""


def block_in_thread() -> str:
    """A job that a fake runs until its plan's ``thread_release`` is set."""
    return "released"


class FakeProcess:
    """As much of a WorkerProcess as the cache looks at."""

    def __init__(self) -> None:
        self.pid = 0
        self.exitcode: int | None = None

    @property
    def ended(self) -> bool:
        return self.exitcode is not None


class Plan:
    """What the fakes of one test do, and what they were asked."""

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.calls: list[tuple[FakeWorker, Any]] = []
        self.release = trio.Event()
        self.thread_release = threading.Event()
        self.running = 0
        self.fail_start: Exception | None = None
        self.born_retired = False
        self.breaks = False
        self.foreseen = False

    def make(self, settings: WorkerSettings) -> FakeWorker:
        worker = FakeWorker(settings, self)
        self.workers.append(worker)
        return worker


class FakeWorker:
    """Runs jobs here; may be told to have retired, to break, or not to start."""

    def __init__(self, settings: WorkerSettings, plan: Plan) -> None:
        self.settings = settings
        self.plan = plan
        self.state = State.STARTING
        self.process = FakeProcess()
        self.expires_at = math.inf
        self.retired = plan.born_retired
        self.killed = False
        self.given_up = False
        self.baseline = 0

    async def start(self, *, cancellable: bool) -> None:
        self.begin()
        await self.finish(cancellable=cancellable)

    def begin(self) -> None:
        pass

    async def finish(self, *, cancellable: bool) -> None:
        if self.plan.fail_start is not None:
            self._end(1)
            raise self.plan.fail_start
        try:
            with trio.CancelScope(shield=not cancellable):
                await trio.lowlevel.checkpoint()
        except BaseException:
            self._end(-9)
            raise
        self.state = State.IDLE

    async def run_sync(self, call: Payload, *, cancellable: bool) -> outcome.Outcome[Any]:
        if self.state is not State.IDLE:
            raise RuntimeError("the worker is not idle")
        if self.retired:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self.state = State.RETIRING
            raise CallNotRun
        self.state = State.RUNNING
        self.plan.calls.append((self, call.function))
        self.plan.running += 1
        try:
            with trio.CancelScope(shield=not cancellable):
                await trio.lowlevel.checkpoint()
                if call.function is block:
                    await self.plan.release.wait()
                elif call.function is block_in_thread:
                    await trio.to_thread.run_sync(self.plan.thread_release.wait)
            if self.plan.breaks:
                raise BrokenWorkerError("it broke", self.process)  # type: ignore[arg-type]
        except BaseException:
            self.kill()
            self._end(-9)
            raise
        finally:
            self.plan.running -= 1
        self.state = State.IDLE

        def job() -> Any:
            function, args = pickle.loads(b"".join(call.parts))
            return function(*args)

        return outcome.capture(job)

    def will_retire(self) -> bool:
        return self.plan.foreseen

    def statistics(self) -> WorkerStatistics:
        running = self.state is State.RUNNING
        return WorkerStatistics(
            pid=self.process.pid,
            state="running" if running else "idle",
            jobs=0,
            rss=None,
            peak_rss=None,
            vms=None,
            cpu_time=None,
            age=0.0,
            function="job" if running else None,
        )

    def give_up(self) -> None:
        self.given_up = True
        self.state = State.RETIRING
        self.kill()

    async def end(self) -> None:
        self.kill()
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._end(-9)

    def hear(self) -> bool:
        if self.retired and self.state is State.IDLE:
            self.state = State.RETIRING
        return self.state is State.IDLE

    def ask_to_retire(self) -> None:
        if self.state is State.IDLE:
            self.state = State.RETIRING

    def gone(self) -> bool:
        if self.state is State.RETIRING:
            self._end(0)
        return self.state is State.ENDED

    def kill(self) -> None:
        self.killed = self.killed or not self.process.ended

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        self._end(-9 if self.killed else 0)

    def wait_sync(self, deadline: float) -> bool:
        self._end(0)
        return True

    def _end(self, exitcode: int) -> None:
        self.state = State.ENDED
        if self.process.exitcode is None:
            self.process.exitcode = exitcode
