"""One worker's conversation, and the only judge of how it ends.

The parent's half of the state table in PROTOCOL.md is here. The guarantees of a worker to its user:

* :meth:`Worker.submit` queues a call behind those in flight, or raises :class:`CallNotRun`.
* :meth:`Worker.answer` has three outcomes. It returns the result of the oldest call in flight. It
  raises :class:`CallNotRun`: the call was not started, and the worker has ended or is exiting. It
  raises anything else (:class:`~trio_offload.BrokenWorkerError`, a cancellation): the worker and
  its descendants have been killed and reaped.
* :meth:`Worker.start` leaves either an idle worker or no process at all.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from os import geteuid
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
import outcome
import trio
from trio.lowlevel import cancel_shielded_checkpoint

from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._jobs.retire import RetireWhen
from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, WireError, encode_call, encode_head
from trio_offload_worker._system.linux import is_told

from .. import _clock, _crash
from .._exceptions import BrokenWorkerError, WorkerStartError
from .._interpreter import command_line as _command_line
from .._interpreter import frozen as _frozen
from .._interpreter import hello as _hello
from .._interpreter import loader as _loader
from .._interpreter import locate as _locate
from .._interpreter import settings as _settings
from .._pickling import calls as _calls
from .._pickling import payload as _payload
from .._process import oom as _oom
from .._process import record as _record
from .._process import start as _process
from .._process.fork_lock import fork_lock
from .._process.privileges import Grant, current_grant, same_grant
from .._process.start import executable_command
from .._sizes import readable_size
from .._statistics import Figures, WorkerStatistics
from .._transport.buffer_pool import BufferPool
from .._transport.channel import Channel, EndOfStream
from .._transport.sockets import WriteFailed
from . import vitals
from .endings import describe_ending, describe_failed_start, judge_death, load_exception, secure_execution_hint
from .peer import Peer, logger, wait_unconditionally
from .states import ENDED, IDLE, RUNNING, SETTING_UP, STARTING, CallNotRun

if TYPE_CHECKING:
    from .. import _forked
    from .._process.pending import PendingFork
    from .._process.process import WorkerProcess
    from .._template import Template, Templates
    from .._trace import TraceWriter


class _NeverForked(Exception):
    """The template had ended before it forked the worker: another one can do that."""

    def __init__(self, template: Template) -> None:
        super().__init__()
        self.template = template


@attrs.frozen
class WorkerSettings:
    """What a worker is started with: ``idle_timeout`` in seconds, what it calls before the first and after each job; bytes that
    a job may hold; seconds between reports; where records of crashes are kept; where the run is traced; whether it is a fork;
    what it is forked off, if it is to be forked off a template; the memory of results.
    """

    idle_timeout: float = math.inf
    init: Callable[[], Any] = bool
    retire: Callable[[], Any] = bool
    memory_limit: int | None = None
    report_interval: float = math.inf
    crash_dir: str | None = None
    trace: TraceWriter | None = None
    fork: bool = False
    templates: Templates | None = None
    regions: BufferPool = attrs.field(factory=BufferPool)


class Worker(Peer):
    """A worker process and the conversation with it."""

    # An instance with 30 attributes in a dictionary loses the fast access of CPython 3.11, which
    # costs 1 % of a call.
    __slots__ = (
        "_asks_first",
        "_began",
        "_behind",
        "_calls",
        "_definitions",
        "_figures",
        "_first_call",
        "_grant",
        "_greet",
        "_greeting_rest",
        "_has_watcher",
        "_jobs",
        "_kills_look_at",
        "_last_words",
        "_next_kills",
        "_oom_kills",
        "_preparing",
        "_ready",
        "_retires",
        "_running",
        "_sent",
        "_settings",
        "_start",
        "_started",
        "_stderr_size",
        "_template",
        "_told",
        "_unsent",
        "answer_size",
        "answered_too_late",
        "baseline",
    )

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__()
        self._settings = settings
        self._calls = 0
        self._told: _settings.Snapshot | None = None
        self._retires = settings.retire is not bool
        self._figures: list[int] | None = None
        self._oom_kills = _oom.OomKills(None, None)
        # As they were at its last report.
        self._next_kills: _oom.OomKills | None = None
        # When they are to be read again, on the clock of time.monotonic().
        self._kills_look_at = -math.inf
        self._stderr_size: int | None = None
        self._started = time.monotonic()
        self._ready = self._started
        self._jobs = 0
        # The running call. It keeps memory alive while the socket may hold pages of it. Then the
        # start of its result's header, empty for a large call.
        self._running: _payload.Payload | None = None
        self._start = b""
        # Resident memory before the first job, in bytes.
        self.baseline = 0
        self._greeting_rest: list[Buffer] = []
        # Of a forked worker: says the greeting, unless that cannot be done at this moment; None once it has been said.
        self._greet: Callable[[], bool] | None = None
        # Of a fork: the definitions in its ``__main__``.
        self._definitions: _forked.Definitions | None = None
        self._began = self._started
        # The calls behind the running one, the oldest first, with the same starts.
        self._behind: collections.deque[tuple[_payload.Payload, bytes]] = collections.deque()
        # Data that the socket has not taken yet. Number of the last call that it may have begun.
        self._unsent: list[Buffer] = []
        self._sent = 0
        # Number of a call that prepares for jobs and is not counted as one.
        self._preparing = 0
        # From which its process is forked, if it is.
        self._template: Template | None = None
        # It is watched by a process that has its end of the socket too, so that its death is the end of the stream only a moment
        # later. A call that was sent in between might have begun, for all that could be known: so such a worker is asked first.
        self._has_watcher = False
        # True if an idle worker is polled before it is sent a call. The frame that this found.
        self._asks_first = self._retires
        self._last_words: Frame | None = None
        # The bytes of the last answer.
        self.answer_size = 0
        # How many of the calls in flight it had answered when it was ended for a cancellation: those, and the one behind them, may
        # have been run.
        self.answered_too_late = 0
        self._grant: Grant  # the privileges that its process has; a forked one has its template's
        # The first call, until READY. If it has been sent, it is call number 1.
        self._first_call: _payload.Payload | None = None

    @property
    def figures(self) -> Figures:
        """The figures that it sent last."""
        return vitals.figures(self._figures)

    @property
    def _running_name(self) -> str | None:
        # Looked up for who asks, and not at each call; another thread may ask while the call ends.
        call = self._running
        return None if call is None else call.name

    def statistics(self) -> WorkerStatistics:
        """Return its statistics."""
        figures = self.figures
        return WorkerStatistics(
            pid=self.process.pid,
            state="running" if self.state is RUNNING else "idle",
            jobs=self._jobs,
            rss=figures.rss,
            peak_rss=figures.peak_rss,
            vms=figures.vms,
            cpu_time=figures.cpu_time,
            age=time.monotonic() - self._started,
            function=self._running_name,
        )

    async def start(self, *, cancellable: bool) -> None:
        """:meth:`begin` and :meth:`finish` in one."""
        self.begin()
        await self.finish(cancellable=cancellable)

    def begin(self, call: _payload.Payload | None = None) -> None:
        """Start the process and tell it all that it has to know, without waiting for anything.

        If its template is not ready, :meth:`finish` does all that. A ``call`` may be sent with the
        greeting. Then the worker is running it when :meth:`finish` returns, and :meth:`answer` must
        follow. Otherwise it is idle.

        Raises:
            WorkerStartError: it could not be started; nothing is left of it.
        """
        refuse_while_main_loads()
        if self._settings.memory_limit is not None and not is_told():
            raise WorkerStartError(
                "memory_limit cannot be watched here, because /proc, where the system tells how much memory a process holds, "
                "cannot be read. Mount it, or leave memory_limit out"
            )
        self._first_call = call
        if self._settings.templates is None:
            self._grant = current_grant(time.monotonic(), anew=True)
        if self._settings.fork:
            self._has_watcher = self._asks_first = True
            greeting = self._greeting_of_fork()
            self._converse(lambda: greeting, *self._fork())
            return
        templates = self._settings.templates
        if templates is None:
            way = _locate.runtime()
            self._has_watcher = not way.is_native
            self._asks_first = self._has_watcher or self._retires
            functions = self._prepare(way)
            # Said afterwards: while the system loads the program there is time to find out what to say.
            self._converse(lambda: self._greeting(way, *functions), *_spawn(way, self._label()))
            return
        template = templates.current()
        if template.state is IDLE:
            # If it cannot be asked just now, or has died a moment ago, `finish` goes on with that.
            self._begin_forked(templates, template)

    def _label(self) -> list[str]:
        """Return the part of its command line that lists of processes show."""
        return [_command_line.program_label()]

    def _begin_forked(self, templates: Templates, template: Template) -> bool:
        """Take the process that the template has forked ahead, or ask it for one; whether that could be done."""
        functions = self._pickled_functions()
        self._started = time.monotonic()
        self._template = template
        self._grant = template._grant

        def greeting(streams: list[int], directory: bool) -> list[Buffer]:
            settings = _settings.current_settings()
            hello = template.hello_of_worker(streams, directory)
            frames = template.frames_said(
                (hello, settings, *functions),
                lambda: self._frames(
                    encode_head(Kind.HELLO, 0, (), hello), settings, template.needs_eager_settings(settings), *functions
                ),
            )
            self._told = _settings.current_snapshot()
            return self._with_call(frames)

        reserve = template.take_reserve()
        if reserve is not None:
            try:
                self._converse_forked(greeting, reserve)
                return True
            except WriteFailed:
                # Somebody has ended it. Nothing is lost: nobody had told it anything.
                self._process = self._channel = self._record = None
                templates.see_off(reserve)
        try:
            pending = template.fork()
        except WriteFailed:
            templates.discard(template)
            return False
        except OSError as error:
            raise _not_forked(error) from error
        if pending is None:
            return False
        try:
            # Said afterwards, as to one that is spawned.
            self._converse_forked(greeting, pending)
        except WriteFailed:
            pass  # It has refused, or the template has died; `finish` hears which.
        return True

    def _converse_forked(self, greeting: Callable[[list[int], bool], list[Buffer]], pending: PendingFork) -> None:
        """Say the greeting to a process that a template has been asked for.

        Raises:
            WriteFailed: it is not there, or not any more.
        """
        from .._process.inherited import inherited  # only workers of a template need it

        def greet() -> bool:
            try:
                with inherited() as (streams, directory):
                    frames = greeting(streams, directory is not None)
                    rest = channel.send_with_descriptors(frames, streams if directory is None else [*streams, directory])
            except OSError as error:
                raise _not_forked(error) from error
            self._greeting_rest = rest or []
            return rest is not None

        with self._ended_by_failure(pending.process):
            self._take(pending.process, pending.record)
            self._channel = channel = Channel(pending.ours, self._settings.regions)
            self._greet = None if greet() else greet
            self._oom_kills = pending.oom_kills or _oom.count_kills()
            self._stderr_size = _crash.stderr_size()
            # Of one that was forked ahead the number is there, and this is a better moment to read it than any later one.
            pending.process.read_pid()

    def _with_call(self, greeting: list[Buffer]) -> list[Buffer]:
        """The greeting of a forked worker, and the first call with it where that may be.

        What WELCOME could reveal has been compared when the template was started.
        """
        call = self._call_ahead()
        return greeting if call is None else [*greeting, *self._take_ahead(call)]

    def _call_ahead(self) -> _payload.Payload | None:
        """The first call, if nothing but a failing start can keep that from being run; then it need not wait for READY.

        A worker may hold more than it may before it has done anything, and a policy of when to retire may be worth a warning, which
        may be an error. Of one that a process watches it is asked whether it lives before a call is sent.
        """
        call, settings = self._first_call, self._settings
        if call is None or settings.memory_limit is not None or type(settings.retire) is RetireWhen or self._has_watcher:
            return None
        return call if sum(call.lengths) <= _LONGEST_AHEAD else None

    def _take_ahead(self, call: _payload.Payload) -> list[Buffer]:
        """The frame of the first call, which is about to be sent before READY has been heard."""
        self._calls = self._sent = 1
        return [self._head_of(call), *call.parts]

    def _head_of(self, call: _payload.Payload, prepares: bool = False) -> bytes:
        body: dict[str, Any] = {"types": call.types} if call.types else {}
        if prepares:
            body["prepares"] = True
        return encode_head(Kind.CALL, self._calls, call.lengths, body or None)

    def _converse(
        self, greeting: Callable[[], list[Buffer]], process: WorkerProcess, ours: Any, record: _record.RecordFile
    ) -> None:
        """Say the greeting to the process that has been started."""
        with self._ended_by_failure(process):
            self._take(process, record)
            self._channel = Channel(ours, self._settings.regions)
            # More than the socket takes at once (a sys.path of novels) is sent by `finish`.
            self._greeting_rest = self._channel.send_partly(greeting())
            # After the greeting: the worker is busy with it for longer than this takes.
            self._oom_kills = _oom.count_kills()
            self._stderr_size = _crash.stderr_size()

    @contextlib.contextmanager
    def _ended_by_failure(self, process: WorkerProcess) -> Iterator[None]:
        """Whatever goes wrong between the start of a process and its greeting, no process is left."""
        try:
            yield
        except WriteFailed:
            raise
        except BaseException:
            process.kill()
            self.wait_sync(math.inf)
            raise

    def leave_unused(self, pending: PendingFork) -> None:
        """Become the handle of a process that was forked ahead and that nobody has a use for. It leaves; a wait must follow."""
        self._take(pending.process, pending.record)
        self._channel = Channel(pending.ours)
        self._leave(in_order=True)
        self.given_up = True
        # The end of its stream is all that it needs to hear.
        with fork_lock:
            self._channel.close()

    def fork_next(self) -> None:
        """Have the next worker forked ahead, once whoever waited for this one has gone on."""
        if self._template is not None:
            trio.lowlevel.current_trio_token().run_sync_soon(self._template.fork_reserve, idempotent=True)

    async def finish(self, *, cancellable: bool) -> None:
        """Bring the process to where it takes jobs.

        Raises:
            WorkerStartError: that failed; the message says at which stage and what would help. Nothing is left of it.
        """
        templates = self._settings.templates
        if templates is None:
            await self._finish(cancellable)
            return
        for left in reversed(range(_MOST_TEMPLATES)):
            try:
                if self._channel is None:
                    await self._begin_when_ready(templates, cancellable)
                await self._finish(cancellable)
                return
            except _NeverForked as lost:
                template = lost.template
            templates.discard(template)
            self._process = self._channel = self._greet = None
            self._calls = self._sent = 0
            if left == 0:
                self.state = ENDED
                await template._end_gently()
                raise WorkerStartError(
                    f"{_MOST_TEMPLATES} times the template of the workers died while it forked a worker; the last of them: "
                    f"{template.describe_death()}",
                    template.process,
                )
            self.state = STARTING

    async def _begin_when_ready(self, templates: Templates, cancellable: bool) -> None:
        try:
            while True:
                template = await templates.ready(cancellable=cancellable)
                if self._begin_forked(templates, template):
                    return
                # Either the next look finds another template, or this one has more requests before it than the system holds.
                with trio.CancelScope(shield=not cancellable):
                    await _clock.sleep(_CROWDED_PAUSE)
        except BaseException:
            self.state = ENDED
            raise

    async def _finish(self, cancellable: bool) -> None:
        channel = self._channel
        if channel is None or self.state is not STARTING:
            raise RuntimeError("the worker is not starting")
        try:
            try:
                while self._greet is not None and not self._greet():
                    with trio.CancelScope(shield=not cancellable):
                        await _clock.sleep(_CROWDED_PAUSE)
                self._greet = None
                await channel.send(self._greeting_rest, cancellable=cancellable)
            except WriteFailed:
                pass  # Why it is gone, its last words or its exit status tell.
            if self._template is None:
                self._check_welcome(await self._receive(cancellable))
                call = self._call_ahead()
                # The worker is busy with the rest of its start, and to be woken and to answer takes longer than that.
                if call is not None and self._told is _settings.current_snapshot() and self.keeps_privileges():
                    with contextlib.suppress(WriteFailed):
                        await channel.send(self._take_ahead(call), cancellable=cancellable)
            self.state = SETTING_UP
            ready = await self._receive(cancellable)
            if not self.process.has_pid:
                raise RuntimeError("a worker has told something before its number")
            self._update_figures(ready)
            self._check_baseline()
        except (EndOfStream, WireError) as error:
            # One that has closed its end is about to exit; one that talks nonsense is not waited for.
            await (self._end_gently() if isinstance(error, EndOfStream) else self._end())
            if self._template is not None and not self.process.has_pid:
                raise _NeverForked(self._template) from None
            raise WorkerStartError(self._describe_failed_start(error), self.process) from None
        except BaseException:
            await self._end()
            raise
        self._ready = time.monotonic()
        self._kills_look_at = self._oom_kills.moment + _oom.CHECK_INTERVAL
        _process.warn_of_missing_guarantees(self.process.pid)
        if self._settings.trace is not None:
            self._settings.trace.worker_started(self.process.pid, self._started, self._ready)
        # From here on its arguments are kept alive only while it runs.
        call, self._first_call = self._first_call, None
        if call is not None and self._calls:
            self.state = RUNNING
            self._running = call
            self._began = self._ready
        else:
            self._become_idle()

    def keeps_privileges(self) -> bool:
        """Return whether this program still has the privileges that the worker was started with.

        If not, a call could do in the worker what the program may not do itself: it must not be sent there.
        """
        grant = same_grant(self._grant, time.monotonic())
        self._grant = grant or self._grant
        return grant is not None

    def submit(self, call: _payload.Payload, prepares: bool = False) -> None:
        """Queue a pickled call behind those in flight. Nothing is written yet.

        At most :data:`MOST_IN_FLIGHT` calls are in flight. One :meth:`answer` follows for each. A
        call that ``prepares`` is not counted as a job.

        Raises:
            CallNotRun: the worker must not get this call. It retires unless others are in flight.
        """
        state = self.state
        if state is not IDLE and (state is not RUNNING or len(self._behind) >= MOST_IN_FLIGHT - 1):
            raise RuntimeError(f"the worker takes no call in the state {state.name}, with {self._in_flight} in flight")
        if self._definitions is not None and _payload.mentions_main(call) and not self._definitions.are_current():
            # The call names something in `__main__` that the fork lacks, or has an old version of.
            self.ask_to_retire()
            raise CallNotRun
        now = time.monotonic()
        grant = self._grant
        if (now >= grant.check_at or geteuid() != grant.user or get_ident() != grant.thread) and not self.keeps_privileges():
            self.ask_to_retire()
            raise CallNotRun
        self._calls = number = self._calls + 1
        if _settings.current_snapshot() is not self._told:
            self._unsent += self._new_settings()
        if call.small and not prepares:
            # By far the most: it takes no list of parts.
            data, start = encode_call(number, call.parts[0])
            self._unsent.append(data)
        else:
            start = b""
            if prepares:
                self._preparing = number
            self._unsent += (self._head_of(call, prepares), *call.parts)
        if state is IDLE:
            self.state = RUNNING
            self._running, self._start, self._began = call, start, now
        else:
            self._behind.append((call, start))

    def flush(self) -> None:
        """Write calls without waiting. :meth:`answer` writes the rest."""
        channel = self._channel
        if channel is not None and self._unsent:
            # If the worker has ended, `answer` finds that too, and raises what it means.
            with contextlib.suppress(EndOfStream):
                self._last_words = self._write(channel)

    @property
    def has_answer(self) -> bool:
        """True if an answer, or the beginning of one, has been read already."""
        return self._channel is not None and self._channel.has_read

    # Not keyword-only: such parameters are looked up by name at each call.
    async def answer(
        self, cancellable: bool = True, spin: bool = False, looks_again: bool = False
    ) -> tuple[Any, BaseException | None]:
        """Return the outcome of the oldest call in flight.

        A checkpoint with ``spin``, and without it unless the answer has been read already. If it is
        cancelled, the worker is killed.

        Args:
            cancellable: False to defer cancellation.
            spin: poll before waiting. Right for calls that may take microseconds.
            looks_again: return an answer that has arrived although this is cancelled. The next
                checkpoint raises the cancellation again.

        Returns:
            A result and None, or None and an exception: a tuple is cheaper than an ``outcome``.

        Raises:
            CallNotRun: no call in flight was started; the worker has ended or is exiting.
            BrokenWorkerError: the worker died, or was killed, before it answered. The calls behind
                this one were not started.
        """
        channel, start, unsent = self._channel, self._start, self._unsent
        if channel is None or self.state is not RUNNING:
            raise RuntimeError("the worker has no call to answer")
        # Either a frame, or of a plain result its one segment.
        answer: Frame | memoryview | None = None
        try:
            # In one piece: a coroutine made where there is nothing to wait for would be felt.
            if unsent:
                if start and len(unsent) == 1 and not self._behind and not self._asks_first:
                    data: Any = unsent.pop()
                    sent, self._sent = self._sent, self._calls
                    try:
                        rest = channel.send_small(data)
                        if rest:
                            await channel.send_rest([rest], len(rest) < len(data), cancellable=cancellable)
                    except WriteFailed as failure:
                        # That decides nothing: the last frames of the worker do.
                        if not failure.sent:
                            self._sent = sent
                else:
                    answer = self._last_words or self._write(channel)
                    if answer is not None:
                        await cancel_shielded_checkpoint()
                    elif unsent:
                        if self._behind:
                            answer = await self._receive_while_sending(channel, start, cancellable)
                        else:
                            # The worker reads all of a call before it answers it.
                            await self._send_rest(channel, cancellable)
            if answer is None:
                if spin:
                    spun = channel.spin_misses == 0
                    if spun:
                        await cancel_shielded_checkpoint()
                        answer = channel.poll_result(start)
                    if answer is None:
                        # While the worker is busy with the call.
                        if self._began >= self._kills_look_at:
                            self._look_for_kills(self._began)
                        answer = await channel.spin_then_receive(start, spun, cancellable=cancellable)
                else:
                    # With several in flight, the next answer has often arrived already.
                    if channel.has_read or self._behind:
                        answer = channel.poll_result(start)
                        if answer is None and channel.has_read:
                            answer = self._receive_nowait(channel)
                    if answer is None:
                        if self._began >= self._kills_look_at:
                            self._look_for_kills(self._began)
                        answer = await channel.receive(cancellable=cancellable, start=start)
            while type(answer) is Frame and self._handle_aside(answer):
                answer = await channel.receive(cancellable=cancellable, start=start)
        except BaseException as error:
            answer = await self._end_for(error, channel, looks_again)
            if answer is None:
                raise
        # The next frame is read after this one has been unpickled: a segment may lie in the
        # channel's buffer.
        behind = self._behind
        is_job = True
        raised: Frame | None = None
        segments: Sequence[Any]
        if type(answer) is memoryview:
            segments = (answer,)
            self.answer_size = len(answer)
        elif answer.id == self._calls - len(behind) and (answer.kind is Kind.RESULT or answer.kind is Kind.RAISED):
            segments = answer.segments
            is_job = answer.id != self._preparing
            self.answer_size = sum(map(len, segments))
            raised = answer if answer.kind is Kind.RAISED else None
            if answer.body:
                self._update_figures(answer)
        else:
            return await self._refused_call(answer)
        if self._settings.regions.given:
            self._settings.regions.release_later()
        result: tuple[Any, BaseException | None]
        if raised is None:
            try:
                result = _calls.load(segments), None
            except BaseException as error:
                add_note(error, "(while unpickling the result of a job)")
                result = None, error
        else:
            result = None, load_exception(raised)
        if is_job:
            self._jobs += 1
            if self._settings.trace is not None:
                self._trace_job("ok" if raised is None else "raised")
        if behind:
            # As far as can be told from here.
            self._running, self._start = behind.popleft()
            self._began = time.monotonic()
        else:
            # As in `_become_idle`.
            self.state = IDLE
            self._running = None
            self.expires_at = time.monotonic() + self._settings.idle_timeout
        return result

    @property
    def _in_flight(self) -> int:
        return len(self._behind) + (self.state is RUNNING)

    def will_retire(self, ahead: int = 0) -> bool:
        """Return True if an idle worker is about to leave by the ``retire`` that it was given.

        Args:
            ahead: after so many calls more.
        """
        retire = self._settings.retire
        if type(retire) is not RetireWhen:
            return False
        rss = None if self._figures is None else self._figures[0]
        return vitals.will_retire(retire, self._jobs + ahead, time.monotonic() - self._ready, rss, self.baseline)

    def _cleaned(self, left_behind: str) -> str:
        if not self._settings.fork:
            return left_behind
        from .. import _forked

        return _forked.without_parents_frames(left_behind)

    def _note_end(self) -> None:
        if self._settings.trace is not None:
            self._settings.trace.worker_ended(self.process.pid, time.monotonic())

    def _prepare(self, way: _locate.WorkerRuntime) -> tuple[bytes, bytes]:
        """What is to be done and can fail before anything is started; ``init`` and ``retire``, pickled."""
        return self._pickled_functions()

    def _pickled_functions(self) -> tuple[bytes, bytes]:
        return (
            b"" if self._settings.init is bool else _calls.dump_callable(self._settings.init),
            _calls.dump_callable(self._settings.retire) if self._retires else b"",
        )

    def _greeting(self, way: _locate.WorkerRuntime, init: bytes, retire: bytes) -> list[Buffer]:
        """HELLO and SETUP as bytes."""
        settings = _settings.current_settings()
        hello = encode_head(Kind.HELLO, 0, (), _hello.hello(way.libpython, given_back(way)))
        return self._frames(hello, settings, _settings.needs_eager_settings(settings), init, retire)

    def _greeting_of_fork(self) -> list[Buffer]:
        from .. import _forked

        settings = _forked.settings()
        hello = encode_head(Kind.HELLO, 0, (), _forked.hello())
        return self._frames(hello, settings, _settings.needs_eager_settings(settings), b"", b"")

    def _fork(self) -> tuple[WorkerProcess, Any, _record.RecordFile]:
        from .. import _forked

        _locate.refuse_untried_build()
        self._definitions = _forked.Definitions()
        init = None if self._settings.init is bool else self._settings.init
        try:
            return _forked.start(init, self._settings.retire if self._retires else None)
        except (OSError, RuntimeError) as error:
            code = error.errno or 0 if isinstance(error, OSError) else 0
            why = os.strerror(code) if code else str(error)
            raise WorkerStartError(
                f"a worker could not be forked: {why}. {_SPAWN_REMEDIES.get(code, '')}".rstrip()
            ) from error

    def _frames(self, hello: bytes, settings: dict[str, Any], eager: bool, init: bytes, retire: bytes) -> list[Buffer]:
        self._told = _settings.current_snapshot()
        segments = [_calls.dump_settings(settings), init, retire]
        setup: dict[str, Any] = {"eager": eager}
        if self._settings.idle_timeout < _LONGEST_IDLE:
            setup["idle_timeout_ms"] = math.ceil(self._settings.idle_timeout * 1000)
        if self._settings.report_interval < _LONGEST_IDLE:
            setup["report_interval_ms"] = math.ceil(self._settings.report_interval * 1000)
        if self._settings.memory_limit is not None:
            setup["memory_limit"] = self._settings.memory_limit
        return [
            hello,
            encode_head(Kind.SETUP, 0, [len(segment) for segment in segments], setup),
            *segments,
        ]

    async def _receive(self, cancellable: bool) -> Frame:
        """The next frame of a start: the one that the state asks for."""
        if self._channel is None:
            raise RuntimeError("the worker has not been started")
        frame = await self._next_frame(self._channel, cancellable)
        expected = Kind.WELCOME if self.state is STARTING else Kind.READY
        if frame.kind is expected:
            return frame
        if frame.kind is Kind.SETUP_FAILED and self.state is SETTING_UP:
            await self._refuse_setup(frame)
        if frame.kind in (Kind.REFUSED, Kind.ABORTED):
            # A fork that the template refused has no process.
            processes = [self.process] if self.process.has_pid else []
            await self._end_gently()
            raise WorkerStartError(
                f"a worker could not be started: {frame.body['message']}{secure_execution_hint()}", *processes
            )
        await self._end()
        raise WorkerStartError(
            f"worker {self.process.pid} was ended: it said {frame.kind.name} where it had to say {expected.name}",
            self.process,
        )

    async def _refuse_setup(self, frame: Frame) -> NoReturn:
        cause = load_exception(frame)
        await self._end_gently()
        raise WorkerStartError(
            f"a worker could not be started, because its init, {_payload.function_name(self._settings.init)}, "
            f"raised {frame.body['type']}",
            self.process,
        ) from cause

    def _check_welcome(self, frame: Frame) -> None:
        """The worker has compared versions already; this compares what only a running interpreter knows."""
        if frame.body.get("free_threaded", False) is not _locate.is_free_threaded():
            # One of a release that says nothing of it has not compared that.
            raise WorkerStartError(
                "the worker and this program are different builds of Python, one free-threaded and one with a GIL: install "
                "trio-offload with the Python that runs the program",
                self.process,
            )
        for name in ("prefix", "exec_prefix"):
            theirs = os.fsdecode(frame.body[name])
            ours = getattr(sys, name)
            if theirs != ours:
                raise WorkerStartError(
                    f"the worker is not this Python: its sys.{name} is {theirs}, here it is {ours}. It was started as "
                    f"{sys.executable!r}; is that the interpreter that runs this program?",
                    self.process,
                )

    async def _end_for(self, error: BaseException, channel: Channel, looks_again: bool) -> Frame | memoryview | None:
        """End the worker after an error, and raise the error of the call.

        Return an answer that has arrived all the same, or None to raise the original error.
        """
        name = self._running_name
        if isinstance(error, EndOfStream):
            if self._sent < self._calls - len(self._behind):
                # Not a byte of the call was taken.
                await self._end_gently()
                logger.warning("idle worker %s %s", self.process.pid, describe_ending(self.process))
                raise CallNotRun from None
            await self._end_gently()
            raise self._broken(f"while it ran {name}") from None
        if isinstance(error, WireError):
            if error.code == "torn_frame":
                await self._end_gently()
                raise self._broken(f"in the middle of its answer to {name}") from None
            await self._end()
            raise BrokenWorkerError(
                f"worker {self.process.pid} was ended, because it sent something that is not of the protocol ({error}) "
                f"while it ran {name}",
                self.process,
            ) from error
        answer: Frame | memoryview | None = None
        if looks_again and isinstance(error, trio.Cancelled) and not self._unsent:
            with contextlib.suppress(EndOfStream, WireError):
                answer = self._poll(channel, self._start)
        if answer is None:
            self._trace_job("cancelled")
            await (self._end_in_flight(channel) if self._behind else self._end())
        return answer

    def _poll(self, channel: Channel, start: bytes) -> Frame | memoryview | None:
        """Return the next answer if it can be read without waiting, else None."""
        segment = channel.poll_result(start)
        return self._receive_nowait(channel) if segment is None else segment

    async def _end_in_flight(self, channel: Channel) -> None:
        """As :meth:`_end`, and count which of the calls in flight were answered until the process had ended."""
        try:
            if self._process is not None:
                self._process.kill()
                await wait_unconditionally(self._process)
                try:
                    while (frame := self._receive_nowait(channel)) is not None:
                        self.answered_too_late += frame.kind is Kind.RESULT or frame.kind is Kind.RAISED
                except (EndOfStream, WireError):
                    pass
        finally:
            await self._end()

    def _handle_report(self, frame: Frame) -> None:
        # It lived when it wrote that, and may have been ended since: what is read now counts when
        # it has written again.
        self._oom_kills = self._next_kills or self._oom_kills
        self._next_kills = self._oom_kills.refreshed()
        self._update_figures(frame)

    def _update_figures(self, frame: Frame) -> None:
        body = frame.body
        if "figures" in body:
            self._figures = figures = body["figures"]
            if self._settings.trace is not None:
                self._settings.trace.memory(self.process.pid, time.monotonic(), figures[0])

    def _look_for_kills(self, now: float) -> None:
        """The worker has just been sent a call: it is none of those that the OOM killer has ended so far."""
        self._oom_kills, self._kills_look_at = self._oom_kills.at_call(now)
        self._next_kills = None

    def _check_baseline(self) -> None:
        """Check that the memory limit leaves room for a job."""
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
        told, self._told = self._told, _settings.current_snapshot()
        if self._settings.fork:
            from .. import _forked

            settings = _forked.settings()
        else:
            settings = _settings.current_settings()
        segment = _calls.dump_settings(_settings.new_settings(settings, told))
        return [encode_head(Kind.SETTINGS, 0, [len(segment)], {"eager": True}), segment]

    def _write(self, channel: Channel) -> Frame | None:
        """Write calls without waiting.

        An idle worker may have retired. Then nothing is written, and its last frame is returned.

        Raises:
            EndOfStream: it ended without one.
        """
        sent = self._sent
        if self._asks_first and sent < self._calls - len(self._behind):
            gone = self._has_watcher and self.process.poll()
            if gone or self._retires:
                last_words = self._receive_nowait(channel)
                if last_words is not None:
                    return last_words
                if gone:
                    raise EndOfStream
        unsent = self._unsent
        self._sent = self._calls
        try:
            rest = channel.send_at_once(unsent)
            unsent[:] = channel.send_some(rest) if rest is unsent else rest
        except WriteFailed as failure:
            # That decides nothing: the last frames of the worker do.
            unsent.clear()
            if not failure.sent:
                self._sent = sent
        return None

    async def _send_rest(self, channel: Channel, cancellable: bool) -> None:
        """Write the rest of the calls. If that is cancelled, `_unsent` is the rest."""
        try:
            await channel.send_rest(self._unsent, True, cancellable=cancellable)
        except WriteFailed:
            self._unsent.clear()

    async def _receive_while_sending(self, channel: Channel, start: bytes, cancellable: bool) -> Frame | memoryview:
        """Write the rest of the calls and receive the next frame at the same time.

        The worker may not read before it has written its answer.
        """
        answer = self._poll(channel, start)
        if answer is not None:
            return answer

        async def send_rest() -> None:
            with contextlib.suppress(trio.Cancelled):
                await self._send_rest(channel, True)

        with trio.CancelScope(shield=not cancellable):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_rest)
                # Kept from the nursery, which would make a group of what it raises.
                frame = await outcome.acapture(self._next_frame, channel, True)
                nursery.cancel_scope.cancel()
        return frame.unwrap()

    async def _refused_call(self, frame: Frame) -> NoReturn:
        """The worker answered a call with something other than its result."""
        name = self._running_name
        if frame.kind is Kind.RETIRED:
            self._leave(in_order=True)
            raise CallNotRun
        if frame.kind in (Kind.REFUSED, Kind.ABORTED):
            await self._end_gently()
            raise BrokenWorkerError(
                f"worker {self.process.pid} gave up when it was to run {name}: {frame.body['message']}", self.process
            )
        await self._end()
        raise BrokenWorkerError(
            f"worker {self.process.pid} was ended: it said {frame.kind.name} (id {frame.id}) in answer to call "
            f"{self._calls - len(self._behind)} of {name}",
            self.process,
        )

    def _broken(self, when: str) -> BrokenWorkerError:
        """The error for a worker that has ended by itself in a call, or was ended by the system or its native thread."""
        told, stack = _record.parse_record(self._left_behind)
        figures = self.figures
        crash = _crash.CrashRecord(
            pid=self.process.pid,
            exitcode=self.process.exitcode,
            signal=self.process.signal,
            function=self._running_name,
            age=time.monotonic() - self._began,
            stack=stack,
            rss=figures.rss,
            peak_rss=figures.peak_rss,
            vms=figures.vms,
            cpu_time=figures.cpu_time,
            stderr=_crash.stderr_since(self._stderr_size),
        )
        # A new worker may have been sent its first call before the counters were read.
        began = self._began if self._jobs else self._started
        error = judge_death(self.process, when, told, crash, self._oom_kills, began, self._settings.memory_limit)
        error.crash = crash
        add_note(error, crash.note())
        self._trace_job(type(error).__name__)
        if self._settings.crash_dir is not None:
            _crash.save_crash_record(crash, self._settings.crash_dir)
        return error

    def _trace_job(self, how: str) -> None:
        trace = self._settings.trace
        name = self._running_name
        if trace is not None and name is not None:
            trace.job(self.process.pid, name, self._began, time.monotonic(), how)

    def _describe_failed_start(self, error: EndOfStream | WireError) -> str:
        settings = self._settings
        return describe_failed_start(self.process, error, self._left_behind, settings.init, settings.fork)

    def _become_idle(self) -> None:
        self.state = IDLE
        self._running = None
        self.expires_at = time.monotonic() + self._settings.idle_timeout


def refuse_while_main_loads() -> None:
    """In a worker that is loading the user's main script, starting workers means that the script has no guard.

    Raises:
        RuntimeError: that is so; the message teaches the guard.
    """
    loader = sys.modules.get("trio_offload_worker._jobs.main_module")
    if loader is not None and loader.loading:
        raise RuntimeError(
            "this program uses trio_offload while a worker is only loading it, to find a function that lives in its main "
            "script. That code would run again in every worker. Put what starts the program behind the guard that keeps "
            "it to the main process:\n\n"
            '    if __name__ == "__main__":\n'
            "        trio.run(main)\n"
        )


MOST_IN_FLIGHT: Final = 16  # calls
_LONGEST_AHEAD: Final = 16 * 1024  # bytes
_COERCION: Final = b"PYTHONCOERCECLOCALE"
_INSPECT: Final = b"PYTHONINSPECT"
_SPLASH: Final = b"_PYI_SPLASH_IPC"
_LONGEST_IDLE: Final = 10 * 365 * 86400.0  # seconds; above it, for ever
_MOST_TEMPLATES: Final = 3
_CROWDED_PAUSE: Final = 0.001  # seconds
_PRIVILEGES_HINT: Final = (
    "If the program has given up privileges or changed its root directory: it needs its Python and this file there too, as each "
    "worker has what the program has when it makes the call."
)
_SPAWN_REMEDIES: Final = {
    errno.EACCES: "It may not be executed: look at its mode, whether its file system is mounted noexec, and whether a security "
    f"policy (SELinux, AppArmor) forbids it, which the system's log tells. {_PRIVILEGES_HINT}",
    errno.EPERM: "A security policy (seccomp, AppArmor, a container's) forbids it, which the system's log may tell.",
    errno.ENOENT: "It, or the dynamic loader that it names, is not there; a build for another C library looks like this. "
    f"{_PRIVILEGES_HINT}",
    errno.ENOEXEC: "It is a build for another processor.",
    errno.EAGAIN: "The limit of processes is reached (ulimit -u, or the container's).",
    errno.ENOMEM: "There is not enough memory.",
    errno.EMFILE: "This program has too many files open (ulimit -n).",
    errno.ENFILE: "The system has too many files open.",
    errno.ENOSPC: "There is no space left for the file in which a worker leaves what is known of its death: in memory, or in the "
    "folder for temporary files.",
}


def _spawn(way: _locate.WorkerRuntime, label: list[str]) -> tuple[WorkerProcess, Any, _record.RecordFile]:
    environment = _hello.environment()
    if way.is_native:
        executable = way.executable
        argv = executable_command(executable, *label)
        bundle = _frozen.bundle()
        # The libraries of its extension modules lie there; elsewhere the system's own of the same name would be found.
        folders = [] if bundle is None else [bundle.folder]
        if bundle is not None and _SPLASH in environment:
            # A worker does not talk to the splash screen that the app may be showing.
            environment[_SPLASH] = b"0"
        _loader.lead(environment, way.libpython, is_loaded=way.is_loaded, folders=folders)
    else:
        executable = _locate.interpreter()
        if not executable:
            raise WorkerStartError(
                f"a worker could not be started as {sys.executable}: it may not be executed, or is not there. {_PRIVILEGES_HINT}"
            )
        argv = _command_line.loop_command()
        # Python sets LC_CTYPE when it finds the C locale (PEP 538). This one has done so where it should be done; there it
        # would only change the environment that the worker is given.
        environment[_COERCION] = b"0"
        # With this one Python does not end at its end.
        environment.pop(_INSPECT, None)
    for name in given_back(way).keys() & environment.keys():
        # To the end: what names a process (setproctitle) finds the command line in front of the environment's first variable, and
        # what the worker gives back moves elsewhere in its memory.
        environment[name] = environment.pop(name)
    try:
        return _process.spawn(executable, environment, argv)
    except OSError as error:
        raise WorkerStartError(
            f"a worker could not be started as {executable}: {os.strerror(error.errno or 0)}. "
            + _SPAWN_REMEDIES.get(error.errno or 0, "Reinstalling trio-offload may help.")
        ) from error


def _not_forked(error: OSError) -> WorkerStartError:
    code = error.errno or 0
    return WorkerStartError(f"a worker could not be forked: {os.strerror(code)}. {_SPAWN_REMEDIES.get(code, '')}".rstrip())


def given_back(way: _locate.WorkerRuntime) -> dict[bytes, bytes | None]:
    """Return the original values of the variables that are changed to start a worker."""
    names = [_loader.PRELOAD, _loader.LIBRARY_PATH] if way.is_native else [_COERCION, _INSPECT]
    return {name: os.environb.get(name) for name in names}
