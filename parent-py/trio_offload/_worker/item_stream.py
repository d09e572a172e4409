"""The stream of a job that sends many items, followed without a sleep between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from trio_offload_worker._protocol.frames import Frame

if TYPE_CHECKING:
    from .._transport.channel import Channel

# Polls without an item before the host sleeps. A poll takes as long as a job needs for an item.
_MAX_POLLS: Final = 2
# Items between two attempts where none succeeds. They then cost a sixteenth.
_MAX_SKIPPED: Final = 15


class Sink(Protocol):
    """A grant that takes several messages at once."""

    def post_run(self, pickles: Sequence[bytes]) -> None:
        """Handle the messages."""


class Follower:
    """Takes the messages that repeat one, as long as they come in quick succession.

    A wake-up takes longer than several items, for the job too. The other tasks run between two
    polls, and the poll is a checkpoint.
    """

    __slots__ = ("_misses", "_skipped")

    def __init__(self) -> None:
        self._misses = 0
        self._skipped = 0

    async def follow(self, channel: Channel, frame: Frame, sink: Sink) -> None:
        """Take the messages that follow a message and differ from it by their item."""
        payloads: list[bytes] | None = channel.take_run(frame)
        if payloads:
            sink.post_run(payloads)
        elif self._skipped < self._misses:
            self._skipped += 1
            return
        self._skipped = 0
        polls, found = 0, False
        while polls < _MAX_POLLS:
            await trio.lowlevel.checkpoint()
            payloads = channel.poll_run()
            if payloads is None:
                break
            if payloads:
                sink.post_run(payloads)
                polls, found = 0, True
            else:
                polls += 1
        self._misses = 0 if found else min(2 * self._misses + 1, _MAX_SKIPPED)
