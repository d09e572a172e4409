"""A hint for maps in order: the window is full, workers are idle, and one item is the reason."""

from __future__ import annotations

import collections
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, Protocol

import trio

from .. import _clock
from .._worker.peer import logger

if TYPE_CHECKING:
    from .source import Chunk, Source

# Seconds between two looks. A chunk that is due at both of them is the reason.
_STALL_TIMEOUT: Final = 5.0


class Awaited(Protocol):
    """The results, as the watch sees them."""

    due: int
    """Index of the next item in order that has not come."""

    @property
    def is_awaited(self) -> bool:
        """True if a consumer waits for a result."""


class Feeding(Protocol):
    """A lane, as the watch sees it."""

    in_flight: collections.deque[Chunk]


class Watched(Protocol):
    """The map, as the watch sees it."""

    source: Source

    @property
    def name(self) -> str:
        """The name of the function."""

    @property
    def results(self) -> Awaited:
        """The results."""

    @property
    def lanes(self) -> Collection[Feeding]:
        """The lanes."""

    def limit(self) -> int:
        """Return the largest number of lanes."""

    def window(self) -> int:
        """Return the largest number of items inside."""

    def room(self) -> int:
        """Return the number of items that the next chunk may have."""

    def busy(self) -> int:
        """Return the number of lanes that have work."""


class Watch:
    """Logs once that workers are idle because of one item.

    It starts when the window is full for the first time. Items are free of its cost.
    """

    def __init__(self, *, disabled: bool) -> None:
        self._scope = trio.CancelScope()
        self._started = disabled

    def start(self, work: Watched, nursery: trio.Nursery) -> None:
        """Start in the nursery, unless it has started before."""
        if not self._started:
            self._started = True
            nursery.start_soon(self._run, work)

    def stop(self) -> None:
        """Stop for good."""
        self._scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _run(self, work: Watched) -> None:
        try:
            with self._scope:
                before: Chunk | None = None
                while True:
                    await _clock.sleep(_STALL_TIMEOUT)
                    chunk = _find_slow_chunk(work)
                    if chunk is not None and chunk is before:
                        logger.warning("%s", _describe(work, chunk))
                        return
                    before = chunk
        except trio.Cancelled:
            pass  # as in a lane


def _find_slow_chunk(work: Watched) -> Chunk | None:
    """Return the chunk for which a full window waits.

    None means that workers are busy, the consumer is slow, or the chunk waits for a token.
    """
    source = work.source
    is_full = source.inside >= work.window() if source.is_async else not work.room()
    if not is_full or not source.may_have_more or not work.results.is_awaited or work.busy() >= work.limit():
        return None
    due = work.results.due
    return next((chunk for lane in work.lanes for chunk in lane.in_flight if chunk.start == due), None)


def _describe(work: Watched, chunk: Chunk) -> str:
    first, last = chunk.start, chunk.start + len(chunk.items) - 1
    which = f"Item {first} ({chunk.shown(0)})" if first == last else f"Items {first} to {last}, one chunk,"
    limit = work.limit()
    idle = limit - work.busy()
    return (
        f"map of {work.name}: {idle} of {limit} workers {'is' if idle == 1 else 'are'} idle. "
        f"{which} {'has' if first == last else 'have'} taken more than {_STALL_TIMEOUT:g} seconds, and the items behind fill "
        f"the window ({work.source.inside} items). Pass ordered=False, or a larger window"
    )
