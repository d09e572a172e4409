"""The sending half of a worker: the calls in flight, and their bytes."""

from __future__ import annotations

import collections
import contextlib
import time
from os import geteuid
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import outcome
import trio

from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, encode_call, encode_head

from .._interpreter import settings as _settings
from .._pickling import calls as _calls
from .._pickling import payload as _payload
from .._transport.channel import Channel, EndOfStream
from .._transport.sockets import WriteFailed
from .peer import TALK, Peer
from .states import IDLE, RUNNING, CallNotRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._interpreter.main_snapshot import MainSnapshot
    from .._process.record import Progress

MAX_IN_FLIGHT: Final = 16  # calls
# More messages of a job than its socket holds.
_MAX_POLLED: Final = 4096


class ItemsOfCall(Protocol):
    """The items of a map that travel in one call."""

    def item_at(self, progress: Progress) -> tuple[int, str] | None:
        """Return the index and the text of the item that a worker runs. None means unknown."""

    def facts(self, value: Any) -> dict[str, Any]:
        """Return a trace's facts about the items, once their call has returned this value."""


class CallSender(Peer):
    """A worker that calls are sent to. It numbers them, and sends settings before them if changed.

    The running call is kept in attributes, and further calls in a deque. Most workers have one call
    at a time, and a deque of one costs a call 3 % of its instructions.
    """

    __slots__ = (
        "_began",
        "_behind",
        "_busy",
        "_calls",
        "_header",
        "_last_frame",
        "_polls_first",
        "_prepared",
        "_preparing",
        "_running",
        "_sent",
        "_shown",
        "_unsent",
        "context_number",
        "failure",
        "is_watched",
        "items_in_flight",
        "main_snapshot",
        "retires",
        "sent_settings",
        "waited",
    )

    inherits_program: ClassVar[bool] = False
    """True if the worker is a fork of this process, with its objects."""

    def __init__(self, *, retires: bool) -> None:
        super().__init__()
        # Number of the last call that was submitted, and of the last that the worker may have
        # begun.
        self._calls = 0
        self._sent = 0
        # The running call, which keeps its memory alive while the socket may hold pages of it. Then
        # the start of its result's header; empty for a large call. Then its beginning, on the clock
        # of time.monotonic().
        self._running: _payload.Payload | None = None
        self._header = b""
        self._began = time.monotonic()
        # The calls behind the running one with their headers, the oldest first.
        self._behind: collections.deque[tuple[_payload.Payload, bytes]] = collections.deque()
        # The items of the calls in flight, kept by a lane of a map. They are no part of a payload,
        # because each call would pay for that.
        self.items_in_flight: Sequence[ItemsOfCall] = ()
        # Data that the socket has not taken yet.
        self._unsent: list[Buffer] = []
        # Number of a call that prepares for jobs and is not counted as one.
        self._preparing = 0
        # Number of such calls that were answered.
        self._prepared = 0
        # The counter of the call that ended with the worker.
        self.failure = ""
        # Seconds that calls have taken.
        self._busy = 0.0
        # Seconds that these calls have waited for a token. Kept here, because only one thread has
        # the worker: where more calls run than workers, an addition to the counters costs each 1 %.
        self.waited = 0.0
        # The settings that were sent last.
        self.sent_settings: _settings.Snapshot | None = None
        # The definitions in the `__main__` of a fork of this process.
        self.main_snapshot: MainSnapshot | None = None
        # True if the worker may retire after any job.
        self.retires = retires
        # True if another process watches the worker and has its socket too. The stream then ends a
        # moment after the death of the worker. A call that is sent in between could have begun.
        self.is_watched = False
        # True if an idle worker is polled before it gets a call, and the frame that this found.
        self._polls_first = retires
        self._last_frame: Frame | None = None
        # The function whose name is in the record, unless it is not global.
        self._shown: object = None
        # The number of its context in this program.
        self.context_number = 0

    def watch(self) -> None:
        """Note that another process watches the worker."""
        self.is_watched = self._polls_first = True

    def submit(self, call: _payload.Payload, prepares: bool = False) -> None:
        """Queue a pickled call behind those in flight. Write a small one at once if it is alone.

        At most :data:`MAX_IN_FLIGHT` calls are in flight. One :meth:`Worker.answer` follows for
        each. A call that ``prepares`` is not counted as a job.

        Raises:
            CallNotRun: the worker must not get this call. It retires unless others are in flight.
        """
        state = self.state
        if state is not IDLE and (state is not RUNNING or len(self._behind) >= MAX_IN_FLIGHT - 1):
            raise RuntimeError(f"the worker takes no call in the state {state.name}, with {self._in_flight} in flight")
        if self.main_snapshot is not None and _payload.mentions_main(call) and not self.main_snapshot.is_current():
            # The call names an object of `__main__` that the fork lacks, or has an old version of.
            self.ask_to_retire()
            raise CallNotRun
        now = time.monotonic()
        grant = self.grant
        if (now >= grant.check_at or geteuid() != grant.user or get_ident() != grant.thread) and not self.keeps_privileges():
            self.ask_to_retire()
            raise CallNotRun
        number = self._calls + 1
        if call.function is not self._shown and self._record is not None:
            self._shown = self._record.show_function(call)
        if _settings.current_snapshot() is not self.sent_settings:
            self._unsent += self._new_settings()
        if call.small and not prepares:
            # Most calls are small, and need one part only.
            data, header = encode_call(number, call.parts[0])
            rest = data
            if state is IDLE and not self._unsent and not self._polls_first and self._channel is not None:
                rest = _write_small(self._channel, data)
                if rest is not data:
                    self._sent = number
            if rest:
                self._unsent.append(rest)
        else:
            header = b""
            if prepares:
                self._preparing = number
            self._unsent += (_head_of(number, call, prepares), *call.parts)
            if call.grants:  # small calls have none
                self._grant(number, call.grants)
        if state is IDLE:
            self.state = RUNNING
            self._running, self._header, self._began = call, header, now
        else:
            self._behind.append((call, header))
        self._calls = number  # last, for `jobs`

    def send_ahead(self, call: _payload.Payload) -> list[Buffer]:
        """Return the frame of a first call that is sent before READY has been received."""
        self._calls = self._sent = 1
        if call.grants:
            self._grant(1, call.grants)
        return [_head_of(1, call), *call.parts]

    def recall(self) -> None:
        """Undo :meth:`send_ahead`: the call was not received."""
        self._calls = self._sent = 0
        self._forget_grants()

    def _grant(self, number: int, grants: Sequence[_payload.Grant]) -> None:
        """Let a call use these handles."""
        raise NotImplementedError

    def _forget_grants(self) -> None:
        """Forget them: the calls in flight go to another worker, with their handles."""
        raise NotImplementedError

    @property
    def channel(self) -> Channel | None:
        """The channel. None before the start and after the end."""
        return self._channel

    def take_unsent(self) -> list[Buffer]:
        """Return the data that the socket has not taken yet. The caller writes it."""
        unsent = self._unsent.copy()
        self._unsent.clear()
        return unsent

    def put_back_unsent(self, unsent: list[Buffer]) -> None:
        """Undo :meth:`take_unsent` for the rest."""
        self._unsent[:0] = unsent

    def flush(self) -> None:
        """Write calls without waiting. :meth:`Worker.answer` writes the rest."""
        channel = self._channel
        if channel is not None and self._unsent:
            # If the worker has ended, `answer` finds that too, and raises the error.
            with contextlib.suppress(EndOfStream):
                self._last_frame = self._write(channel)

    @property
    def last_number(self) -> int:
        """Number of the call that was submitted last."""
        return self._calls

    @property
    def oldest_number(self) -> int:
        """Number of the oldest call in flight, if there is one."""
        return self._calls - len(self._behind)

    @property
    def had_call(self) -> bool:
        """True if it has been given a call."""
        return self._calls > 0

    def _note_failure(self, counter: str) -> None:
        self.failure = counter
        self._busy += time.monotonic() - self._began

    @property
    def jobs(self) -> int:
        """Number of jobs that it has answered. Counting these would slow every call."""
        calls = self._calls
        return calls - self._prepared - len(self._behind) - (self._running is not None)

    @property
    def has_answer(self) -> bool:
        """True if an answer, or the beginning of one, has been read already."""
        return self._channel is not None and self._channel.has_read

    @property
    def running_function(self) -> str | None:
        """The name of the running function."""
        # Looked up on demand, not at each call. Another thread may ask while the call ends.
        call = self._running
        return None if call is None else call.name

    @property
    def _in_flight(self) -> int:
        return len(self._behind) + (self.state is RUNNING)

    def current_settings(self) -> dict[str, Any]:
        """Return the settings that it gets. See :func:`.settings.current_settings`."""
        return _settings.current_settings()

    def _new_settings(self) -> list[Buffer]:
        sent, self.sent_settings = self.sent_settings, _settings.current_snapshot()
        segment = _calls.dump_settings(_settings.new_settings(self.current_settings(), sent))
        return [encode_head(Kind.SETTINGS, 0, [len(segment)], {"eager": True}), segment]

    def _write(self, channel: Channel) -> Frame | None:
        """Write calls without waiting.

        An idle worker may have retired. Then nothing is written, and its last frame is returned.

        Raises:
            EndOfStream: it ended without one.
        """
        sent = self._sent
        if self._polls_first and sent < self._calls - len(self._behind):
            gone = self.is_watched and self.process.poll()
            if gone or self.retires:
                last_frame = self.receive_nowait(channel)
                if last_frame is not None:
                    return last_frame
                if gone:
                    raise EndOfStream
        unsent = self._unsent
        self._sent = self._calls
        try:
            rest = channel.send_at_once(unsent)
            unsent[:] = channel.send_some(rest) if rest is unsent else rest
        except WriteFailed as failure:
            # Not an outcome yet. The last frames of the worker decide.
            unsent.clear()
            if not failure.sent:
                self._sent = sent
        return None

    async def _send_rest(self, channel: Channel) -> None:
        """Write the rest of the calls. If that is cancelled, `_unsent` is the rest."""
        try:
            await channel.send_rest(self._unsent, True, cancellable=True)
        except WriteFailed:
            self._unsent.clear()

    async def _receive_while_sending(self, channel: Channel, header: bytes) -> Frame | memoryview:
        """Write the rest of the calls and receive the next frame at the same time.

        It may be a message of the job, or a report.

        The worker may not read before it has written its answer.
        """
        answer: Frame | memoryview | None = channel.poll_result(header)
        if answer is None:
            answer = channel.receive_nowait()
        if answer is not None:
            return answer

        async def send_rest() -> None:
            with contextlib.suppress(trio.Cancelled):
                await self._send_rest(channel)

        async def next_frame() -> Frame:
            # A message of the job ends this too. Its host writes the rest.
            while (frame := await channel.receive(cancellable=True)).kind not in TALK:
                if not self.handle_aside(frame):
                    break
            return frame

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_rest)
            # Captured, because the nursery would wrap the exception into a group.
            frame = await outcome.acapture(next_frame)
            nursery.cancel_scope.cancel()
        return frame.unwrap()

    def _poll(self, channel: Channel, header: bytes) -> Frame | memoryview | None:
        """Return the next answer if it can be read without waiting, else None."""
        segment = channel.poll_result(header)
        return self.receive_nowait(channel, _MAX_POLLED) if segment is None else segment


def _head_of(number: int, call: _payload.Payload, prepares: bool = False) -> bytes:
    body: dict[str, Any] = {"types": call.types} if call.types else {}
    if prepares:
        body["prepares"] = True
    return encode_head(Kind.CALL, number, call.lengths, body or None)


def _write_small(channel: Channel, data: bytes) -> bytes:
    """Write a small call without waiting. Return the rest, which :meth:`Worker.answer` writes.

    It is ``data`` itself if nothing was written.
    """
    try:
        return channel.send_small(data)
    except (WriteFailed, OSError):
        # Not an outcome yet. `answer` meets it again, and the last frames of the worker decide.
        return data
