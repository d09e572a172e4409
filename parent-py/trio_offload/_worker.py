"""One worker's conversation, and the only judge of how it ends.

The parent's half of the state table in PROTOCOL.md is here. What a worker guarantees to whoever uses it:

* :meth:`Worker.run_sync` either returns the outcome of the call, and the worker is idle again; or raises
  :class:`CallNotRun`, the call has not begun, and the worker has ended or is on its way out; or raises
  :class:`~trio_offload.BrokenWorkerError`. In that case, and whenever anything else comes out of it (a cancellation,
  say), the process has ended and has been reaped, together with whatever it had started.
* :meth:`Worker.start` leaves either an idle worker or no process at all.
"""

from __future__ import annotations

import enum
import errno
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import attrs
import outcome
import trio

from trio_offload_worker._retire import RetireWhen
from trio_offload_worker._wire import Buffer, Frame, Kind, WireError, encode_head

from . import _frozen, _launch, _locate, _oom, _payload, _process, _record
from ._channel import Channel, EndOfStream, WriteFailed
from ._errors import BrokenWorkerError, RemoteError, WorkerMemoryError, WorkerStartError, add_note
from ._sizes import readable_size

if TYPE_CHECKING:
    from ._process import WorkerProcess
    from ._trace import TraceWriter

logger: Final = logging.getLogger("trio_offload")


class CallNotRun(Exception):
    """The worker had left before it began with the call: another worker can run it."""


class State(enum.Enum):
    """Where the conversation is; see the table in PROTOCOL.md."""

    STARTING = enum.auto()
    SETTING_UP = enum.auto()
    IDLE = enum.auto()
    RUNNING = enum.auto()
    RETIRING = enum.auto()
    ENDED = enum.auto()


@attrs.frozen
class WorkerSettings:
    """What a worker is started with: ``idle_timeout`` in seconds, what it calls before the first and after each job; bytes that
    a job may hold; seconds between reports; where records of crashes are kept; where the run is traced.
    """

    idle_timeout: float = math.inf
    init: Callable[[], Any] = bool
    retire: Callable[[], Any] = bool
    memory_limit: int | None = None
    report_interval: float = math.inf
    crash_dir: str | None = None
    trace: TraceWriter | None = None


@attrs.frozen
class WorkerStatistics:
    """One worker at one moment."""

    pid: int
    """Its process id."""
    state: Literal["idle", "running"]
    """Whether it waits for a job or runs one."""
    jobs: int
    """How many jobs it has finished."""
    rss: int | None
    """Resident memory in bytes, without child processes. Of an idle worker: after its last job; of a running one: when it
    was told last, at most a ``report_interval`` ago. None only where the system does not tell."""
    peak_rss: int | None
    """The most that was ever resident, in bytes."""
    vms: int | None
    """The size of the address space, in bytes."""
    cpu_time: float | None
    """Processor time of all its threads so far, in seconds."""
    age: float
    """Seconds since it was started."""
    function: str | None
    """The name of the function that it runs; None if it is idle."""


@attrs.frozen
class Figures:
    """What a worker has told of itself: bytes, and seconds of processor time. None: nothing yet, or it cannot."""

    rss: int | None = None
    peak_rss: int | None = None
    vms: int | None = None
    cpu_time: float | None = None


