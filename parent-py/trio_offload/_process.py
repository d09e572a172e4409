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
import errno
import fcntl
import functools
import logging
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import trio

from trio_offload_worker._descriptors import identity_of
from trio_offload_worker._family import (
    boot_time,
    end_family,
    end_orphans,
    hold_reserve,
    is_marked,
    is_told,
    open_pidfd,
    stat_fields,
)

from . import _clock
from ._oom import OomKills
from ._record import RecordFile
from ._transport.sockets import socket_pair

WORKER_DESCRIPTOR: Final = 3
_RECORD_DESCRIPTOR: Final = 4


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
        self._start_time = None if pidfd is not None or pid == 0 else _start_time(pid)
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
                    _unended.leave(self)
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
        if self._start_time is not None and _start_time(self.pid) not in (self._start_time, None):
            raise ChildProcessError
        return os.waitid(os.P_PID, self.pid, os.WEXITED | options)

    def _forget_pidfd(self) -> None:
        """Somebody has closed it, and it may be another's by now: it is not closed a second time."""
        self._pidfd = None
        self._start_time = _start_time(self.pid)

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


class ForkedProcess(WorkerProcess):
    """A process that a template was asked for. Until it is there, ``pid`` is 0, and it runs as far as anybody can tell.

    The first thing that it does is to write its number into a pipe. At the end of the pipe without a number the record has it if the
    process was killed before it could write. Otherwise there never will be such a process: the template has died, or could not
    fork.
    """

    def __init__(self, birth: int, template: WorkerProcess, record: RecordFile) -> None:
        super().__init__(0, None)
        self._birth = birth
        self._template = template
        self._record = record

    @property
    def is_known(self) -> bool:
        """Whether it has told its number. It has when anything else is heard of it."""
        return self.note_birth()

    def note_birth(self) -> bool:
        """Take in its number if it has told it; whether it has."""
        with self._lock:
            return self.pid != 0 or (not self.ended and self._is_born())

    async def wait(self) -> None:
        if self.killed and self.pid == 0 and not self.poll():
            with _clock.move_on_after(_BIRTH_PATIENCE), self._kept_pidfd() as birth:
                if birth is not None:
                    await trio.lowlevel.wait_readable(birth)
            self._end_mute_template()
        await super().wait()

    def wait_sync(self, deadline: float) -> bool:
        if self.killed and self.pid == 0:
            if super().wait_sync(min(deadline, time.monotonic() + _BIRTH_PATIENCE)):
                return True
            self._end_mute_template()
        return super().wait_sync(deadline)

    def _kill(self) -> None:
        self.killed = True
        if self.pid != 0:
            self._end_family()

    def _end_mute_template(self) -> None:
        """A template that does not get round to a request (it is stopped, say) would be waited for without end."""
        if not self.poll() and self.pid == 0:
            self._template.kill()

    def _reap(self, options: int) -> bool:
        if self.pid == 0 and not self.ended and not self._is_born():
            return self.ended
        return super()._reap(options)

    def _is_born(self) -> bool:
        try:
            number = os.read(self._birth, 4)
        except BlockingIOError:
            return False
        pid = int.from_bytes(number, "big") if len(number) == 4 else self._record.number_of_newborn()
        if pid == 0:
            self.ended = True
            self._close_pidfd()
            return False
        self.pid = pid
        # It is our child, and nobody but us reaps it: the number is its own.
        # In this order: there may be no other descriptor left.
        self._close_birth()
        self._pidfd = open_pidfd(self.pid)
        if self._pidfd is None:
            self._start_time = _start_time(self.pid)
        else:
            self._pidfd_identity = identity_of(self._pidfd)
        if self.killed:
            self._end_family()
        return True

    def _awaited(self) -> int | None:
        return self._pidfd if self.pid != 0 else self._birth if self._birth != -1 else None

    def _close_pidfd(self) -> None:
        super()._close_pidfd()
        self._close_birth()

    def _close_birth(self) -> None:
        if self._waiting == 0 and self._birth != -1:
            birth, self._birth = self._birth, -1
            os.close(birth)


class Lines:
    """What leads to a process that a template is asked for: its socket, its record, and the pipe through which its number comes.

    The process may be asked for long before there is anything to tell it. Then ``oom_kills`` has been counted already: it is what
    takes longest of all that the parent does for a start.
    """

    def __init__(self, template: WorkerProcess, oom_kills: OomKills | None = None) -> None:
        self.oom_kills: Final = oom_kills
        with no_forks, contextlib.ExitStack() as made:
            self.ours, self.theirs = socket_pair()
            made.callback(self.ours.close)
            made.callback(self.theirs.close)
            self.record = RecordFile()
            made.callback(self.record.close)
            birth, self.written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.process = ForkedProcess(birth, template, self.record)
            self.process.line = self.ours
            made.pop_all()
            no_forks.register(self.process, self.ours, self.record, self)

    def ask(self, send: Callable[[list[int]], bool]) -> bool:
        """Ask for the process; false: that cannot be done at this moment, and there will be none.

        ``send`` is called with the template's ends in the order of PROTOCOL.md, and says whether it has sent them.
        """
        asked = False
        try:
            with no_forks:
                asked = send([self.theirs.fileno(), self.record.fileno(), self.written])
                if asked:
                    self._pass_on()
        finally:
            if not asked:
                self.close()
        return asked

    def _pass_on(self) -> None:
        """The template has its end of all: it is closed here."""
        with no_forks:
            self.theirs.close()
            if self.written != -1:
                written, self.written = self.written, -1
                os.close(written)

    def close(self) -> None:
        """There will be no such process, or it is not ours: this is a fork of the program."""
        with no_forks:
            self._pass_on()
            self.ours.close()
            self.record.close()
            self.process.abandon()


