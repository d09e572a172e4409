"""What workers do in the tests of the native thread: forks, namespaces, and everything closed."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import NoReturn

import jobs
import memory_jobs

CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def fork() -> int:
    """The exit status of a copy that says how many threads it is one of."""
    pid = os.fork()
    if pid == 0:
        os._exit(thread_count())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted_forks(count: int) -> tuple[list[int], int]:
    """What the copies say, with warnings as errors, and how many threads there are afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [fork() for _ in range(count)], thread_count()


seen_in_hooks: list[int] = []


def fork_with_hooks() -> tuple[int, list[int], int]:
    """Hooks in Python run after a fork, with any number of instructions in which a pending call is made."""

    def hook() -> None:
        for _ in range(1000):
            pass
        seen_in_hooks.append(thread_count())

    os.register_at_fork(before=hook, after_in_parent=hook)
    seen_in_hooks.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = fork()
    return status, seen_in_hooks, thread_count()


def fork_in_another_thread() -> list[int]:
    found: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread = threading.Thread(target=lambda: found.append(fork()))
        thread.start()
        thread.join()
    return found


def preexec() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return subprocess.run([sys.executable, "-c", ""], preexec_fn=os.getpid).returncode


def fork_and_grow() -> NoReturn:
    fork()
    memory_jobs.grow_for_ever()


def unshare(flags: int, library: str | None, alone: bool) -> tuple[str, int]:
    """By the name that Python has for the C library, or by its file's name; how many threads there are afterwards."""
    from contextlib import nullcontext

    import trio_offload_worker

    function = ctypes.CDLL(library, use_errno=True).unshare
    with trio_offload_worker.single_threaded() if alone else nullcontext():
        status = function(flags)
        error = os.strerror(ctypes.get_errno()) if status else ""
    return error, thread_count()


def unshare_and_grow(flags: int) -> NoReturn:
    ctypes.CDLL(None).unshare(flags)
    memory_jobs.grow_for_ever()


def close_all_and_read(path: str) -> list[bytes]:
    """Its own files are under the numbers of what was closed; what is read from them by anybody else is missing."""
    os.closerange(3, 64)
    descriptors = [os.open(path, os.O_RDONLY) for _ in range(20)]
    # The native thread looks after every tick; it has been rung for at the beginning.
    time.sleep(0.3)
    found = [os.read(descriptor, 16) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    os.write(1, repr(found).encode() + b"\n")
    return found


def close_all_and_grow() -> NoReturn:
    os.closerange(3, 64)
    memory_jobs.grow_for_ever()


def multiprocess(method: str) -> list[int]:
    import multiprocessing

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(abs, [-1, 2, -3])


def enable_faulthandler(path: str) -> bool:
    with open(path, "w") as file:
        faulthandler.enable(file)
    return faulthandler.is_enabled()


def disable_faulthandler(path: str) -> bool:
    faulthandler.enable(sys.__stderr__, all_threads=False)
    assert faulthandler.disable()
    assert not faulthandler.disable()
    return not faulthandler.is_enabled()


def register_all_signals(path: str) -> bool:
    refused = []
    with open(path, "w") as file:
        for number in sorted(signal.valid_signals()):
            try:
                faulthandler.register(number, file)
            except (OSError, RuntimeError, ValueError):
                refused.append(number)
    for number in signal.valid_signals() - set(refused):
        faulthandler.unregister(number)
    faulthandler.unregister(16)
    return signal.SIGSEGV in refused


def save_and_put_back_fault_handlers(path: str) -> bool:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, 16):
        before = signal.getsignal(number)
        if before is not None:  # Else the program of which this is a fork has a handler that is not Python's.
            signal.signal(number, lambda number, frame: None)
            signal.signal(number, before)
    return True


def crash_of_a_copy(path: str) -> str:
    """A copy of the worker has a faulthandler of its own."""
    with open(path, "w") as file:
        pid = os.fork()
        if pid == 0:
            faulthandler.enable(file)
            jobs.segfault()
        os.waitpid(pid, 0)
    with open(path) as file:
        return file.read()


class AtTheEnd:
    """Lets a thread of a job go on when Python clears its modules, and waits until it has stopped or ended."""

    def __init__(self, thread: int, pipe: int, size: int, outcome: str) -> None:
        self.status = os.open(f"/proc/self/task/{thread}/status", os.O_RDONLY)
        self.outcome = os.open(outcome, os.O_WRONLY)
        self.pipe, self.left = pipe, size
        # Python clears `os` too.
        self.read, self.pread, self.write = os.read, os.pread, os.write

    def __del__(self) -> None:
        # The thread writes the last byte itself, so it is awake after that.
        while self.left:
            self.left -= len(self.read(self.pipe, self.left))
        self.write(self.outcome, self.find_out())

    def find_out(self) -> bytes:
        while True:
            try:
                status = self.pread(self.status, 4096, 0)
            except ProcessLookupError:
                return b"ended"
            if b"\nState:\tS" in status:
                return b"stopped"


def leave_thread(outcome: str, in_the_line: bool) -> None:
    """Leave a thread that takes the GIL only when Python ends: in Python, or in the function that writes to the parent."""
    size = 1 << 20  # more than fits into a pipe
    reader, writer = os.pipe()
    threads = []

    class Parts:
        def __iter__(self) -> NoReturn:
            threads.append(threading.get_native_id())
            os.write(writer, bytes(size))
            raise AssertionError("Python has not ended")

    line = __import__("_trio_offload_line")
    work = (lambda: line.write(Parts(), line.call(), [])) if in_the_line else Parts().__iter__
    threading.Thread(target=work, daemon=True).start()
    # From the first byte on, the thread is in the system call.
    size -= len(os.read(reader, 1))
    # The thread keeps the names of this module.
    sys.modules["at_the_end"] = AtTheEnd(*threads, reader, size, outcome)  # type: ignore[assignment]
