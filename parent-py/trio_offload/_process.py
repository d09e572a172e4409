"""One worker process: start it, wait for it, end it together with what it started, reap it once.

What this module guarantees:

* Only a :class:`WorkerProcess` signals or reaps its process, under its lock. Once reaped it is never signalled again:
  the kernel may have given its number to somebody else.
* Where there are pidfds (Linux 5.3), the process is named by one; a number is used only where there are none.
* While a socket pair is being handed to a new process no :func:`os.fork` happens in this one. Otherwise the copy would
  hold the worker's end open, and the worker's death would not be the end of the stream. (A fork in C that does not run
  Python's fork hooks is beyond this.)
* A fork of this process inherits no worker: its copies of the descriptors are closed in the child.
* A process is ended with its descendants. The worker is a child subreaper (prctl(2)), so they stay below it whatever
  they do; it is stopped first, so that it cannot start another while they are being collected: the kernel refuses to
  fork under a pending signal (copy_process() in kernel/fork.c).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final

import trio

from trio_offload_worker._family import end_family, open_pidfd

from ._channel import socket_pair
from ._record import RecordFile

WORKER_DESCRIPTOR: Final = 3
_RECORD_DESCRIPTOR: Final = 4


class WorkerProcess:
    """A worker's process. What the public sees of it: ``pid``, ``exitcode``, ``signal``, ``is_alive()``.

    It may be pickled; the copy is a record of how the process was at that moment.
    """

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid: Final = pid
        self._pidfd = pidfd
        self._lock = threading.Lock()
        self._waiting = 0
        self._reaped = False
        self._exitcode: int | None = None
        # Whether this process was killed by us, and not found dead.
        self.killed = False

    @property
    def exitcode(self) -> int | None:
        """The exit status, or the number of the ending signal made negative; None while it runs or if it is not known."""
        self.poll()
        return self._exitcode

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended the process, if one did."""
        code = self.exitcode
        if code is None or code >= 0:
            return None
        try:
            return signal.Signals(-code)
        except ValueError:
            # A real-time signal other than the first and the last has no name in Python.
            return None

    @property
    def ended(self) -> bool:
        """Whether the process has ended and was reaped."""
        return self._reaped

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return not self.poll()

    def poll(self) -> bool:
        """Reap the process if it has ended; whether it has."""
        with self._lock:
            return self._reap(os.WNOHANG)

    async def wait(self) -> None:
        """Wait until the process has ended, and reap it. One task at a time; anybody may :meth:`poll` meanwhile."""
        while not self.poll():
            with self._kept_pidfd() as pidfd:
                if pidfd is not None:
                    await trio.lowlevel.wait_readable(pidfd)
            if pidfd is None:
                await trio.to_thread.run_sync(self._wait_unreaped, abandon_on_cancel=True, limiter=_no_limit())
        await trio.lowlevel.cancel_shielded_checkpoint()

    def wait_sync(self, deadline: float) -> bool:
        """Wait, blocking, until the process has ended or ``time.monotonic()`` passes ``deadline``; whether it has ended."""
        while not self.poll():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._kept_pidfd() as pidfd:
                if pidfd is not None:
                    poller = select.poll()
                    poller.register(pidfd, select.POLLIN)
                    poller.poll(min(left, _LONGEST_POLL) * 1000)
            if pidfd is None:
                time.sleep(min(left, 0.01))
        return True

    def kill(self) -> None:
        """End the process and all its descendants with SIGKILL. Wait for it afterwards. May be done again."""
        with self._lock:
            if not self._reap(os.WNOHANG):
                self.killed = True
                end_family(self.pid, self._signal)

    def abandon(self) -> None:
        """Forget the process without a word to it: in a fork of this process it is not ours."""
        # Another thread may have held the lock, or waited, at the moment of the fork; neither is there any more.
        self._lock = threading.Lock()
        self._waiting = 0
        self._reaped = True
        self._close_pidfd()

    def _reap(self, options: int) -> bool:
        if self._reaped:
            return True
        try:
            if self._pidfd is not None:
                status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | options)
            else:
                status = os.waitid(os.P_PID, self.pid, os.WEXITED | options)
        except ChildProcessError:
            # SIGCHLD is ignored, or a foreign waitpid(-1) took the status: it has ended, but how will never be known.
            # On 5.3 kernels and with SIGCHLD ignored this error comes only once the process is gone (wait(2)).
            self._reaped = True
        else:
            if status is None:
                return False
            self._reaped = True
            self._exitcode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._close_pidfd()
        return True

    @contextlib.contextmanager
    def _kept_pidfd(self) -> Iterator[int | None]:
        """The pidfd, to wait for; None if there is none.

        Whoever reaps the process meanwhile leaves the closing to who waits: a descriptor that is closed under a wait
        ends it with an error, and in another thread not at all.
        """
        with self._lock:
            self._waiting += 1
            pidfd = self._pidfd
        try:
            yield pidfd
        finally:
            with self._lock:
                self._waiting -= 1
                if self._reaped:
                    self._close_pidfd()

    def _close_pidfd(self) -> None:
        if self._waiting == 0 and self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _signal(self, number: int) -> None:
        try:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def _wait_unreaped(self) -> None:
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass

    def __repr__(self) -> str:
        state = "running" if not self._reaped else f"exitcode {self._exitcode}"
        return f"<WorkerProcess pid {self.pid}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _ended_process, (self.pid, self.exitcode)


