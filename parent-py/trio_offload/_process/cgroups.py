"""The control groups of this process (cgroups(7)), as far as they say what it may use."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import proc


def files(controller: str, second: str, first: str, read: Callable[[str], str] | None = None) -> list[str]:
    """Where a file of this process's control groups can be, its own group first, then those above it.

    ``second`` is its name in version 2 of the interface, ``first`` in version 1. In a container the
    path that the process is told may be the host's; then its own group is the root that it sees.
    """
    paths: list[str] = []
    for line in (read or proc.read_file)("/proc/self/cgroup").splitlines():
        match = re.fullmatch(r"\d+:([^:]*):(/.*)", line)
        if match is None:
            continue
        controllers, group = match.groups()
        if not controllers:
            for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                paths += _upwards(root, group, second)
        elif controller in controllers.split(","):
            for name in (controller, controllers):
                paths += _upwards(f"/sys/fs/cgroup/{name}", group, first)
    return list(dict.fromkeys(paths))


def _upwards(root: str, group: str, name: str) -> list[str]:
    parts = [part for part in group.split("/") if part]
    return ["/".join([root, *parts[:depth], name]) for depth in range(len(parts), -1, -1)]
