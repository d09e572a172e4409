"""Requests of a job to its parent, and messages that are not answered.

Each request gets one reply, also if it was withdrawn. So a timeout, or a signal handler that
raises, does not lose an item.

A thread that only reads is not needed. Of the threads that wait for a reply one *leads*: it reads,
and hands each frame to the thread that waits for it. The others sleep on locks. When the leader has
its own reply, another one leads.

A thread belongs to the call in which it made its first request. The main thread belongs to each.
"""

from __future__ import annotations

from _thread import TIMEOUT_MAX, _local, allocate_lock, get_native_id
from itertools import count as count_up
from os import getpid
from time import monotonic

from .._protocol.frames import HANDED_ALL, Kind, encode_head
from .errors import JobEndedError, make_cancelled
from .line import current_line
from .messages import NONE as NONE
from .messages import Reply as Reply
from .messages import Segments as Segments
from .messages import deadline_after, encode_request
from .shields import shield_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    from .._protocol.frames import Buffer
    from .line import Line


def request(
    op: str,
    handle: int = 0,
    segments: Segments = NONE,
    *,
    count: int | None = None,
    timeout: float | None = None,
    shield: bool | None = None,
    give_back: str | None = None,
) -> Reply:
    """Ask the parent, and wait for its reply. Statuses other than those below are the caller's.

    Args:
        op: the operation.
        handle: the ID of the handle that it concerns. 0 means the parent itself.
        segments: the arguments.
        count: a number that the operation takes.
        timeout: seconds after which the request is withdrawn. None means no limit.
        shield: whether the request outlasts a cancellation of the call. None means: inside of a
            ``shielded`` block.
        give_back: the operation that undoes a reply of the status ``value`` which came too late: a
            signal handler has raised. It is posted with the reply's segments, and the request's
            number as its count. None means that such a reply is dropped.

    Raises:
        Cancelled: the call is cancelled.
        TimeoutError: the timeout has passed, and the request was without effect.
        TypeError, ValueError: the timeout is no number.
        JobEndedError: the job of this thread has ended.
        RuntimeError: this process is between two jobs, or is not a worker.
    """
    return conversation().request(op, handle, segments, count, timeout, shield, give_back)


def post(op: str, handle: int = 0, segments: Segments = NONE, *, count: int | None = None) -> None:
    """Tell the parent, without a reply. It works in a cancelled call too.

    Raises:
        JobEndedError: the job of this thread has ended.
        RuntimeError: this process is between two jobs, or is not a worker.
    """
    conversation().post(op, handle, segments, count)


def hand_over(reply: Reply, count: int = HANDED_ALL) -> None:
    """Record that the first ``count`` items of a reply reach the job's code. Call it before that.

    If the worker dies, the parent gives every other item to the next receiver.
    """
    conversation().line.hand_over(reply.request, count)


def take_credit(handle: int) -> bool:
    """Use up one message that the parent has room for. Return False if there is not one."""
    return conversation().take_credit(handle)


def bind_thread(call: int) -> None:
    """Bind this thread to a call.

    Raises:
        JobEndedError: the call has ended.
    """
    conversation().bind(call)


def running_call() -> int:
    """Return the number of this thread's call.

    Raises:
        JobEndedError: it has ended.
        RuntimeError: this process is between two jobs, or is not a worker.
    """
    return conversation().call_of_thread()


class _Binding(_local):
    """The call that this thread belongs to. The main thread belongs to each."""

    def __init__(self) -> None:
        self.call = 0
        # The last call that this thread has been found to belong to.
        self.checked = 0
        # For the messages that it posts on credit, by operation and handle.
        self.outlets: dict[tuple[str, int], Any] = {}


class _Waiting:
    """A thread that waits for a reply."""

    __slots__ = ("call", "given_back", "late", "lock", "number", "reply", "sent", "thread", "withdrawn")

    def __init__(self, number: int, call: int, thread: int) -> None:
        self.number = number
        self.call = call
        self.thread = thread
        self.reply: Reply | None = None
        # Whether REQUEST, WITHDRAW and the POST that gives an item back are written.
        self.sent: list[bool] = []
        self.withdrawn: list[bool] = []
        self.given_back: list[bool] = []
        # Raised if the request is withdrawn in time.
        self.late: BaseException | None = None
        self.lock = allocate_lock()
        self.lock.acquire()

    def wake(self) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # It has been woken already.


