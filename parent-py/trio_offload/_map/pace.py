"""Adaptive batching: the items of a chunk, the calls in flight of a worker, and the window."""

from __future__ import annotations

from typing import Final

from .._worker.call_sender import MAX_IN_FLIGHT

MAX_ITEMS: Final = 16_384
MAX_BYTES: Final = 512 * 1024
_CHUNK_TARGET: Final = 0.02  # seconds that a chunk should last
_MAX_GROWTH: Final = 8  # factor by which one measurement may enlarge a chunk
_MAX_READ: Final = 0.001  # seconds that reading a chunk from the iterable may take
_PIPELINE_CUTOFF: Final = 0.1  # seconds; calls that take longer are sent one at a time
_PIPELINE_TARGET: Final = 0.002  # seconds that the calls sent ahead may take together
_MIN_WINDOW_CHUNKS: Final = 8  # for each worker


class AdaptiveBatching:
    """Measures items and calls, and derives the sizes from them."""

    def __init__(self, chunk_size: int | None) -> None:
        self.measures = chunk_size is None
        """True if the chunk size follows the measurements."""
        self.size = chunk_size or 1
        """Number of items of the next chunk."""
        self.in_flight = 1
        """Number of chunks that a worker gets before it has answered the first."""
        self.window_chunks = _MIN_WINDOW_CHUNKS
        """Number of chunks of each worker inside the window, unless the user gives the window."""
        self._wanted = self.size
        self._max_read = MAX_ITEMS

    def read(self, items: int, seconds: float) -> None:
        """Note the time that reading some items took, because the event loop waits for it."""
        if self.measures:
            self._max_read = max(1, int(min(MAX_ITEMS, items * _MAX_READ / max(seconds, 1e-9))))
            self.size = min(self._wanted, self._max_read)

    def answered(self, calls: int, seconds: float, *, waits: bool) -> None:
        """Note the time that a worker took for some calls.

        ``waits`` is true if the worker waits for its next call.
        """
        # A second call behind a long one keeps an item from the other workers. Short calls are
        # pipelined: the parent then reads several answers at once, and sends as many calls. The
        # number grows with the short calls seen, so a single one does not queue long ones.
        each = seconds / calls
        if each >= _PIPELINE_CUTOFF:
            self.in_flight = 1
        else:
            # A worker that had to wait for the parent could have done more in the time.
            short = each * MAX_IN_FLIGHT <= _PIPELINE_TARGET or (waits and calls > 1)
            fitting = MAX_IN_FLIGHT if short else max(2, int(_PIPELINE_TARGET / each))
            self.in_flight = min(fitting, self.in_flight + calls)
        self.window_chunks = max(_MIN_WINDOW_CHUNKS, 2 * self.in_flight)

    def measured(self, items: int, worked: float, size: int) -> None:
        """Note that a chunk of some items took ``worked`` seconds, and ``size`` bytes both ways."""
        if not self.measures or not items:
            return
        by_time = _CHUNK_TARGET * items / max(worked, 1e-9)
        by_size = MAX_BYTES * items / max(size, 1)
        wanted = int(min(by_time, by_size, MAX_ITEMS))
        if wanted < self._wanted:
            self._wanted = max(1, wanted)
        else:
            # A cut chunk says little of larger ones, so it does not shrink them.
            self._wanted = max(self._wanted, min(wanted, items * _MAX_GROWTH))
        self.size = min(self._wanted, self._max_read)
