"""Read ``/proc`` and other files of the system."""

from __future__ import annotations

import os
from typing import Final

from trio_offload_worker._system.linux import stat_fields

_READ_SIZE: Final = 2**16  # bytes


def read_file(path: str) -> str:
    """Return the text of a file of the system; empty if it does not exist or may not be read."""
    # Half as long as with open(), which makes three objects for a file.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    parts = []
    try:
        while part := os.read(descriptor, _READ_SIZE):
            parts.append(part)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("ascii", "replace")


def start_time(pid: int) -> bytes | None:
    """Return when a process was started, in clock ticks since the boot. None means unknown."""
    fields = stat_fields(pid)
    # Field 22 of proc(5); the list begins with the third.
    return None if fields is None else fields[19]


def is_pidfd_of(pidfd: int, pid: int) -> bool:
    """Return False if a descriptor is not a pidfd of this process.

    A reaped process counts as this one.
    """
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return not os.path.exists("/proc/self/fdinfo")
    except OSError:
        # This process has no free descriptor.
        return True
    fields = dict(line.split(b":\t", 1) for line in text.splitlines() if b":\t" in line)
    # The numbers in all PID namespaces, beginning with the namespace of this /proc. -1 after the
    # end.
    return b"Pid" in fields and {b"-1", b"%d" % pid} & {fields[b"Pid"], *fields.get(b"NSpid", b"").split()} != set()
