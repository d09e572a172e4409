"""What a worker of trio-offload needs of Python code, each part imported when something needs it and never before.

A plain call imports nothing from here. Nothing in here imports trio. For jobs and ``retire`` functions there is
:func:`memory_info`.
"""

from __future__ import annotations


class MemoryInfo:
    """What a process holds: ``rss``, resident memory; ``peak_rss``, the most that it ever was; ``vms``, the size of the
    address space. In bytes each."""

    __slots__ = ("peak_rss", "rss", "vms")

    def __init__(self, rss: int, peak_rss: int, vms: int) -> None:
        self.rss = rss
        self.peak_rss = peak_rss
        self.vms = vms

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryInfo):
            return NotImplemented
        return (self.rss, self.peak_rss, self.vms) == (other.rss, other.peak_rss, other.vms)

    def __hash__(self) -> int:
        return hash((self.rss, self.peak_rss, self.vms))

    def __repr__(self) -> str:
        return f"MemoryInfo(rss={self.rss}, peak_rss={self.peak_rss}, vms={self.vms})"


def memory_info() -> MemoryInfo:
    """What this process holds at this moment, in bytes. Takes about 30 µs, and works outside of workers too.

    The figures are those of proc(5), ``/proc/self/status``: ``VmRSS``, ``VmHWM`` and ``VmSize``. For the resident memory alone
    :func:`resident_memory` is quicker.

    Raises:
        RuntimeError: the system does not tell (there is no ``/proc``).
    """
    wanted = {b"VmRSS": 0, b"VmHWM": 0, b"VmSize": 0}
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(b":")
        if name in wanted:
            wanted[name] = int(value.split()[0]) * 1024
    rss = wanted[b"VmRSS"]
    # The kernel counts lazily; the two are not always of the same moment.
    return MemoryInfo(rss, max(rss, wanted[b"VmHWM"]), wanted[b"VmSize"])


def resident_memory() -> int:
    """The resident memory of this process, in bytes. Raises what :func:`memory_info` raises."""
    import os

    return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise RuntimeError(f"this system does not tell how much memory a process holds: {path}: {error.strerror}") from error
