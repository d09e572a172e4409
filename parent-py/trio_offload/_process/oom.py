"""Whether the system's OOM killer may have ended a worker.

What cannot be known is marked as a guess.
"""

from __future__ import annotations

import time
from typing import Final

import attrs

from .._sizes import readable_size
from . import proc
from .cgroups import files


@attrs.frozen
class OomKills:
    """How many processes the OOM killer has ended so far: in this process's cgroup, and on the whole machine.

    None for each that this system does not tell.
    """

    cgroup: int | None
    machine: int | None
    path: str = ""
    """The file of the first."""
    moment: float = attrs.field(factory=time.monotonic, eq=False)
    """When the first was read. A worker that lived then is none of those that had been counted."""

    def looked_at_again(self) -> OomKills:
        """The same with the first as it is now, which takes 10 us.

        (The second takes ten times as long.)
        """
        if self.cgroup is None:
            return self
        return attrs.evolve(self, cgroup=_counter(self.path, "oom_kill"), moment=time.monotonic())


def count_kills() -> OomKills:
    """The counters as they are now."""
    cgroup, found = None, ""
    for path in files("memory", "memory.events", "memory.oom_control", _read):
        cgroup = _counter(path, "oom_kill")
        if cgroup is not None:
            found = path
            break
    return OomKills(cgroup, _counter("/proc/vmstat", "oom_kill"), found)


@attrs.frozen
class Explanation:
    """Why a SIGKILL that we did not send may have been the OOM killer's.

    ``certain``: its counter for this control group rose after the call had begun. A rise that may
    have come before is no proof.
    """

    certain: bool
    text: str


def explain_kill(before: OomKills, rss: int | None, began: float) -> Explanation | None:
    """What speaks for the OOM killer; None if nothing does.

    Args:
        before: the counters when they were read last while the worker lived.
        rss: the resident memory, in bytes, that the worker told of last; None if it never did.
        began: when its call began, on the clock of :func:`time.monotonic`.
    """
    now = count_kills()
    if before.cgroup is not None and now.cgroup is not None and now.cgroup > before.cgroup:
        text = (
            f"its count of processes ended for their memory in this control group went from {before.cgroup} to {now.cgroup}"
        )
        if before.moment >= began:
            return Explanation(True, f"by the system's OOM killer: {text} meanwhile")
        return Explanation(
            False, f"perhaps by the system's OOM killer (a guess: {text}, but that may have been before this call)"
        )
    if before.machine is not None and now.machine is not None and now.machine > before.machine:
        return Explanation(
            False,
            "perhaps by the system's OOM killer (a guess: it has ended a process on this machine meanwhile, which need not "
            "have been this one)",
        )
    limit = memory_limit()
    if rss is not None and limit is not None and rss > _NEAR * limit:
        return Explanation(
            False,
            f"perhaps by the system's OOM killer (a guess: it held {readable_size(rss)} when it was told last, and there "
            f"are {readable_size(limit)} in all)",
        )
    return None


def memory_limit() -> int | None:
    """The memory, in bytes, that this process's control group or else the machine has;

    None if the system does not tell.
    """
    limits = []
    for path in files("memory", "memory.max", "memory.limit_in_bytes", _read):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
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


_read = proc.read_file
# Seconds between two looks while calls run.
LOOK_INTERVAL: Final = 0.01
_NEAR: Final = 0.8
