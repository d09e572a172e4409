"""Data for a worker that waits for room in its socket, while the worker has a host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trio_offload_worker._protocol.frames import Buffer

from .._transport.sockets import CarryingFrame, WriteFailed

if TYPE_CHECKING:
    from .._transport.channel import Channel
    from .speaker import Speaker


class Host(Protocol):
    """The conversation, as its outbox sees it."""

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Run an async function in the host's nursery."""


class Outbox:
    """Data of replies, and of calls behind the running one."""

    def __init__(self, worker: Speaker, host: Host) -> None:
        self._worker = worker
        self._host = host
        self._parts: list[Buffer] = []
        self._is_writing = False
        self._has_carrying = False  # a frame with descriptors may be among this data

    def write(self, parts: list[Buffer]) -> None:
        """Write whole frames, at once or behind the data that waits."""
        channel = self._worker.channel
        if channel is None:
            return
        if self._parts or self._is_writing:
            self._parts.extend(parts)
            return
        # If it fails, the end of the stream is the verdict.
        with contextlib.suppress(WriteFailed):
            self._parts.extend(channel.send_at_once(parts))
        if self._parts:
            self._host.start(self._write_rest, channel)

    def write_carrying(self, frame: CarryingFrame) -> None:
        """Write a frame with descriptors, at once or behind the data that waits."""
        channel = self._worker.channel
        if channel is None:
            return
        self._has_carrying = True
        self._parts.append(frame)
        if len(self._parts) == 1 and not self._is_writing:
            with contextlib.suppress(WriteFailed):
                self._parts = channel.send_carrying(frame)
            self.continue_writing(channel)

    def continue_writing(self, channel: Channel) -> None:
        """Let a task write the data that waits."""
        if self._parts:
            self._host.start(self._write_rest, channel)

    def take_unsent(self) -> None:
        """Take over the data that the worker has left."""
        self._parts[:0] = self._worker.take_unsent()

    def put_back_unsent(self) -> None:
        """Undo :meth:`take_unsent` for the rest."""
        self._worker.put_back_unsent(self._parts)
        self._parts = []

    def drop_carrying(self) -> None:
        """Drop the replies whose descriptors have not been sent: their call has ended."""
        if self._has_carrying:
            self._has_carrying = False
            parts, self._parts = self._parts, []
            self._worker.put_back_unsent(parts)
            unsent = self._worker.take_unsent()
            self._worker.put_back_unsent([part for part in unsent if not isinstance(part, CarryingFrame)])

    async def _write_rest(self, channel: Channel) -> None:
        if self._is_writing:
            return
        self._is_writing = True
        # Further replies go to another list, because the sender owns this one.
        parts, self._parts = self._parts, []
        # If it fails, the end of the stream is the verdict.
        with contextlib.suppress(WriteFailed, trio.Cancelled):
            while parts:
                await channel.send_rest(parts, True, cancellable=True)
                parts, self._parts = self._parts, []
        self._parts[:0] = parts
        self._is_writing = False
