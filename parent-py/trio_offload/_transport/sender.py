"""Write frames to a non-blocking socket: small ones at once, large ones as copies or as pages."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from trio_offload_worker._protocol.frames import Buffer

from .. import _clock
from .sockets import (
    MAX_PARTS,
    YIELD_EVERY,
    CarryingFrame,
    WriteFailed,
    after,
    check_is_gone,
    front,
    let_others_run,
    wait_writable,
)

_SMALL_SIZE: Final = 32 * 1024
# Smaller buffers are sent as fast by copying, without an import of ctypes.
MIN_PAGES_SIZE: Final = 2**20
# Seconds between two attempts while too many descriptors are in flight.
_RETRY_DELAY: Final = 0.01


class Sender:
    """The writing half of a channel.

    One task writes at a time. An interrupted operation leaves the stream inside a frame, and the
    owner must then close the channel.
    """

    __slots__ = ("_descriptor", "_socket", "_splices")

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._descriptor = ours.fileno()
        # Set to False once the system has refused to send pages.
        self._splices = True

    async def send(self, parts: list[Buffer], *, cancellable: bool) -> None:
        """Write one frame, given as its bytes in order.

        Not a checkpoint if the socket takes the frame at once.

        Raises:
            WriteFailed: the other side is gone.
        """
        rest = self.send_at_once(parts)
        if rest:
            await self.send_rest(list(rest), rest is not parts, cancellable=cancellable)

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
            if isinstance(parts[0], CarryingFrame):
                parts[:1] = await self._send_carrying(parts[0], cancellable)
            elif self._goes_as_pages(parts[0]):
                # A system that refuses will refuse again.
                self._splices = await _pages().send_pages(self._descriptor, parts, sent, cancellable)
            else:
                await self._send_copies(parts, self._count_copied(parts), sent, cancellable)
            sent = True

    def _goes_as_pages(self, part: Buffer) -> bool:
        return len(part) >= MIN_PAGES_SIZE and self._splices and bool(_pages().can_splice())

    def _count_copied(self, parts: list[Buffer]) -> int:
        """Return the number of leading buffers to copy with one ``sendmsg``."""
        for index, part in enumerate(parts[:MAX_PARTS]):
            if self._goes_as_pages(part) or isinstance(part, CarryingFrame):
                return index
        return MAX_PARTS

    async def _send_copies(self, parts: list[Buffer], count: int, sent: bool, cancellable: bool) -> None:
        """Send the first ``count`` buffers, and remove sent data from the list."""
        batch: list[Buffer] = [memoryview(part).cast("B") for part in parts[:count] if len(part)]
        left = YIELD_EVERY
        try:
            while batch:
                try:
                    written = self._socket.sendmsg(front(batch, left))
                except BlockingIOError:
                    await wait_writable(self._descriptor, cancellable)
                    left = YIELD_EVERY
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
                    left = YIELD_EVERY
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
        left = YIELD_EVERY
        try:
            while batch and left > 0:
                written = self._socket.sendmsg(front(batch, left))
                batch = after(batch, written)
                left -= written
        except BlockingIOError:
            pass
        except OSError as error:
            check_is_gone(error)
            raise WriteFailed(left < YIELD_EVERY) from None
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

    def send_carrying(self, frame: CarryingFrame) -> list[Buffer]:
        """Write a frame with its descriptors, without waiting. Return the rest.

        Raises:
            WriteFailed: the other side is gone.
        """
        rest = self.send_with_descriptors([frame], frame.descriptors.numbers)
        if rest is None:
            return [frame]
        frame.descriptors.close()
        return rest

    async def _send_carrying(self, frame: CarryingFrame, cancellable: bool) -> list[Buffer]:
        while True:
            rest = self.send_carrying(frame)
            if not rest or rest[0] is not frame:
                return rest
            await wait_writable(self._descriptor, cancellable)
            rest = self.send_carrying(frame)
            if not rest or rest[0] is not frame:
                return rest
            # The socket has room, so too many descriptors are in flight.
            await _clock.sleep(_RETRY_DELAY)

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


def _pages() -> ModuleType:
    """Import the module for large buffers, which few programs send."""
    from . import pages

    return pages
