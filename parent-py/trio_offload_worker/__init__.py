"""What a worker of trio-offload needs of Python code, each part imported when something needs it and never before.

A plain call imports nothing from here. Nothing in here imports trio. For jobs and ``retire`` functions there is
:func:`memory_info`, for jobs :func:`single_threaded`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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


class single_threaded:  # noqa: N801 (used as a function)
    """While this is entered, this process has no thread but those of the job's own.

    The worker executable has a native thread, which watches over running jobs. Where one thread too many matters it steps
    aside without being asked: for ``os.fork``, and for ``unshare`` and ``setns`` as Python and most libraries call them. This is
    for what goes around those: a system call made directly, or a C library that is opened by its file's name. ::

        with trio_offload_worker.single_threaded():
            ctypes.CDLL("libc.so.6").unshare(CLONE_NEWUSER)

    Nobody watches meanwhile: the job is not ended with a parent that dies, nor for its ``memory_limit``. Keep it short. To be used
    in the main thread. Elsewhere, and in processes without such a thread, it does nothing.

    Raises:
        OSError: at the end of the block, if the system has no thread to spare by then. It is tried again when the job ends.
    """

    def __enter__(self) -> None:
        self._switch(1)

    def __exit__(self, *error: object) -> None:
        if self._switch(0):
            import errno
            import os

            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN) + ": the worker's native thread cannot be started again")

    @staticmethod
    def _switch(wanted: int) -> int:
        try:
            import ctypes

            switch: Any = ctypes.CDLL(None).trio_offload_single_threaded
        except (ImportError, AttributeError):
            return 0  # Not in the worker executable.
        return int(switch(wanted))


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
