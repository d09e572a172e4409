"""A worker whose jobs talk to their callers, and are told when those are cancelled."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trio_offload_worker._protocol.frames import HANDED_ALL, HANDED_SLOTS, Frame, Kind, WireError

from .. import _clock
from .._transport.channel import Channel, EndOfStream
from .call_sender import CallSender
from .peer import MAX_UNINTERRUPTED, wait_unconditionally

if TYPE_CHECKING:
    import socket

    from .._options import ContextOptions
    from .._pickling.payload import Grant
    from .._process.output import OutputPipes
    from .._process.process import WorkerProcess
    from .._process.record import Progress, RecordFile, Step
    from .._transport.buffer_pool import BufferPool
    from .conversation import Conversation
    from .lasting import LastingGrants


class Forwarder(Protocol):
    """What a context does with messages of jobs that concern no handle."""

    @property
    def receivers(self) -> Mapping[str, Callable[[Any, Frame], None]]:
        """Functions that handle a POST without a handle, by its operation.

        They get the worker and the frame, whose segments may be overwritten afterwards.
        """

    def settings(self) -> dict[str, Any]:
        """Return the settings that jobs need for it: the same object until they change."""


class Receiver(Protocol):
    """The place for the output of a context's workers."""

    def take(self, pipes: OutputPipes, pid: int, stream: str, data: bytes) -> None:
        """Handle data of a stream, "stdout" or "stderr"."""

    def finish(self, pipes: OutputPipes, pid: int) -> None:
        """Handle the end of a job, or of the output between two jobs."""


