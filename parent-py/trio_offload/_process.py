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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import trio

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
                _end_family(self.pid, self._signal)

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


def start(executable: str, environment: Mapping[bytes, bytes]) -> tuple[WorkerProcess, socket.socket, RecordFile]:
    """Start the worker executable; the process, our end of its socket, and the file that it writes to before it dies.

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
                [os.path.basename(executable), "serve", str(WORKER_DESCRIPTOR), str(_RECORD_DESCRIPTOR)],
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
        process = WorkerProcess(pid, _open_pidfd(pid))
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


def _open_pidfd(pid: int) -> int | None:
    """A descriptor that names the process (Linux 5.3), or None where there is no such thing.

    The number still belongs to our child: it was started just now, and nobody but its WorkerProcess reaps it.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _no_limit() -> trio.CapacityLimiter:
    """A limiter for a thread that only waits: it must not take a place from the user's threads."""
    return trio.CapacityLimiter(1)


def _ended_process(pid: int, exitcode: int | None) -> WorkerProcess:
    """What a pickled WorkerProcess becomes: a record that nothing can be done with."""
    process = WorkerProcess(pid, None)
    process._reaped = True
    process._exitcode = exitcode
    return process


def _end_family(root: int, signal_root: Callable[[int], None]) -> None:
    """SIGKILL a process that has not been reaped, and its descendants.

    Everything found is stopped before its own children are listed, and the round is repeated until it finds nothing
    new: a descendant whose parent ends in between becomes a child of the root, which is a subreaper. A stopped process
    reaps nobody, so the numbers below it stay valid; pidfds help against what is not ours to stop (a set-uid program),
    as far as there are descriptors for them.
    """
    signal_root(signal.SIGSTOP)
    family: set[int] = set()
    pidfds: dict[int, int] = {}
    latest: list[int] = []
    # Every round finds somebody or is the last; the bound is for a kernel on which we are slower than what we chase.
    for _ in range(_MOST_ROUNDS):
        # Below what was found last first: one that forks its successor and ends, over and over, is only a step ahead.
        found = _new_children([root, *latest], family) or _new_children([root, *family], family)
        if not found:
            break
        # The newest first, for the same reason.
        for child in reversed(found):
            pidfd = _open_pidfd(child)
            _signal_descendant(child, pidfd, signal.SIGSTOP)
            if pidfd is not None:
                pidfds[child] = pidfd
            elif pidfds:
                # Perhaps there are no descriptors left, and one is needed to go on looking.
                os.close(pidfds.popitem()[1])
        family.update(found)
        latest = found
    signal_root(signal.SIGKILL)
    for child in family:
        _signal_descendant(child, pidfds.get(child), signal.SIGKILL)
    for pidfd in pidfds.values():
        os.close(pidfd)


_MOST_ROUNDS: Final = 1000


def _signal_descendant(pid: int, pidfd: int | None, number: int) -> None:
    try:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        # Gone by itself, or set-uid to somebody whom we may not signal.
        pass


def _new_children(parents: list[int], known: set[int]) -> list[int]:
    children = _children(parents) if _lists_children() else _children_by_scan(parents)
    return [child for child in children if child not in known]


def _lists_children() -> bool:
    """Whether the kernel lists a process's children (CONFIG_PROC_CHILDREN). Without /proc there is nothing to find either way."""
    return os.path.exists(f"/proc/self/task/{threading.get_native_id()}/children") or not os.path.exists("/proc/self/task")


def _children(parents: list[int]) -> list[int]:
    """The children of all threads of these processes (proc(5), ``/proc/pid/task/tid/children``)."""
    found: list[int] = []
    for parent in parents:
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            # It ended while we looked (ENOENT or ESRCH): what it leaves behind is the root's now.
            pass
    return found


def _children_by_scan(parents: list[int]) -> list[int]:
    """The same from the table of all processes."""
    wanted = set(parents)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The name, in parentheses, may contain anything; the state and the parent's number follow it.
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) in wanted:
                found.append(int(entry))
    return found
