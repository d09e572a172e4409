"""Whether the system's OOM killer may have ended a worker. What cannot be known is marked as a guess."""

from __future__ import annotations

import re
from typing import Final

import attrs

from ._sizes import readable_size


@attrs.frozen
class OomKills:
    """How many processes the OOM killer has ended so far: in this process's cgroup, and on the whole machine."""

    cgroup: int | None
    machine: int | None


def count_kills() -> OomKills:
    """The counters as they are now; None for each that this system does not tell."""
    cgroup = None
    for path in _cgroup_files("memory.events", "memory.oom_control"):
        cgroup = _counter(path, "oom_kill")
        if cgroup is not None:
            break
    return OomKills(cgroup, _counter("/proc/vmstat", "oom_kill"))


@attrs.frozen
class Explanation:
    """Why a SIGKILL that we did not send may have been the OOM killer's. ``certain``: its counter says so."""

    certain: bool
    text: str


def explain_kill(before: OomKills, rss: int | None) -> Explanation | None:
    """What speaks for the OOM killer; None if nothing does.

    Args:
        before: the counters at the worker's start.
        rss: the resident memory, in bytes, that the worker told of last; None if it never did.
    """
    now = count_kills()
    if before.cgroup is not None and now.cgroup is not None and now.cgroup > before.cgroup:
        return Explanation(
            True,
            "by the system's OOM killer: its count of processes ended for their memory in this control group went from "
            f"{before.cgroup} to {now.cgroup} meanwhile",
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
    """The memory, in bytes, that this process's control group or else the machine has; None if the system does not tell."""
    limits = []
    for path in _cgroup_files("memory.max", "memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
    total = _counter("/proc/meminfo", "MemTotal:")
    if total is not None:
        limits.append(total * 1024)
    return min(limits, default=None)


def _cgroup_files(second: str, first: str) -> list[str]:
    """Where a file of this process's control group can be: in version 2 of the interface, in version 1 (cgroups(7)).

    In a container the path that the process is told may be the host's; then its own group is the root that it sees.
    """
    paths = []
    for line in _read("/proc/self/cgroup").splitlines():
        match = re.fullmatch(r"\d+:([^:]*):(/.*)", line)
        if match is not None and match[1] == "":
            paths += [f"/sys/fs/cgroup{match[2]}/{second}", f"/sys/fs/cgroup/{second}"]
        elif match is not None and "memory" in match[1].split(","):
            paths += [f"/sys/fs/cgroup/memory{match[2]}/{first}", f"/sys/fs/cgroup/memory/{first}"]
    return paths


def _counter(path: str, name: str) -> int | None:
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


_NEAR: Final = 0.8