class Talker(CallSender):
    """The part of a worker that serves jobs which talk, or whose callers are cancelled."""

    __slots__ = (
        "_told",
        "answered_too_late",
        "conversation",
        "deadline",
        "followed",
        "forwarder",
        "grace",
        "is_read",
        "is_refused",
        "limiter",
        "options",
        "origins",
        "pipes",
        "receiver",
    )  # fmt: skip

    def __init__(self, options: ContextOptions) -> None:
        super().__init__(retires=options.retire is not bool)
        self.options = options
        # With its jobs, from the first message of one, or the first call with handles, on.
        self.conversation: Conversation | None = None
        # Seconds that a job has after it was told that its caller is cancelled. None means as
        # `cancellable` says: no time, or for ever.
        self.grace: float | None = None
        # Of the running call, if it has a timeout.
        self.deadline: trio.CancelScope | None = None
        # Of which the running call holds a token.
        self.limiter: object = None
        # Of the context, if it handles log records and the like; and its settings that were sent
        # last.
        self.forwarder: Forwarder | None = None
        self.followed: dict[str, Any] | None = None
        # The origins of log records that this worker has described, by their numbers.
        self.origins: dict[int, Any] | None = None
        # True if the running call ends as a cancelled one that gets no time.
        self.is_refused = False
        # The pipes of its output and their receiver, if this program reads them.
        self.pipes: OutputPipes | None = None
        self.receiver: Receiver | None = None
        self.is_read = False  # True while a task waits for output
        self._told = 0  # number of the call that was told
        # Calls that were answered between a cancellation and the end. One more may have been run.
        self.answered_too_late = 0

    def open_pipes(self) -> Mapping[int, int]:
        """Return the files for the output of its process, if this program reads that.

        Raises:
            OSError: this process has used up its descriptors.
        """
        if self.receiver is None:
            return {}
        from .._process.output import OutputPipes  # few programs need it

        if self.pipes is None:
            self.pipes = OutputPipes()
        # They stay open during the start: it may take several attempts.
        return self.pipes.writes

    def close_pipes(self) -> None:
        """Close the pipes of its output, if it has some."""
        if self.pipes is not None:
            self.pipes.close()

    async def _receive(self, channel: Channel, header: bytes, kills: bool) -> Frame | memoryview:
        """Receive until the answer, behind a report or a message of the job."""
        handled = 0
        while True:
            if self.conversation is not None and self.conversation.is_live:
                return await self.conversation.host(channel, header, kills=kills)
            if self._unsent:
                answer = await self._receive_while_sending(channel, header)
            else:
                answer = await channel.receive(cancellable=True, start=header)
            if type(answer) is not Frame or not self.handle_aside(answer):
                return answer
            handled += 1
            if not channel.has_read or not handled % MAX_UNINTERRUPTED:
                # A job that logs without a pause leaves no moment in which there is no frame. If it
                # sends the next one during this, it need not wake this process for it.
                await trio.lowlevel.cancel_shielded_checkpoint()

    def begin_cancelling(self, *, kills: bool) -> None:
        """Kill the process because the caller is cancelled, or tell the job that.

        A job that has timed out must stay where it is until its stacks are written.
        """
        if self.deadline is not None and self.deadline.cancel_called:
            return
        if kills:
            self.kill()
        else:
            self.tell_cancelled()

    def outlasts(self, cancellable: bool) -> bool:
        """Return True if a cancelled caller waits on: its job is told, and may have a grace."""
        return not self.is_refused and (not cancellable or self.grace is not None)

    async def _outlast(self, error: BaseException, channel: Channel, limit: trio.CancelScope | None) -> Frame | memoryview:
        """Tell the job that its caller is cancelled, and wait on for the answer.

        Args:
            error: the cancellation, raised when the grace, or the time, is over.
            channel: the worker's channel.
            limit: as ``deadline`` of :meth:`Worker.answer`.
        """
        if limit is not None:
            limit.shield = True  # only the time ends the wait now
            if limit.cancel_called:
                raise error
        self.tell_cancelled()
        seconds = math.inf if self.grace is None else self.grace
        with _clock.move_on_after(seconds) as scope:
            scope.shield = limit is None
            return await self._receive(channel, self._header, limit is None)
        raise error

    async def give_grace(self) -> None:
        """Tell a job whose time is over, and wait until it ends or its grace is over."""
        if self.grace and self._channel is not None:
            self.tell_cancelled()
            with _clock.move_on_after(self.grace), contextlib.suppress(EndOfStream, WireError):
                await self._receive(self._channel, self._header, True)

    def tell_cancelled(self) -> None:
        """Tell the running job that its caller is cancelled."""
        number = self._told = self._calls - len(self._behind)
        self.record.write_cancelled(number)
        if self.conversation is not None:
            self.conversation.cancel(number)

    def handed(self, request: int) -> int:
        """Return how many items that a request got have reached the code of its job.

        A later request of another thread may have overwritten the slot. Then all have, because an
        item must not be delivered twice.
        """
        slots = self._handed if self._record is None else self._record.handed()
        place = 8 * (request % HANDED_SLOTS)
        number, count = divmod(int.from_bytes(slots[place : place + 8], sys.byteorder), HANDED_ALL + 1)
        return count if number == request else HANDED_ALL if number > request else 0

    def last_step(self, number: int) -> Step | None:
        """Return how far the job of this call is, if it tells."""
        step = self.step
        return step if step is not None and step.call == number else None

    @property
    def step(self) -> Step | None:
        """The last step of any job of this worker."""
        record = self._record  # another thread may close it
        return self._step if record is None else record.step()

    @property
    def chunk_progress(self) -> Progress:
        """How far it is with the items of its latest chunk."""
        return self.progress if self._record is None else self._record.progress()

    @property
    def running_step(self) -> Step | None:
        """How far the running job is, as it says."""
        return self.last_step(self.running_number) if self._running is not None else None

    @property
    def running_number(self) -> int:
        """The number of the running call, or of the last one."""
        return self._calls - len(self._behind)

    def write_flags(self, place: int, flags: int) -> None:
        """Write a word of the flags into the record, as long as there is one."""
        if self._record is not None:
            self._record.write_flags(place, flags)

    def converse(self) -> Conversation:
        """Return the conversation with its jobs. The first use begins it."""
        if self.conversation is None:
            from .conversation import Conversation  # few programs need it

            self.conversation = Conversation(self)
            # The caller may have been cancelled before the job's first message.
            self.conversation.cancel(self._told)
        return self.conversation

    def keep(self, lasting: LastingGrants | None) -> None:
        """Let all jobs of the worker use these handles. A start may be tried again with others."""
        earlier, self.conversation = self.conversation, None
        if earlier is not None and earlier.lasting is not None:
            earlier.lasting.end()
        if lasting is not None:
            self.converse().lasting = lasting

    def adopt(
        self, process: WorkerProcess, ours: socket.socket, record: RecordFile, pool: BufferPool | None = None
    ) -> Channel:
        """As :meth:`Peer.adopt`."""
        channel = super().adopt(process, ours, record, pool)
        if self.conversation is not None and self.conversation.lasting is not None:
            self.conversation.lasting.begin(self.conversation)
        return channel

    def _hear_job(self, frame: Frame) -> bool:
        # After the death of the worker too: what it has said counts.
        if self._running is not None and frame.id == self._calls - len(self._behind):
            if self.forwarder is not None and frame.kind is Kind.POST and "handle" not in frame.body:
                receive = self.forwarder.receivers.get(frame.body["op"])
                if receive is not None:
                    receive(self, frame)
                    return True
            self.converse().take(frame)
            return True
        if not frame.id and self.forwarder is not None and frame.kind is Kind.POST:
            # Of `init`.
            receive = self.forwarder.receivers.get(frame.body["op"])
            if receive is not None:
                receive(self, frame)
        # A thread that an earlier job has left may have spoken as that ended.
        return frame.id <= self._calls - self._in_flight

    @property
    def _is_talking(self) -> bool:
        return self.conversation is not None or self.forwarder is not None

    def _note_end(self) -> None:
        if self.conversation is not None:
            number = self._calls - len(self._behind)
            self.conversation.end(number, self.running_function, self.process)

    def _grant(self, number: int, grants: Sequence[Grant]) -> None:
        self.converse().grant(number, grants)

    def _forget_grants(self) -> None:
        if self.conversation is not None:
            self.conversation.forget()

    async def end(self) -> None:
        """As :meth:`Peer.end`. Async callbacks of its last words run too, cancelled."""
        await super().end()
        if self.conversation is not None:
            await self.conversation.tasks.cancel_unstarted()

    async def end_in_flight(self) -> None:
        """As :meth:`end`, and count the calls in flight that were answered before the end."""
        try:
            if self._process is not None and self._channel is not None:
                self._process.kill()
                await wait_unconditionally(self._process)
                try:
                    while (frame := self.receive_nowait(self._channel)) is not None:
                        self.answered_too_late += frame.kind is Kind.RESULT or frame.kind is Kind.RAISED
                except (EndOfStream, WireError):
                    pass
        finally:
            self.failure = self.failure or "calls_cancelled"
            await self.end()
