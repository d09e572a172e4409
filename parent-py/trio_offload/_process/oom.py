"""The memory limits of the system, and whether its OOM killer may have ended a worker.

An uncertain verdict says that it is a guess.
"""

from __future__ import annotations

import math
import time
from typing import Final, NamedTuple

import attrs

from .._sizes import readable_size
from . import proc
from .cgroups import files

_read = proc.read_file
# Seconds between two reads of the counters while calls run.
CHECK_INTERVAL: Final = 0.01
_NEAR_LIMIT: Final = 0.8
# Version 1 of the interface writes "unlimited" as the largest multiple of a page.
_UNLIMITED: Final = 1 << 62


@attrs.frozen
class OomKills:
    """The counters of the OOM killer: kills in this process's control group, and on the machine.

    None means that this system lacks the counter.
    """

    cgroup: int | None
    machine: int | None
    path: str = ""
    """Path of the group's counter."""
    moment: float = attrs.field(factory=time.monotonic, eq=False)
    """The group's counter was read then or later. It did not count a worker that lived then."""

    def refreshed(self) -> OomKills:
        """Read the group's counter again, which takes 10 us. Return the counters.

        They stay as they were if the counter cannot be read. The machine's counter stays in any
        case: a read takes ten times as long.
        """
        if self.cgroup is None:
            return self
        moment = time.monotonic()
        cgroup = _counter(self.path, "oom_kill")
        if cgroup is None:
            return self
        _last_read.of_group = self.path, cgroup, moment
        return OomKills(cgroup, self.machine, self.path, moment)

    def at_call(self, began: float) -> tuple[OomKills, float]:
        """Return the counters for a worker that has just got a call, and the time of the next look.

        Workers whose calls follow each other closely share the reads. So 200 busy workers do not
        read 200 times as often as one.

        Args:
            began: start of the call, as :func:`time.monotonic`.
        """
        path, cgroup, moment = _last_read.of_group
        # The worker lives now, so it lived at the moment of another worker's read.
        if began - moment < CHECK_INTERVAL and began - self.moment < 2 * CHECK_INTERVAL and path == self.path:
            return OomKills(cgroup, self.machine, path, moment), moment + CHECK_INTERVAL
        return self.refreshed(), began + CHECK_INTERVAL


def count_kills() -> OomKills:
    """Read the counters."""
    moment = time.monotonic()
    machine = _counter("/proc/vmstat", "oom_kill")
    for path in files("memory", "memory.events", "memory.oom_control", _read):
        cgroup = _counter(path, "oom_kill")
        if cgroup is not None:
            return OomKills(cgroup, machine, path, moment)
    return OomKills(None, machine, "", moment)


class _LastRead:
    def __init__(self) -> None:
        # One tuple for several threads: the path of the group's counter, the count, the time.
        self.of_group: tuple[str, int, float] = "", 0, -math.inf


# Not an attrs class, which takes twice as long to make: all programs import this module.
class OomVerdict(NamedTuple):
    """The evidence that the OOM killer sent a SIGKILL that this program did not send.

    ``certain`` means that the group's counter rose after the call had begun. A rise that may have
    happened before the call is only a hint.
    """

    certain: bool
    text: str


def explain_kill(before: OomKills, rss: int | None, began: float) -> OomVerdict | None:
    """Return the evidence for the OOM killer, or None.

    Args:
        before: the counters when they were last read while the worker lived.
        rss: the worker's last reported resident memory, in bytes. None means unknown.
        began: start of its call, as :func:`time.monotonic`.
    """
    path, cgroup, moment = _last_read.of_group
    now = count_kills()
    if before.cgroup is not None and now.cgroup is not None and now.cgroup > before.cgroup:
        text = f"its count of kills in this control group went from {before.cgroup} to {now.cgroup}"
        # Another worker's read may have found the same count later.
        is_same = path == before.path and cgroup == before.cgroup
        if before.moment >= began or (is_same and moment >= began):
            return OomVerdict(True, f"by the system's OOM killer: {text} during the call")
        return OomVerdict(
            False, f"perhaps by the system's OOM killer (a guess: {text}, but that may have been before this call)"
        )
    if before.machine is not None and now.machine is not None and now.machine > before.machine:
        return OomVerdict(
            False,
            "perhaps by the system's OOM killer (a guess: it has killed a process on this machine, which may have been another "
            "one)",
        )
    limit = memory_limit()
    if rss is not None and limit is not None and rss > _NEAR_LIMIT * limit:
        return OomVerdict(
            False,
            f"perhaps by the system's OOM killer (a guess: the worker used {readable_size(rss)} at its last report, of "
            f"{readable_size(limit)} that are available)",
        )
    return None


def group_memory_limit() -> int | None:
    """Return the smallest limit of the control groups around this process, in bytes.

    None means unlimited.
    """
    texts = [_read(path).strip() for path in files("memory", "memory.max", "memory.limit_in_bytes", _read)]
    limits = [int(text) for text in texts if text.isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def memory_limit() -> int | None:
    """Return the memory of the machine, or the limit of a control group if smaller, in bytes.

    None means unknown.
    """
    limit = group_memory_limit()
    limits = [] if limit is None else [limit]
    total = _counter("/proc/meminfo", "MemTotal:")
    if total is not None:
        limits.append(total * 1024)
    return min(limits, default=None)


def _counter(path: str, name: str) -> int | None:
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


_last_read: Final = _LastRead()
