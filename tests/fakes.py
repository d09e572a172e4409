"""Workers without a process: they keep the contract of ``trio_offload._worker.worker.Worker`` within this process."""

from __future__ import annotations

import collections
import math
import pickle
import threading
from contextlib import closing
from typing import Any

import trio

from trio_offload import BrokenWorkerError, WorkerTimeoutError
from trio_offload._options import ContextOptions
from trio_offload._pickling.payload import Payload
from trio_offload._process.record import Progress, RecordFile
from trio_offload._statistics import WorkerContextCounters, WorkerStatistics
from trio_offload._worker.call_sender import MAX_IN_FLIGHT
from trio_offload._worker.launcher import Launcher
from trio_offload._worker.states import CallNotRun, State
from trio_offload_worker._jobs import chunks


def block() -> None:
    """A job that a fake runs until its plan's ``release`` is set."""


def block_in_thread() -> str:
    """A job that a fake runs until its plan's ``thread_release`` is set."""
    return "released"


def pass_gate(item: Any) -> Any:
    """A job that a fake runs when the plan has opened the gate of its item."""
    return item


async def run_call(worker: Any, call: Payload, *, cancellable: bool = True) -> tuple[Any, BaseException | None]:
    """Run one call in a worker of either kind, as a context does. It may have been sent with the greeting."""
    if worker.state is not State.RUNNING:
        worker.submit(call)
    return await worker.answer(cancellable=cancellable, spin=True)  # type: ignore[no-any-return]


class FakeProcess:
    """As much of a WorkerProcess as the cache looks at."""

    def __init__(self) -> None:
        self.pid = 0
        self.exitcode: int | None = None
        self.killed = False
        self.dismissed = True
        self.signal = None

    @property
    def ended(self) -> bool:
        return self.exitcode is not None

    def send(self, number: int) -> bool:
        return True

    def poll(self) -> bool:
        # It leaves no stack.
        return True


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
        # What the jobs of `pass_gate` wait at.
        self.gates: dict[Any, trio.Event] = {}
        # The items at which a worker breaks, and after which it retires.
        self.breaks_at: set[Any] = set()
        self.retires_after: set[Any] = set()
        # The items that have passed their gates or broken their worker, in order; how many calls one worker had at most.
        self.begun: list[tuple[FakeWorker, Any]] = []
        self.most_in_flight = 0
        # Whether an answer is there whenever somebody asks; how many calls were in flight at each start of one.
        self.has_answers = False
        self.flights: list[int] = []

    def gate(self, item: Any) -> trio.Event:
        return self.gates.setdefault(item, trio.Event())

    def launcher_for(self, options: ContextOptions) -> FakeLauncher:
        return FakeLauncher(options, self)

    def begin(self) -> FakeWorker:
        worker = FakeWorker(self)
        self.workers.append(worker)
        return worker


class FakeLauncher(Launcher):
    """Makes fakes."""

    def __init__(self, options: ContextOptions, plan: Plan) -> None:
        super().__init__(options)
        self.plan = plan

    def _begin(self, call: Payload | None) -> Any:
        return self.plan.begin()


class FakeWorker:
    """Runs jobs here; may be told to have retired, to break, or not to start."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.had_call = False
        self.last_words = ""
        self.returned = 0
        self.waited = 0.0
        self.state = State.STARTING
        self.process = FakeProcess()
        self.expires_at = math.inf
        self.retired = plan.born_retired
        self.killed = False
        self.given_up = False
        self.baseline = 0
        self.flight: collections.deque[Payload] = collections.deque()
        self.progress = Progress()
        self.record_identity = (0, 0)
        self.answer_size = 0
        self.answered_too_late = 0
        self.conversation = None

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

    def submit(self, call: Payload, prepares: bool = False) -> None:
        if self.state is not (State.RUNNING if self.flight else State.IDLE) or len(self.flight) == MAX_IN_FLIGHT:
            raise RuntimeError(f"the worker takes no call in the state {self.state.name}, with {len(self.flight)} in flight")
        self.state = State.RUNNING
        self.had_call = True
        self.plan.flights.append(len(self.flight))
        self.flight.append(call)
        self.plan.most_in_flight = max(self.plan.most_in_flight, len(self.flight))

    def flush(self) -> None:
        pass

    @property
    def has_answer(self) -> bool:
        return self.plan.has_answers and bool(self.flight)

    async def answer(
        self, cancellable: bool = True, spin: bool = False, deadline: trio.CancelScope | None = None
    ) -> tuple[Any, BaseException | None]:
        if not self.flight:
            raise RuntimeError("the worker has no call to answer")
        if self.retired:
            await self._leave()
        result = await self._run(self.flight[0], cancellable, deadline)
        self.flight.popleft()
        self.returned += 1
        if not self.flight:
            self.state = State.IDLE
        return result

    async def _leave(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        self.state = State.RETIRING
        raise CallNotRun

    async def _run(
        self, call: Payload, cancellable: bool, deadline: trio.CancelScope | None
    ) -> tuple[Any, BaseException | None]:
        self.plan.calls.append((self, call.function))
        self.plan.running += 1
        try:
            with trio.CancelScope(shield=not cancellable):
                await trio.lowlevel.checkpoint()
                if call.function is block:
                    await self.plan.release.wait()
                elif call.function is block_in_thread:
                    await trio.to_thread.run_sync(self.plan.thread_release.wait)
                elif call.function is pass_gate:
                    await self._pass_gates(call)
            if self.plan.breaks:
                raise BrokenWorkerError("it broke", self.process)  # type: ignore[arg-type]
        except BaseException as error:
            if not isinstance(error, trio.Cancelled) or deadline is None or not deadline.cancel_called:
                self.kill()
                self._end(-9)
            raise
        finally:
            self.plan.running -= 1

        try:
            function, args = pickle.loads(b"".join(call.parts))
            return pickle.loads(pickle.dumps(function(*args), 5)), None
        except Exception as error:
            return None, error

    async def _pass_gates(self, call: Payload) -> None:
        function, args = pickle.loads(b"".join(call.parts))
        # A chunk has the function as its helper's first argument, and the items as the first of the second.
        items, number = args, 0
        if function is not pass_gate:
            items, _, number, *_ = args[1] or ([], None, 0)
            items = chunks.items_in(items)
        for index, item in enumerate(items):
            self.plan.begun.append((self, item))
            if item in self.plan.breaks_at:
                self.progress = Progress(number, index, 1)
                raise BrokenWorkerError("it broke", self.process)  # type: ignore[arg-type]
            await self.plan.gate(item).wait()
            if item in self.plan.retires_after:
                self.retired = True

    def will_retire(self, ahead: int = 0) -> bool:
        return self.plan.foreseen

    def counters(self) -> WorkerContextCounters:
        return WorkerContextCounters(calls_returned=self.returned)

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

    @property
    def record(self) -> RecordFile:
        with closing(RecordFile()) as record:
            return record

    def trace_job(self, how: str) -> None:
        pass

    async def give_grace(self) -> None:
        pass

    async def end_cancelled(self) -> None:
        await self.end()

    async def end_in_flight(self) -> None:
        await self.end()

    def explain_timeout(self, timeout: float, problem: str) -> WorkerTimeoutError:
        return WorkerTimeoutError(f"it was not finished within {timeout:g} seconds", timeout)

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
