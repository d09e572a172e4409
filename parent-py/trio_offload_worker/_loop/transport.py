"""Send and receive whole frames through the worker's end of the socket, blocking.

The session interprets them. Most calls take one ``recv``, and their answers one ``send``.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import sys
import time

from .._jobs.guards import report_unraisable
from .._protocol.decoder import Decoder
from .._protocol.frames import MAX_DESCRIPTORS, encode_head
from .._system.linux import identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Final

    from .._protocol.frames import Buffer, Frame, Kind
    from .._system.native import Target
    from .signals import Handlers


class LinkClosed(Exception):
    """The parent has closed its end: between two frames, or during a write to it."""


class IdleTimeOver(Exception):
    """The idle timeout has passed without a frame."""


class LinkLost(Exception):
    """A job has closed the socket's descriptor, and may have reused its number."""


class Link:
    """The worker's end of the socket."""

    def __init__(
        self, descriptor: int, handlers: Handlers, allocate: Callable[[int, int], Target], admit: Callable[[Kind], object]
    ) -> None:
        self._socket = _socket.socket(fileno=descriptor)
        # A fork inherits `socket.setdefaulttimeout` from its parent.
        self._socket.settimeout(None)
        self._descriptor = descriptor
        self._handlers = handlers
        os.set_inheritable(descriptor, False)
        self._identity = identity_of(descriptor)
        self._decoder = Decoder(allocate, admit)
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLIN)
        # Descriptors that came with replies, by frame. A job opens it when it asks for the first.
        self._carried: list[list[int]] | None = None
        self._timeout: float | None = None
        self._idle_since = 0.0

    def start_idle_time(self, timeout: float | None) -> None:
        """Set the seconds without a frame until :class:`IdleTimeOver`. None means no limit."""
        self._timeout = timeout
        self.restart_idle_time()

    def restart_idle_time(self) -> None:
        if self._timeout is not None:
            self._idle_since = time.monotonic()

    def receive(self) -> Frame:
        """Return the next frame.

        Raises:
            LinkClosed: the parent closed its end between two frames.
            IdleTimeOver: the idle timeout passed before a frame started.
            WireError: the data is not a frame, or the parent closed its end inside a frame.
        """
        decoder = self._decoder
        begun = False
        while (frame := decoder.next_frame()) is None:
            if not begun:
                self._await_first_byte()
            self.fill()
            begun = True
        return frame

    def fileno(self) -> int:
        """Return the number of the socket's descriptor."""
        return self._descriptor

    def buffered_frame(self) -> Frame | None:
        """Return the next frame if all of it has been received.

        Raises:
            WireError: the data is not a frame.
        """
        return self._decoder.next_frame()

    def fill(self) -> None:
        """Receive bytes, at least one.

        Raises:
            LinkClosed, WireError, OSError: as in :meth:`receive`.
        """
        decoder = self._decoder
        try:
            if self._carried is None:
                count = self._socket.recv_into(decoder.writable())
            else:
                count = self._fill_with_descriptors(self._carried)
        except ConnectionResetError:
            # The parent closed its end with unread data in it, which is a normal close.
            count = 0
        if count == 0:
            decoder.end_of_stream()
            raise LinkClosed
        decoder.wrote(count)

    def open_carried(self) -> None:
        """Keep descriptors that arrive from now on. Until then the kernel closes them."""
        if self._carried is None:
            self._carried = []

    def take_carried(self) -> list[int]:
        """Return the descriptors of the oldest frame that came with some. The caller owns them."""
        return self._carried.pop(0) if self._carried else []

    def _fill_with_descriptors(self, carried: list[list[int]]) -> int:
        decoder = self._decoder
        if decoder.start == decoder.end and decoder.head is None:
            while carried:  # descriptors that came unannounced
                for number in carried.pop():
                    os.close(number)
        count, messages, flags, _ = self._socket.recvmsg_into([decoder.writable()], _CONTROL_SIZE, _socket.MSG_CMSG_CLOEXEC)
        numbers: list[int] = []
        for level, kind, data in messages:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                numbers += struct.unpack_from(f"{len(data) // 4}i", data)
        # One receive has the descriptors of one frame at most. If this process had no room for all,
        # the frame comes without.
        if numbers or flags & _socket.MSG_CTRUNC:
            carried.append(numbers)
        return count

    def send(
        self, kind: Kind, id: int, lengths: Sequence[int], body: dict[str, Any] | None, parts: Sequence[Buffer]
    ) -> None:
        """Write one frame.

        Raises:
            LinkClosed: the parent has closed its end.
            LinkLost: a job has closed the socket's descriptor.
            OSError, ValueError: the system, or a bound of the protocol, forbids it.
        """
        head = encode_head(kind, id, lengths, body)
        self.write((head, *parts), is_small(lengths))

    def write(self, parts: Sequence[Buffer], at_once: bool) -> None:
        """Write the parts of one frame, in one system call if ``at_once`` is true.

        Raises:
            LinkClosed, LinkLost, OSError: as in :meth:`send`.
        """
        self.require_socket()
        try:
            if at_once:
                self._send_all(b"".join(parts))
            else:
                self._send_large(parts)
        except (BrokenPipeError, ConnectionResetError):
            raise LinkClosed from None

    def require_socket(self) -> None:
        """Check that the descriptor still is the socket.

        Raises:
            LinkLost: it is not.
        """
        if identity_of(self._descriptor) != self._identity:
            raise LinkLost

    def stop_receiving(self) -> None:
        """Shut down receiving, so that the parent's writes fail, including blocked ones."""
        try:
            if identity_of(self._descriptor) == self._identity:
                self._socket.shutdown(_socket.SHUT_RD)
        except OSError:
            pass  # The parent notices when the process ends.

    def leave_open(self) -> None:
        """Leave the socket open until the process ends: its end is the worker's for the parent."""
        self._socket.detach()

    def close_in_copy(self) -> None:
        """Close the socket in a fork of this process, which would hide this process's death."""
        descriptor = self._socket.detach()
        if descriptor >= 0 and identity_of(descriptor) == self._identity:
            os.close(descriptor)

    def _await_first_byte(self) -> None:
        while True:
            left = _MAX_POLL if self._timeout is None else self._timeout - (time.monotonic() - self._idle_since)
            # A signal just before the system call does not interrupt it, so its handler would have
            # to wait.
            longest = _MAX_POLL_WITH_HANDLERS if self._handlers.are_held else _MAX_POLL
            try:
                self._handlers.release()
                # Python continues with the remaining time after a signal (PEP 475).
                if self._poller.poll(min(max(left, 0.0), longest) * 1000):
                    return
            except BaseException as error:
                # A signal handler of a job has raised.
                report_unraisable(error)
            finally:
                self._handlers.hold()
            if self._timeout is not None and time.monotonic() - self._idle_since >= self._timeout:
                raise IdleTimeOver

    def _send_all(self, data: Buffer) -> None:
        count = self._socket.send(data, _socket.MSG_NOSIGNAL) if data else 0
        while count < len(data):
            data = memoryview(data)[count:]
            count = self._socket.send(data, _socket.MSG_NOSIGNAL)

    def _send_large(self, parts: Sequence[Buffer]) -> None:
        small: list[Buffer] = []
        size = 0
        for part in parts:
            if len(part) < _SMALL:
                small.append(part)
                size += len(part)
            if small and (size >= _SMALL or len(part) >= _SMALL):
                self._send_all(b"".join(small))
                small, size = [], 0
            if len(part) >= _SMALL:
                self._send_all(part)
        self._send_all(b"".join(small))


def is_small(lengths: Iterable[int]) -> bool:
    """Return True if a frame with segments of these lengths is written in one system call.

    The kernel takes that as a whole, whoever else writes (net/unix/af_unix.c, unix_stream_sendmsg).
    """
    return sum(lengths) <= _SMALL


def report_loss(descriptor: int) -> None:
    """Report the loss on standard error, because the parent cannot be reached."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(
                f"trio-offload-worker: a job has closed descriptor {descriptor}, which leads to the parent program. This worker "
                "exits\n"
            )
        except Exception:
            pass


_SMALL: Final = 32 * 1024
_CONTROL_SIZE: Final = _socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)
_MAX_POLL_WITH_HANDLERS: Final = 0.1  # seconds
_MAX_POLL: Final = 86400.0  # seconds; poll(2) takes an int of milliseconds
