"""Whole frames over a non-blocking socket: partial reads and writes, and nothing of what the frames mean.

One task at a time reads, one at a time writes; both may be the same. An operation that does not run to its end leaves
the stream inside a frame: its owner has to give the channel up.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn, overload

import trio
from trio.lowlevel import cancel_shielded_checkpoint

from trio_offload_worker._descriptors import identity_of
from trio_offload_worker._memory import allocate
from trio_offload_worker._wire import Buffer, Decoder, Frame

from .pages import MIN_PAGES_SIZE, can_splice, send_pages
from .sockets import (
    GONE,
    MAX_PARTS,
    WriteFailed,
    after,
    batches,
    check_is_gone,
    front,
    let_others_run,
    notify_closing,
    shielded,
    wait_writable,
)

if TYPE_CHECKING:
    from .buffer_pool import Regions


class EndOfStream(Exception):
    """The other side has closed its end, and everything that it said before has been read."""


class Channel:
    """The parent's end of a worker's socket."""

    def __init__(self, ours: socket.socket, regions: Regions | None = None) -> None:
        self._socket = ours
        self._descriptor = ours.fileno()
        self._identity = identity_of(self._descriptor)
        self._decoder = Decoder(allocate if regions is None else regions.allocate, of_worker=True)
        # Until the system has refused it.
        self._splices = True
        # After looks in vain so many answers are waited for without a look, and so many have been. They become more each time: for
        # answers that take long, or come from a worker that has to share a processor with this process, looks cost next to
        # nothing. To be read by others, written here only.
        self.vain = 0
        self._passed_over = 0

    async def send(self, parts: list[Buffer], *, cancellable: bool) -> None:
        """Write one frame, given as its bytes in order.

        Not a checkpoint if the socket takes all at once.

        Raises:
            WriteFailed: the other side is gone.
        """
        rest = self.send_at_once(parts)
        if rest:
            await self.send_rest(rest, rest is not parts, cancellable=cancellable)

    @property
    def has_read(self) -> bool:
        """Whether more has been read than :meth:`receive` has given."""
        return self._decoder.start != self._decoder.end

    def send_at_once(self, parts: list[Buffer]) -> list[Buffer]:
        """Write a small frame, given as its bytes in order; what is left of it. Of a large one that is all of it.

        One buffer and one system call: the fastest way for such a frame, and nearly always all there is to do.

        Raises:
            WriteFailed: the other side is gone.
        """
        if sum(map(len, parts)) > _SMALL:
            return parts
        data = b"".join(parts)
        rest = self.send_small(data)
        if not rest:
            return []
        return parts if len(rest) == len(data) else [rest]

    def send_small(self, data: bytes) -> bytes:
        """Write what can be taken at once of a small frame in one piece; the rest.

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

    async def send_rest(self, parts: Sequence[Buffer], sent: bool, *, cancellable: bool) -> None:
        """Write what :meth:`send_at_once` has left; ``sent`` says whether that was only a part. Raises what that raises."""
        first = 0
        for index, part in enumerate(parts):
            if len(part) < MIN_PAGES_SIZE or not self._splices or not can_splice():
                continue
            if index > first:
                await self._send_copies(parts[first:index], sent, cancellable)
            view = memoryview(part).cast("B")
            count = await send_pages(self._descriptor, view, sent or index > 0, cancellable)
            if count < len(view):
                # The system has refused it, and will again.
                self._splices = False
                await self._send_copies([view[count:]], sent or index > 0 or count > 0, cancellable)
            sent = True
            first = index + 1
        await self._send_copies(parts[first:], sent, cancellable)

    async def _send_copies(self, parts: Sequence[Buffer], sent: bool, cancellable: bool) -> None:
        turn = _TURN
        for batch in batches(parts):
            while batch:
                try:
                    count = self._socket.sendmsg(front(batch, turn))
                except BlockingIOError:
                    await wait_writable(self._descriptor, cancellable)
                    turn = _TURN
                    continue
                except OSError as error:
                    check_is_gone(error)
                    raise WriteFailed(sent) from None
                sent = True
                batch = after(batch, count)
                # Counted over the writes: one that was cut short may be followed by one that is not, without any wait.
                turn -= count
                if turn <= 0:
                    turn = _TURN
                    await let_others_run(cancellable)

    def send_partly(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Write as much as can be taken at once; the rest. An end that is gone takes nothing, and the reader is told why."""
        rest: list[Buffer] = [b"".join(parts)]
        try:
            return after(rest, self._socket.send(rest[0]))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return rest

    def send_some(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Write as much as can be taken at once, and no more than other tasks should have to wait for; the rest.

        Raises:
            WriteFailed: the other side is gone. ``sent`` is about these parts.
        """
        rest: list[Buffer] = [memoryview(part).cast("B") for part in parts if len(part)]
        left = _TURN
        try:
            while rest and left > 0:
                count = self._socket.sendmsg(front(rest[:MAX_PARTS], left))
                rest = after(rest, count)
                left -= count
        except BlockingIOError:
            pass
        except OSError as error:
            check_is_gone(error)
            raise WriteFailed(left < _TURN) from None
        return rest

    async def wait_writable(self) -> None:
        """Wait until there is room for more, or the other side is gone."""
        await trio.lowlevel.wait_writable(self._descriptor)

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        """Write one small frame if that can be done at once and the other side is there; whether it was."""
        data = b"".join(parts)
        try:
            return self._socket.send(data) == len(data)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                check_is_gone(error)
            return False

    def send_with_descriptors(self, parts: Sequence[Buffer], descriptors: Sequence[int]) -> list[Buffer] | None:
        """As :meth:`send_partly`, and the first byte takes descriptors along (unix(7), ``SCM_RIGHTS``); None: not at this moment.

        Raises:
            WriteFailed: the other side is gone.
        """
        rest: list[Buffer] = [b"".join(parts)]
        try:
            return after(rest, socket.send_fds(self._socket, rest, descriptors))
        except (BrokenPipeError, ConnectionResetError):
            raise WriteFailed(False) from None
        except OSError as error:
            # The socket is full, or more descriptors are on their way than this user may have open (RLIMIT_NOFILE).
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS):
                return None
            raise

    @overload
    async def receive(self, *, cancellable: bool) -> Frame: ...

    @overload
    async def receive(self, *, cancellable: bool, start: bytes) -> Frame | memoryview: ...

    async def receive(self, *, cancellable: bool, start: bytes = b"") -> Frame | memoryview:
        """The next frame. A checkpoint, unless the frame has been read already.

        Args:
            cancellable: whether a cancellation ends this.
            start: a result whose header starts so may come as :meth:`look` gives it.

        Raises:
            EndOfStream: the other side closed its end between two frames.
            WireError: what it sent is not a frame, or it closed its end inside of one.
        """
        decoder = self._decoder
        answer: Frame | memoryview | None = decoder.next_frame() if decoder.start != decoder.end else None
        more = False
        while answer is None:
            if more:
                await let_others_run(cancellable)
            else:
                # To wait before reading costs nothing, as the answer is never there yet, and makes this a checkpoint.
                try:
                    await trio.lowlevel.wait_readable(self._descriptor)
                except trio.Cancelled:
                    if cancellable:
                        raise
                    await shielded(trio.lowlevel.wait_readable, self._descriptor)
                except OSError as error:
                    # It is closed, or an ordinary file by now. What to make of that, the reading tells.
                    if error.errno not in (*GONE, errno.EPERM):
                        raise
            if start and not self._is_inside:
                answer = self.look(start)
                if answer is None and decoder.start != decoder.end:
                    answer = decoder.next_frame()
                continue
            try:
                # A whole turn's worth of a large frame: there will be more, and to be woken for that costs several times as much as
                # to look.
                more, answer = self._read()
            except BlockingIOError:
                more = False  # Trio may say that there is something to read where there is nothing.
        return answer

    def look(self, start: bytes) -> memoryview | None:
        """What is there, if it is a result whose header starts so and goes on with one segment and nothing else: that segment, borrowed
        as a frame's. No frame is made for it, as most results are such. None: it is something else, or not there yet.

        Reads, if nothing was pending. Raises what :meth:`receive` raises.
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

    async def receive_result(self, start: bytes, looked: bool, *, cancellable: bool) -> Frame | memoryview:
        """As :meth:`receive`, for what may well come within the time of a system call or two.

        So it is looked for a few times, as often as the other tasks have had a turn, before it is waited for: to be woken costs Trio
        several times as much as that. ``looked``: that has been done once, as it should be unless looks have been in :attr:`vain`.
        """
        segment = None
        if not self._is_inside:
            if not looked and self._passed_over < self.vain:
                self._passed_over += 1
                return await self.receive(cancellable=cancellable)
            self._passed_over = 0
            found = False
            for _ in _LOOKS[looked:]:
                await cancel_shielded_checkpoint()
                segment = self.look(start)
                found = segment is not None or self._is_inside
                if found:
                    break
            self.vain = 0 if found else min(2 * self.vain + 1, _MOST_PASSED_OVER)
        return await self.receive(cancellable=cancellable) if segment is None else segment

    @property
    def _is_inside(self) -> bool:
        """Whether something has been read that has not been given yet, be it only a part of a frame."""
        return self._decoder.start != self._decoder.end or self._decoder.head is not None

    def receive_nowait(self) -> Frame | None:
        """The next frame if it is there, else None. Raises what :meth:`receive` raises."""
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
            # Somebody has closed it already. What has the number now is another's.
            self._socket.detach()

    def _read(self) -> tuple[bool, Frame | None]:
        """Read once; whether that was as much as is read at once, and the next frame, if that is whole now.

        Raises:
            BlockingIOError: there was nothing to read.
        """
        target = self._decoder.writable()
        try:
            count = self._socket.recv_into(target if target.nbytes <= _TURN else target[:_TURN])
        except BlockingIOError:
            raise
        except OSError as error:
            check_is_gone(error)
            count = 0
        if count == 0:
            self._ended()
        return count == _TURN, self._decoder.next_frame(count)

    def _ended(self) -> NoReturn:
        """There was nothing more to read; or there was an error, which is how a Unix socket says that the other side closed its
        end before it had read everything from us.
        """
        self._decoder.end_of_stream()
        raise EndOfStream


# Of 5,000 answers of a job that does nothing one look found 96 to 98 %, two more than 99 %.
_LOOKS: Final = range(2)
_MOST_PASSED_OVER: Final = 15  # answers: where looks are always in vain they cost a sixteenth
_SMALL: Final = 32 * 1024
# As long as the other side keeps pace, a socket gives and takes without end. After so many bytes the other tasks have
# their turn: a millisecond's worth of copying.
_TURN: Final = 2 * 2**20
