"""The Python code of the worker. Each module is imported when something first needs it.

A plain call imports nothing from here, and nothing here imports trio. Public functions:
:func:`memory_info` for jobs and ``retire`` functions, :func:`single_threaded` for jobs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class MemoryInfo:
    """The memory use of a process, in bytes.

    Attributes:
        rss: Resident memory.
        peak_rss: Highest resident memory so far.
        vms: Size of the address space.
    """

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
    """Return the memory use of this process. Takes about 30 µs.

    It works outside of workers too. The figures are ``VmRSS``, ``VmHWM`` and ``VmSize`` of
    ``/proc/self/status``, see proc(5). :func:`resident_memory` is quicker if the resident memory is
    enough.

    Raises:
        RuntimeError: ``/proc`` is not mounted.
    """
    wanted = {b"VmRSS": 0, b"VmHWM": 0, b"VmSize": 0}
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(b":")
        if name in wanted:
            wanted[name] = int(value.split()[0]) * 1024
    rss = wanted[b"VmRSS"]
    # The kernel updates its counters lazily, so the two may be of different moments.
    return MemoryInfo(rss, max(rss, wanted[b"VmHWM"]), wanted[b"VmSize"])


class single_threaded:  # noqa: N801 (used as a function)
    """Run a block without the worker's native thread, so that only the job's threads exist.

    The worker executable has a native thread that watches over running jobs. It steps aside without
    being asked for ``os.fork``, and for ``unshare`` and ``setns`` as Python and most libraries call
    them. Use this class for calls that bypass those functions: a direct system call, or a C library
    opened by its file name. ::

        with trio_offload_worker.single_threaded():
            ctypes.CDLL("libc.so.6").unshare(CLONE_NEWUSER)

    Keep the block short. Until its end, the job is neither killed when the parent dies nor checked
    against its ``memory_limit``. Use it in the main thread. In other threads, and in processes
    without a native thread, it does nothing.

    Raises:
        OSError: at the end of the block, if the system cannot start a thread at that moment. The
            worker tries again when the job ends.
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
    """Return the resident memory of this process, in bytes.

    Raises:
        RuntimeError: as for :func:`memory_info`.
    """
    import os

    return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise RuntimeError(f"this system does not tell how much memory a process holds: {path}: {error.strerror}") from error
