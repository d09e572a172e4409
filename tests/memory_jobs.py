"""What workers do in the tests of memory and of death."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

import jobs

import trio_offload_worker

kept: list[Any] = []


def touched(size: int) -> mmap.mmap:
    """Return memory whose pages are all resident, and were not before.

    The heap of a forked worker holds what its program had freed before the fork. ``malloc`` would
    hand that out again, at any size, and the worker would not grow.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def leak(size: int) -> int:
    kept.append(touched(size))
    return os.getpid()


def take_and_give_back(size: int) -> int:
    touched(size)
    # A reading of the peak may be 20 ms old.
    time.sleep(0.03)
    return trio_offload_worker.memory_info().peak_rss


def info() -> trio_offload_worker.MemoryInfo:
    return trio_offload_worker.memory_info()


def leak_and_hold_the_gil(path: str, size: int) -> NoReturn:
    """The job's memory is taken, it says so, and then C code never lets go of the GIL."""
    line = jobs.take_line(path)
    kept.append(touched(size))
    os.write(line, b"taken\n")
    while True:
        ctypes.PyDLL(None).usleep(3_600_000_000)


def leak_and_wait(line: str, gate: str, size: int) -> int:
    kept.append(touched(size))
    return jobs.pass_gate(line, gate)


def grow_for_ever() -> NoReturn:
    while True:
        kept.append(touched(5_000_000))
        time.sleep(0.01)


def grow_in_init() -> None:
    grow_for_ever()


def import_much() -> None:
    kept.append(touched(80_000_000))


def child_that_grows(path: str) -> NoReturn:
    """The worker itself stays small."""
    line = jobs.take_line(path)
    program = "x = bytearray(b'x') * 400_000_000\nimport time\ntime.sleep(3600)"
    subprocess.run([sys.executable, "-c", program], check=True, pass_fds=[line])
    raise AssertionError("it ended by itself")


def children_that_share(size: int, count: int, seconds: float) -> str:
    """Pages that a fork shares are there once, in however many processes they are resident."""
    memory = touched(size)
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            # Reads of shared pages make no copies of them.
            sum(memory[:: mmap.PAGESIZE])
            time.sleep(seconds)
            os._exit(0)
        children.append(pid)
    for child in children:
        os.waitpid(child, 0)
    return "done"


def fatal_error() -> None:
    """As an extension gives up."""
    jobs._no_core()
    ctypes.pythonapi.Py_FatalError(b"on purpose")


def abort_by_signal() -> None:
    jobs._no_core()
    os.kill(os.getpid(), 6)


def overflow_in_c() -> None:
    """A function that calls itself until the stack is used up: ``call`` to its own address."""
    jobs._no_core()
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xe8\xfb\xff\xff\xff")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.PYFUNCTYPE(None)(address)()


def overflow_in_python() -> Any:
    """Each level takes a piece of C's stack too; what becomes of that differs between versions of Python."""
    jobs._no_core()
    sys.setrecursionlimit(2**30)

    def key(_: int) -> Any:
        return sorted([1], key=key)

    return key(0)


def crash_among_threads() -> None:
    """Another thread sleeps in a function that has a name of its own."""
    begun = threading.Event()

    def sleep_in_a_thread() -> None:
        begun.set()
        time.sleep(3600)

    threading.Thread(target=sleep_in_a_thread, daemon=True).start()
    begun.wait()
    jobs.segfault()


def crash_in_a_copy() -> NoReturn:
    """A fork of the worker dies of a fault; the worker leaves without one."""
    pid = os.fork()
    if pid == 0:
        jobs.segfault()
    os.waitpid(pid, 0)
    os._exit(3)


def say_and_crash(text: str) -> None:
    os.write(2, text.encode())
    jobs.segfault()


def write_into_the_record(text: str) -> NoReturn:
    """What a job has no business to do."""
    os.write(4, text.encode())
    os._exit(7)


def die_in_the_stacks(number: int) -> None:
    """As a worker that its sentinel ends, and whose fault handler meets a frame that is gone."""
    os.write(4, b'{"memory_limit":1000,"reached":2000}\n')
    os.kill(os.getpid(), number)
