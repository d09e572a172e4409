"""The watcher: what the native thread is to the worker executable, a small process is to the loop.

It watches the parent while a job runs, also one that never lets go of the GIL, and ends the worker with all its
descendants when the parent has ended or given it up. No thread of Python's could do that. How it stays out of the way:

* It is forked off before anything else is imported, so it is small, and shares nearly all of its memory.
* It is made with clone(2) and without a signal for its end. The kernel keeps such a child from every ``wait`` that does not
  ask for it (wait(2), ``__WCLONE``) and sends no SIGCHLD: ``os.wait()`` in a job does not see it. It still is the worker's
  child, so the parent finds and kills it with the rest of the family. To fork twice instead would leave it to whoever
  reaps orphans, and that may be the program itself, as the first process of a container: one zombie for each worker.
  Where clone cannot be called it is forked twice all the same.
* It does not hold the socket, which would keep the worker's death from being the end of the stream. It holds an epoll
  instance that the socket was registered with: the registration lasts as long as the worker's own descriptor and does not
  keep it open (epoll(7)).
* It ends when the worker ends, which a pidfd tells. A worker that ends in order ends it first, and reaps it.

What it knows of the worker is one byte in memory that both share: what the worker is doing.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import time

from ._family import end_family, open_pidfd, stat_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, Final, NoReturn
else:
    import _signal

WAITING: Final = 0
"""The worker waits for its parent's next word: it will see the end of the stream itself."""
BUSY: Final = 1
"""It runs the user's code and sees nothing."""
LEAVING: Final = 2
"""It is on its way out; the parent may close its end now without that meaning anything."""

GRACE: Final = 0.5  # seconds that an idle worker has for leaving after its parent's death


class Watcher:
    """The worker's side of it."""

    def __init__(self, pid: int | None, memory: mmap.mmap) -> None:
        self._pid = pid
        self._memory = memory

    def tell(self, doing: int) -> None:
        """Say what the worker is doing from now on."""
        self._memory[0] = doing

    def dismiss(self) -> None:
        """End the watcher, and reap it where it is a child of this process. The last thing that a worker does."""
        if self._pid is not None:
            try:
                os.kill(self._pid, _signal.SIGKILL)
                os.waitpid(self._pid, _WALL)
            except OSError:
                pass  # A job has ended it, and perhaps waited for it.
            self._pid = None


def start(socket: int, parent: int) -> Watcher:
    """Start the watcher of this process, whose parent has the process id ``parent`` and the other end of ``socket``.

    To be called while there is one thread, and before this process becomes a subreaper.

    Raises:
        OSError: the system has no process, or no descriptor, to spare.
    """
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    worker = os.getpid()
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
            return Watcher(None, memory)
    if pid == 0:
        try:
            _watch(_Life(parent), _Life(worker), socket, memory)
        finally:
            os._exit(1)
    return Watcher(pid, memory)


def become_subreaper() -> None:
    """Let orphaned descendants fall to this process, so that they can be found (prctl(2)). Without ``_ctypes`` they cannot."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


_PR_SET_CHILD_SUBREAPER: Final = 36
_WALL: Final = 0x40000000  # __WALL of wait(2)
# The number of clone in the system's table, where no argument may be mistaken for another (all are zero).
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_WITHOUT_PIDFD: Final = 0.2  # seconds between two looks where the system cannot tell of a process's end


def _clone() -> int | None:
    """Fork without a signal for the child's end; None if that cannot be done here."""
    number = _CLONE.get(os.uname().machine) if sys.maxsize > 2**32 else None
    if number is None:
        return None
    pid = _call("syscall", number, 0, 0, 0, 0, 0)
    return pid if pid is not None and pid >= 0 else None


def _call(name: str, *arguments: int | bytes) -> int | None:
    """A function of the C library; None where there is no ``_ctypes``. The package ``ctypes`` around it is not needed."""
    try:
        import _ctypes
    except ImportError:
        return None
    core: Any = _ctypes
    result: int = core.call_function(core.dlsym(core.dlopen(None, 0), name), arguments)
    return result


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


def _watch(parent: _Life, worker: _Life, socket: int, memory: mmap.mmap) -> NoReturn:
    # Ctrl+C and the like are for the worker, and a Ctrl+Z at the terminal must not keep this process from its work.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    with open("/proc/self/comm", "w") as name:
        name.write("offload-watcher")
    poller = select.epoll()
    # Once is enough: the socket's other end does not come back.
    poller.register(socket, select.EPOLLRDHUP | select.EPOLLONESHOT)
    for life in (parent, worker):
        if life.pidfd is not None:
            poller.register(life.pidfd, select.EPOLLIN)
    _let_go_of_everything({poller.fileno(), parent.pidfd, worker.pidfd})
    timeout = None if parent.pidfd is not None and worker.pidfd is not None else _WITHOUT_PIDFD
    while True:
        seen = [descriptor for descriptor, _ in poller.poll(timeout)]
        if worker.pidfd in seen or worker.is_over():
            os._exit(0)
        if parent.pidfd in seen or parent.is_over():
            _end_orphan(worker, memory)
        if socket in seen and memory[0] == BUSY:
            # The parent lives but has given this worker up while a job runs.
            _end(worker)


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


def _end_orphan(worker: _Life, memory: mmap.mmap) -> NoReturn:
    deadline = time.monotonic() + GRACE
    while memory[0] != BUSY and time.monotonic() < deadline:
        if stat_fields(worker.pid) is None or worker.is_over():
            os._exit(0)
        time.sleep(0.005)
    _end(worker)


def _end(worker: _Life) -> NoReturn:
    end_family(worker.pid, worker.signal, {os.getpid()})
    os._exit(0)
