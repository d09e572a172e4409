"""Whole frames over a non-blocking socket: partial reads and writes, and nothing of what the frames mean.

One task at a time reads, one at a time writes; both may be the same. An operation that does not run to its end leaves
the stream inside a frame: its owner has to give the channel up.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

import trio

from trio_offload_worker._memory import allocate
from trio_offload_worker._wire import Buffer, Decoder, Frame

# Large enough that a frame of this size passes in one write and one read where the kernel allows it
# (net.core.wmem_max caps what is granted, see socket(7)).
SOCKET_BUFFER_SIZE: Final = 4 * 2**20


class EndOfStream(Exception):
    """The other side has closed its end, and everything that it said before has been read."""


class WriteFailed(Exception):
    """The other side has closed its end. ``sent`` is false if not one byte of this frame was taken."""

    def __init__(self, sent: bool) -> None:
        super().__init__(sent)
        self.sent = sent


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two joined sockets: the parent's end (non-blocking) and the worker's, both close-on-exec (PEP 446)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_SIZE)
    return ours, theirs


class Channel:
    """The parent's end of a worker's socket."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._descriptor = ours.fileno()
        self._decoder = Decoder(allocate)

    async def send(self, parts: Sequence[Buffer], *, cancellable: bool) -> None:
        """Write one frame, given as its bytes in order.

        Not a checkpoint if the socket takes all at once.

        Raises:
            WriteFailed: the other side is gone.
        """
        if sum(map(len, parts)) <= _SMALL:
            # One buffer and one system call: the fastest way for a small frame, and nearly always all there is to do.
            rest: list[Buffer] = [b"".join(parts)]
            try:
                count = self._socket.send(rest[0])
            except BlockingIOError:
                count = 0
            except (BrokenPipeError, ConnectionResetError):
                raise WriteFailed(False) from None
            if count < len(rest[0]):
                await self._send_slowly([_after(rest, count)], count > 0, cancellable)
        else:
            await self._send_slowly(_batches(parts), False, cancellable)

    async def _send_slowly(self, batches: Iterable[list[Buffer]], sent: bool, cancellable: bool) -> None:
        turn = _TURN
        for batch in batches:
            while batch:
                try:
                    count = self._socket.sendmsg(_front(batch, turn))
                except BlockingIOError:
                    await _patiently(trio.lowlevel.wait_writable, self._descriptor, cancellable)
                    turn = _TURN
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    raise WriteFailed(sent) from None
                sent = True
                batch = _after(batch, count)
                # Counted over the writes: one that was cut short may be followed by one that is not, without any wait.
                turn -= count
                if turn <= 0:
                    turn = _TURN
                    if cancellable:
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_partly(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Write as much as can be taken at once; the rest. An end that is gone takes nothing, and the reader is told why."""
        rest: list[Buffer] = [b"".join(parts)]
        try:
            return _after(rest, self._socket.send(rest[0]))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return rest

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        """Write one small frame if that can be done at once and the other side is there; whether it was."""
        data = b"".join(parts)
        try:
            return self._socket.send(data) == len(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False

    async def receive(self, *, cancellable: bool) -> Frame:
        """The next frame. A checkpoint, unless the frame has been read already.

        Raises:
            EndOfStream: the other side closed its end between two frames.
            WireError: what it sent is not a frame, or it closed its end inside of one.
        """
        frame = self._decoder.next_frame()
        while frame is None:
            # To wait before reading costs nothing, as the answer is never there yet, and makes this a checkpoint.
            if cancellable:
                await trio.lowlevel.wait_readable(self._descriptor)
            else:
                await _patiently(trio.lowlevel.wait_readable, self._descriptor, False)
            self._read()
            frame = self._decoder.next_frame()
        return frame

    def receive_nowait(self) -> Frame | None:
        """The next frame if it is there, else None. Raises what :meth:`receive` raises."""
        frame = self._decoder.next_frame()
        while frame is None and self._read():
            frame = self._decoder.next_frame()
        return frame

    def close(self) -> None:
        """Close this end. May be done again."""
        if self._socket.fileno() != -1:
            _notify_closing(self._descriptor)
            self._socket.close()

    def _read(self) -> bool:
        """Read once; whether there was anything to read."""
        try:
            count = self._socket.recv_into(self._decoder.writable()[:_TURN])
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # How a Unix socket says that the other side closed its end before it had read everything from us.
            count = 0
        if count == 0:
            self._decoder.end_of_stream()
            raise EndOfStream
        self._decoder.wrote(count)
        return True


_MAX_PARTS: Final = 512  # below the kernel's IOV_MAX of 1024, see writev(2)
_SMALL: Final = 32 * 1024
# As long as the other side keeps pace, a socket gives and takes without end. After so many bytes the other tasks have
# their turn: a millisecond's worth of copying.
_TURN: Final = 2 * 2**20


def _batches(parts: Sequence[Buffer]) -> Iterable[list[Buffer]]:
    """The parts as lists that one ``sendmsg`` takes."""
    for first in range(0, len(parts), _MAX_PARTS):
        yield [memoryview(part).cast("B") for part in parts[first : first + _MAX_PARTS] if len(part)]


def _front(batch: list[Buffer], left: int) -> list[Buffer]:
    """The first ``left`` bytes of ``batch``, or all of it."""
    for index, part in enumerate(batch):
        if len(part) >= left:
            return [*batch[:index], memoryview(part)[:left]]
        left -= len(part)
    return batch


def _after(batch: list[Buffer], count: int) -> list[Buffer]:
    """What is left of ``batch`` once its first ``count`` bytes have been sent."""
    for index, part in enumerate(batch):
        if count < len(part):
            return [memoryview(part)[count:], *batch[index + 1 :]]
        count -= len(part)
    return []


async def _patiently(wait: Any, descriptor: int, cancellable: bool) -> None:
    """Wait for the descriptor; a cancellation interrupts that only if ``cancellable``.

    A shield around every wait would cost a quarter of a warm call, so one is put up only when a cancellation is there.
    Trio's cancellation is level-triggered: what is swallowed here comes again at the caller's next checkpoint.
    """
    if not cancellable:
        try:
            await wait(descriptor)
            return
        except trio.Cancelled:
            pass
        with trio.CancelScope(shield=True):
            await wait(descriptor)
    else:
        await wait(descriptor)


def _notify_closing(descriptor: int) -> None:
    """Tell a running Trio, if there is one, that the descriptor goes away."""
    try:
        trio.lowlevel.notify_closing(descriptor)
    except RuntimeError:
        # Not inside trio.run: nobody can be waiting for it.
        pass
