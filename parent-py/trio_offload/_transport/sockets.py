"""Socket pairs, scatter lists, and waits that survive a cancellation."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

import trio

from trio_offload_worker._wire import Buffer

# Large enough that a frame of this size passes in one write and one read where the kernel allows it
# (net.core.wmem_max caps what is granted, see socket(7)).
SOCKET_BUFFER_SIZE: Final = 4 * 2**20
MAX_PARTS: Final = 512  # below the kernel's IOV_MAX of 1024, see writev(2)
GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTSOCK)


class WriteFailed(Exception):
    """The other side has closed its end. ``sent`` is false if not one byte of this frame was taken."""

    def __init__(self, sent: bool) -> None:
        super().__init__(sent)
        self.sent = sent


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two joined sockets: the parent's end (non-blocking) and the worker's, both close-on-exec (PEP 446)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    # With `socket.setdefaulttimeout` Python makes every socket non-blocking, and a worker blocks in its reads.
    theirs.setblocking(True)
    # The receiving side of a Unix socket has no buffer of its own: what counts is the sender's (unix(7)).
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE)
    # A worker sends the end of a large frame by way of a copy, and as much of it as this says (transport.rs).
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE // 4)
    return ours, theirs


def check_is_gone(error: OSError) -> None:
    """Raises any error but those by which one learns that there is no other side: it has closed its end, or the program ours."""
    if error.errno not in GONE:
        raise error


async def wait_writable(descriptor: int, cancellable: bool) -> None:
    try:
        await trio.lowlevel.wait_writable(descriptor)
    except trio.Cancelled:
        if cancellable:
            raise
        await shielded(trio.lowlevel.wait_writable, descriptor)


async def let_others_run(cancellable: bool) -> None:
    if cancellable:
        await trio.lowlevel.checkpoint()
    else:
        await trio.lowlevel.cancel_shielded_checkpoint()


def batches(parts: Sequence[Buffer]) -> Iterable[list[Buffer]]:
    """The parts as lists that one ``sendmsg`` takes."""
    for first in range(0, len(parts), MAX_PARTS):
        yield [memoryview(part).cast("B") for part in parts[first : first + MAX_PARTS] if len(part)]


def front(batch: list[Buffer], left: int) -> list[Buffer]:
    """The first ``left`` bytes of ``batch``, or all of it."""
    for index, part in enumerate(batch):
        if len(part) >= left:
            return [*batch[:index], memoryview(part)[:left]]
        left -= len(part)
    return batch


def after(batch: list[Buffer], count: int) -> list[Buffer]:
    """What is left of ``batch`` once its first ``count`` bytes have been sent."""
    for index, part in enumerate(batch):
        if count < len(part):
            return [memoryview(part)[count:], *batch[index + 1 :]]
        count -= len(part)
    return []


async def shielded(wait: Any, descriptor: int) -> None:
    """Wait for the descriptor although a cancellation has been delivered, which may not be followed yet.

    A shield around every wait would cost a quarter of a warm call, so one is put up only when a cancellation is there.
    Trio's cancellation is level-triggered: what is swallowed comes again at the caller's next checkpoint.
    """
    with trio.CancelScope(shield=True):
        await wait(descriptor)


def notify_closing(descriptor: int) -> None:
    """Tell a running Trio, if there is one, that the descriptor goes away."""
    try:
        trio.lowlevel.notify_closing(descriptor)
    except RuntimeError:
        # Not inside trio.run: nobody can be waiting for it.
        pass
