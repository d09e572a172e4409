"""The watcher: what the native thread is to the worker executable, a small process is to the loop.

It watches the parent while a job runs, also one that never lets go of the GIL, and ends the worker with all its
descendants when the parent has ended or given it up, or when a job holds more memory than it may. It sends the reports.
No thread of Python's could do that. How it stays out of the way:

* It is forked off before anything else is imported, so it is small, and shares nearly all of its memory. (Beside a worker that
  is a fork of its parent it is as large as that, and shares that memory too. It never collects garbage, which would copy all
  of it, and be the parent's garbage.)
* It is made with clone(2) and another signal for its end than SIGCHLD. The kernel keeps such a child from every ``wait`` that
  does not ask for it (wait(2), ``__WCLONE``): ``os.wait()`` in a job does not see it. It still is the worker's child, so the
  parent finds it, by a mark of its own (``_family.py``), and kills it last. To fork twice instead would leave it to whoever
  reaps orphans, and that may be the program itself, as the first process of a container: one zombie for each worker.
  Where clone cannot be called it is forked twice all the same.
* It does not hold the socket, which would keep the worker's death from being the end of the stream. It holds an epoll
  instance that the socket was registered with: the registration lasts as long as the worker's own descriptor and does not
  keep it open (epoll(7)). For a report it borrows the worker's descriptor for a moment (pidfd_getfd(2)); where that is not
  allowed there are no reports, and the figures come with the results only.
* It ends when the worker ends, which a pidfd tells, and ends what that has left before, unless it left in order. A worker that
  ends in order ends the watcher first, and reaps it.

What the two know of each other stands in memory that they share: what the worker is doing, whether the watcher is
writing to the socket or asleep, and what SETUP asks of it. Each tells first and looks then, with a system call between
the two (which orders them for the processor), so one of them always sees the other.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import sys
import time

from . import _family
from ._descriptors import identity_of
from ._family import end_family, end_orphans, open_pidfd, stat_fields
from ._figures import Meter, family_above

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, Final, NoReturn
else:
    import _signal

WAITING: Final = 0
"""The worker waits for its parent's next word: it will see the end of the stream itself."""
BUSY: Final = 1
"""It runs a job and sees nothing."""
LEAVING: Final = 2
"""It is on its way out; the parent may close its end now without that meaning anything."""

SETTLING: Final = 3
"""It runs what the user has for between two jobs: it sees nothing either, but no job runs that could take too much."""

_BLIND: Final = (BUSY, SETTLING)

GRACE: Final = 0.5  # seconds that an idle worker has for leaving after its parent's death


STACKS: Final = getattr(_signal, "SIGSTKFLT", 16)
"""Asks the worker for the stacks of its threads; one that nothing else sends (signal(7): «unused»)."""


class Watcher:
    """The worker's side of it."""

    def __init__(self, pid: int | None, memory: mmap.mmap, bell: int) -> None:
        self._pid = pid
        self._memory = memory
        self._bell = bell
        self._bell_identity = identity_of(bell)
        self._jobs = 0
        self._has_ceiling = False

    def tell(self, doing: int) -> None:
        """Say what the worker is doing from now on.

        If the watcher has settled that the job before is ended for its memory this does not come back.
        """
        memory = self._memory
        if doing == BUSY:
            self._jobs += 1
            _JOBS.pack_into(memory, _JOBS_AT, self._jobs)
        memory[_DOING] = doing
        if doing == BUSY:
            if memory[_ASLEEP]:
                self._ring()
        elif self._has_ceiling:
            os.getppid()  # The system call between telling and looking.
            if memory[_SEALED]:
                self._await_verdict()

    def assign(self, report_interval: int | None, memory_limit: int | None) -> None:
        """What SETUP asks: milliseconds between two reports of a running job, and bytes that it may hold."""
        values = [_NONE if value is None else min(value, _NONE - 1) for value in (report_interval, memory_limit)]
        _DUTY.pack_into(self._memory, _DUTY_AT, *values)
        self._has_ceiling = memory_limit is not None
        self._ring()

    def let_finish(self) -> None:
        """Wait until the watcher does not write to the socket. It begins with nothing unless the worker is busy."""
        deadline = 0.0
        while self._memory[_WRITING]:
            # It takes microseconds; but a job may have stopped it, or killed it.
            deadline = deadline or time.monotonic() + _WRITING_PATIENCE
            if time.monotonic() > deadline:
                return
            time.sleep(0)

    def dismiss(self) -> None:
        """End the watcher, and reap it where it is a child of this process. The last thing that a worker does."""
        if self._pid is not None:
            try:
                os.kill(self._pid, _signal.SIGKILL)
                os.waitpid(self._pid, _WALL)
            except OSError:
                pass  # A job has ended it, and perhaps waited for it.
            self._pid = None

    def close_in_copy(self) -> None:
        """In a fork of this process."""
        if identity_of(self._bell) == self._bell_identity:
            os.close(self._bell)

    def _await_verdict(self) -> None:
        """The watcher looks whether the job is over that took too much."""
        # Unless it is ended itself at that very moment it ends this process, or takes its word back at once.
        deadline = time.monotonic() + _VERDICT_PATIENCE
        while self._memory[_SEALED] and time.monotonic() < deadline:
            time.sleep(0.0001)

    def _ring(self) -> None:
        self._memory[_ASLEEP] = 0
        # A job may have closed every descriptor and opened files of its own.
        if identity_of(self._bell) == self._bell_identity:
            try:
                os.write(self._bell, b"!")
            except OSError:
                pass


