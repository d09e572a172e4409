"""The worker's side of its sentinel process (``sentinel_process.py``), and their shared memory.

The memory holds the worker's activity, the configuration of SETUP, whether the sentinel sleeps, and
whether one of them writes to the socket. Each side writes first and then reads, with a system call
in between as a memory barrier. So at least one of them sees the other's change.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

from .._system import family
from .._system.linux import call_library, clone, identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any, Final, NoReturn
else:
    import _signal

IDLE: Final = 0
"""The worker waits for a frame. It notices a closed socket itself."""
BUSY: Final = 1
"""The worker runs a job, and cannot notice a closed socket."""
EXITING: Final = 2
"""The worker is about to exit. From now on a closed socket is not an error."""
SETTLING: Final = 3
"""It runs the context's `retire` function: it cannot notice a closed socket, and is not limited."""

# Offsets and layouts in the shared memory.
ACTIVITY: Final = 0
WRITING: Final = 1
ASLEEP: Final = 2
SEALED: Final = 3
SPEAKING: Final = 4
CONFIG_AT: Final = 8
CONFIG: Final = struct.Struct("=QQ")
JOBS_AT: Final = 24
JOBS: Final = struct.Struct("=Q")
NO_VALUE: Final = 2**64 - 1

_WRITING_TIMEOUT: Final = 0.05  # seconds
_VERDICT_TIMEOUT: Final = 5.0  # seconds
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_PTRACER: Final = 0x59616D61
_WALL: Final = 0x40000000  # __WALL of wait(2)


class Sentinel:
    """The worker's handle of its sentinel."""

    def __init__(self, pid: int | None, memory: mmap.mmap, waker: int) -> None:
        self._pid = pid
        self._memory = memory
        self._waker = waker
        self._waker_identity = identity_of(waker)
        self._jobs = 0
        self._has_memory_limit = False

    def tell(self, activity: int) -> None:
        """Publish the worker's new activity.

        If the sentinel has decided to end the worker for the last job's memory, this does not
        return.
        """
        memory = self._memory
        if activity == BUSY:
            self._jobs += 1
            JOBS.pack_into(memory, JOBS_AT, self._jobs)
        memory[ACTIVITY] = activity
        if activity == BUSY:
            if memory[ASLEEP]:
                self._wake()
        elif self._has_memory_limit:
            os.getppid()  # A system call as memory barrier.
            if memory[SEALED]:
                self._await_verdict()

    def configure(self, report_interval: int | None, memory_limit: int | None) -> None:
        """Set the report interval and the memory limit of SETUP.

        Args:
            report_interval: milliseconds between two reports of a running job.
            memory_limit: bytes that a job may use.
        """
        values = [NO_VALUE if value is None else min(value, NO_VALUE - 1) for value in (report_interval, memory_limit)]
        CONFIG.pack_into(self._memory, CONFIG_AT, *values)
        self._has_memory_limit = memory_limit is not None
        self._wake()

    def let_finish(self) -> None:
        """Wait until the sentinel has written its report. It starts reports only during jobs."""
        deadline = 0.0
        while self._memory[WRITING]:
            # This takes microseconds, unless a job has stopped or killed the sentinel.
            deadline = deadline or time.monotonic() + _WRITING_TIMEOUT
            if time.monotonic() > deadline:
                return
            time.sleep(0)

    def begin_writing(self) -> None:
        """Suspend reports during a job, for a frame that takes several writes."""
        self._memory[SPEAKING] = 1
        os.getppid()  # A system call as memory barrier.
        self.let_finish()

    def end_writing(self) -> None:
        """Let the sentinel report again."""
        self._memory[SPEAKING] = 0

    def await_end(self) -> None:
        """Wait for the sentinel to end this process: the parent has closed its end during a job."""
        time.sleep(_VERDICT_TIMEOUT)

    def dismiss(self) -> None:
        """Kill the sentinel, and reap it if it is a child. This is the worker's last action."""
        if self._pid is not None:
            try:
                os.kill(self._pid, _signal.SIGKILL)
                os.waitpid(self._pid, _WALL)
            except OSError:
                pass  # A job has killed it, and perhaps reaped it.
            self._pid = None

    def close_in_copy(self) -> None:
        """Close the pipe in a fork of this process."""
        if identity_of(self._waker) == self._waker_identity:
            os.close(self._waker)

    def _await_verdict(self) -> None:
        """Wait until the sentinel has checked whether the job that exceeded its limit is over."""
        # It ends this process or clears the flag at once, unless it is killed at this moment.
        deadline = time.monotonic() + _VERDICT_TIMEOUT
        while self._memory[SEALED] and time.monotonic() < deadline:
            time.sleep(0.0001)

    def _wake(self) -> None:
        self._memory[ASLEEP] = 0
        # A job may have closed all descriptors and opened other files.
        if identity_of(self._waker) == self._waker_identity:
            try:
                os.write(self._waker, b"!")
            except OSError:
                pass


def start(socket: int, record: int, parent: int, run: Callable[..., NoReturn]) -> Sentinel:
    """Start the sentinel of this process.

    Call it while this process has one thread if possible, and before :func:`begin_life`.

    Args:
        socket: the descriptor of the worker's end of the socket.
        record: the descriptor of the record.
        parent: the parent's process ID.
        run: the sentinel process's program, ``sentinel_process.run``.

    Raises:
        OSError: the system is out of processes or file descriptors.
    """
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    CONFIG.pack_into(memory, CONFIG_AT, NO_VALUE, NO_VALUE)
    memory[ASLEEP] = 1
    listener, waker = os.pipe()
    worker = os.getpid()
    since = family.boot_time()
    pid = clone()
    if pid is None:
        first = os.fork()
        if first == 0:
            try:
                pid = os.fork()
            finally:
                if pid != 0:
                    os._exit(0)
        else:
            os.waitpid(first, 0)
            os.close(listener)
            return Sentinel(None, memory, waker)
    if pid == 0:
        try:
            family.mark_self(family.new_mark(worker, is_sentinel=True))
            run(parent, worker, since, socket, record, listener, memory)
        finally:
            os._exit(1)
    os.close(listener)
    # Yama restricts pidfd_getfd(2) to ancestors; this makes an exception for the sentinel.
    call_library("prctl", _PR_SET_PTRACER, pid, 0, 0, 0)
    return Sentinel(pid, memory, waker)


def begin_life() -> None:
    """Mark this process as a worker, after its sentinel has started (``family::begin`` in Rust)."""
    # If the parent dies while it has stopped this process, the kernel resumes it, and its sentinel
    # ends it.
    call_library("prctl", _PR_SET_PDEATHSIG, int(_signal.SIGCONT), 0, 0, 0)
    if not _mark_self(family.new_mark(os.getpid())):
        # Reparent orphaned descendants to this process, so that they can be found. This needs
        # `_ctypes`.
        call_library("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _mark_self(mark: int) -> bool:
    """Mark this process like ``family.mark_self``, without leaving a module imported for jobs."""
    try:
        import _ctypes
    except ImportError:
        return family.mark_self(mark)
    core: Any = _ctypes
    number = type("number", (core._SimpleCData,), {"_type_": "L"})
    limits: Any = type("limits", (core.Array,), {"_type_": number, "_length_": 2})()
    if call_library("getrlimit", family.LIMIT, limits) != 0 or limits[1] < mark:
        return False
    limits[0] = mark
    return call_library("setrlimit", family.LIMIT, limits) == 0
