"""The state machine of a Python worker, as in PROTOCOL.md, "The worker's side" (``session.rs``).

Invariants:

* A frame that the state does not allow ends the worker before memory is allocated for its payload.
* All objects of a job are dropped before the worker waits for the next frame.
* After RETIRED the worker stops reading. The parent may then conclude that a call which crossed
  with it did not run. The socket rejects further data, so a parent that is sending a large frame
  does not wait for the exit.
* The idle time counts from the first call on. Before that it has a lower bound. Otherwise a worker
  could exit before the call that it was started for, and so could its replacement, forever.
* The sentinel knows when user code runs, because only the sentinel can then notice the parent's
  death.
"""

from __future__ import annotations

import os

from .._jobs.faults import FaultReports
from .._jobs.guards import clip, flush, report_unraisable
from .._protocol.frames import Kind, WireError
from .._system.figures import Meter
from .executor import Executor
from .interpreter import Refusal, apply_hello
from .line import Line, Unexpected
from .sentinel import BUSY, EXITING, IDLE, SETTLING
from .signals import Handlers
from .transport import IdleTimeOver, Link, LinkClosed, LinkLost, report_loss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, NoReturn

    from .._protocol.frames import Buffer, Frame
    from .._system.native import Target
    from .executor import Answer, Inherited
    from .sentinel import Sentinel


class Session:
    """The session with one parent."""

    def __init__(
        self, socket: int, record: int, sentinel: Sentinel, release: str, inherited: Inherited | None = None
    ) -> None:
        self._sentinel = sentinel
        self._is_fork = inherited is not None
        self._release = release
        self._state = "AWAIT_HELLO"
        self._handlers = Handlers()
        self._descriptor = socket
        self._link = Link(socket, self._handlers, _allocate, self._admit)
        self._line = Line(self._link, self._handlers, sentinel, record, self._end_in_job)
        self._line.install()
        self._executor = Executor(self._handlers, inherited)
        # The idle timeout after the first call, if a longer one applies before it.
        self._timeout_after_call: float | None = None
        self._meter = Meter(os.getpid())
        # If a worker exceeds this after a job it retires. The next job would be killed for memory
        # that it did not use.
        self._memory_limit: int | None = None
        # A REPLY or CREDIT of a call up to this one crossed with the call's answer.
        self._last_call = 0
        self._faults = FaultReports(record)
        os.register_at_fork(after_in_child=self._in_copy)

    def run(self) -> int:
        """Serve until the end. Return the exit code."""
        try:
            while True:
                self._step()
        except _Ending as ending:
            return ending.code
        finally:
            self._sentinel.tell(EXITING)
            self._link.leave_open()
            self._let_handlers_run()

    def _in_copy(self) -> None:
        """Close the connections to the parent in a copy that a job has forked."""
        self._link.close_in_copy()
        self._line.close_in_copy()
        self._sentinel.close_in_copy()
        self._faults.end_in_copy()

    def _let_handlers_run(self) -> None:
        """Release the job's signal handlers, because the user's exit handlers are about to run."""
        try:
            self._handlers.release()
        except BaseException as error:
            report_unraisable(error)

    def _step(self) -> None:
        try:
            frame = self._line.receive()
        except LinkClosed:
            raise _Ending(_IN_ORDER) from None
        except IdleTimeOver:
            self._retire("idle")
        except (WireError, Unexpected, _TooLarge, OSError) as error:
            self._abort(*self._explain(error))
        else:
            _HANDLERS[frame.kind](self, frame)

    def _admit(self, kind: Kind) -> None:
        if kind not in _EXPECTED[self._state]:
            raise Unexpected(kind)

    def _explain(self, error: BaseException) -> tuple[str, str]:
        """Return the code and the message of ABORTED."""
        if isinstance(error, WireError):
            return error.code, str(error)
        if isinstance(error, Unexpected):
            return "unexpected_message", (
                f"the worker got an unexpected {error.kind.name} message in the state {self._state}; this is an error in trio-offload"
            )
        if isinstance(error, _TooLarge):
            return (
                "out_of_memory",
                f"there is not enough memory for an argument of {error.size} bytes. Send less at once, or pass a file's name",
            )
        if isinstance(error, OSError):
            return "socket", f"the parent's socket failed: {error}"
        return "socket", f"a signal handler raised while a message was read or written: {type(error).__name__}: {error}"

    def _end_in_job(self, error: BaseException) -> NoReturn:
        """End the worker from a thread of a job, because the line to the parent is lost."""
        if isinstance(error, LinkLost):
            report_loss(self._descriptor)
        elif not isinstance(error, LinkClosed):
            code, message = self._explain(error)
            try:
                self._link.send(Kind.ABORTED, 0, (), {"code": code, "message": clip(message)}, ())
            except (LinkClosed, LinkLost, OSError):
                pass
            self._link.stop_receiving()
        flush()
        if isinstance(error, LinkClosed):
            self._sentinel.await_end()
        os._exit(_ABORTED)

    def _hello(self, frame: Frame) -> None:
        self._sentinel.tell(BUSY)
        try:
            welcome = apply_hello(frame.body, self._release, is_fork=self._is_fork)
        except Refusal as refusal:
            self._send(Kind.REFUSED, {"code": refusal.code, "message": clip(refusal.message)})
            raise _Ending(_REFUSED) from None
        self._faults.begin()
        self._sentinel.tell(IDLE)
        self._send(Kind.WELCOME, welcome)
        self._state = "AWAIT_SETUP"

    def _set_up(self, frame: Frame) -> None:
        self._memory_limit = frame.body.get("memory_limit")
        self._sentinel.configure(frame.body.get("report_interval_ms"), self._memory_limit)
        self._sentinel.tell(BUSY)
        failure = self._executor.set_up(frame.body["eager"], frame.segments)
        self._sentinel.tell(IDLE)
        if failure is not None:
            self._answer(0, failure)
            raise _Ending(_SETUP_FAILED)
        figures = self._meter.read()
        self._send(Kind.READY, None if figures is None else {"figures": figures})
        self._state = "IDLE"
        milliseconds = frame.body.get("idle_timeout_ms")
        if milliseconds is not None:
            timeout = milliseconds / 1000
            if timeout < _UNTIL_FIRST_CALL:
                self._timeout_after_call = timeout
            self._link.start_idle_time(max(timeout, _UNTIL_FIRST_CALL))

    def _settings(self, frame: Frame) -> None:
        self._executor.replace_settings(frame.body["eager"], frame.segments)

    def _skip(self, frame: Frame) -> None:
        """Drop a frame of an ended call. One of a later call is refused."""
        if frame.id > self._last_call:
            self._abort(*self._explain(Unexpected(frame.kind)))
        if frame.body.get("descriptors"):
            for number in self._link.take_carried():
                os.close(number)

    def _call(self, frame: Frame) -> None:
        self._last_call = frame.id
        self._sentinel.tell(BUSY)
        self._line.begin_job(frame.id)
        answer = self._executor.call(frame.segments)
        self._line.end_job()
        prepares = frame.body.get("prepares")
        if not prepares:
            self._line.count_job()
        self._faults.end_job()
        # Before the answer is sent. A parent may close the socket as soon as it has read the
        # answer. It must find an idle worker, which exits in order, and not one that the sentinel
        # kills.
        self._sentinel.tell(IDLE)
        # With a memory limit, measure after each job, before the next one starts.
        figures = self._meter.read_if_due() if self._memory_limit is None else self._meter.read()
        if figures is not None:
            answer.body = {**(answer.body or {}), "figures": figures}
        self._answer(frame.id, answer)
        del answer
        if prepares:
            self._link.restart_idle_time()
            return
        self._sentinel.tell(SETTLING)
        leave, problem = self._executor.after_answer()
        self._sentinel.tell(IDLE)
        if problem:
            self._abort("retire_raised", problem)
        if leave:
            self._retire("retire")
        if figures is not None and self._memory_limit is not None and figures[0] > self._memory_limit:
            self._retire("memory")
        if self._timeout_after_call is not None:
            self._link.start_idle_time(self._timeout_after_call)
            self._timeout_after_call = None
        else:
            self._link.restart_idle_time()

    def _retire_on_request(self, frame: Frame) -> None:
        self._retire("asked")

    def _retire(self, reason: str) -> NoReturn:
        self._sentinel.tell(EXITING)
        self._send(Kind.RETIRED, {"reason": reason})
        self._link.stop_receiving()
        raise _Ending(_IN_ORDER)

    def _abort(self, code: str, message: str) -> NoReturn:
        """Send ABORTED and exit. The exit code is the same if the parent has stopped listening."""
        self._sentinel.tell(EXITING)
        self._sentinel.let_finish()
        try:
            self._link.send(Kind.ABORTED, 0, (), {"code": code, "message": clip(message)}, ())
        except (LinkClosed, LinkLost, OSError):
            pass
        self._link.stop_receiving()
        raise _Ending(_ABORTED)

    def _answer(self, id: int, answer: Answer) -> None:
        self._send(answer.kind, answer.body, id, answer.lengths, answer.parts)

    def _send(
        self,
        kind: Kind,
        body: dict[str, Any] | None = None,
        id: int = 0,
        lengths: Sequence[int] = (),
        parts: Sequence[Buffer] = (),
    ) -> None:
        self._sentinel.let_finish()
        try:
            self._link.send(kind, id, lengths, body, parts)
        except LinkClosed:
            raise _Ending(_IN_ORDER) from None
        except LinkLost:
            report_loss(self._descriptor)
            raise _Ending(_ABORTED) from None
        except (OSError, ValueError) as error:
            self._abort("socket", f"writing to the parent's socket failed: {error}")