def start(socket: int, record: int, parent: int) -> Watcher:
    """Start the watcher of this process, whose parent has the process id ``parent``, the other end of ``socket`` and ``record``.

    To be called while there is one thread as far as possible, and before :func:`begin_life`.

    Raises:
        OSError: the system has no process, or no descriptor, to spare.
    """
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    _DUTY.pack_into(memory, _DUTY_AT, _NONE, _NONE)
    memory[_ASLEEP] = 1
    listener, bell = os.pipe()
    worker = os.getpid()
    since = _family.boot_time()
    pid = _clone()
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
            return Watcher(None, memory, bell)
    if pid == 0:
        try:
            _family.mark_self(_family.new_mark(worker, is_watcher=True))
            _Watch(_Life(parent), _Life(worker), since, socket, record, listener, memory).run()
        finally:
            os._exit(1)
    os.close(listener)
    # Where a process may be looked into by those above it only (Yama), this one is allowed to.
    call_library("prctl", _PR_SET_PTRACER, pid, 0, 0, 0)
    return Watcher(pid, memory, bell)


def begin_life() -> None:
    """To be called at the beginning of a process that is to run jobs, once its watcher is there. (``family::begin`` in Rust.)"""
    # Stopped by a parent that is killed before it can go on, this process is resumed, and its watcher ends it.
    call_library("prctl", _PR_SET_PDEATHSIG, int(_signal.SIGCONT), 0, 0, 0)
    if not _mark_self(_family.new_mark(os.getpid())):
        # Let orphaned descendants fall to this process, so that they can be found. Without `_ctypes` they cannot.
        call_library("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _mark_self(mark: int) -> bool:
    """As ``_family.mark_self``, without a module that jobs would find imported."""
    try:
        import _ctypes
    except ImportError:
        return _family.mark_self(mark)
    core: Any = _ctypes
    number = type("number", (core._SimpleCData,), {"_type_": "L"})
    limits: Any = type("limits", (core.Array,), {"_type_": number, "_length_": 2})()
    if call_library("getrlimit", _family.LIMIT, limits) != 0 or limits[1] < mark:
        return False
    limits[0] = mark
    return call_library("setrlimit", _family.LIMIT, limits) == 0


_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_PTRACER: Final = 0x59616D61
_PIDFD_GETFD: Final = 438  # of the system's table; the same for every processor
_WALL: Final = 0x40000000  # __WALL of wait(2)
# The number of clone in the system's table, where no argument may be mistaken for another (all are zero).
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
# The places in the shared memory.
_DOING: Final = 0
_WRITING: Final = 1
_ASLEEP: Final = 2
_SEALED: Final = 3
_DUTY_AT: Final = 8
_DUTY: Final = struct.Struct("=QQ")
_JOBS_AT: Final = 24
_JOBS: Final = struct.Struct("=Q")
_NONE: Final = 2**64 - 1

_CEILING_TICK: Final = 0.1  # seconds between two looks at what a job holds
_WRITING_PATIENCE: Final = 0.05  # seconds
_VERDICT_PATIENCE: Final = 5.0  # seconds
_STACK_PATIENCE: Final = 0.15  # seconds that the stacks of all threads may take to be written
_STACK_SETTLED: Final = 0.015  # seconds without growth after which they are whole
_WITHOUT_PIDFD: Final = 0.2  # seconds between two looks where the system cannot tell of a process's end


def _clone() -> int | None:
    """Fork a child of which no wait tells, and no SIGCHLD; None if that cannot be done here."""
    number = _CLONE.get(os.uname().machine) if sys.maxsize > 2**32 else None
    if number is None:
        return None
    # Told of its end by SIGCONT, this process goes on if the watcher is killed after it has stopped it.
    pid = call_library("syscall", number, int(_signal.SIGCONT), 0, 0, 0, 0)
    return pid if pid is not None and pid >= 0 else None


def call_library(name: str, *arguments: Any, keep_gil: bool = True) -> int | None:
    """A function of the C library; None where there is no ``_ctypes``. The package ``ctypes`` around it is not needed.

    Called without the GIL, a clone could be made while another thread holds it, and in the copy nobody would ever give it back.
    """
    try:
        import _ctypes
    except ImportError:
        return None
    core: Any = _ctypes
    function = _kinds_of_function.get(keep_gil)
    if function is None:
        # Once for all: a class is eight kilobytes, and most of that ctypes never gives back.
        number = type("number", (core._SimpleCData,), {"_type_": "l"})
        flags = core.FUNCFLAG_CDECL | (core.FUNCFLAG_PYTHONAPI if keep_gil else 0)
        function = type("function", (core.CFuncPtr,), {"_flags_": flags, "_restype_": number})
        _kinds_of_function[keep_gil] = function
    result: int = function(core.dlsym(core.dlopen(None, 0), name))(*arguments)
    return result


_kinds_of_function: dict[bool, Any] = {}


class _Life:
    """Whether a process lives: by a pidfd, or where there is none by its number and the time of its start."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = open_pidfd(pid)
        self._start = self._started() if self.pidfd is None else None

    def is_over(self) -> bool:
        """Only where there is no pidfd."""
        return self.pidfd is None and (self._start is None or self._started() != self._start)

    def signal(self, number: int) -> None:
        try:
            if self.pidfd is not None:
                _signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def _started(self) -> bytes | None:
        # The 22nd field is the time of the start. A zombie has ended.
        fields = stat_fields(self.pid)
        return None if fields is None or fields[0] in (b"Z", b"X") else fields[19]


class _Watch:
    """The watcher's own process."""

    def __init__(
        self, parent: _Life, worker: _Life, since: int, socket: int, record: int, listener: int, memory: mmap.mmap
    ) -> None:
        # Ctrl+C and the like are for the worker, and a Ctrl+Z at the terminal must not keep this process from its work.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        import gc

        gc.disable()
        # Before the worker marks itself.
        self._since = since
        self._parent = parent
        self._worker = worker
        self._socket = socket
        self._socket_identity = identity_of(socket)
        self._record = record
        self._listener = listener
        self._memory = memory
        self._meter = Meter(worker.pid)
        self._next_tick: float | None = None
        self._reported = 0.0
        self._poller = select.epoll()
        # Once is enough: the socket's other end does not come back.
        self._poller.register(socket, select.EPOLLRDHUP | select.EPOLLONESHOT)
        for descriptor in (parent.pidfd, worker.pidfd, listener):
            if descriptor is not None:
                self._poller.register(descriptor, select.EPOLLIN)
        _let_go_of_everything({self._poller.fileno(), parent.pidfd, worker.pidfd, record, listener})
        # Last: who knows the name may rely on the rest.
        with open("/proc/self/comm", "w") as name:
            name.write("offload-watcher")

    def run(self) -> NoReturn:
        parent, worker = self._parent, self._worker
        until_look = None if parent.pidfd is not None and worker.pidfd is not None else _WITHOUT_PIDFD
        while True:
            timeout = until_look
            if self._next_tick is not None:
                until_tick = max(self._next_tick - time.monotonic(), 0.0)
                timeout = until_tick if until_look is None else min(until_tick, until_look)
            seen = [descriptor for descriptor, _ in self._poller.poll(timeout)]
            if worker.pidfd in seen or worker.is_over():
                self._end_orphans()
            if parent.pidfd in seen or parent.is_over():
                self._end_orphan()
            if self._socket in seen and self._memory[_DOING] in _BLIND:
                # The parent lives but has given this worker up while a job runs.
                self._end()
            if self._listener in seen:
                self._answer_bell()
            if self._next_tick is not None and self._next_tick <= time.monotonic():
                self._tick()

    def _answer_bell(self) -> None:
        if not os.read(self._listener, 64):
            # A job has closed the other end. From now on this process never sleeps.
            self._poller.unregister(self._listener)
            os.close(self._listener)
            self._listener = -1
        if self._next_tick is None:
            interval = self._interval()
            now = time.monotonic()
            self._next_tick = None if interval is None else now + interval
            self._reported = now

    def _interval(self) -> float | None:
        """None: there is nothing to do at any time."""
        report, limit = _DUTY.unpack_from(self._memory, _DUTY_AT)
        intervals = [report / 1000] if report != _NONE else []
        return min(intervals + ([_CEILING_TICK] if limit != _NONE else []), default=None)

    def _tick(self) -> None:
        interval = self._interval() or _CEILING_TICK
        now = time.monotonic()
        self._next_tick = now + max(interval, 0.001)
        memory = self._memory
        if memory[_DOING] == BUSY:
            self._look(now, interval)
        elif self._listener != -1:
            memory[_ASLEEP] = 1
            os.getppid()  # The system call between telling and looking.
            if memory[_DOING] != BUSY:
                self._next_tick = None
            else:
                memory[_ASLEEP] = 0

    def _look(self, now: float, interval: float) -> None:
        report, limit = _DUTY.unpack_from(self._memory, _DUTY_AT)
        if limit != _NONE:
            job = _JOBS.unpack_from(self._memory, _JOBS_AT)
            reached = family_above(self._worker.pid, limit, self._since, {os.getpid()})
            if reached is not None and self._seal(job):
                self._tell_of_limit(limit, reached)
                self._end()
        # A tick early is better than a tick late: the interval is a multiple of the tick or the tick itself.
        if report != _NONE and now - self._reported + min(interval, _CEILING_TICK) / 2 >= report / 1000:
            self._reported = now
            figures = self._meter.read()
            if figures is not None:
                self._report(figures)

    def _seal(self, job: tuple[int, ...]) -> bool:
        """Settle that the worker is ended for the job of this number; False: that has come to its end.

        Sealed, the worker goes no further than to the end of the job.
        """
        memory = self._memory
        memory[_SEALED] = 1
        os.getppid()  # The system call between telling and looking.
        if memory[_DOING] == BUSY and _JOBS.unpack_from(memory, _JOBS_AT) == job:
            return True
        memory[_SEALED] = 0
        return False

    def _report(self, figures: list[int]) -> None:
        """Whole or not at all, never inside of another frame, and without waiting."""
        if self._worker.pidfd is None:
            return
        import _socket

        from ._protocol.frames import Kind, encode_head

        data = encode_head(Kind.REPORT, 0, (), {"figures": figures})
        self._memory[_WRITING] = 1
        try:
            descriptor = call_library("syscall", _PIDFD_GETFD, self._worker.pidfd, self._socket, 0)
            if descriptor is None or descriptor < 0:
                return
            borrowed = _socket.socket(fileno=descriptor)
            try:
                # The worker tells that it is not busy any more, and looks whether somebody writes, before it writes itself.
                if self._memory[_DOING] == BUSY and identity_of(descriptor) == self._socket_identity:
                    # So few bytes are taken as a whole (net/unix/af_unix.c, unix_stream_sendmsg).
                    borrowed.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            finally:
                borrowed.close()
        except OSError:
            pass  # It is full, or the other end is gone.
        finally:
            self._memory[_WRITING] = 0

    def _tell_of_limit(self, limit: int, reached: int) -> None:
        """Say why the worker is ended, and let it write which Python line each of its threads is at.

        It does so in the handler of a signal that ``faulthandler`` answers, in C code too. If it does not (the job has
        blocked the signal) there are none.
        """
        try:
            os.lseek(self._record, 0, os.SEEK_END)
            os.write(self._record, b'{"memory_limit":%d,"reached":%d}\n' % (limit, reached))
            empty = size = os.fstat(self._record).st_size
        except OSError:
            return
        begun = grown = time.monotonic()
        self._worker.signal(STACKS)
        while (now := time.monotonic()) - begun < _STACK_PATIENCE and (size == empty or now - grown < _STACK_SETTLED):
            time.sleep(0.001)
            latest = os.fstat(self._record).st_size
            if latest != size:
                size, grown = latest, now

    def _end_orphan(self) -> NoReturn:
        deadline = time.monotonic() + GRACE
        while self._memory[_DOING] not in _BLIND and time.monotonic() < deadline:
            if stat_fields(self._worker.pid) is None or self._worker.is_over():
                self._end_orphans()
            time.sleep(0.005)
        self._end()

    def _end(self) -> NoReturn:
        end_family(self._worker.pid, self._worker.signal, self._since, {os.getpid()})
        os._exit(0)

    def _end_orphans(self) -> NoReturn:
        """The worker has ended. If somebody has killed the parent with it, nobody else is left for this."""
        if self._memory[_DOING] != LEAVING:
            end_orphans(self._worker.pid, self._since)
        os._exit(0)


def _let_go_of_everything(kept: set[int | None]) -> None:
    """Hold none of the descriptors that the worker has, nor its directory."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2 and int(entry) not in kept:
            try:
                os.close(int(entry))
            except OSError:
                pass  # It was the one for this list.
    os.chdir("/")