class _Conversation:
    """The requests of this worker that wait for a reply."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.thread = _Binding()
        self._numbers = count_up(1)
        self._open: dict[int, _Waiting] = {}
        # At most one entry. One step on a dictionary decides who leads, so that an exception of a
        # signal handler cannot come in between.
        self._leader: dict[None, _Waiting] = {}
        self._inbox: list[tuple[int, int, dict[str, Any], list[Any]]] = []
        # A list of as many items as messages that the parent has room for: `pop` is one step, so
        # threads need no lock.
        self._credits: dict[int, list[None]] = {}
        self._credits_lock = allocate_lock()
        self._call_of_credits = 0

    def call_of_thread(self) -> int:
        call = self.line.call()
        if call and call == self.thread.checked:
            return call
        if get_native_id() == self.line.pid:
            bound = call
        else:
            bound = self.thread.call or call
            self.thread.call = bound
        if bound != call:
            raise job_ended()
        if not call:
            raise RuntimeError(
                "no job is running: init, retire and exit handlers cannot talk to the parent, only jobs and their threads can"
            )
        self.thread.checked = call
        return call

    def bind(self, call: int) -> None:
        if call != self.line.call():
            raise job_ended()
        self.thread.call = self.thread.checked = call

    def request(
        self,
        op: str,
        handle: int,
        segments: Segments,
        count: int | None,
        timeout: float | None,
        shield: bool | None,
        give_back: str | None,
    ) -> Reply:
        call = self.call_of_thread()
        # The end of the shield on the monotonic clock. None means: without a shield.
        until = shield_end() if shield is None else _FOREVER if shield else None
        if until is None and self.line.is_cancelled():
            raise make_cancelled()
        deadline = deadline_after(timeout)
        waiting = _Waiting(next(self._numbers), call, get_native_id())
        body = _body(op, handle, waiting.thread, segments, count)
        if until is not None:
            body["shield"] = True
        head = encode_request(call, waiting.number, body, segments)
        self._open[waiting.number] = waiting
        try:
            self.line.write((head, *segments.parts), call, waiting.sent)
            if not waiting.sent:
                raise job_ended()
            reply = self._await(waiting, deadline, until)
            self._leave(waiting)
        except BaseException:
            self._despite_signals(lambda: self._undo(waiting, handle, give_back))
            self._despite_signals(lambda: self._leave(waiting))
            raise
        if reply.status == "cancelled":
            raise make_cancelled()
        if reply.status == "withdrawn":
            raise waiting.late or TimeoutError("the parent has withdrawn this request")
        return reply

    def post(self, op: str, handle: int, segments: Segments, count: int | None) -> None:
        call = self.call_of_thread()
        head = encode_head(Kind.POST, call, segments.lengths, _body(op, handle, get_native_id(), segments, count))
        self.write(call, (head, *segments.parts))

    def write(self, call: int, parts: Sequence[Buffer]) -> None:
        sent: list[bool] = []
        self.line.write(parts, call, sent)
        if not sent:
            raise job_ended()

    def take_credit(self, handle: int) -> bool:
        credit = self.credit(self.call_of_thread(), handle)
        try:
            credit.pop()
        except IndexError:
            return False
        return True

    def credit(self, call: int, handle: int) -> list[None]:
        """Return the credit of a call for a handle, as a list that grows and shrinks."""
        with self._credits_lock:
            if call != self._call_of_credits:
                self._call_of_credits = call
                self._credits = {}
            return self._credits.setdefault(handle, [])

    def poll(self, call: int) -> bool:
        """Read what has arrived, unless another thread reads. Return True if credit has come."""
        waiting = _Waiting(0, call, get_native_id())
        if self._leader.setdefault(None, waiting) is not waiting:
            return False
        try:
            self.line.read(0.0, self._inbox)
            has_come = bool(self._inbox)
            self._deliver()
        finally:
            self._leave(waiting)
        return has_come

    def _await(self, waiting: _Waiting, deadline: float, shielded_until: float | None) -> Reply:
        line = self.line
        while waiting.reply is None:
            if waiting.call != line.call():
                raise job_ended()
            left = _FOREVER
            if not waiting.withdrawn:
                now = monotonic()
                left = deadline - now
                if left <= 0:
                    self._withdraw(waiting, TimeoutError("the request has timed out"))
                    continue
                if shielded_until is not None and shielded_until != _FOREVER:
                    # The parent does not answer it at a cancellation, so look whether there is one.
                    left = min(left, max(shielded_until - now, _LOOK_EVERY))
                    if shielded_until <= now and line.is_cancelled():
                        self._withdraw(waiting, make_cancelled())
                        continue
            if self._leader.setdefault(None, waiting) is waiting:
                if not self._inbox:
                    line.read(left, self._inbox)
                self._deliver()
            else:
                waiting.lock.acquire(True, min(left, TIMEOUT_MAX))
        return waiting.reply

    def _withdraw(self, waiting: _Waiting, late: BaseException | None) -> None:
        waiting.late = late
        head = encode_head(Kind.WITHDRAW, waiting.call, (), {"request": waiting.number})
        self.line.write((head,), waiting.call, waiting.withdrawn)

    def _undo(self, waiting: _Waiting, handle: int, give_back: str | None) -> None:
        """End a request whose wait has raised, without a loss."""
        if not waiting.sent or waiting.call != self.line.call():
            return
        if waiting.reply is None and not waiting.withdrawn:
            self._withdraw(waiting, None)
        reply = self._await(waiting, _FOREVER, None)
        if reply.status == "value" and give_back is not None and not waiting.given_back:
            segments = Segments(reply.segments, [_size(segment) for segment in reply.segments], reply.types)
            body = _body(give_back, handle, waiting.thread, segments, waiting.number)
            head = encode_head(Kind.POST, waiting.call, segments.lengths, body)
            self.line.write((head, *segments.parts), waiting.call, waiting.given_back)

    def _despite_signals(self, step: Callable[[], None]) -> None:
        """Complete a step that may be repeated, although further signal handlers raise."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                return step()
            except BaseException:
                continue
        return None

    def _leave(self, waiting: _Waiting) -> None:
        self._open.pop(waiting.number, None)
        if self._leader.get(None) is waiting:
            self._leader.pop(None, None)
        while self._open and not self._leader:
            try:
                # One that leaves too passes this on. Thousands may wait, so without a copy.
                for other in self._open.values():
                    if other.reply is None:
                        other.wake()
                        break
                break
            except RuntimeError:
                continue  # another thread has added or removed one meanwhile

    def _deliver(self) -> None:
        """Hand the frames of the inbox to the threads that wait for them.

        An exception of a signal handler may come in between. So a reply is removed once it has been
        delivered, and may be delivered twice. A credit is removed first, and may be lost.
        """
        inbox = self._inbox
        while inbox:
            kind, call, body, segments = inbox[0]
            if kind == Kind.REPLY:
                waiting = self._open.get(body["request"])
                if waiting is not None and waiting.reply is None:
                    waiting.reply = Reply(body, segments)
                    waiting.wake()
                del inbox[0]
                # So that the next leader is found among those that still wait.
                self._open.pop(body["request"], None)
            else:
                del inbox[0]
                self._add_credit(call, body["handle"], body["count"])

    def _add_credit(self, call: int, handle: int, number: int) -> None:
        if call == self.line.call():
            self.credit(call, handle).extend([None] * number)


def conversation() -> _Conversation:
    """Return the conversation of this process."""
    found = _conversations.get(getpid())
    if found is None:
        line = current_line()
        # As for the lines.
        found = _conversations.setdefault(line.pid, _Conversation(line))
    return found


def _body(op: str, handle: int, thread: int, segments: Segments, count: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {"op": op, "thread": thread}
    if handle:
        body["handle"] = handle
    if count is not None:
        body["count"] = count
    if segments.types:
        body["types"] = segments.types
    return body


def _size(segment: Any) -> int:
    return segment.nbytes if isinstance(segment, memoryview) else len(segment)


def job_ended() -> JobEndedError:
    """Return the error of a thread whose job has ended."""
    return JobEndedError(
        "this thread belongs to a job that has ended; from_worker.job().adopt() binds a thread to the job that runs now"
    )


_FOREVER: Final = float("inf")
_MAX_ATTEMPTS: Final = 100
_LOOK_EVERY: Final = 0.1  # seconds between two looks for a cancellation after a shield has ended

_conversations: Final[dict[int, _Conversation]] = {}
