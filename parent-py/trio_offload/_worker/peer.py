"""A process at the other end of a channel: the common part of workers and templates."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

import trio

from trio_offload_worker._protocol.frames import Frame, Kind, WireError, encode_head

from .. import _clock
from .._process import record as _record
from .._process.fork_lock import fork_lock
from .._process.privileges import Grant, same_grant
from .._transport.channel import Channel, EndOfStream
from .states import ENDED, IDLE, RETIRING, STARTING, State

if TYPE_CHECKING:
    from .._process.process import WorkerProcess
    from .._transport.buffer_pool import BufferPool

logger: Final = logging.getLogger("trio_offload")
# Frames that an idle worker may send.
_TERMINAL_KINDS: Final = (Kind.RETIRED, Kind.REFUSED, Kind.ABORTED)
TALK: Final = (Kind.REQUEST, Kind.POST, Kind.WITHDRAW)
"""The messages of a job."""
MAX_UNINTERRUPTED: Final = 32
"""Messages of a job between two checkpoints of the task that reads them."""
# Seconds for a process to exit after its last frame.
_EXIT_TIMEOUT: Final = 2.0


class Peer:
    """A process with its channel, record and state. It can be dismissed, killed and closed."""

    __slots__ = (
        "__weakref__",
        "_channel",
        "_closing",
        "_handed",
        "_process",
        "_record",
        "_step",
        "_times",
        "expires_at",
        "given_up",
        "grant",
        "last_words",
        "left_behind",
        "process",
        "progress",
        "state",
    )

    process: WorkerProcess
    """The handle of the process. Unset before the start. Not a property: every call reads it."""

    def __init__(self) -> None:
        self._process: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._record: _record.RecordFile | None = None
        # Text of its record, which it writes before it dies. Known once it has ended.
        self.left_behind = ""
        # Its reason for exiting, if it sent one, such as the traceback of a `retire` that raised.
        self.last_words = ""
        # Read-only for others.
        self.state: State = STARTING
        # Held while it is closed. Several threads may reap the same process, and a signal handler
        # may run in the middle of that.
        self._closing = threading.Lock()
        # True if it was killed unused. Its exit status is ignored.
        self.given_up = False
        # When it may have retired, on the clock of time.monotonic().
        self.expires_at = math.inf
        # How far it had come with a chunk. Known once it has ended.
        self.progress = _record.Progress()
        self._handed = b""
        self._step: _record.Step | None = None
        self._times = b""
        # The privileges of this program when the process was started; for a forked worker, when its
        # template was. Set before the start.
        self.grant: Grant

    def adopt(
        self, process: WorkerProcess, ours: socket.socket, record: _record.RecordFile, pool: BufferPool | None = None
    ) -> Channel:
        """Become the handle of a process that has been started. Return its channel."""
        self._process = self.process = process
        self._record = record
        self._channel = channel = Channel(ours, pool)
        return channel

    def disown(self) -> None:
        """Undo :meth:`adopt`: the process has ended before it was sent anything."""
        self._process = self._channel = self._record = None

    def keeps_privileges(self) -> bool:
        """Return True if this program still has the privileges of the worker's start.

        Otherwise a call could do things in the worker that the program itself may not do. Such a
        worker must not get calls.
        """
        grant = same_grant(self.grant, time.monotonic())
        self.grant = grant or self.grant
        return grant is not None

    @property
    def record(self) -> _record.RecordFile:
        """Its record. It has none after its end."""
        if self._record is None:
            raise RuntimeError("the worker has no record")
        return self._record

    def times_of(self, number: int) -> _record.JobTimes:
        """Return the times of a traced call, also after the end."""
        slots = self._times if self._record is None else self._record.times()
        return _record.JobTimes.of_call(slots, number)

    @property
    def record_identity(self) -> tuple[int, int]:
        """The identity of its record, in which a chunk counts its items."""
        return self.record.identity()

    def give_up(self) -> None:
        """Kill a worker whose start is not awaited any more. :meth:`gone` or a wait must follow."""
        self._leave()
        self.given_up = True
        self.kill()

    def hear(self) -> bool:
        """Read the frames of an idle worker without waiting. Return True if it still takes jobs."""
        if self.state is IDLE and self._channel is not None:
            if self.process.ended:
                # In a fork of the process that started it; the channel is closed there.
                self._leave()
                return False
            try:
                frame = self.receive_nowait(self._channel)
            except EndOfStream:
                self._leave()
            except WireError as error:
                self._reject(f"bytes that violate the protocol ({error})")
            else:
                if frame is not None and frame.kind in _TERMINAL_KINDS:
                    self.last_words = frame.body.get("message", "")
                    self._leave(in_order=frame.kind is Kind.RETIRED)
                elif frame is not None:
                    self._reject(frame.kind.name)
        return self.state is IDLE

    def ask_to_retire(self) -> None:
        """Tell an idle worker to leave. It may have left already."""
        if self.state is IDLE and self._channel is not None:
            self._channel.send_nowait([encode_head(Kind.RETIRE, 0, ())])
            self._leave(in_order=True)

    def gone(self) -> bool:
        """Return True if an exiting process has ended. Then it is reaped and released."""
        if self._process is None or self._process.poll():
            self._close()
            return True
        return False

    def kill(self) -> None:
        """Kill the process. :meth:`gone` or a wait must follow."""
        if self._process is not None:
            self._process.kill()

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            await self._process.wait()
        self._close()

    def wait_sync(self, deadline: float) -> bool:
        """Block until the process has ended. Return False if it has not at ``deadline``.

        The deadline is on the clock of time.monotonic().
        """
        if self._process is not None and not self._process.wait_sync(deadline):
            return False
        self._close()
        return True

    def handle_aside(self, frame: Frame) -> bool:
        """Handle a frame that is not an answer. Return False if it is one."""
        # During the first state of a start a report is an answer, and a fault.
        if frame.kind is Kind.REPORT and self.state is not STARTING:
            self._handle_report(frame)
            return True
        return frame.kind in TALK and self._hear_job(frame)

    def _hear_job(self, frame: Frame) -> bool:
        """Handle the message of a running job. Return False if none may come now."""
        return False

    def _handle_report(self, frame: Frame) -> None:
        """Take in the figures of a report."""

    async def next_frame(self, channel: Channel, cancellable: bool) -> Frame:
        """Return the next answer."""
        frame = await channel.receive(cancellable=cancellable)
        handled = 0
        while self.handle_aside(frame):
            handled += 1
            if not handled % MAX_UNINTERRUPTED:
                await trio.lowlevel.cancel_shielded_checkpoint()
            frame = await channel.receive(cancellable=cancellable)
        return frame

    def receive_nowait(self, channel: Channel, most: int | None = None) -> Frame | None:
        """Return the next answer if it can be read without waiting, else None.

        It may come behind ``most`` other frames. None means any number: the process has ended, or
        has no job that talks.
        """
        handled = 0
        while handled != most:
            frame = channel.receive_nowait()
            if frame is None or not self.handle_aside(frame):
                return frame
            handled += 1
        return None

    def _leave(self, *, in_order: bool = False) -> None:
        if in_order:
            self.process.dismissed = True
        self.state = RETIRING
        self.expires_at = -math.inf

    def _reject(self, what: str) -> None:
        """End an idle worker that has broken the protocol."""
        logger.warning("idle worker %s was ended: it sent %s", self.process.pid, what)
        self._leave()
        self.process.kill()

    async def end(self) -> None:
        """Kill the process with its descendants, wait for it, and release everything.

        Possible in each state. Not cancellable.
        """
        self.state = ENDED
        try:
            if self._process is not None:
                self._process.kill()
                await wait_unconditionally(self._process)
        finally:
            self._close()

    async def end_gently(self) -> None:
        """Let a process exit that has closed its end, or sent its last frame."""
        try:
            if self._process is not None:
                with trio.CancelScope(shield=True), _clock.move_on_after(_EXIT_TIMEOUT):
                    await self._process.wait()
        finally:
            await self.end()

    def _close(self) -> None:
        self.state = ENDED
        if not self._closing.acquire(blocking=False):
            # Another caller closes it. Waiting could deadlock: that caller may be further down this
            # stack, under a signal handler.
            return
        try:
            self._let_go()
        finally:
            self._closing.release()

    def _let_go(self) -> None:
        if self._channel is not None:
            if self._process is not None and (self._process.exitcode or self._is_talking):
                self._hear_last_words(self._channel)
            # A fork by another thread in the middle of this would keep this end open unnoticed.
            with fork_lock:
                self._channel.close()
        if self._record is not None:
            self.left_behind = self._cleaned(self._record.read())
            self.progress = self._record.progress()
            self._handed = self._record.handed()
            self._step = self._record.step()
            self._times = self._record.times()
            self._record.close()
            self._record = None
            self._note_end()

    @property
    def _is_talking(self) -> bool:
        """True if a job may have sent a message that has not been read."""
        return False

    def _hear_last_words(self, channel: Channel) -> None:
        """Read the last messages of a process: its job's, or its reason for exiting."""
        with contextlib.suppress(EndOfStream, WireError, OSError):
            while (frame := self.receive_nowait(channel)) is not None:
                if frame.kind is Kind.ABORTED:
                    self.last_words = frame.body["message"]

    def _cleaned(self, left_behind: str) -> str:
        """Return the part of the text that concerns its death."""
        return left_behind

    def _note_end(self) -> None:
        """Called once when the process has ended."""


async def wait_unconditionally(process: WorkerProcess) -> None:
    """Wait for a killed process, which is never long.

    Trio raises KeyboardInterrupt in the main task at each await, also in a shielded one. It is
    raised after the wait here.
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