def tell_what_does_not_hold(worker: int) -> None:
    """Say in the log, at the first worker of this program, what cannot be guaranteed on this system."""
    global _has_looked
    if _has_looked:
        return
    _has_looked = True
    if not is_told():
        logger.warning(
            "/proc cannot be read here: the memory of workers is not known, memory_limit is refused, and of what a job has started "
            "only processes whose numbers are near the worker's are ended with it"
        )
    if not is_marked(worker):
        logger.warning(
            "worker %s could not mark itself, because this system does not let it set RLIMIT_LOCKS: a process that a job has started "
            "and that has lost its parent may outlive the worker, and does if the worker is killed by somebody else or crashes",
            worker,
        )


_has_looked = False


@contextlib.contextmanager
def surroundings() -> Iterator[tuple[list[int], int | None]]:
    """What a forked worker takes over from this process as it is now: the numbers of the standard streams that are open, and a
    descriptor of the working directory, which is closed afterwards.

    Raises:
        OSError: there are no more descriptors.
    """
    directory = _open_directory()
    try:
        yield [number for number in range(3) if _is_inherited(number)], directory
    finally:
        if directory is not None:
            os.close(directory)


def _is_inherited(descriptor: int) -> bool:
    """Where a program has closed a standard stream, its number may be that of anything."""
    try:
        return not fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def _open_directory() -> int | None:
    """The working directory itself: its name may lead nowhere by now, or be one that may not be entered.

    Raises:
        OSError: there are no more descriptors.
    """
    for path in (".", "/proc/self/cwd"):
        try:
            return os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # Else the worker would be somewhere else, without a word.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
    return None


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
    since = boot_time()
    with no_forks:
        _unended.reap()
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
                executable_command(executable) if argv is None else argv,
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
        process = WorkerProcess(pid, open_pidfd(pid), since)
        process.line = ours
        no_forks.register(process, ours, record)
    return process, ours, record


def executable_command(executable: str, *label: str) -> list[str]:
    """The command line of the worker executable. The label is for those who look at a list of processes."""
    return [os.path.basename(executable), "serve", str(WORKER_DESCRIPTOR), str(_RECORD_DESCRIPTOR), *label]


def fork(child: Callable[[int, int], NoReturn]) -> tuple[WorkerProcess, socket.socket, RecordFile]:
    """Fork this process, and call ``child`` in the copy with the descriptors of its socket and its record; as :func:`start` here.

    The hooks of :func:`os.register_at_fork` are called. By then none of the copy's descriptors leads to another worker.

    Raises:
        OSError, RuntimeError: the system, or Python, does not allow a fork.
    """
    since = boot_time()
    with no_forks:
        _unended.reap()
        ours, theirs = socket_pair()
        record = None
        kept: list[int] = []
        try:
            record = RecordFile()
            # Where this program has closed a standard stream, a new descriptor would have its number.
            kept.append(_copy_above(theirs))
            kept.append(_copy_above(record))
            pid = os.fork()
            if pid == 0:
                try:
                    no_forks.leave_in_copy()
                    for file in (ours, theirs, record):
                        file.close()
                    child(*kept)
                finally:
                    # Whatever has happened: what is on the stack below is the parent's.
                    os._exit(1)
        except BaseException:
            ours.close()
            if record is not None:
                record.close()
            raise
        finally:
            theirs.close()
            for descriptor in kept:
                os.close(descriptor)
        process = WorkerProcess(pid, open_pidfd(pid), since)
        process.line = ours
        no_forks.register(process, ours, record)
    return process, ours, record


def _copy_above(file: socket.socket | RecordFile) -> int:
    return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _RECORD_DESCRIPTOR + 1)


class _Handover:
    """Keeps forks of this process away from the workers; see the module's guarantees."""

    def __init__(self) -> None:
        # Re-entrant, because a signal handler that forks may run inside the critical section.
        self._lock = threading.RLock()
        self._processes: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()
        self._files: weakref.WeakSet[socket.socket | RecordFile | Lines] = weakref.WeakSet()
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._in_child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def leave_in_copy(self) -> None:
        """In a fork that was made inside: whoever runs there may start workers of its own."""
        self._lock.release()

    def register(self, process: WorkerProcess, *files: socket.socket | RecordFile | Lines) -> None:
        self._processes.add(process)
        self._files.update(files)

    def _in_child(self) -> None:
        try:
            for process in self._processes:
                # What somebody has closed under us must not keep the others open.
                with contextlib.suppress(OSError):
                    process.abandon()
            for file in self._files:
                with contextlib.suppress(OSError):
                    file.close()
            self._processes.clear()
            self._files.clear()
        finally:
            self._lock.release()


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
no_forks: Final = _Handover()
hold_reserve()
_unended: Final = _Unended()
_REFUSED_PATIENCE: Final = 5.0  # seconds
_REFUSED_PAUSE: Final = 0.1  # seconds
_BIRTH_PATIENCE: Final = (
    5.0  # seconds until a template that has not forked a worker is given up; a thousand times what it takes
)
# Of one that was to leave; 120 is Python's own, for output that could not be written. None: how it ended is not known.
_ENDS_IN_ORDER: Final = (0, 120, None)
_LAST_THREAD: Final = 0.00001  # seconds; the system makes some 60 microseconds of it (PR_SET_TIMERSLACK in prctl(2))
_WITHOUT_THREAD: Final = 0.01  # seconds
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) takes an int of milliseconds


def _start_time(pid: int) -> bytes | None:
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