class Worker:
    """A worker process and the conversation with it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._state = State.STARTING
        self._calls = 0
        self._told: tuple[Any, ...] = ()
        self._retires = settings.retire is not bool
        self._record: _record.RecordFile | None = None
        self._left_behind = ""
        self._figures: list[int] | None = None
        self._oom_kills = _oom.OomKills(None, None)
        self._stderr_size: int | None = None
        self._started = time.monotonic()
        self._ready = self._started
        self._jobs = 0
        # The call that runs: what it is called, and when it began on the clock of time.monotonic().
        self._running: str | None = None
        # What it held before its first job, in bytes.
        self.baseline = 0
        self._greeting_rest: list[Buffer] = []
        self._began = self._started
        # Ended on purpose, before anybody had a use for it: how is no matter.
        self.given_up = False
        # When it may have retired by itself, on the clock of time.monotonic().
        self.expires_at = math.inf

    @property
    def state(self) -> State:
        return self._state

    @property
    def process(self) -> WorkerProcess:
        """The handle of the process; there is one once :meth:`start` has returned."""
        if self._process is None:
            raise RuntimeError("the worker has not been started")
        return self._process

    @property
    def figures(self) -> Figures:
        """What it has told of itself last."""
        if self._figures is None:
            return Figures()
        rss, peak_rss, vms, microseconds = self._figures
        return Figures(rss, peak_rss, vms, microseconds / 1e6)

    def statistics(self) -> WorkerStatistics:
        """What is known of it at this moment."""
        figures = self.figures
        return WorkerStatistics(
            pid=self.process.pid,
            state="running" if self._state is State.RUNNING else "idle",
            jobs=self._jobs,
            rss=figures.rss,
            peak_rss=figures.peak_rss,
            vms=figures.vms,
            cpu_time=figures.cpu_time,
            age=time.monotonic() - self._started,
            function=self._running,
        )

    async def start(self, *, cancellable: bool) -> None:
        """:meth:`begin` and :meth:`finish` in one."""
        self.begin()
        await self.finish(cancellable=cancellable)

    def begin(self) -> None:
        """Start the process and tell it all that it has to know, without waiting for anything.

        Raises:
            WorkerStartError: it could not be started; nothing is left of it.
        """
        refuse_while_main_loads()
        way = _locate.way()
        greeting = self._greeting(way)
        self._process, ours, self._record = _spawn(way)
        try:
            self._channel = Channel(ours)
            # More than the socket takes at once (a sys.path of novels) is sent by `finish`.
            self._greeting_rest = self._channel.send_partly(greeting)
            # After the greeting: the worker is busy with it for longer than this takes.
            self._oom_kills = _oom.count_kills()
            self._stderr_size = _record.stderr_size()
        except BaseException:
            self._process.kill()
            self.wait_sync(math.inf)
            raise

    async def finish(self, *, cancellable: bool) -> None:
        """Bring the process to where it takes jobs.

        Raises:
            WorkerStartError: that failed; the message says at which stage and what would help. Nothing is left of it.
        """
        channel = self._channel
        if channel is None or self._state is not State.STARTING:
            raise RuntimeError("the worker is not starting")
        try:
            try:
                await channel.send(self._greeting_rest, cancellable=cancellable)
            except WriteFailed:
                pass  # Why it is gone, its last words or its exit status tell.
            self._check_welcome(await self._receive(cancellable))
            self._state = State.SETTING_UP
            ready = await self._receive(cancellable)
            self._hear_figures(ready)
            self._check_baseline()
        except (EndOfStream, WireError) as error:
            # One that has closed its end is about to exit; one that talks nonsense is not waited for.
            await (self._end_gently() if isinstance(error, EndOfStream) else self._end())
            raise WorkerStartError(self._describe_failed_start(error), self.process) from None
        except BaseException:
            await self._end()
            raise
        self._ready = time.monotonic()
        if self._settings.trace is not None:
            self._settings.trace.worker_started(self.process.pid, self._started, self._ready)
        self._become_idle()

    async def end(self) -> None:
        """End the worker, in whatever state it is. Not cancellable."""
        await self._end()

    def give_up(self) -> None:
        """End a worker that was begun and that nobody waits for any more; :meth:`gone` or a wait must follow."""
        self._leave()
        self.given_up = True
        self.kill()

    async def run_sync(self, call: _payload.Payload, *, cancellable: bool) -> outcome.Outcome[Any]:
        """Run a pickled call in the worker.

        A checkpoint. If it is cancelled, which it can be only if ``cancellable``, the worker is killed.

        Raises:
            CallNotRun: the worker had left; nothing was run.
            BrokenWorkerError: the worker ended, or had to be ended, before it answered.
        """
        channel = self._channel
        if channel is None or self._state is not State.IDLE:
            raise RuntimeError("the worker is not idle")
        self._calls += 1
        self._state = State.RUNNING
        self._running = call.name
        self._began = time.monotonic()
        try:
            frame = await self._exchange(channel, call, cancellable)
        except CallNotRun:
            raise
        except EndOfStream:
            await self._end_gently()
            raise self._broken(f"while it ran {call.name}") from None
        except WireError as error:
            if error.code == "torn_frame":
                await self._end_gently()
                raise self._broken(f"in the middle of its answer to {call.name}") from None
            await self._end()
            raise BrokenWorkerError(
                f"worker {self.process.pid} was ended, because it sent something that is not of the protocol ({error}) "
                f"while it ran {call.name}",
                self.process,
            ) from error
        except BaseException:
            self._trace_job("cancelled")
            await self._end()
            raise
        if frame.id == self._calls and frame.kind in (Kind.RESULT, Kind.RAISED):
            if frame.body:
                self._hear_figures(frame)
            # No await between the reading and the unpickling: the segment may lie in the channel's buffer.
            result = _load_result(frame) if frame.kind is Kind.RESULT else outcome.Error(load_exception(frame))
            self._jobs += 1
            if self._settings.trace is not None:
                self._trace_job("ok" if frame.kind is Kind.RESULT else "raised")
            self._become_idle()
            return result
        return await self._refused_call(frame, call.name)

    def will_retire(self) -> bool:
        """Whether an idle worker is about to leave by the ``retire`` that it was given, as far as that can be foreseen here."""
        retire = self._settings.retire
        if type(retire) is not RetireWhen:
            return False
        if retire.jobs is not None and self._jobs >= retire.jobs:
            return True
        if retire.seconds is not None and time.monotonic() - self._ready >= retire.seconds:
            return True
        return (
            retire.rss is not None and self._figures is not None and self._figures[0] > retire.effective_rss(self.baseline)
        )

    def hear(self) -> bool:
        """Take in, without waiting, what an idle worker has said; whether it still takes jobs."""
        if self._state is State.IDLE and self._channel is not None:
            if self.process.ended:
                # In a fork of the process that started it; the channel is closed there.
                self._leave()
                return False
            try:
                frame = self._receive_nowait(self._channel)
            except EndOfStream:
                self._leave()
            except WireError as error:
                self._reject(f"something that is not of the protocol ({error})")
            else:
                if frame is not None and frame.kind in _LAST_WORDS:
                    self._leave()
                elif frame is not None:
                    self._reject(frame.kind.name)
        return self._state is State.IDLE

    def ask_to_retire(self) -> None:
        """Tell an idle worker to leave. It may have left already."""
        if self._state is State.IDLE and self._channel is not None:
            self._channel.send_nowait([encode_head(Kind.RETIRE, 0, ())])
            self._leave()

    def gone(self) -> bool:
        """Whether the process of a worker on its way out has ended; if so it is reaped and nothing of it is left."""
        if self._process is not None and self._process.poll():
            self._close()
            return True
        return False

    def kill(self) -> None:
        """End the process at once; :meth:`gone` or a wait must follow."""
        if self._process is not None:
            self._process.kill()

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            await self._process.wait()
        self._close()

    def wait_sync(self, deadline: float) -> bool:
        """Wait, blocking, until the process has ended or ``time.monotonic()`` passes ``deadline``; whether it has."""
        if self._process is not None and not self._process.wait_sync(deadline):
            return False
        self._close()
        return True

    def _greeting(self, way: _locate.Way) -> list[Buffer]:
        """HELLO and SETUP as bytes; what cannot be pickled is found here, before anything is started."""
        hello = _launch.hello(way.libpython, _given_back(way))
        self._told = _launch.changing_state()
        settings = _launch.current_settings()
        segments = [
            _payload.dump_settings(settings),
            b"" if self._settings.init is bool else _payload.dump_callable(self._settings.init),
            _payload.dump_callable(self._settings.retire) if self._retires else b"",
        ]
        setup: dict[str, Any] = {"eager": _launch.must_be_applied(settings)}
        if self._settings.idle_timeout < _LONGEST_IDLE:
            setup["idle_timeout_ms"] = math.ceil(self._settings.idle_timeout * 1000)
        if self._settings.report_interval < _LONGEST_IDLE:
            setup["report_interval_ms"] = math.ceil(self._settings.report_interval * 1000)
        if self._settings.memory_limit is not None:
            setup["memory_limit"] = self._settings.memory_limit
        return [
            encode_head(Kind.HELLO, 0, (), hello),
            encode_head(Kind.SETUP, 0, [len(segment) for segment in segments], setup),
            *segments,
        ]

    async def _receive(self, cancellable: bool) -> Frame:
        """The next frame of a start: the one that the state asks for."""
        if self._channel is None:
            raise RuntimeError("the worker has not been started")
        frame = await self._next_frame(self._channel, cancellable)
        expected = Kind.WELCOME if self._state is State.STARTING else Kind.READY
        if frame.kind is expected:
            return frame
        if frame.kind is Kind.SETUP_FAILED and self._state is State.SETTING_UP:
            cause = load_exception(frame)
            await self._end_gently()
            raise WorkerStartError(
                f"a worker could not be started, because its init, {_payload.function_name(self._settings.init)}, "
                f"raised {frame.body['type']}",
                self.process,
            ) from cause
        if frame.kind in (Kind.REFUSED, Kind.ABORTED):
            await self._end_gently()
            raise WorkerStartError(
                f"a worker could not be started: {frame.body['message']}{_secure_execution_hint()}", self.process
            )
        await self._end()
        raise WorkerStartError(
            f"worker {self.process.pid} was ended: it said {frame.kind.name} where it had to say {expected.name}",
            self.process,
        )

    def _check_welcome(self, frame: Frame) -> None:
        """The worker has compared versions already; this compares what only a running interpreter knows."""
        for name in ("prefix", "exec_prefix"):
            theirs = os.fsdecode(frame.body[name])
            ours = getattr(sys, name)
            if theirs != ours:
                raise WorkerStartError(
                    f"the worker is not this Python: its sys.{name} is {theirs}, here it is {ours}. It was started as "
                    f"{sys.executable!r}; is that the interpreter that runs this program?",
                    self.process,
                )

    async def _next_frame(self, channel: Channel, cancellable: bool) -> Frame:
        """The next frame that is not a report."""
        while True:
            frame = await channel.receive(cancellable=cancellable)
            if frame.kind is not Kind.REPORT or self._state is State.STARTING:
                return frame
            self._hear_figures(frame)

    def _receive_nowait(self, channel: Channel) -> Frame | None:
        """The next frame that is not a report, if it is there."""
        while True:
            frame = channel.receive_nowait()
            if frame is None or frame.kind is not Kind.REPORT:
                return frame
            self._hear_figures(frame)

    def _hear_figures(self, frame: Frame) -> None:
        figures = frame.body.get("figures")
        if figures is not None:
            self._figures = figures
            if self._settings.trace is not None:
                self._settings.trace.memory(self.process.pid, time.monotonic(), figures[0])

    def _check_baseline(self) -> None:
        """What a worker holds before its first job has to leave room for one."""
        if self._figures is None:
            return
        self.baseline = self._figures[0]
        limit = self._settings.memory_limit
        if limit is not None and self.baseline > limit:
            raise WorkerStartError(
                f"memory_limit={limit} ({readable_size(limit)}) is less than what a worker holds before its first job, "
                f"{readable_size(self.baseline)}: no job could ever run. Raise it above that, or let init import less",
                self.process,
            )

    def _new_settings(self) -> list[Buffer]:
        self._told = _launch.changing_state()
        settings = _launch.current_settings()
        segment = _payload.dump_settings(settings)
        return [encode_head(Kind.SETTINGS, 0, [len(segment)], {"eager": True}), segment]

    async def _exchange(self, channel: Channel, call: _payload.Payload, cancellable: bool) -> Frame:
        """Send the call that is due, and receive what the worker says to it."""
        if self._retires:
            # A worker with a ``retire`` of its own has often said RETIRED by now: that spares it a call in vain.
            try:
                frame = self._receive_nowait(channel)
            except EndOfStream:
                raise await self._died_idle() from None
            if frame is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return frame
        parts: list[Buffer] = [encode_head(Kind.CALL, self._calls, call.lengths), *call.parts]
        if _launch.changing_state() != self._told:
            parts[:0] = self._new_settings()
        sent = True
        try:
            await channel.send(parts, cancellable=cancellable)
        except WriteFailed as failure:
            # That decides nothing: what the worker said before it left does.
            sent = failure.sent
        try:
            return await self._next_frame(channel, cancellable)
        except EndOfStream:
            if sent:
                raise
            raise await self._died_idle() from None

    async def _died_idle(self) -> CallNotRun:
        """The worker had ended before a byte of the call could be written."""
        await self._end_gently()
        logger.warning("idle worker %s %s", self.process.pid, describe_ending(self.process))
        return CallNotRun()

    async def _refused_call(self, frame: Frame, name: str) -> NoReturn:
        """The worker answered a call with something other than its result."""
        if frame.kind is Kind.RETIRED:
            self._leave()
            raise CallNotRun
        if frame.kind in (Kind.REFUSED, Kind.ABORTED):
            await self._end_gently()
            raise BrokenWorkerError(
                f"worker {self.process.pid} gave up when it was to run {name}: {frame.body['message']}", self.process
            )
        await self._end()
        raise BrokenWorkerError(
            f"worker {self.process.pid} was ended: it said {frame.kind.name} (id {frame.id}) in answer to call "
            f"{self._calls} of {name}",
            self.process,
        )

    def _broken(self, when: str) -> BrokenWorkerError:
        """The error for a worker that has ended by itself in a call, or was ended by the system or its native thread."""
        told, stack = _record.take_apart(self._left_behind)
        figures = self.figures
        crash = _record.CrashRecord(
            pid=self.process.pid,
            exitcode=self.process.exitcode,
            signal=self.process.signal,
            function=self._running,
            age=time.monotonic() - self._began,
            stack=stack,
            rss=figures.rss,
            peak_rss=figures.peak_rss,
            vms=figures.vms,
            cpu_time=figures.cpu_time,
            stderr=_record.stderr_since(self._stderr_size),
        )
        error = self._judge_death(when, told, crash)
        error.crash = crash
        add_note(error, crash.note())
        self._trace_job(type(error).__name__)
        if self._settings.crash_dir is not None:
            _record.keep(crash, self._settings.crash_dir)
        return error

    def _judge_death(self, when: str, told: _record.MemoryLimit | None, crash: _record.CrashRecord) -> BrokenWorkerError:
        process = self.process
        error: BrokenWorkerError
        if process.exitcode in _ENDS_BY_LIMIT and told is not None:
            error = WorkerMemoryError(
                f"worker {process.pid} was ended {when}: with its child processes it held {readable_size(told.reached)}, and "
                f"memory_limit allows {readable_size(told.limit)}",
                process,
            )
            error.limit, error.reached = told.limit, told.reached
            return error
        killer = None
        if process.signal is signal.SIGKILL and not process.killed:
            killer = _oom.explain_kill(self._oom_kills, crash.rss)
        if killer is not None and killer.certain:
            error = WorkerMemoryError(f"worker {process.pid} was killed (SIGKILL) {when}, {killer.text}", process)
            error.limit, error.reached = self._settings.memory_limit, crash.rss
            return error
        hint = "" if killer is None else f", {killer.text}"
        return BrokenWorkerError(f"worker {process.pid} {describe_ending(process)} {when}{hint}", process)

    def _trace_job(self, how: str) -> None:
        trace = self._settings.trace
        if trace is not None and self._running is not None:
            trace.job(self.process.pid, self._running, self._began, time.monotonic(), how)

    def _describe_failed_start(self, error: EndOfStream | WireError) -> str:
        process = self.process
        if isinstance(error, WireError):
            return f"worker {process.pid} was ended: what it sent at its start is not of the protocol ({error})"
        told, stack = _record.take_apart(self._left_behind)
        if process.exitcode in _ENDS_BY_LIMIT and told is not None:
            return (
                f"worker {process.pid} was ended while it ran init, {_payload.function_name(self._settings.init)}: it held "
                f"{readable_size(told.reached)}, and memory_limit allows {readable_size(told.limit)}"
            )
        hint = ""
        if process.exitcode == 127:
            # The dynamic loader's exit status; it has told standard error what it missed.
            hint = _secure_execution_hint() or (
                ". The dynamic loader could not load it, or what it needs, and has said on standard error why: most likely the "
                f"executable was built for another minor version of Python than this one ({sys.version.split()[0]}). Reinstall "
                f"trio-offload with this interpreter: {sys.executable} -m pip install --force-reinstall trio-offload"
            )
        elif stack:
            hint = f". What it left behind:\n{stack}"
        elif process.exitcode == 1 and not _locate.way().is_native:
            # Python's own, and it has told standard error why.
            hint = ". Python did not start in the worker, or could not find its library; standard error says why"
            if "PYTHONHOME" in os.environ:
                hint += f". The variable PYTHONHOME is set to {os.environ['PYTHONHOME']!r}; is that where this Python lives?"
        return f"worker {process.pid} {describe_ending(process)} before it was ready{hint}"

    def _become_idle(self) -> None:
        self._state = State.IDLE
        self._running = None
        self.expires_at = time.monotonic() + self._settings.idle_timeout

    def _leave(self) -> None:
        self._state = State.RETIRING
        self.expires_at = -math.inf

    def _reject(self, what: str) -> None:
        """An idle worker has said what it must not say: nothing that it says can be relied on."""
        logger.warning("idle worker %s was ended: it said %s", self.process.pid, what)
        self._leave()
        self.process.kill()

    async def _end(self) -> None:
        """Kill the process with its descendants, wait for it, and let go of everything."""
        self._state = State.ENDED
        try:
            if self._process is not None:
                self._process.kill()
                await _wait_unconditionally(self._process)
        finally:
            self._close()

    async def _end_gently(self) -> None:
        """The worker has closed its end or said its last words: let it exit, so that its own status is seen."""
        try:
            if self._process is not None:
                with trio.CancelScope(shield=True), trio.move_on_after(_EXIT_PATIENCE):
                    await self._process.wait()
        finally:
            await self._end()

    def _close(self) -> None:
        self._state = State.ENDED
        if self._channel is not None:
            self._channel.close()
        if self._record is not None:
            self._left_behind = self._record.read()
            self._record.close()
            self._record = None
            if self._settings.trace is not None:
                self._settings.trace.worker_ended(self.process.pid, time.monotonic())


async def _wait_unconditionally(process: WorkerProcess) -> None:
    """Wait for a killed process, which is never long.

    Trio raises KeyboardInterrupt in the main task at whatever it awaits, shielded or not; here it has to wait too.
    """
    interrupt: KeyboardInterrupt | None = None
    with trio.CancelScope(shield=True):
        while True:
            try:
                await process.wait()
                break
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def describe_ending(process: WorkerProcess) -> str:
    """How a process ended, as what follows «the worker»."""
    code = process.exitcode
    if code is None:
        return "ended, and how is not known, because somebody else in this program reaped it (SIGCHLD ignored, or a foreign waitpid)"
    if code >= 0:
        return f"exited with status {code}"
    if process.killed and code == -signal.SIGKILL:
        # It has closed its end of the socket, as one does that replaces itself by another program (exec).
        return "stopped answering without exiting, and was killed"
    if process.signal is None:
        return f"died of signal {-code}"
    return f"died of {process.signal.name}"


def load_exception(frame: Frame) -> BaseException:
    """The exception of a RAISED or SETUP_FAILED, or what stands in for it."""
    told = RemoteError(frame.body["type"], frame.body["message"], frame.body["traceback"])
    if not frame.segments:
        return told
    try:
        error = _payload.load(frame.segments)
    except BaseException as why:
        told.__cause__ = why
        return told
    if not isinstance(error, BaseException):
        return told
    stage = _STAGES.get(frame.body["stage"])
    if stage is not None:
        add_note(error, stage)
    return error


def refuse_while_main_loads() -> None:
    """In a worker that is loading the user's main script, starting workers means that the script has no guard.

    Raises:
        RuntimeError: that is so; the message teaches the guard.
    """
    loader = sys.modules.get("trio_offload_worker._main")
    if loader is not None and loader.loading:
        raise RuntimeError(
            "this program uses trio_offload while a worker is only loading it, to find a function that lives in its main "
            "script. That code would run again in every worker. Put what starts the program behind the guard that keeps "
            "it to the main process:\n\n"
            '    if __name__ == "__main__":\n'
            "        trio.run(main)\n"
        )


_LAST_WORDS: Final = (Kind.RETIRED, Kind.REFUSED, Kind.ABORTED)  # what an idle worker may say
_LIBRARY_PATH: Final = b"LD_LIBRARY_PATH"
_COERCION: Final = b"PYTHONCOERCECLOCALE"
_INSPECT: Final = b"PYTHONINSPECT"
_SPLASH: Final = b"_PYI_SPLASH_IPC"
_LONGEST_IDLE: Final = 10 * 365 * 86400.0  # seconds; above it, for ever
# PROTOCOL.md, «The worker's exit codes»; where a process ends the worker, and not a thread of its own, it takes a signal.
_ENDS_BY_LIMIT: Final = (7, -signal.SIGKILL)
_EXIT_PATIENCE: Final = 2.0  # seconds that a worker gets to exit after its last words
_SPAWN_REMEDIES: Final = {
    errno.EACCES: "It may not be executed: look at its mode, whether its file system is mounted noexec, and whether a security "
    "policy (SELinux, AppArmor) forbids it, which the system's log tells.",
    errno.EPERM: "A security policy (seccomp, AppArmor, a container's) forbids it, which the system's log may tell.",
    errno.ENOENT: "It, or the dynamic loader that it names, is not there; a build for another C library looks like this.",
    errno.ENOEXEC: "It is a build for another processor.",
    errno.EAGAIN: "The limit of processes is reached (ulimit -u, or the container's).",
    errno.ENOMEM: "There is not enough memory.",
    errno.EMFILE: "This program has too many files open (ulimit -n).",
    errno.ENFILE: "The system has too many files open.",
}
_STAGES: Final = {
    "unpickle": "(while the worker unpickled the function and its arguments)",
    "pickle": "(while the worker pickled the result)",
}


def _spawn(way: _locate.Way) -> tuple[WorkerProcess, Any, _record.RecordFile]:
    environment = dict(os.environb)
    argv = None
    if way.is_native:
        executable = way.executable
        folders = [os.path.dirname(os.fsencode(way.libpython))]
        bundle = _frozen.bundle()
        if bundle is not None:
            # The libraries of its extension modules lie there; elsewhere the system's own of the same name would be found.
            folders.append(os.fsencode(bundle.folder))
            if _SPLASH in environment:
                # A worker does not talk to the splash screen that the app may be showing.
                environment[_SPLASH] = b"0"
        folders += filter(None, [environment.get(_LIBRARY_PATH)])
        environment[_LIBRARY_PATH] = b":".join(dict.fromkeys(folders))
    else:
        executable = _locate.interpreter()
        argv = _launch.loop_command()
        # Python sets LC_CTYPE when it finds the C locale (PEP 538). This one has done so where it should be done; there it
        # would only change the environment that the worker is given.
        environment[_COERCION] = b"0"
        # With this one Python does not end at its end.
        environment.pop(_INSPECT, None)
    try:
        return _process.start(executable, environment, argv)
    except OSError as error:
        raise WorkerStartError(
            f"a worker could not be started as {executable}: {os.strerror(error.errno or 0)}. "
            + _SPAWN_REMEDIES.get(error.errno or 0, "Reinstalling trio-offload may help.")
        ) from error


def _given_back(way: _locate.Way) -> dict[bytes, bytes | None]:
    """What the worker gives back: the variables that are changed to start it, as they are here."""
    names = [_LIBRARY_PATH] if way.is_native else [_COERCION, _INSPECT]
    return {name: os.environb.get(name) for name in names}


def _load_result(frame: Frame) -> outcome.Outcome[Any]:
    try:
        return outcome.Value(_payload.load(frame.segments))
    except BaseException as error:
        add_note(error, "(while unpickling the result of a job)")
        return outcome.Error(error)


def _secure_execution_hint() -> str:
    """What keeps the loader from finding the libpython where the user's effective id is not the real one (ld.so(8))."""
    if os.getuid() == os.geteuid() and os.getgid() == os.getegid():
        return ""
    return (
        f" (This program runs with an effective user and group, {os.geteuid()} and {os.getegid()}, that are not the real ones, "
        f"{os.getuid()} and {os.getgid()}; for what such a program starts the dynamic loader does not look where it is told to: "
        "secure-execution mode, ld.so(8). Change the real ones too, with os.setresuid and os.setresgid.)"
    )
