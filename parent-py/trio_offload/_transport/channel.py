"""Send and receive frames over a non-blocking socket. The owner interprets them.

One task reads and one task writes at a time; it may be the same task. An interrupted operation
leaves the stream inside a frame, and the owner must then close the channel.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn, overload

import trio
from trio.lowlevel import cancel_shielded_checkpoint

from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import Frame
from trio_offload_worker._system.linux import identity_of
from trio_offload_worker._system.memory import allocate

from .sender import Sender
from .sockets import GONE, YIELD_EVERY, check_is_gone, let_others_run, notify_closing, shielded

if TYPE_CHECKING:
    from .buffer_pool import BufferPool
    from .runs import Runs

# One poll finds 96 to 98 % of 5,000 answers of an empty job, two find more than 99 %.
_SPINS: Final = range(2)
# Receives between two spins, where spins always fail. They then cost a sixteenth.
_MAX_SPINS_SKIPPED: Final = 15
# A read of a small segment takes as long as copying this many bytes.
_READ_COST: Final = 8 * 1024


class EndOfStream(Exception):
    """The other side has closed its end, and everything that it sent has been read."""


class Channel(Sender):
    """The parent's end of a worker's socket."""

    __slots__ = ("_decoder", "_identity", "_runs", "_spins_skipped", "spin_misses")

    def __init__(self, ours: socket.socket, pool: BufferPool | None = None) -> None:
        super().__init__(ours)
        self._identity = identity_of(self._descriptor)
        self._decoder = Decoder(allocate if pool is None else pool.allocate, of_worker=True)
        self._runs: Runs | None = None
        # Adaptive spinning. After a failed spin, skip `spin_misses` receives before the next. The
        # number grows with every miss, so long jobs and single-CPU machines pay little.
        # Read-only for others.
        self.spin_misses = 0
        self._spins_skipped = 0

    @property
    def has_read(self) -> bool:
        """True if more has been read than :meth:`receive` has returned."""
        return self._decoder.start != self._decoder.end

    @overload
    async def receive(self, *, cancellable: bool) -> Frame: ...

    @overload
    async def receive(self, *, cancellable: bool, start: bytes) -> Frame | memoryview: ...

    async def receive(self, *, cancellable: bool, start: bytes = b"") -> Frame | memoryview:
        """Return the next frame. A checkpoint, unless the frame has been read already.

        Args:
            cancellable: False to defer cancellation until a frame has arrived.
            start: the start of a header. Such a result may be returned as by :meth:`poll_result`.

        Raises:
            EndOfStream: the other side closed its end between two frames.
            WireError: the data is not a frame, or the stream ended inside one.
        """
        decoder = self._decoder
        answer: Frame | memoryview | None = decoder.next_frame() if decoder.start != decoder.end else None
        more = False
        while answer is None:
            if more:
                await let_others_run(cancellable)
            else:
                # The answer has not arrived yet, so waiting first is free and makes this a
                # checkpoint.
                try:
                    await trio.lowlevel.wait_readable(self._descriptor)
                except trio.Cancelled:
                    if cancellable:
                        raise
                    await shielded(trio.lowlevel.wait_readable, self._descriptor)
                except OSError as error:
                    # The descriptor is closed, or an ordinary file. The read below reports that.
                    if error.errno not in (*GONE, errno.EPERM):
                        raise
            if start and decoder.start == decoder.end and decoder.head is None:
                answer = self.poll_result(start)
                if answer is None and decoder.start != decoder.end:
                    answer = decoder.next_frame()
                continue
            try:
                # `more`: a large frame, of which more has arrived. A read costs a fraction of a
                # wake-up.
                more, answer = self._read()
            except BlockingIOError:
                more = False  # Trio may wake a task too early.
        return answer

    def poll_result(self, start: bytes) -> memoryview | None:
        """Read without waiting, and return the segment of the usual result.

        If the next frame is a RESULT with one segment and without a body, return that segment. It
        is a view into the receive buffer; a `Frame` is not built. Otherwise return None. Raises the
        same as :meth:`receive`.

        Args:
            start: the start of the result's header.
        """
        decoder = self._decoder
        if decoder.start != decoder.end or decoder.head is not None:
            return decoder.plain_result(start)
        try:
            count = self._socket.recv_into(decoder.buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            check_is_gone(error)
            count = 0
        if count == 0:
            self._ended()
        return decoder.plain_result(start, count)

    def spin_then_receive(self, start: bytes, spun: bool, *, cancellable: bool) -> Coroutine[Any, Any, Frame | memoryview]:
        """Poll a few times, for answers that take microseconds, then :meth:`receive`.

        Trio needs several times as long for a wake-up as for a poll. The other tasks run between
        two polls. After misses, most calls do not poll.

        Args:
            start: as for :meth:`receive`.
            spun: True if the caller has polled once, which it should while
                :attr:`spin_misses` is zero.
            cancellable: as for :meth:`receive`.
        """
        # Chosen here, because each coroutine on the way to Trio slows every wake-up.
        if spun or self._spins_skipped >= self.spin_misses:
            return self._spin(start, spun, cancellable)
        self._spins_skipped += 1
        return self.receive(cancellable=cancellable, start=start)

    async def _spin(self, start: bytes, spun: bool, cancellable: bool) -> Frame | memoryview:
        segment = None
        if not self._is_inside:
            self._spins_skipped = 0
            found = False
            for _ in _SPINS[spun:]:
                await cancel_shielded_checkpoint()
                segment = self.poll_result(start)
                found = segment is not None or self._is_inside
                if found:
                    break
            self.spin_misses = 0 if found else min(2 * self.spin_misses + 1, _MAX_SPINS_SKIPPED)
        return await self.receive(cancellable=cancellable, start=start) if segment is None else segment

    @property
    def _is_inside(self) -> bool:
        """True if data has been read that has not been returned, also a part of a frame."""
        return self._decoder.start != self._decoder.end or self._decoder.head is not None

    def receive_nowait(self) -> Frame | None:
        """Return the next frame if it has arrived, else None. Raises as :meth:`receive`."""
        frame = self._decoder.next_frame()
        try:
            while frame is None:
                _, frame = self._read()
        except BlockingIOError:
            return None
        return frame

    def take_run(self, frame: Frame) -> list[bytes]:
        """Return the segments of the frames that have been read and repeat the last one.

        Args:
            frame: the last one. It has one segment, and no types.
        """
        if self._runs is None:
            from .runs import Runs  # few programs need it

            self._runs = Runs(self._decoder)
        return self._runs.take(frame)

    def poll_run(self) -> list[bytes] | None:
        """Read without waiting, and return the segments of the frames that continue the run.

        None means that something else, or an incomplete frame, has come. Raises the same as
        :meth:`receive`. :meth:`take_run` comes first.
        """
        decoder = self._decoder
        if self._runs is None or self._is_inside:
            return None
        try:
            count = self._socket.recv_into(decoder.buffer)
        except BlockingIOError:
            return []
        except OSError as error:
            check_is_gone(error)
            count = 0
        if count == 0:
            self._ended()
        decoder.start, decoder.end = 0, count
        return self._runs.take_more() or None

    def close(self) -> None:
        """Close this end. May be done again."""
        if self._socket.fileno() == -1:
            return
        if identity_of(self._descriptor) == self._identity:
            notify_closing(self._descriptor)
            self._socket.close()
        else:
            # The program has closed it, and the number may name another file.
            self._socket.detach()

    def _read(self) -> tuple[bool, Frame | None]:
        """Read to the end of a frame, or as much as one time slice allows.

        Returns:
            True if the time slice is over; the next frame, or None if it is incomplete.

        Raises:
            BlockingIOError: the socket is empty.
        """
        decoder = self._decoder
        left = YIELD_EVERY
        while True:
            target = decoder.writable()
            size = target.nbytes
            try:
                count = self._socket.recv_into(target if size <= left else target[:left])
            except BlockingIOError:
                if left == YIELD_EVERY:
                    raise
                return False, None
            except OSError as error:
                check_is_gone(error)
                count = 0
            if count == 0:
                self._ended()
            frame = decoder.next_frame(count)
            left -= count + _READ_COST
            # Only a full read is followed by another: each segment of a large frame takes one.
            if frame is not None or count < size or left <= 0:
                return left <= 0, frame

    def _ended(self) -> NoReturn:
        """Raise the error for the end of the stream.

        An error of the socket is an end too: the other side closed its end before it had read
        everything.
        """
        self._decoder.end_of_stream()
        raise EndOfStream
