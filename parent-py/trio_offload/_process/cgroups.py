"""The control groups of this process (cgroups(7)): the files with its limits."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import proc


def files(controller: str, second: str, first: str, read: Callable[[str], str] | None = None) -> list[str]:
    """Return the paths where a file of this process's control groups may be, its own group first.

    In a container the path of the group may be the host's. Then the group is the visible root.

    Args:
        controller: Name of the controller in version 1 of the interface.
        second: Name of the file in version 2.
        first: Name of the file in version 1.
        read: Function that reads a file.
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
