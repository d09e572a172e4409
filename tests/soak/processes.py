"""The processes of this machine, as /proc shows them: who descends from whom, and signals that reach nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import attrs


@attrs.frozen
class Process:
    pid: int
    parent: int
    state: str
    start: int
    name: str


def look(pid: int) -> Process | None:
    """The process with that number, unless it is gone."""
    try:
        before, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    fields = rest.split()
    return Process(pid, int(fields[1]), fields[0], int(fields[19]), before.partition("(")[2])


def everything() -> dict[int, Process]:
    found = (look(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(root: int) -> list[Process]:
    """Those that live, children first."""
    children: dict[int, list[Process]] = {}
    for process in everything().values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    level = [root]
    while level:
        below = [child for pid in level for child in children.get(pid, ())]
        found += below
        level = [child.pid for child in below]
    return [process for process in found if process.state not in "ZX"]


def with_variable(name: str, value: str) -> list[Process]:
    """The living processes that were started with that environment variable."""
    return [
        process for process in everything().values() if process.state not in "ZX" and variable(process.pid, name) == value
    ]


def variable(pid: int, name: str) -> str | None:
    """What a process found in its environment when it was started."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    begin = f"{name}=".encode()
    return next((entry[len(begin) :].decode() for entry in environment if entry.startswith(begin)), None)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def send(process: Process, number: int) -> bool:
    """Send a signal to exactly that process; whether it was there."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)
        if now is None or now.start != process.start or now.state in "ZX":
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True
