"""Reads and writes of a descriptor without waits, and without a change of its flags.

``O_NONBLOCK`` is a property of the open file, which copies of the descriptor in other processes
share. They expect it to block. So sockets are used with ``MSG_DONTWAIT``, and a pipe is opened
again, which gives it separate flags.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import warnings
from typing import Final, Protocol

_RECV_FLAGS: Final = socket.MSG_DONTWAIT
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class Endpoint(Protocol):
    """A descriptor that a connection owns."""

    is_readable: bool
    is_writable: bool

    def fileno(self) -> int:
        """Return the descriptor."""

    def read(self, size: int) -> bytes | None:
        """Return up to so many bytes, ``b""`` at the end, or None before they have come."""

    def write(self, parts: list[memoryview]) -> int:
        """Write what is possible now. Return the number of bytes."""

    def duplicate(self) -> File:
        """Return a duplicate for another process, which expects it to block.

        Raises:
            OSError: the process has run out of descriptors, or a pipe has no reader.
        """

    def close(self) -> None:
        """Close the descriptor."""


class File:
    """A descriptor that is closed once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor, or -1 if it is closed."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            warnings.warn(f"unclosed end of a pipe, descriptor {self._descriptor}", ResourceWarning, stacklevel=2)
            self.close()


class SocketEndpoint:
    """A stream socket."""

    is_readable = True
    is_writable = True

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.fileno = sock.fileno
        self.close = sock.close

    def read(self, size: int) -> bytes | None:
        """As :meth:`Endpoint.read`."""
        try:
            return self._socket.recv(size, _RECV_FLAGS)
        except BlockingIOError:
            return None

    def write(self, parts: list[memoryview]) -> int:
        """As :meth:`Endpoint.write`."""
        try:
            if len(parts) == 1:
                return self._socket.send(parts[0], _SEND_FLAGS)
            return self._socket.sendmsg(parts, (), _SEND_FLAGS)
        except BlockingIOError:
            return 0

    def duplicate(self) -> File:
        """As :meth:`Endpoint.duplicate`."""
        return File(os.dup(self._socket.fileno()))


class PipeEndpoint:
    """One end of a pipe."""

    def __init__(self, descriptor: int, readable: bool) -> None:
        self.is_readable = readable
        self.is_writable = not readable
        self._file = _own(descriptor, readable)
        self._is_blocking = os.get_blocking(self._file.fileno())
        self.fileno = self._file.fileno
        self.close = self._file.close

    def read(self, size: int) -> bytes | None:
        """As :meth:`Endpoint.read`."""
        # A descriptor that blocks is looked at first: another reader may have taken the bytes.
        if self._is_blocking and not _is_ready(self._file.fileno(), select.POLLIN):
            return None
        try:
            return os.read(self._file.fileno(), size)
        except BlockingIOError:
            return None

    def write(self, parts: list[memoryview]) -> int:
        """As :meth:`Endpoint.write`."""
        try:
            if not self._is_blocking:
                return os.writev(self._file.fileno(), parts)
            if not _is_ready(self._file.fileno(), select.POLLOUT):
                return 0
            # A pipe that is ready takes so many bytes without blocking.
            return os.write(self._file.fileno(), parts[0][: select.PIPE_BUF])
        except BlockingIOError:
            return 0

    def duplicate(self) -> File:
        """As :meth:`Endpoint.duplicate`."""
        if self._is_blocking:
            return File(os.dup(self._file.fileno()))
        # With separate flags, because this one does not block.
        duplicate = File(_open_again(self._file.fileno(), self.is_readable))
        os.set_blocking(duplicate.fileno(), True)
        return duplicate


def _own(descriptor: int, readable: bool) -> File:
    """Return a separate file for the same pipe, and close the descriptor.

    Without ``/proc``, or with a pipe of another user, the descriptor itself serves.
    """
    with contextlib.suppress(OSError):
        again = _open_again(descriptor, readable)
        os.close(descriptor)
        return File(again)
    return File(descriptor)


def _open_again(descriptor: int, readable: bool) -> int:
    flags = (os.O_RDONLY if readable else os.O_WRONLY) | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(f"/proc/self/fd/{descriptor}", flags)


def _is_ready(descriptor: int, event: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(0))


def has_input(descriptor: int) -> bool:
    """Return True if a read would not wait: for bytes, or for the end."""
    return _is_ready(descriptor, select.POLLIN)


def endpoint_of(descriptor: int, readable: bool, writable: bool) -> Endpoint:
    """Return the endpoint of a descriptor, and own it from now on.

    Raises:
        TypeError: it is another thing than a stream socket or a pipe. It stays open.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        is_blocking = os.get_blocking(descriptor)
        sock = socket.socket(fileno=descriptor)
        # Python's default timeout, if there is one, has changed the flags, and would be waited for.
        sock.setblocking(is_blocking)
        if sock.type != socket.SOCK_STREAM:
            sock.detach()
            raise TypeError(f"a connection needs a stream socket, got {sock.type!r}")
        endpoint = SocketEndpoint(sock)
        endpoint.is_readable, endpoint.is_writable = readable, writable
        return endpoint
    if not stat.S_ISFIFO(mode) or readable is writable:
        raise TypeError("a connection needs a stream socket, or one end of a pipe")
    return PipeEndpoint(descriptor, readable)
