"""A process's memory use and processor time: the figures of PROTOCOL.md (``process/meter.rs``)."""

from __future__ import annotations

import os
import time

from .family import descendants
from .linux import field_in_kilobytes, read_short, write_short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final


class Meter:
    """Reads the figures of one process, and remembers the time of the last reading."""

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/"
        # The kernel's ID of the clock of all threads of a process (clock_getcpuclockid(3)).
        self._clock = (~pid << 3) | 2
        self._read = self._peak_read = -1.0
        self._peak = 0

    def read_if_due(self) -> list[int] | None:
        """Return the figures. None means that they were just read, or that they cannot be read."""
        now = time.monotonic()
        if now - self._read < _INTERVAL:
            return None
        return self._read_at(now, now - self._peak_read >= _PEAK_INTERVAL)

    def read(self) -> list[int] | None:
        """Return the current figures. None means that they cannot be read."""
        return self._read_at(time.monotonic(), True)

    def _read_at(self, now: float, with_peak: bool) -> list[int] | None:
        try:
            size, resident = map(int, read_short(self._folder + "statm").split()[:2])
            processor_time = time.clock_gettime_ns(self._clock) // 1000
            if with_peak:
                self._peak = max(self._peak, field_in_kilobytes(read_short(self._folder + "status"), b"VmHWM:"))
                self._peak_read = now
        except (OSError, ValueError):
            return None
        self._read = now
        rss = resident * _PAGE
        self._peak = max(self._peak, rss)
        return [rss, self._peak, size * _PAGE, processor_time]


class PeakMeter:
    """Measures this process's peak memory during each job.

    Linux resets the peak of a process (``VmHWM``) to its current memory use if 5 is written to
    ``clear_refs``, see proc(5). Where that is not possible, the peak is that since its start.

    A measurement takes about 20 µs. A job of less than 0.1 ms takes less memory than differs from
    one measurement to the next, so it gets the memory use of the last one, for a millisecond.
    """

    def __init__(self) -> None:
        self._read = -1.0
        self._rss: int | None = None
        self._must_reset = True

    def begin(self) -> None:
        """Begin a job."""
        if self._must_reset:
            self._must_reset = False
            try:
                write_short("/proc/self/clear_refs", b"5")
            except OSError:
                pass

    def end(self, seconds: float) -> int | None:
        """Return the peak in bytes of a job of this duration. None means that it is unknown."""
        now = time.monotonic()
        if seconds < _SHORT and now - self._read < _INTERVAL:
            return self._rss
        self._read = now
        self._must_reset = True
        try:
            text = read_short("/proc/self/status")
            self._rss = field_in_kilobytes(text, b"VmRSS:")
            # The kernel updates the two at different moments.
            return max(self._rss, field_in_kilobytes(text, b"VmHWM:"))
        except (OSError, ValueError):
            self._rss = None
            return None


def family_above(root: int, limit: int, since: int, spared: Collection[int]) -> int | None:
    """Return the memory use of a process and its descendants in bytes, if it exceeds the limit.

    Memory that a forked child shares with its parent is resident in both. So with descendants, the
    sum only triggers a closer look: each page then counts with its share (``Pss`` in proc(5)),
    which takes the kernel milliseconds to compute.
    """
    pids = [root, *descendants(root, since, spared)]
    reached = sum(_resident(pid) for pid in pids)
    if len(pids) > 1:
        # If a process ends between two of these readings, its share moves to those read later. That
        # makes the sum too large at worst.
        for _ in range(_CONFIRMATIONS):
            if reached > limit:
                reached = min(reached, sum(map(_share, pids)))
    return reached if reached > limit else None


def _resident(pid: int) -> int:
    try:
        return int(read_short(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0  # The process has ended.


def _share(pid: int) -> int:
    try:
        return field_in_kilobytes(read_short(f"/proc/{pid}/smaps_rollup"), b"Pss:")
    except PermissionError:
        return _resident(pid)  # It belongs to another user (set-uid).
    except (OSError, ValueError):
        return 0  # The process has ended. The file of a zombie is empty.


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# Readings that must confirm that a family exceeds its limit.
_CONFIRMATIONS: Final = 3
# Seconds in which memory use does not change noticeably.
_INTERVAL: Final = 0.001
# The same for the peak. It differs from earlier readings only if memory was freed between two of
# them.
_PEAK_INTERVAL: Final = 0.002
# Seconds of a job that is too short to take a noticeable amount of memory.
_SHORT: Final = 0.0001
