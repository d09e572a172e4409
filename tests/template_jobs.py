"""Jobs that look at what a worker has from the template that it was forked off, and modules' code for templates."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

_kept: list[Any] = []


def say_pid(path: str) -> None:
    with open(path, "w") as line:
        line.write(f"{os.getpid()}\n")


def thread_numbers() -> tuple[int, int | None, bool]:
    """The process's number, the main thread's as Python knows it, and whether the C library finds that thread."""
    import signal

    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    # From another thread, so that the C library has to look its number up.
    sender = threading.Thread(target=signal.pthread_kill, args=(threading.main_thread().ident, signal.SIGUSR1))
    sender.start()
    sender.join()
    return os.getpid(), threading.main_thread().native_id, seen == [signal.SIGUSR1]


def attributes_of_sys(*names: str) -> dict[str, Any]:
    return {name: getattr(sys, name) for name in names}


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}").split(":")[0]
        except OSError:
            continue
    return found


def take_memory(size: int) -> None:
    _kept.extend(b"x" * 10_000_000 for _ in range(size // 10_000_000))
    threading.Event().wait()


def leave_debts(file: str, thread: str) -> None:
    """Leave a file unwritten, a thread unjoined and something to do at exit."""
    kept = open(file, "w")  # noqa: SIM115
    kept.write("written")
    _kept.append(kept)

    def late() -> None:
        threading.main_thread().join()
        with open(thread, "w") as written:
            written.write("joined")

    threading.Thread(target=late).start()
    atexit.register(print, "at exit")


def random_numbers() -> dict[str, float]:
    import random

    numbers = {"random": random.random()}
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numbers["numpy"] = float(numpy_random.random())
    return numbers


def hook_forks(path: str) -> None:
    def say(what: str) -> None:
        with open(path, "w") as line:
            line.write(f"{what} {os.getpid()}\n")

    os.register_at_fork(
        before=lambda: say("before"), after_in_parent=lambda: say("parent"), after_in_child=lambda: say("child")
    )


def hook_forks_in_c() -> list[int]:
    """Count how often each of the three handlers of pthread_atfork(3) is called. They are Python functions here."""
    import ctypes

    counts = [0, 0, 0]
    function = ctypes.CFUNCTYPE(None)

    def count(place: int) -> Any:
        def counted() -> None:
            counts[place] += 1

        return function(counted)

    handlers = [count(place) for place in range(3)]
    _kept.append(handlers)
    # What the static part of the C library makes of a call of pthread_atfork.
    register = ctypes.CDLL(None).__register_atfork
    assert register(*handlers, None) == 0
    _kept.append(counts)
    return counts


def counts_in_c() -> list[int]:
    import hooked_in_c

    return list(hooked_in_c.counts)


def multiply_matrices(size: int) -> float:
    import numpy

    matrix = numpy.ones((size, size))
    return float((matrix @ matrix)[0, 0])


def surroundings() -> dict[str, Any]:
    import ctypes
    import warnings

    in_c = {}
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    for entry in environ:
        if entry is None:
            break
        name, _, value = entry.partition(b"=")
        in_c[name] = value
    return {
        "pid": os.getpid(),
        "environment": dict(os.environb),
        "environment_in_c": in_c,
        "directory": os.getcwd(),
        "path": list(sys.path),
        "argv": list(sys.argv),
        "filters": [
            pattern if isinstance(pattern, str) else getattr(pattern, "pattern", "") for _, pattern, *_ in warnings.filters
        ],
    }


def start_thread() -> None:
    import time

    threading.Thread(target=time.sleep, args=(1000,), daemon=True, name="latecomer").start()
