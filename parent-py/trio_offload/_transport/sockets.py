"""Socket pairs, descriptors in frames, scatter lists, and waits that defer cancellation."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Any, Final

import trio

from trio_offload_worker._protocol.frames import Buffer

# A frame of this size takes one write and one read, if the kernel grants that much
# (net.core.wmem_max, socket(7)).
SOCKET_BUFFER_SIZE: Final = 4 * 2**20
MAX_PARTS: Final = 512  # below the kernel's IOV_MAX of 1024, see writev(2)
# After this many copied bytes, one millisecond, the other tasks run.
YIELD_EVERY: Final = 2 * 2**20
# The other side has closed its end, or the program has closed ours.
GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTSOCK)


class WriteFailed(Exception):
    """The other side has closed its end.

    ``sent`` is True if it may have received a part of the frame.
    """

    def __init__(self, sent: bool) -> None:
        super().__init__(sent)
        self.sent = sent


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the parent's end and the worker's end of a new connection.

    The parent's is non-blocking. Both are close-on-exec (PEP 446).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    # Workers use blocking reads. `socket.setdefaulttimeout` makes every new socket non-blocking.
    theirs.setblocking(True)
    # Only the sender's buffer counts for a Unix socket (unix(7)).
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE)
    # A worker copies the end of a large frame, as many bytes as this buffer has (`transport/`).
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE // 4)
    return ours, theirs


def check_is_gone(error: OSError) -> None:
    """Raise the error, unless it means that the connection is closed."""
    if error.errno not in GONE:
        raise error


class Descriptors:
    """Duplicates of file descriptors, for a frame. They are closed once it is sent, or dropped.

    So what is waiting to be sent does not change if its owner closes the original.

    Raises:
        OSError: too many files are open, or a number is invalid.
    """

    __slots__ = ("numbers",)

    def __init__(self, numbers: Iterable[int]) -> None:
        import fcntl  # few programs need it

        self.numbers: list[int] = []
        for number in numbers:
            # Above the standard streams, whatever a program has closed.
            self.numbers.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3))

    def close(self) -> None:
        """Close them. May be done again."""
        while self.numbers:
            os.close(self.numbers.pop())

    def __del__(self) -> None:
        self.close()


class CarryingFrame(bytes):
    """A whole small frame whose first byte carries descriptors."""

    descriptors: Descriptors

    @classmethod
    def of(cls, frame: bytes, descriptors: Descriptors) -> CarryingFrame:
        """Return the frame, which owns the descriptors."""
        made = cls(frame)
        made.descriptors = descriptors
        return made


async def wait_writable(descriptor: int, cancellable: bool) -> None:
    """Wait until the descriptor takes more data."""
    try:
        await trio.lowlevel.wait_writable(descriptor)
    except trio.Cancelled:
        if cancellable:
            raise
        await shielded(trio.lowlevel.wait_writable, descriptor)


async def let_others_run(cancellable: bool) -> None:
    """Execute a checkpoint, without its cancellation point if not ``cancellable``."""
    if cancellable:
        await trio.lowlevel.checkpoint()
    else:
        await trio.lowlevel.cancel_shielded_checkpoint()


def front(batch: list[Buffer], left: int) -> list[Buffer]:
    """Return the first ``left`` bytes of ``batch``, or all of it."""
    for index, part in enumerate(batch):
        if len(part) >= left:
            return [*batch[:index], memoryview(part)[:left]]
        left -= len(part)
    return batch


def after(batch: list[Buffer], count: int) -> list[Buffer]:
    """Return ``batch`` without its first ``count`` bytes."""
    for index, part in enumerate(batch):
        if count < len(part):
            return [memoryview(part)[count:], *batch[index + 1 :]]
        count -= len(part)
    return []


async def shielded(wait: Any, descriptor: int) -> None:
    """Wait again after a wait was cancelled, because this operation defers cancellation.

    A shield around every wait would cost a quarter of a warm call, so it is used after a
    cancellation only. Trio's cancellation is level-triggered: the caller's next checkpoint raises
    it again.
    """
    with trio.CancelScope(shield=True):
        await wait(descriptor)


def notify_closing(descriptor: int) -> None:
    """Notify Trio, if it runs in this thread, that the descriptor is about to be closed."""
    try:
        trio.lowlevel.notify_closing(descriptor)
    except RuntimeError:
        # Outside of trio.run, tasks cannot be waiting for it.
        pass
