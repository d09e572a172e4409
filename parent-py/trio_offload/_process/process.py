"""One worker process: start it, wait for it, end it together with what it started, reap it once.

What this module guarantees:

* Only a :class:`WorkerProcess` signals or reaps its process, under its lock. Once reaped it is never signalled again:
  the kernel may have given its number to somebody else. Nobody who asks waits for that lock, because a signal handler may ask
  in the middle of a kill in the same thread: the holder does what others have wanted meanwhile.
* Where there are pidfds (Linux 5.3), the process is named by one; a number is used only where there are none. Neither is believed
  to be still what it was: what a pidfd names is looked at before anything is done to that, and a number has to belong to a
  process that was started when ours was. A foreign waitpid(-1) may have reaped ours, and a program may close what it has not opened.
* While a socket pair is being handed to a new process no :func:`os.fork` happens in this one. Otherwise the copy would
  hold the worker's end open, and the worker's death would not be the end of the stream. (A fork in C that does not run
  Python's fork hooks is beyond this.)
* A fork of this process inherits no worker: its copies of the descriptors are closed in the child.
* A worker that a template forks is a child of this process too, and all of the above is true of it, also while nobody wants it
  yet. It is known by a pipe until it has told its number; one that is to be ended before that is ended as soon as it has.
* A process is ended with its descendants, which are found by the mark that they inherit from it (``_family.py``). It is
  stopped first, so that it cannot start another meanwhile, and killed last; the kernel resumes it if this process ends in
  between. Of one that has ended otherwise than in order, what it has left is looked for and ended when it is reaped.
* A program that has given up privileges may not signal the workers that it has started before. Their connection is closed
  instead: their native thread, which has kept the privileges, ends them with their descendants. That is waited for, but not for ever.
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

from trio_offload_worker._descriptors import identity_of
from trio_offload_worker._family import (
    boot_time,
    end_family,
    end_orphans,
    hold_reserve,
    stat_fields,
)

from .. import _clock


class WorkerProcess:
    """A worker's process. What the public sees of it: ``pid``, ``exitcode``, ``signal``, ``is_alive()``.

    It may be pickled; the copy is a record of how the process was at that moment.
    """

    def __init__(self, pid: int, pidfd: int | None, since: int | None = None) -> None:
        self.pid = pid
        # A moment before its start: with the number that makes the mark which its descendants have.
        self._since = boot_time() if since is None else since
        self._pidfd = pidfd
        self._pidfd_identity = None if pidfd is None else identity_of(pidfd)
        # By which a number is known to be still that of the same process.
        self._start_time = None if pidfd is not None or pid == 0 else start_time(pid)
        self._lock = threading.Lock()
        self._waiting = 0
        # Whether the process has ended and was reaped. To be read by others, written here only.
        self.ended = False
        self._exitcode: int | None = None
        # Whether this process was killed by us, and not found dead.
        self.killed = False
        # Whether somebody wants it killed and nobody has begun to.
        self._condemned = False
        # Our end of its socket: where signals are not permitted, the end of that ends it.
        self.line: socket.socket | None = None
        # When a process that may not be signalled is given up, on the clock of time.monotonic().
        self._refused_until: float | None = None
        # Whether it has said that it leaves, or was asked to. What its jobs have left to live on then lives on.
        self.dismissed = False

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
    def is_known(self) -> bool:
        """Whether its number is known."""
        return True

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return not self.poll()

    def poll(self) -> bool:
        """Reap the process if it has ended; whether it has."""
        self._attend()
        return self.ended

    async def wait(self) -> None:
        """Wait until the process has ended, and reap it. One task at a time; anybody may :meth:`poll` meanwhile."""
        while not self.poll():
            if self._refused_until is not None:
                # By the real clock, which a thread has whatever clock Trio has.
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
                    # No thread is to be had. Looked at now and then, it is seen a little later.
                    await _clock.sleep(_WITHOUT_THREAD)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def wait_sync(self, deadline: float) -> bool:
        """Wait, blocking, until the process has ended or ``time.monotonic()`` passes ``deadline``; whether it has ended."""
        longest = _LONGEST_POLL
        while not self.poll():
            if self._refused_until is not None:
                deadline = min(deadline, self._refused_until)
                longest = _REFUSED_PAUSE
                # Again and again: it may have been stopped since, and this program may be permitted to signal it by now.
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
                time.sleep(min(left, 0.01))
        return True

    def kill(self) -> None:
        """End the process and all its descendants with SIGKILL. Wait for it afterwards. May be done again.

        If another thread is just looking at it, or the frame below a signal handler, that one does it.
        """
        self._condemned = True
        self._attend()

    def abandon(self) -> None:
        """Forget the process without a word to it: in a fork of this process it is not ours."""
        # Another thread may have held the lock, or waited, at the moment of the fork; neither is there any more.
        self._lock = threading.Lock()
        self._waiting = 0
        self.ended = True
        if self._pidfd is not None and identity_of(self._pidfd) != self._pidfd_identity:
            # Somebody has closed it.
            self._pidfd = None
        self._close_pidfd()

    def _attend(self) -> None:
        """Reap the process if it has ended, else kill it if somebody wants that."""
        while not self.ended and self._lock.acquire(blocking=False):
            try:
                if not self._reap(os.WNOHANG) and self._condemned:
                    self._condemned = False
                    self._kill()
            finally:
                self._lock.release()
            # In this order: who asks for a kill asks first, and tries the lock then.
            if not self._condemned:
                break

    def _kill(self) -> None:
        self.killed = True
        self._end_family()

    def _end_family(self) -> None:
        if self._pidfd is not None and not _names(self._pidfd, self.pid):
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
        """Have the process end itself, as this program may not signal it."""
        if self._refused_until is None:
            self._refused_until = time.monotonic() + _REFUSED_PATIENCE
        if self.line is not None:
            with contextlib.suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)
        # This one is permitted within a session (kill(2)). A stopped process would not notice the end of its connection.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._send_signal(signal.SIGCONT)

    def _reap(self, options: int) -> bool:
        if self.ended:
            return True
        try:
            if self._look(os.WNOWAIT | options) is None:
                return False
            if self.killed:
                # Its last thread may not be through yet, and want this very processor. To reap it then takes up to four milliseconds, as
                # a trace of the scheduler shows: waitid(2) waits for that thread without giving way, until the next tick. (Probably
                # where release_task, in kernel/exit.c, drops what /proc keeps of a process that somebody has looked at there.)
                time.sleep(_LAST_THREAD)
            status = self._look(options)
        except ChildProcessError:
            # SIGCHLD is ignored, or a foreign waitpid(-1) took the status: it has ended, but how will never be known.
            # On 5.3 kernels and with SIGCHLD ignored this error comes only once the process is gone (wait(2)).
            pass
        else:
            if status is None:
                return False
            self._exitcode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        if not self.killed and not (self.dismissed and self._exitcode in _ENDS_IN_ORDER):
            end_orphans(self.pid, self._since)
        # At last: others read without the lock.
        self.ended = True
        self._close_pidfd()
        return True

    def _look(self, options: int) -> os.waitid_result | None:
        """:func:`os.waitid` for this process, by whatever names it still.

        Raises:
            ChildProcessError: there is no such child any more.
        """
        while self._pidfd is not None:
            try:
                status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | options)
            except OSError as error:
                # Either the process was reaped by somebody else, or this is no pidfd of it any more.
                if isinstance(error, ChildProcessError) and _names(self._pidfd, self.pid):
                    raise
            else:
                if status is None or status.si_pid == self.pid:
                    return status
            self._forget_pidfd()
        if self._start_time is not None and start_time(self.pid) not in (self._start_time, None):
            raise ChildProcessError
        return os.waitid(os.P_PID, self.pid, os.WEXITED | options)

    def _forget_pidfd(self) -> None:
        """Somebody has closed it, and it may be another's by now: it is not closed a second time."""
        self._pidfd = None
        self._start_time = start_time(self.pid)

    @contextlib.contextmanager
    def _kept_pidfd(self) -> Iterator[int | None]:
        """The pidfd, to wait for; None if there is none.

        Whoever reaps the process meanwhile leaves the closing to who waits: a descriptor that is closed under a wait
        ends it with an error, and in another thread not at all.
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
        """The descriptor that becomes readable when there is news; None: there is none."""
        return self._pidfd

    def _close_pidfd(self) -> None:
        if self._waiting == 0 and self._pidfd is not None:
            # In this order: a fork by another thread in between must not close the number in its copy, where it is something else's.
            pidfd, self._pidfd = self._pidfd, None
            os.close(pidfd)

    def _signal(self, number: int) -> None:
        # Not permitted: it has become a program of another user, or this one has given up privileges, at this very moment.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._send_signal(number)

    def _send_signal(self, number: int) -> None:
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, number)
        else:
            os.kill(self.pid, number)

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
    """Processes that this program could not end. They are reaped when they have ended, as others are started."""

    def __init__(self) -> None:
        self._processes: list[WorkerProcess] = []

    def leave(self, process: WorkerProcess) -> None:
        if process not in self._processes:
            logger.error(
                "process %s could not be ended: this program (effective user %s) has fewer privileges now than when it started it, "
                "and the process did not end by itself within %s seconds",
                process.pid,
                os.geteuid(),
                _REFUSED_PATIENCE,
            )
            self._processes.append(process)

    def reap(self) -> None:
        """Reap those that have ended."""
        if self._processes:
            self._processes = [process for process in self._processes if not process.poll()]


logger: Final = logging.getLogger("trio_offload")
hold_reserve()
unended: Final = _Unended()
_REFUSED_PATIENCE: Final = 5.0  # seconds
_REFUSED_PAUSE: Final = 0.1  # seconds
# Of one that was to leave; 120 is Python's own, for output that could not be written. None: how it ended is not known.
_ENDS_IN_ORDER: Final = (0, 120, None)
_LAST_THREAD: Final = 0.00001  # seconds; the system makes some 60 microseconds of it (PR_SET_TIMERSLACK in prctl(2))
_WITHOUT_THREAD: Final = 0.01  # seconds
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) takes an int of milliseconds


def start_time(pid: int) -> bytes | None:
    """When a process was started, in the kernel's own measure; None: there is no such process, or nothing tells."""
    fields = stat_fields(pid)
    # The 22nd of proc(5), of which these are those from the third on.
    return None if fields is None else fields[19]


def _names(pidfd: int, pid: int) -> bool:
    """Whether a descriptor is a pidfd of this process, be it one that has been reaped; also where nothing tells."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            told = file.read()
    except FileNotFoundError:
        return not os.path.exists("/proc/self/fdinfo")
    except OSError:
        # No descriptor is left to find out.
        return True
    fields = dict(line.split(b":\t", 1) for line in told.splitlines() if b":\t" in line)
    # Those of all namespaces, with that of the reader's /proc first; -1 of one that is gone.
    return b"Pid" in fields and {b"-1", b"%d" % pid} & {fields[b"Pid"], *fields.get(b"NSpid", b"").split()} != set()


def _no_limit() -> trio.CapacityLimiter:
    """A limiter for a thread that only waits: it must not take a place from the user's threads."""
    return trio.CapacityLimiter(1)


def _ended_process(pid: int, exitcode: int | None) -> WorkerProcess:
    """What a pickled WorkerProcess becomes: a record that nothing can be done with."""
    process = WorkerProcess(pid, None)
    process.ended = True
    process._exitcode = exitcode
    return process