class _Ending(BaseException):
    """The session is over. A BaseException, so that handlers for user code do not catch it."""

    def __init__(self, code: int) -> None:
        self.code = code


class _TooLarge(Exception):
    def __init__(self, size: int) -> None:
        self.size = size


# The exit codes of PROTOCOL.md.
_IN_ORDER: Final = 0
_REFUSED: Final = 3
_SETUP_FAILED: Final = 4
_ABORTED: Final = 5

# Minimum time, in seconds, that a worker waits for its first call.
_UNTIL_FIRST_CALL: Final = 10.0

_EXPECTED: Final = {
    "AWAIT_HELLO": (Kind.HELLO,),
    "AWAIT_SETUP": (Kind.SETUP, Kind.RETIRE),
    "IDLE": (Kind.CALL, Kind.SETTINGS, Kind.RETIRE, Kind.REPLY, Kind.CREDIT),
}
_HANDLERS: Final = {
    Kind.HELLO: Session._hello,
    Kind.SETUP: Session._set_up,
    Kind.CALL: Session._call,
    Kind.SETTINGS: Session._settings,
    Kind.RETIRE: Session._retire_on_request,
    Kind.REPLY: Session._skip,
    Kind.CREDIT: Session._skip,
}


def _allocate(size: int, kind: int) -> Target:
    from .._system.memory import allocate

    try:
        return allocate(size, kind)
    except (MemoryError, OverflowError, OSError, ValueError):
        raise _TooLarge(size) from None
