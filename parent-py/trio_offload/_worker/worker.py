"""One worker: its calls are answered here, and here alone its end is judged.

The parent's half of the state table in PROTOCOL.md is in this package. A worker guarantees to its
user:

* :meth:`Worker.finish` leaves either a worker that takes calls, or no process.
* :meth:`Worker.submit` queues a call behind those in flight, or raises :class:`CallNotRun`.
* :meth:`Worker.answer` has three outcomes. It returns the result of the oldest call in flight. It
  raises :class:`CallNotRun`: the call was not started, and the worker has ended or is exiting. It
  raises anything else (:class:`~trio_offload.BrokenWorkerError`, a cancellation): the worker and
  its descendants have been killed and reaped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import trio
from trio.lowlevel import cancel_shielded_checkpoint

from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._protocol.frames import Frame, Kind, WireError

from .._exceptions import BrokenWorkerError, WorkerMemoryError, WorkerTimeoutError
from .._pickling import calls as _calls
from .._pickling import payload as _payload
from .._process.start import warn_of_missing_guarantees
from .._statistics import Figures, WorkerContextCounters, WorkerStatistics
from .._transport.buffer_pool import BufferPool
from .._transport.channel import Channel, EndOfStream
from .endings import contained, describe_ending
from .peer import logger
from .states import IDLE, RUNNING, CallNotRun
from .talker import Talker
from .vitals import Vitals

if TYPE_CHECKING:
    from .._options import ContextOptions
    from .._process.oom import OomKills
    from .._trace import TraceWriter


class Start(Protocol):
    """The rest of a worker's start."""

    async def finish(self, *, cancellable: bool) -> None:
        """See :meth:`Worker.finish`."""


