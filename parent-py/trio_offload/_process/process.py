"""One worker process: wait for it, end it together with its descendants, reap it once.

Guarantees of this folder:

* Only a :class:`WorkerProcess` signals or reaps its process, under its lock. A reaped process is
  not signalled: the kernel may have reused its number. Callers only try the lock, because a signal
  handler may call in the middle of a kill in the same thread. The holder handles the requests that
  others make while it holds the lock.
* A process is named by a pidfd (Linux 5.3), or by its number on older systems. Both are checked
  before use: a pidfd must still name this process, and a number must belong to a process with the
  same start time. A foreign waitpid(-1) may have reaped the process, and a program may close
  descriptors that it did not open.
* :func:`os.fork` waits while a socket pair is handed to a new process (``fork_lock.py``). Otherwise
  the copy would hold the worker's end open, and the worker's death would not end the stream. A fork
  in C that skips Python's fork hooks is not covered.
* A fork of this process does not inherit workers. Its copies of the descriptors are closed.
* A worker that a template forks is a child of this process too, and the same holds for it, also
  while it is on standby. Until it has sent its number it is known by a pipe (``pending.py``); a
  kill in that time is done once the number arrives.
* A process is ended with its descendants, which inherit its mark (``_system/family.py``). It is
  stopped first, so that it starts no more processes, and killed last; the kernel resumes it if this
  process ends in between. If a process has exited irregularly, its descendants are searched for and
  ended when it is reaped.
* A program that has given up privileges may not signal the workers that it started before. It
  closes their connection instead: their native thread has kept the privileges and ends them with
  their descendants. The wait for that is limited.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import trio

from trio_offload_worker._system.family import boot_time, end_family, end_orphans, hold_reserve
from trio_offload_worker._system.linux import identity_of, send_signal

from .. import _clock
from .proc import is_pidfd_of, start_time

logger: Final = logging.getLogger("trio_offload")

_REFUSED_TIMEOUT: Final = 5.0  # seconds until a process that may not be signalled is abandoned
_REFUSED_RETRY_DELAY: Final = 0.1  # seconds
# Exit statuses of a regular exit. 120: Python could not flush its output. None: unknown status.
_REGULAR_EXITS: Final = (0, 120, None)
# Seconds; with the timer slack (PR_SET_TIMERSLACK in prctl(2)) about 60 microseconds.
_LAST_THREAD_DELAY: Final = 0.00001
# Seconds between two polls if pidfds and threads are unavailable.
_POLL_INTERVAL: Final = 0.01
_MAX_POLL_TIMEOUT: Final = 3600.0  # seconds; poll(2) takes an int of milliseconds


class WorkerProcess:
    """A worker's process. Public: ``pid``, ``exitcode``, ``signal``, ``is_alive()``.

    May be pickled; the copy is a record of the process at that moment.
    """

    def __init__(self, pid: int, pidfd: int | None, since: int | None = None) -> None:
        self.pid = pid
        # A moment before the start. With the number it makes the mark that descendants inherit.
        self._since = boot_time() if since is None else since
        self._pidfd = pidfd
        self._pidfd_identity = None if pidfd is None else identity_of(pidfd)
        # Identifies the process where only its number names it.
        self._start_time = None if pidfd is not None or pid == 0 else start_time(pid)
        self._lock = threading.Lock()
        self._waiting = 0
        # True if the process has ended and was reaped. Read-only for others.
        self.ended = False
        self._exitcode: int | None = None
        # True if this program killed it.
        self.killed = False
        # True if a kill is requested and not begun.
        self._condemned = False
        # Our end of its socket. Closing it ends the process where signals are not permitted.
        self.socket: socket.socket | None = None
        # When a process that may not be signalled is abandoned, as time.monotonic().
        self._refused_until: float | None = None
        # True if it has announced its exit, or was asked to exit. Processes that its jobs left
        # behind then live on.
        self.dismissed = False

    @property
    def exitcode(self) -> int | None:
        """Exit status, or the negative number of the signal.

        None means that it runs, or that the status is unknown.
        """
        self.poll()
        return self._exitcode

    @property
    def signal(self) -> signal.Signals | None:
        """Signal that ended the process. None means that it was not a signal."""
        code = self.exitcode
        if code is None or code >= 0:
            return None
        try:
            return signal.Signals(-code)
        except ValueError:
            # Most real-time signals have no name in Python.
            return None

    @property
    def has_pid(self) -> bool:
        """True if its number is known."""
        return True

    def is_alive(self) -> bool:
        """Return True if the process runs."""
        return not self.poll()

    def poll(self) -> bool:
        """Reap the process if it has ended. Return True if it has."""
        self._attend()
        return self.ended

    async def wait(self) -> None:
        """Wait until the process has ended, and reap it.

        For one task at a time; others may :meth:`poll`.
        """
        while not self.poll():
            if self._refused_until is not None:
                # A thread, because Trio's clock may not be the real one.
                wait = functools.partial(self.wait_sync, self._refused_until)
                await trio.to_thread.run_sync(wait, abandon_on_cancel=True, limiter=_no_limit())
                break
            with self._kept_pidfd() as pidfd:
                if pidfd is not None:
                    await trio.lowlevel.wait_readable(pidfd)
            if pidfd is None:
                try:
                    await trio.to_thread.run_sync(self._wait_unreaped, abandon_on_cancel=True, limiter=_no_limit())
                except RuntimeError:
                    # The system refused a thread. Polling notices the end a little later.
                    await _clock.sleep(_POLL_INTERVAL)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def wait_sync(self, deadline: float) -> bool:
        """Block until the process has ended, or until ``deadline`` on ``time.monotonic()``.

        Return True if it has ended.
        """
        longest = _MAX_POLL_TIMEOUT
        while not self.poll():
            if self._refused_until is not None:
                deadline = min(deadline, self._refused_until)
                longest = _REFUSED_RETRY_DELAY
                # Repeat: the process may have been stopped, or this program may have regained the
                # permission.
                self.kill()
            left = deadline - time.monotonic()
            if left <= 0:
                if deadline == self._refused_until:
                    unended.leave(self)
                return False
            with self._kept_pidfd() as pidfd:
                if pidfd is not None:
                    poller = select.poll()
                    poller.register(pidfd, select.POLLIN)
                    poller.poll(min(left, longest) * 1000)
            if pidfd is None:
                time.sleep(min(left, _POLL_INTERVAL))
        return True

    def kill(self) -> None:
        """End the process and all its descendants with SIGKILL. May be called again.

        Wait for the process afterwards.

        If another thread holds the lock, or the frame below a signal handler, the holder kills it.
        """
        self._condemned = True
        self._attend()

    def send(self, number: int) -> bool:
        """Send a signal. Return False if the lock is taken. :meth:`poll` must follow."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._reap(os.WNOHANG):
                if self._pidfd is not None and not is_pidfd_of(self._pidfd, self.pid):
                    self._forget_pidfd()
                self._send_signal(number)
        finally:
            self._lock.release()
        return True

    def abandon(self) -> None:
        """Forget the process in a fork of this program, whose child it is not."""
        # Threads that held the lock, or waited, do not exist in the fork.
        self._lock = threading.Lock()
        self._waiting = 0
        self.ended = True
        if self._pidfd is not None and identity_of(self._pidfd) != self._pidfd_identity:
            # The program has closed it.
            self._pidfd = None
        self._close_pidfd()

    def _attend(self) -> None:
        """Reap the process if it has ended; otherwise kill it if that was requested."""
        while not self.ended and self._lock.acquire(blocking=False):
            try:
                if not self._reap(os.WNOHANG) and self._condemned:
                    self._condemned = False
                    self._kill()
            finally:
                self._lock.release()
            # After the release: a caller sets the request first and tries the lock afterwards.
            if not self._condemned:
                break

    def _kill(self) -> None:
        self.killed = True
        self._end_family()

    def _end_family(self) -> None:
        if self._pidfd is not None and not is_pidfd_of(self._pidfd, self.pid):
            self._forget_pidfd()
        try:
            self._send_signal(0)
        except ProcessLookupError:
            pass
        except PermissionError:
            self._hang_up()
        else:
            end_family(self.pid, self._signal, self._since)

    def _hang_up(self) -> None:
        """Make the process end itself, because this program may not signal it."""
        if self._refused_until is None:
            self._refused_until = time.monotonic() + _REFUSED_TIMEOUT
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        # SIGCONT is permitted within a session (kill(2)). A stopped process would not notice the
        # closed connection.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._send_signal(signal.SIGCONT)

    def _reap(self, options: int) -> bool:
        if self.ended:
            return True
        try:
            if self._waitid(os.WNOWAIT | options) is None:
                return False
            if self.killed:
                # The killed process's last thread may still be exiting on this CPU. `waitid` would
                # then block in the kernel until the next scheduler tick, up to 4 ms. Sleep briefly
                # first.
                time.sleep(_LAST_THREAD_DELAY)
            status = self._waitid(options)
        except ChildProcessError:
            # SIGCHLD is ignored, or a foreign waitpid(-1) took the status. The process has ended,
            # with an unknown status. From Linux 5.3 on, and with SIGCHLD ignored, this error is
            # raised only after the end (wait(2)).
            pass
        else:
            if status is None:
                return False
            self._exitcode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        if not self.killed and not (self.dismissed and self._exitcode in _REGULAR_EXITS):
            end_orphans(self.pid, self._since)
        # Last, because others read it without the lock.
        self.ended = True
        self._close_pidfd()
        return True

    def _waitid(self, options: int) -> os.waitid_result | None:
        """Call :func:`os.waitid` for this process, by its pidfd or its number.

        Raises:
            ChildProcessError: the child has been reaped.
        """
        while self._pidfd is not None:
            try:
                status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | options)
            except OSError as error:
                # The process was reaped elsewhere, or the descriptor no longer is its pidfd.
                if isinstance(error, ChildProcessError) and is_pidfd_of(self._pidfd, self.pid):
                    raise
            else:
                if status is None or status.si_pid == self.pid:
                    return status
            self._forget_pidfd()
        if self._start_time is not None and start_time(self.pid) not in (self._start_time, None):
            raise ChildProcessError
        return os.waitid(os.P_PID, self.pid, os.WEXITED | options)

    def _forget_pidfd(self) -> None:
        """Drop a pidfd that the program has closed.

        Its number may name another file, so it is not closed again.
        """
        self._pidfd = None
        self._start_time = start_time(self.pid)

    @contextlib.contextmanager
    def _kept_pidfd(self) -> Iterator[int | None]:
        """Keep the pidfd open during a wait. None means that the process has none.

        If the process is reaped during the wait, the waiter closes the descriptor. Closing it
        earlier would end the wait with an error, and a wait in another thread would not end at all.
        """
        with self._lock:
            self._waiting += 1
            pidfd = self._awaited()
        try:
            yield pidfd
        finally:
            with self._lock:
                self._waiting -= 1
                if self.ended:
                    self._close_pidfd()

    def _awaited(self) -> int | None:
        """Return the descriptor to wait for. None means that the process has none."""
        return self._pidfd

    def _close_pidfd(self) -> None:
        if self._waiting == 0 and self._pidfd is not None:
            # Clear the attribute first: a fork by another thread in between must not close a reused
            # number.
            pidfd, self._pidfd = self._pidfd, None
            os.close(pidfd)

    def _signal(self, number: int) -> None:
        # PermissionError: the process or this program has just changed its user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._send_signal(number)

    def _send_signal(self, number: int) -> None:
        send_signal(self.pid, self._pidfd, number)

    def _wait_unreaped(self) -> None:
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass

    def __repr__(self) -> str:
        state = "running" if not self.ended else f"exitcode {self._exitcode}"
        return f"<WorkerProcess pid {self.pid}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _ended_process, (self.pid, self.exitcode)


class _Unended:
    """Processes that this program could not end. They are reaped when others are started."""

    def __init__(self) -> None:
        self._processes: list[WorkerProcess] = []

    def leave(self, process: WorkerProcess) -> None:
        if process not in self._processes:
            logger.error(
                "process %s could not be killed: this program (effective user %s) has fewer privileges now than when it started "
                "the process. The process did not exit within %s seconds",
                process.pid,
                os.geteuid(),
                _REFUSED_TIMEOUT,
            )
            self._processes.append(process)

    def reap(self) -> None:
        """Reap the processes that have ended."""
        if self._processes:
            self._processes = [process for process in self._processes if not process.poll()]


def _no_limit() -> trio.CapacityLimiter:
    """Return a limiter for a thread that only waits, so it does not take a token of the user's."""
    return trio.CapacityLimiter(1)


def _ended_process(pid: int, exitcode: int | None) -> WorkerProcess:
    """Unpickle a WorkerProcess as a record that has ended."""
    process = WorkerProcess(pid, None)
    process.ended = True
    process._exitcode = exitcode
    return process


unended: Final = _Unended()
hold_reserve()
