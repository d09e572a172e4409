"""How much memory a process holds and what it has used of the processor: the figures of PROTOCOL.md. (``process/meter.rs``.)"""

from __future__ import annotations

import os
import time

from .family import descendants
from .linux import field_in_kilobytes, read_short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final


class Meter:
    """Reads the figures of one process, and knows when it did so last."""

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/"
        # The kernel's name for the clock of all threads of a process (clock_getcpuclockid(3)).
        self._clock = (~pid << 3) | 2
        self._read = self._peak_read = -1.0
        self._peak = 0

    def read_if_due(self) -> list[int] | None:
        """The figures, unless they were read a moment ago; None too where the system does not tell them."""
        now = time.monotonic()
        if now - self._read < _INTERVAL:
            return None
        return self._read_at(now, now - self._peak_read >= _PEAK_INTERVAL)

    def read(self) -> list[int] | None:
        """The figures of this moment."""
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


def family_above(root: int, limit: int, since: int, spared: Collection[int]) -> int | None:
    """What a process and its descendants hold together, in bytes, if that is above the limit.

    Memory that a forked child shares with its parent is resident in both. So where there are descendants the sum is only a
    reason to look more closely: each page then counts for its share (``Pss`` in proc(5)), which takes the kernel milliseconds
    to find out.
    """
    pids = [root, *descendants(root, since, spared)]
    reached = sum(_resident(pid) for pid in pids)
    if len(pids) > 1:
        # A process that ends between two of these readings leaves its share to those that are read after it, which makes the
        # sum too large and never too small.
        for _ in range(_LOOKS):
            if reached > limit:
                reached = min(reached, sum(map(_share, pids)))
    return reached if reached > limit else None


def _resident(pid: int) -> int:
    try:
        return int(read_short(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0  # It has ended meanwhile.


def _share(pid: int) -> int:
    try:
        return field_in_kilobytes(read_short(f"/proc/{pid}/smaps_rollup"), b"Pss:")
    except PermissionError:
        return _resident(pid)  # Another user's (set-uid).
    except (OSError, ValueError):
        return 0  # It has ended; of one that was not reaped yet the file is empty.


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# How often a family that seems to be above its limit is looked at before that is believed.
_LOOKS: Final = 3
# In less time than this, in seconds, a process takes no memory worth telling.
_INTERVAL: Final = 0.001
# The same for the peak, which differs from what was resident at some reading only if it was given back between two.
_PEAK_INTERVAL: Final = 0.002
