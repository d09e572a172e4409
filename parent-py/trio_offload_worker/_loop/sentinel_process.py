"""The sentinel process of the Python worker, with the tasks of the executable's sentinel thread.

It ends the worker and all descendants if the parent dies or abandons the worker during a job, or if
a job exceeds the memory limit. It also sends the reports. A Python thread could not: it needs the
GIL, which a job may hold. Its design:

* It is forked before other imports, so it is small and shares nearly all of its memory. Beside a
  worker that is a fork of its parent it is as large as the parent, and shares that memory too. Its
  garbage collector is off: it would copy the memory, and might collect the parent's garbage.
* clone(2) starts it with another exit signal than SIGCHLD, so a plain ``wait`` does not report it
  (wait(2), ``__WCLONE``), and ``os.wait()`` in a job does not see it. It still is the worker's
  child, so the parent finds it by its mark (``_system/family.py``), and kills it last. A double
  fork is used only where clone cannot be called. It leaves one zombie per worker if the process
  that adopts orphans is the program itself, as the first process of a container.
* It does not hold the socket, so the worker's death stays the end of the stream. It holds an epoll
  instance with which the socket was registered. The registration lasts as long as the worker's own
  descriptor, and does not keep it open (epoll(7)). For a report it borrows the worker's descriptor
  (pidfd_getfd(2)). Where that is forbidden, reports are omitted, and figures come with results
  only.
* It exits when the worker exits, which a pidfd shows. Unless the worker left in order, it first
  ends the worker's descendants. A worker that leaves in order ends the sentinel first, and reaps
  it.
"""

from __future__ import annotations

import mmap
import os
import select
import time

