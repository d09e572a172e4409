"""Send and receive frames over a non-blocking socket. The owner interprets them.

One task reads and one task writes at a time; it may be the same task. An interrupted operation
leaves the stream inside a frame, and the owner must then close the channel.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Final, NoReturn, overload

import trio
from trio.lowlevel import cancel_shielded_checkpoint

from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import Buffer, Frame
from trio_offload_worker._system.linux import identity_of
from trio_offload_worker._system.memory import allocate

from .sockets import (
    GONE,
    MAX_PARTS,
    WriteFailed,
    after,
    check_is_gone,
    front,
    let_others_run,
    notify_closing,
    shielded,
    wait_writable,
)

if TYPE_CHECKING:
    from .buffer_pool import BufferPool

# One poll finds 96 to 98 % of 5,000 answers of an empty job, two find more than 99 %.
_SPINS: Final = range(2)
# Receives between two spins, where spins always fail. They then cost a sixteenth.
_MAX_SPINS_SKIPPED: Final = 15
_SMALL_SIZE: Final = 32 * 1024
# Smaller buffers are sent as fast by copying, without an import of ctypes.
_MIN_PAGES_SIZE: Final = 2**20
# After this many bytes, one millisecond of copying, the other tasks run.
_YIELD_EVERY: Final = 2 * 2**20


class EndOfStream(Exception):
    """The other side has closed its end, and everything that it sent has been read."""


class Channel:
    """The parent's end of a worker's socket."""

    def __init__(self, ours: socket.socket, pool: BufferPool | None = None) -> None:
        self._socket = ours
        self._descriptor = ours.fileno()
        self._identity = identity_of(self._descriptor)
        self._decoder = Decoder(allocate if pool is None else pool.allocate, of_worker=True)
        # Set to False once the system has refused to send pages.
        self._splices = True
        # Adaptive spinning. After a failed spin, skip `spin_misses` receives before the next. The
        # number grows with every miss, so long jobs and single-CPU machines pay almost nothing.
        # Read-only for others.
        self.spin_misses = 0
        self._spins_skipped = 0

    async def send(self, parts: list[Buffer], *, cancellable: bool) -> None:
        """Write one frame, given as its bytes in order.

        Not a checkpoint if the socket takes the frame at once.

        Raises:
            WriteFailed: the other side is gone.
        """
        rest = self.send_at_once(parts)
        if rest:
            await self.send_rest(list(rest), rest is not parts, cancellable=cancellable)

    @property
    def has_read(self) -> bool:
        """True if more has been read than :meth:`receive` has returned."""
        return self._decoder.start != self._decoder.end

    def send_at_once(self, parts: list[Buffer]) -> list[Buffer]:
        """Write a small frame without waiting. Return the rest, which is all of a large frame.

        A small frame is joined and needs one system call.

        Raises:
            WriteFailed: the other side is gone.
        """
        if sum(map(len, parts)) > _SMALL_SIZE:
            return parts
        data = b"".join(parts)
        rest = self.send_small(data)
        if not rest:
            return []
        return parts if len(rest) == len(data) else [rest]

    def send_small(self, data: bytes) -> bytes:
        """Write a small frame of one piece without waiting. Return the rest.

        Raises:
            WriteFailed: the other side is gone.
        """
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            check_is_gone(error)
            raise WriteFailed(False) from None

    async def send_rest(self, parts: list[Buffer], sent: bool, *, cancellable: bool) -> None:
        """Write the rest that :meth:`send_at_once` returned. Raises the same.

        Written data is removed from the list. After a cancellation the list is the rest.

        Args:
            parts: the rest.
            sent: True if a part of the frame has been written.
            cancellable: False to defer cancellation until the frame is complete.
        """
        while parts:
            if self._goes_as_pages(parts[0]):
                # A system that refuses will refuse again.
                self._splices = await _pages().send_pages(self._descriptor, parts, sent, cancellable)
            else:
                await self._send_copies(parts, self._count_copied(parts), sent, cancellable)
            sent = True

    def _goes_as_pages(self, part: Buffer) -> bool:
        return len(part) >= _MIN_PAGES_SIZE and self._splices and bool(_pages().can_splice())

    def _count_copied(self, parts: list[Buffer]) -> int:
        """Return the number of leading buffers to copy with one ``sendmsg``."""
        return next((index for index, part in enumerate(parts[:MAX_PARTS]) if self._goes_as_pages(part)), MAX_PARTS)

    async def _send_copies(self, parts: list[Buffer], count: int, sent: bool, cancellable: bool) -> None:
        """Send the first ``count`` buffers, and remove sent data from the list."""
        batch: list[Buffer] = [memoryview(part).cast("B") for part in parts[:count] if len(part)]
        left = _YIELD_EVERY
        try:
            while batch:
                try:
                    written = self._socket.sendmsg(front(batch, left))
                except BlockingIOError:
                    await wait_writable(self._descriptor, cancellable)
                    left = _YIELD_EVERY
                    continue
                except OSError as error:
                    check_is_gone(error)
                    raise WriteFailed(sent) from None
                sent = True
                batch = after(batch, written)
                # Counted over all writes: a short write may be followed by a full one without a
                # wait.
                left -= written
                if left <= 0:
                    left = _YIELD_EVERY
                    await let_others_run(cancellable)
        finally:
            parts[:count] = batch

    def send_partly(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Write without waiting. Return the rest.

        The rest is everything if the other end is closed. The reader then receives the reason.
        """
        rest: list[Buffer] = [b"".join(parts)]
        try:
            return after(rest, self._socket.send(rest[0]))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return rest

    def send_some(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Write without waiting, at most the bytes of one time slice. Return the rest.

        A buffer that goes as pages is left to :meth:`send_rest`, with all that follow it.

        Raises:
            WriteFailed: the other side is gone. ``sent`` refers to these parts.
        """
        rest: list[Buffer] = [part for part in parts if len(part)]
        count = self._count_copied(rest)
        batch: list[Buffer] = [memoryview(part).cast("B") for part in rest[:count]]
        left = _YIELD_EVERY
        try:
            while batch and left > 0:
                written = self._socket.sendmsg(front(batch, left))
                batch = after(batch, written)
                left -= written
        except BlockingIOError:
            pass
        except OSError as error:
            check_is_gone(error)
            raise WriteFailed(left < _YIELD_EVERY) from None
        return batch + rest[count:]

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        """Write one small frame without waiting. Return True if the socket took all of it."""
        data = b"".join(parts)
        try:
            return self._socket.send(data) == len(data)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                check_is_gone(error)
            return False

    def send_with_descriptors(self, parts: Sequence[Buffer], descriptors: Sequence[int]) -> list[Buffer] | None:
        """Write without waiting; the first byte carries descriptors (unix(7), ``SCM_RIGHTS``).

        Returns:
            The rest; None if the system cannot take the descriptors at this moment.

        Raises:
            WriteFailed: the other side is gone.
        """
        rest: list[Buffer] = [b"".join(parts)]
        try:
            return after(rest, socket.send_fds(self._socket, rest, descriptors))
        except (BrokenPipeError, ConnectionResetError):
            raise WriteFailed(False) from None
        except OSError as error:
            # The socket is full, or more descriptors are in flight than this user may have open
            # (RLIMIT_NOFILE).
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS):
                return None
            raise

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
            if start and not self._is_inside:
                answer = self.poll_result(start)
                if answer is None and decoder.start != decoder.end:
                    answer = decoder.next_frame()
                continue
            try:
                # `more`: a full read of a large frame, which is followed by more. A read costs a
                # fraction of a wake-up.
                more, answer = self._read()
            except BlockingIOError:
                more = False  # Trio may wake a task without anything to read.
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

    async def spin_then_receive(self, start: bytes, spun: bool, *, cancellable: bool) -> Frame | memoryview:
        """Poll a few times, for answers that take microseconds, then :meth:`receive`.

        Trio needs several times as long for a wake-up as for a poll. The other tasks run between
        two polls.

        Args:
            start: as for :meth:`receive`.
            spun: True if the caller has polled once, which it should while
                :attr:`spin_misses` is zero.
            cancellable: as for :meth:`receive`.
        """
        segment = None
        if not self._is_inside:
            if not spun and self._spins_skipped < self.spin_misses:
                self._spins_skipped += 1
                return await self.receive(cancellable=cancellable)
            self._spins_skipped = 0
            found = False
            for _ in _SPINS[spun:]:
                await cancel_shielded_checkpoint()
                segment = self.poll_result(start)
                found = segment is not None or self._is_inside
                if found:
                    break
            self.spin_misses = 0 if found else min(2 * self.spin_misses + 1, _MAX_SPINS_SKIPPED)
        return await self.receive(cancellable=cancellable) if segment is None else segment

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
        """Read once.

        Returns:
            True if the read had the maximum size; the next frame, or None if it is incomplete.

        Raises:
            BlockingIOError: no data has arrived.
        """
        target = self._decoder.writable()
        try:
            count = self._socket.recv_into(target if target.nbytes <= _YIELD_EVERY else target[:_YIELD_EVERY])
        except BlockingIOError:
            raise
        except OSError as error:
            check_is_gone(error)
            count = 0
        if count == 0:
            self._ended()
        return count == _YIELD_EVERY, self._decoder.next_frame(count)

    def _ended(self) -> NoReturn:
        """Raise the error for the end of the stream.

        An error of the socket is an end too: the other side closed its end before it had read
        everything.
        """
        self._decoder.end_of_stream()
        raise EndOfStream


def _pages() -> ModuleType:
    """Import the module for large buffers, which few programs send."""
    from . import pages

    return pages