def start(
    executable: str, environment: Mapping[bytes, bytes], argv: list[str] | None = None
) -> tuple[WorkerProcess, socket.socket, RecordFile]:
    """Start a worker's program; the process, our end of its socket, and the file that it writes to before it dies.

    ``argv`` is by default that of the worker executable.

    Takes about as long as the kernel needs to start a process: ``posix_spawn`` copies nothing of this one, however
    large it is.

    Raises:
        OSError: the executable cannot be started.
    """
    with _handover:
        ours, theirs = socket_pair()
        record = None
        kept: list[int] = []
        try:
            record = RecordFile()
            # dup2() of a descriptor to itself would leave it close-on-exec, and the first would overwrite the second's
            # source if that had its number: so both are taken from above.
            kept.append(_copy_above(theirs))
            kept.append(_copy_above(record))
            pid = os.posix_spawn(
                executable,
                [os.path.basename(executable), "serve", str(WORKER_DESCRIPTOR), str(_RECORD_DESCRIPTOR)]
                if argv is None
                else argv,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, kept[0], WORKER_DESCRIPTOR),
                    (os.POSIX_SPAWN_DUP2, kept[1], _RECORD_DESCRIPTOR),
                ],
                # Whatever the starting thread has blocked, the worker can be told to stop. Only SIGINT has to wait until
                # the worker swallows it: before that, Ctrl+C would kill it.
                setsigmask=[signal.SIGINT],
            )
        except BaseException:
            ours.close()
            if record is not None:
                record.close()
            raise
        finally:
            theirs.close()
            for descriptor in kept:
                os.close(descriptor)
        process = WorkerProcess(pid, open_pidfd(pid))
        _handover.register(process, ours, record)
    return process, ours, record


def _copy_above(file: socket.socket | RecordFile) -> int:
    return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _RECORD_DESCRIPTOR + 1)


class _Handover:
    """Keeps forks of this process away from the workers; see the module's guarantees."""

    def __init__(self) -> None:
        # Re-entrant, because a signal handler that forks may run inside the critical section.
        self._lock = threading.RLock()
        self._processes: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()
        self._files: weakref.WeakSet[socket.socket | RecordFile] = weakref.WeakSet()
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._in_child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def register(self, process: WorkerProcess, *files: socket.socket | RecordFile) -> None:
        self._processes.add(process)
        self._files.update(files)

    def _in_child(self) -> None:
        for process in self._processes:
            process.abandon()
        for file in self._files:
            file.close()
        self._processes.clear()
        self._files.clear()
        self._lock.release()


_handover: Final = _Handover()
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) takes an int of milliseconds


def _no_limit() -> trio.CapacityLimiter:
    """A limiter for a thread that only waits: it must not take a place from the user's threads."""
    return trio.CapacityLimiter(1)


def _ended_process(pid: int, exitcode: int | None) -> WorkerProcess:
    """What a pickled WorkerProcess becomes: a record that nothing can be done with."""
    process = WorkerProcess(pid, None)
    process._reaped = True
    process._exitcode = exitcode
    return process