from .._system.family import end_family, end_orphans
from .._system.figures import Meter, family_above
from .._system.linux import (
    STACKS,
    call_library,
    candidate_descriptors,
    identity_of,
    open_pidfd,
    send_signal,
    stat_fields,
    write_short,
)
from .sentinel import (
    ACTIVITY,
    ASLEEP,
    BUSY,
    CONFIG,
    CONFIG_AT,
    EXITING,
    JOBS,
    JOBS_AT,
    NO_VALUE,
    SEALED,
    SETTLING,
    SPEAKING,
    WRITING,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Final, NoReturn
else:
    import _signal

GRACE: Final = 0.5  # seconds for an idle worker to exit after its parent's death
_BLIND: Final = (BUSY, SETTLING)
_MEMORY_TICK: Final = 0.1  # seconds between two checks of a job's memory
_STACKS_TIMEOUT: Final = 0.15  # seconds that writing the stacks of all threads may take
_STACKS_SETTLED: Final = 0.015  # seconds without growth after which the stacks are complete
_WITHOUT_PIDFD: Final = 0.2  # seconds between two checks where the system lacks pidfds
_PR_SET_NAME: Final = 15
_PIDFD_GETFD: Final = 438  # system call number, the same for every processor


def run(parent: int, worker: int, since: int, socket: int, record: int, listener: int, memory: mmap.mmap) -> NoReturn:
    """Run the sentinel process.

    ``since`` is a :func:`family.boot_time` before the worker's start.
    """
    SentinelProcess(ProcessHandle(parent), ProcessHandle(worker), since, socket, record, listener, memory).run()


class SentinelProcess:
    """The state and the event loop of the sentinel process."""

    def __init__(
        self,
        parent: ProcessHandle,
        worker: ProcessHandle,
        since: int,
        socket: int,
        record: int,
        listener: int,
        memory: mmap.mmap,
    ) -> None:
        # Signals such as Ctrl+C are for the worker, and Ctrl+Z at the terminal must not stop this
        # process.
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
        # Once is enough: a closed socket stays closed.
        self._poller.register(socket, select.EPOLLRDHUP | select.EPOLLONESHOT)
        for descriptor in (parent.pidfd, worker.pidfd, listener):
            if descriptor is not None:
                self._poller.register(descriptor, select.EPOLLIN)
        _release_inherited({self._poller.fileno(), parent.pidfd, worker.pidfd, record, listener})
        # Last: the name tells observers that the sentinel is ready.
        _take_name("offload-watcher")

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
            if self._socket in seen and self._memory[ACTIVITY] in _BLIND:
                # The parent is alive, but has abandoned this worker while a job runs.
                self._end()
            if self._listener in seen:
                self._answer_waker()
            if self._next_tick is not None and self._next_tick <= time.monotonic():
                self._tick()

    def _answer_waker(self) -> None:
        if not os.read(self._listener, 64):
            # A job has closed the other end. From now on this process keeps polling.
            self._poller.unregister(self._listener)
            os.close(self._listener)
            self._listener = -1
        if self._next_tick is None:
            interval = self._interval()
            now = time.monotonic()
            self._next_tick = None if interval is None else now + interval
            self._reported = now

    def _interval(self) -> float | None:
        """Return the seconds between two ticks. None means that this process may sleep."""
        report, limit = CONFIG.unpack_from(self._memory, CONFIG_AT)
        intervals = [report / 1000] if report != NO_VALUE else []
        return min(intervals + ([_MEMORY_TICK] if limit != NO_VALUE else []), default=None)

    def _tick(self) -> None:
        interval = self._interval() or _MEMORY_TICK
        now = time.monotonic()
        self._next_tick = now + max(interval, 0.001)
        memory = self._memory
        if memory[ACTIVITY] == BUSY:
            self._check_job(now, interval)
        elif self._listener != -1:
            memory[ASLEEP] = 1
            os.getppid()  # A system call as memory barrier.
            if memory[ACTIVITY] != BUSY:
                self._next_tick = None
            else:
                memory[ASLEEP] = 0

    def _check_job(self, now: float, interval: float) -> None:
        report, limit = CONFIG.unpack_from(self._memory, CONFIG_AT)
        if limit != NO_VALUE:
            job = JOBS.unpack_from(self._memory, JOBS_AT)
            reached = family_above(self._worker.pid, limit, self._since, {os.getpid()})
            if reached is not None and self._seal(job):
                self._record_limit(limit, reached)
                self._end()
        # Rather report a tick early than a tick late: the interval is one tick or a multiple of it.
        if report != NO_VALUE and now - self._reported + min(interval, _MEMORY_TICK) / 2 >= report / 1000:
            self._reported = now
            figures = self._meter.read()
            if figures is not None:
                self._report(figures)

    def _seal(self, job: tuple[int, ...]) -> bool:
        """Decide to end the worker for this job. Return False if the job has ended.

        A sealed worker stops at the end of the job.
        """
        memory = self._memory
        memory[SEALED] = 1
        os.getppid()  # A system call as memory barrier.
        if memory[ACTIVITY] == BUSY and JOBS.unpack_from(memory, JOBS_AT) == job:
            return True
        memory[SEALED] = 0
        return False

    def _report(self, figures: list[int]) -> None:
        """Send a report completely or not at all, between two frames, and without blocking."""
        if self._worker.pidfd is None:
            return
        import _socket

        from .._protocol.frames import Kind, encode_head

        data = encode_head(Kind.REPORT, 0, (), {"figures": figures})
        self._memory[WRITING] = 1
        try:
            descriptor = call_library("syscall", _PIDFD_GETFD, self._worker.pidfd, self._socket, 0)
            if descriptor is None or descriptor < 0:
                return
            borrowed = _socket.socket(fileno=descriptor)
            try:
                # The worker first stops being busy, or says that it writes. Then it waits for this
                # writer, and then writes itself.
                is_free = self._memory[ACTIVITY] == BUSY and not self._memory[SPEAKING]
                if is_free and identity_of(descriptor) == self._socket_identity:
                    # The kernel takes so few bytes as a whole (net/unix/af_unix.c,
                    # unix_stream_sendmsg).
                    borrowed.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            finally:
                borrowed.close()
        except OSError:
            pass  # The socket is full, or its other end is closed.
        finally:
            self._memory[WRITING] = 0

    def _record_limit(self, limit: int, reached: int) -> None:
        """Record the reason, and make the worker write the Python stacks of its threads.

        ``faulthandler`` writes them in a signal handler, even while C code runs. They are missing
        if the job has blocked the signal.
        """
        try:
            os.lseek(self._record, 0, os.SEEK_END)
            os.write(self._record, b'{"memory_limit":%d,"reached":%d}\n' % (limit, reached))
            empty = size = os.fstat(self._record).st_size
        except OSError:
            return
        begun = grown = time.monotonic()
        self._worker.signal(STACKS)
        while (now := time.monotonic()) - begun < _STACKS_TIMEOUT and (size == empty or now - grown < _STACKS_SETTLED):
            time.sleep(0.001)
            latest = os.fstat(self._record).st_size
            if latest != size:
                size, grown = latest, now

    def _end_orphan(self) -> NoReturn:
        deadline = time.monotonic() + GRACE
        while self._memory[ACTIVITY] not in _BLIND and time.monotonic() < deadline:
            if stat_fields(self._worker.pid) is None or self._worker.is_over():
                self._end_orphans()
            time.sleep(0.005)
        self._end()

    def _end(self) -> NoReturn:
        end_family(self._worker.pid, self._worker.signal, self._since, {os.getpid()})
        os._exit(0)

    def _end_orphans(self) -> NoReturn:
        """End the worker's orphans. The parent may have been killed with it."""
        if self._memory[ACTIVITY] != EXITING:
            end_orphans(self._worker.pid, self._since)
        os._exit(0)


class ProcessHandle:
    """Whether a process lives: by a pidfd, or else by its number and its start time."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = open_pidfd(pid)
        self._start = self._started() if self.pidfd is None else None

    def is_over(self) -> bool:
        """Return True if the process has ended. Works only without a pidfd."""
        return self.pidfd is None and (self._start is None or self._started() != self._start)

    def signal(self, number: int) -> None:
        try:
            send_signal(self.pid, self.pidfd, number)
        except ProcessLookupError:
            pass

    def _started(self) -> bytes | None:
        # The 22nd field is the start time. A zombie has ended.
        fields = stat_fields(self.pid)
        return None if fields is None or fields[0] in (b"Z", b"X") else fields[19]


def _release_inherited(kept: set[int | None]) -> None:
    """Release the worker's descriptors and its directory."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    for descriptor in candidate_descriptors():
        if descriptor > 2 and descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # Not open, or the descriptor of this list.
    os.chdir("/")


def _take_name(name: str) -> None:
    """Name this process in lists of processes.

    ``/proc/self/comm`` belongs to root in a program that has changed its user (PR_SET_DUMPABLE), so
    prctl comes first.
    """
    if call_library("prctl", _PR_SET_NAME, name.encode(), 0, 0, 0) is None:
        try:
            write_short("/proc/self/comm", name.encode())
        except OSError:
            pass  # The name is a help for people. All else works without it.