class Worker(Talker):
    """A worker process and the conversation with it. A :class:`Launcher` makes and starts it."""

    # Slots save 1 % of a call: CPython 3.11 is slow without them from 30 attributes on.
    __slots__ = (
        "_buffer_pool",
        "_idle_timeout",
        "_vitals",
        "answer_size",
        "start",
    )

    def __init__(
        self, options: ContextOptions, trace: TraceWriter | None = None, buffer_pool: BufferPool | None = None
    ) -> None:
        super().__init__(options)
        self.start: Start | None = None  # set by the launcher; None once the worker takes calls
        self._vitals = Vitals(options, trace)
        self._idle_timeout = options.idle_timeout
        self._buffer_pool = BufferPool() if buffer_pool is None else buffer_pool
        self.answer_size = 0  # of the last one, in bytes

    @property
    def figures(self) -> Figures:
        """The figures that it sent last."""
        return self._vitals.figures

    @property
    def baseline(self) -> int:
        """Resident memory before the first job, in bytes."""
        return self._vitals.baseline

    def statistics(self) -> WorkerStatistics:
        """Return its statistics."""
        return self._vitals.statistics(self.process.pid, self.jobs, self.running_function, self.running_step)

    def counters(self) -> WorkerContextCounters:
        """Return its numbers that only grow."""
        lives, in_order = self.state in (IDLE, RUNNING), self.process.dismissed
        return self._vitals.counters(self.jobs, self._busy, self.waited, self.failure, lives=lives, in_order=in_order)

    def will_retire(self, ahead: int = 0) -> bool:
        """Return True if it is about to retire by its policy, after ``ahead`` further jobs."""
        return self._vitals.will_retire(self.jobs + ahead)

    async def finish(self, *, cancellable: bool) -> None:
        """Wait until the worker takes calls. Then it is idle, or runs the call of its start.

        Raises:
            WorkerStartError: the start failed. The message names the stage and a remedy. The
                process has ended.
        """
        if self.start is None:
            raise RuntimeError("the worker is not starting")
        try:
            await self.start.finish(cancellable=cancellable)
        finally:
            self.start = None  # it refers to the worker, and to the first call

    def restart(self) -> None:
        """Note that its start begins now."""
        self._vitals.started = time.monotonic()

    def observe(self, kills: OomKills | None = None) -> None:
        """As :meth:`Vitals.observe`."""
        self._vitals.observe(kills)

    def enter_record(self, call: _payload.Payload | None) -> None:
        """Write its entry for ``trio-offload top``, once the process ID is known.

        Best while the process is busy with the greeting. Otherwise :meth:`become_ready` does it.
        """
        self._shown = self.record.enter_worker(self.process.pid, self.context_number, self._vitals.started, call)

    def become_ready(self, ready: Frame, call: _payload.Payload | None) -> None:
        """Take calls from now on. A ``call`` that was sent already is running.

        Raises:
            WorkerStartError: the memory limit leaves no room for a job.
        """
        self._vitals.become_ready(ready, self.process)
        self._shown = self.record.show_worker(self.process.pid, self.context_number, self._vitals.started, call)
        warn_of_missing_guarantees(self.process.pid)
        if call is not None and self._calls:
            self.state = RUNNING
            self._running, self._began = call, self._vitals.ready
        else:
            self.state = IDLE
            self.expires_at = time.monotonic() + self._idle_timeout

    # Not keyword-only: such parameters are looked up by name at each call.
    async def answer(
        self, cancellable: bool = True, spin: bool = False, deadline: trio.CancelScope | None = None
    ) -> tuple[Any, BaseException | None]:
        """Return the outcome of the oldest call in flight.

        A checkpoint with ``spin``, and without it unless the answer has been read already. If it is
        cancelled, the worker is killed.

        Args:
            cancellable: False to defer cancellation.
            spin: poll before waiting. Right for calls that may take microseconds.
            deadline: a scope that must not kill the worker: :func:`answer_in_time` does. An answer
                that has arrived is returned although this is cancelled.

        Returns:
            A result and None, or None and an exception: a tuple is cheaper than an ``outcome``.

        Raises:
            CallNotRun: no call in flight was started; the worker has ended or is exiting.
            BrokenWorkerError: the worker died, or was killed, before it answered. The calls behind
                this one were not started.
        """
        channel, header = self._channel, self._header
        if channel is None or self.state is not RUNNING:
            raise RuntimeError("the worker has no call to answer")
        answer: Frame | memoryview | None = None  # or the one segment of a plain result
        try:
            # In one piece, because a coroutine costs a call 1 % even if it never waits.
            if self._unsent:
                answer = self._last_frame or self._write(channel)
                if answer is not None:
                    await cancel_shielded_checkpoint()
                elif self._unsent:
                    if self._behind:
                        answer = await self._receive_while_sending(channel, header)
                    else:
                        # The worker reads all of a call before it answers it.
                        await self._send_rest(channel)
            if answer is None:
                if spin:
                    spun = channel.spin_misses == 0
                    if spun:
                        await cancel_shielded_checkpoint()
                        answer = channel.poll_result(header)
                    if answer is None:
                        # While the worker is busy with the call.
                        if self._began >= self._vitals.kills_look_at:
                            self._vitals.look_for_kills(self._began)
                        answer = await channel.spin_then_receive(header, spun, cancellable=True)
                else:
                    # With several in flight, the next answer has often arrived already.
                    if channel.has_read or self._behind:
                        answer = channel.poll_result(header)
                        if answer is None and channel.has_read:
                            answer = channel.receive_nowait()
                    if answer is None:
                        if self._began >= self._vitals.kills_look_at:
                            self._vitals.look_for_kills(self._began)
                        answer = await channel.receive(cancellable=True, start=header)
            if type(answer) is Frame and self.handle_aside(answer):
                answer = await self._receive(channel, header, deadline is None and not self.outlasts(cancellable))
        except BaseException as error:
            answer = await self._end_for(error, channel, cancellable, deadline)
            if answer is None:
                raise
        # The next frame is read after this one has been unpickled: a segment may lie in the
        # channel's buffer.
        behind = self._behind
        is_job = True
        raised: Frame | None = None
        if type(answer) is memoryview:
            segments: Sequence[Any] = (answer,)
            self.answer_size = len(answer)
        elif answer.id == self._calls - len(behind) and (answer.kind is Kind.RESULT or answer.kind is Kind.RAISED):
            segments = answer.segments
            is_job = answer.id != self._preparing
            self.answer_size = sum(map(len, segments))
            raised = answer if answer.kind is Kind.RAISED else None
            if answer.body:
                self._vitals.update(answer, self.process)
        else:
            return await self._refused_call(answer)
        if self._buffer_pool.given:
            self._buffer_pool.release_later()
        if raised is None:
            try:
                result: tuple[Any, BaseException | None] = _calls.load(segments), None
            except BaseException as error:
                add_note(error, "(while unpickling the result of a job)")
                result = None, contained(error)
        else:
            result = None, self._vitals.load_exception(raised, was_cancelled=raised.id == self._told)
        if self.conversation is not None:
            self.conversation.settle(self._calls - len(behind), None)
        self._busy += (now := time.monotonic()) - self._began
        if not is_job:
            self._prepared += 1
        elif (trace := self._vitals.trace) is not None:
            trace.answer(self.process.pid, self._running, self._began, self.items_in_flight, *result)
        if behind:
            # The next call has begun now, as far as the parent can tell.
            self._running, self._header = behind.popleft()
            self._began = now
        else:
            self.state = IDLE
            self._running = None
            self.expires_at = now + self._idle_timeout
        return result

    async def _end_for(
        self, error: BaseException, channel: Channel, cancellable: bool, limit: trio.CancelScope | None
    ) -> Frame | memoryview | None:
        """End the worker. Raise the call's error, or return an answer that has arrived."""
        if isinstance(error, trio.Cancelled) and self.outlasts(cancellable):
            try:
                return await self._outlast(error, channel, limit)
            except BaseException as later:
                error = later
        name = self.running_function
        if isinstance(error, EndOfStream):
            if self._sent < self._calls - len(self._behind):
                # Not a byte of the call was taken.
                self._forget_grants()
                await self.end_gently()
                logger.warning("idle worker %s %s", self.process.pid, describe_ending(self.process))
                raise CallNotRun from None
            await self.end_gently()
            raise self._broken(f"while it ran {name}") from None
        if isinstance(error, WireError):
            if error.code == "torn_frame":
                await self.end_gently()
                raise self._broken(f"in the middle of its answer to {name}") from None
            await self.end()
            why = f"was ended, because it sent bytes that violate the protocol ({error}) while it ran {name}"
            raise self._stopped(why) from error
        answer: Frame | memoryview | None = None
        limit = limit if isinstance(error, trio.Cancelled) else None
        if limit is not None and not self._unsent:
            with contextlib.suppress(EndOfStream, WireError):
                answer = self._poll(channel, self._header)
        if answer is None and (limit is None or not limit.cancel_called):
            await self.end_cancelled()
        return answer

    async def end_cancelled(self) -> None:
        """Kill a worker whose call was cancelled."""
        self.trace_job("cancelled")
        self._note_failure("calls_cancelled")
        await (self.end_in_flight() if self._behind else self.end())

    def explain_timeout(self, timeout: float, problem: str) -> WorkerTimeoutError:
        """Return the error of a call that timed out, once the worker has ended."""
        self._note_failure("calls_timed_out")
        return self._vitals.explain_timeout(self.process, self.left_behind, *self._job(), timeout, problem)

    async def _refused_call(self, frame: Frame) -> NoReturn:
        """The worker answered a call with something other than its result."""
        name = self.running_function
        if frame.kind is Kind.RETIRED:
            self._leave(in_order=True)
            self._forget_grants()
            raise CallNotRun
        if frame.kind in (Kind.REFUSED, Kind.ABORTED):
            await self.end_gently()
            raise self._stopped(f"could not run {name}: {frame.body['message']}")
        await self.end()
        sent = f"{frame.kind.name} (id {frame.id})"
        raise self._stopped(f"was ended: it sent {sent} in answer to call {self.oldest_number} of {name}")

    def _stopped(self, why: str) -> BrokenWorkerError:
        """Return the error for a worker that refused its call, or was ended for its messages."""
        self._note_failure("calls_died")
        error = BrokenWorkerError(f"worker {self.process.pid} {why}", self.process)
        self._vitals.trace_death(error, self.process, *self._job())
        return error

    def _broken(self, when: str) -> BrokenWorkerError:
        """Return the error for a worker that ended in a call by itself, or by the system."""
        error = self._vitals.explain_death(self.process, self.left_behind, *self._job(), self.jobs, when)
        if self.conversation is not None:
            error.in_hand = tuple(self.conversation.in_hand)
        self._note_failure("calls_over_memory" if isinstance(error, WorkerMemoryError) else "calls_died")
        return error

    def _job(self) -> tuple[str | None, tuple[int, str] | None, float]:
        """Return the running function's name, the item of a map that it runs, and its beginning."""
        item = self.items_in_flight[0].item_at(self.progress) if self.items_in_flight else None
        return self.running_function, item, self._began

    def trace_job(self, how: str) -> None:
        """Write the oldest call in flight to the trace."""
        if (trace := self._vitals.trace) is not None:
            trace.job(self.process.pid, *self._job(), how, {})

    def _handle_report(self, frame: Frame) -> None:
        self._vitals.report(frame, self.process)

    def _note_end(self) -> None:
        super()._note_end()
        if (trace := self._vitals.trace) is not None:
            trace.end(self.process, has_job=self._running is not None or bool(self.failure))
