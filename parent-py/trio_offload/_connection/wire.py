"""The messages of ``multiprocessing.connection``: a length, and so many bytes.

The length is a signed integer of four bytes. -1 means that eight more bytes have it, unsigned.
:class:`Inbox` reads no byte beyond the message that was asked for. So the descriptor can be handed
on between two messages.
"""

from __future__ import annotations

import errno
import io
import struct
from collections.abc import Callable
from typing import Final

import trio

SHORT: Final = struct.Struct("!i")
LONG: Final = struct.Struct("!iQ")
MAX_SHORT: Final = 0x7FFFFFFF
# Up to so many bytes, a copy costs less than a second piece.
SMALL: Final = 1 << 14
# Bytes of one read. Those of 256 KiB get fresh pages each time, and take 1.8 times the processor.
READ_SIZE: Final = 1 << 16
# Bytes after which a long message lets other tasks run.
TURN_SIZE: Final = 1 << 20
_MINUS_ONE: Final = SHORT.pack(-1)


def head_of(size: int) -> bytes:
    """Return the bytes that precede a message of that size."""
    return SHORT.pack(size) if size <= MAX_SHORT else LONG.pack(-1, size)


class Inbox:
    """The message that is being received. It outlives a receive that is cancelled."""

    def __init__(self, read: Callable[[int], bytes | None]) -> None:
        self._read = read
        self._head = b""
        self._size: int | None = None
        # The first bytes of the body, or how many of them are in the buffer of `take_into`.
        self._body: io.BytesIO | None = None
        self._filled = 0

    @property
    def is_empty(self) -> bool:
        """True between two messages."""
        return not self._head

    def take(self, max_length: int | None = None) -> bytes | None:
        """Return the next message, or None while a part of it has not come.

        None may also mean that the message is long, and that other tasks should run.

        Raises:
            trio.EndOfChannel: the stream has ended between two messages.
            trio.BrokenResourceError: it has ended within a message, or is no such stream.
            OSError: the message is longer than ``max_length``. It stays; or reading has failed.
        """
        size = self.begin()
        if size is None:
            return None
        if max_length is not None and size > max_length:
            raise OSError(errno.EMSGSIZE, f"message too long: {size} bytes, and max_length is {max_length}")
        message = self._take_at_once(size) if self._body is None else None
        if message is None and self._body is not None:
            message = self._take_more(size, self._body)
        return message

    def begin(self) -> int | None:
        """Read the head of the next message. Return its size, or None before it has come."""
        while self._size is None:
            head = self._head
            if len(head) == LONG.size:
                self._size = LONG.unpack(head)[1]
            elif len(head) == SHORT.size and head != _MINUS_ONE:
                (size,) = SHORT.unpack(head)
                if size < 0:
                    raise trio.BrokenResourceError(f"a message of {size} bytes: the other side speaks another protocol")
                self._size = size
            else:
                wanted = SHORT.size if len(head) < SHORT.size else LONG.size
                data = self._read(wanted - len(head))
                if data is None:
                    return None
                if not data and not head:
                    raise trio.EndOfChannel
                self._head += self._checked(data, len(head), wanted)
        return self._size

    def take_into(self, view: memoryview) -> int | bytes | None:
        """Receive the next message into a buffer. Return its size, or None as :meth:`take`.

        Return the message itself if the buffer is too short. The caller calls :meth:`keep` if it
        gives up.
        """
        size = self.begin()
        if size is None:
            return None
        if size > len(view):
            return self.take()
        if self._body is not None:
            self._filled = self._body.tell()
            view[: self._filled] = self._body.getbuffer()
            self._body = None
        turn = self._filled + TURN_SIZE
        while self._filled < min(size, turn):
            data = self._read(min(size - self._filled, READ_SIZE))
            if data is None:
                return None
            end = self._filled + len(self._checked(data, self._filled, size))
            view[self._filled : end] = data
            self._filled = end
        if self._filled < size:
            return None
        self._end()
        return size

    def keep(self, view: memoryview) -> None:
        """Take back the bytes that :meth:`take_into` has put there, for the next receive."""
        if self._filled:
            self._begin_body(view[: self._filled])
            self._filled = 0

    def _begin_body(self, data: bytes | memoryview) -> None:
        self._body = io.BytesIO()
        self._body.write(data)

    def _end(self) -> None:
        self._head, self._size, self._body, self._filled = b"", None, None, 0

    def _take_at_once(self, size: int) -> bytes | None:
        """Return the message if one read gives it, as it does for nearly all."""
        data = self._read(min(size, READ_SIZE)) if size else b""
        if data is None:
            return None
        if size:
            self._checked(data, 0, size)
        if len(data) == size:
            self._end()
            return data
        self._begin_body(data)
        return None

    def _take_more(self, size: int, body: io.BytesIO) -> bytes | None:
        # A BytesIO grows with the bytes that come, not with the length that somebody claims. It
        # gives its bytes away without a copy.
        turn = body.tell() + TURN_SIZE
        while (start := body.tell()) < min(size, turn):
            data = self._read(min(size - start, READ_SIZE))
            if data is None:
                return None
            body.write(self._checked(data, start, size))
        if start < size:
            return None
        self._end()
        return body.getvalue()

    def _checked(self, data: bytes, start: int, size: int) -> bytes:
        if not data:
            raise trio.BrokenResourceError(f"the stream ended inside a message, after {start} of {size} bytes")
        return data


class Outbox:
    """The bytes that are being sent. It keeps the rest of a message whose sender was cancelled."""

    def __init__(self, write: Callable[[list[memoryview]], int]) -> None:
        self._write = write
        self._parts: list[memoryview] = []
        self._is_begun = False

    @property
    def is_empty(self) -> bool:
        """True if all has been written."""
        return not self._parts

    def put(self, message: bytes | memoryview) -> None:
        """Begin with a message. The one before has been written."""
        view = memoryview(message)
        head = head_of(view.nbytes)
        if view.nbytes <= SMALL:
            # One piece: two would be two packets of TCP.
            self._parts = [memoryview(head + view)]
        else:
            self._parts = [memoryview(head), view]
        self._is_begun = False

    def write(self) -> bool:
        """Write as much as is possible now. Return True if that was all.

        Raises:
            OSError: the other side does not receive any more.
        """
        written = self._write(self._parts)
        self._is_begun = self._is_begun or written > 0
        while self._parts and written >= self._parts[0].nbytes:
            written -= self._parts.pop(0).nbytes
        if self._parts:
            self._parts[0] = self._parts[0][written:]
        return not self._parts

    def give_up(self) -> None:
        """Keep a copy of the rest of a message that has begun; drop one that has not."""
        # The buffer is the sender's, which may change it from now on.
        self._parts = [memoryview(bytes(part)) for part in self._parts] if self._is_begun else []

    def clear(self) -> None:
        """Drop everything."""
        self._parts = []
