"""What ``test_loop.py`` runs in workers; light, as ``jobs.py`` is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import jobs


def wait_for_anybody() -> list[str]:
    told = []
    seen: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
    try:
        waits: list[Any] = [
            os.wait,
            lambda: os.wait3(0),
            lambda: os.waitpid(-1, os.WNOHANG),
            lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG),
        ]
        for wait in waits:
            try:
                told.append(repr(wait()))
            except OSError as error:
                told.append(type(error).__name__)
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            # The watcher, which a job should leave alone, and which nothing depends on.
            for child in children.read().split():
                os.kill(int(child), signal.SIGKILL)
        if os.fork() == 0:
            os._exit(7)
        told.append(str(os.waitstatus_to_exitcode(os.wait()[1])))
    finally:
        signal.signal(signal.SIGCHLD, before)
    told.append("no SIGCHLD but its own" if seen == [signal.SIGCHLD] else repr(seen))
    return told


def be_interrupted_by_another_signal() -> int:
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    return os.getpid()


def hold_memory(path: str, size: int) -> None:
    """Hold so much, and the GIL for ever."""
    import ctypes

    jobs.take_line(path)
    block = bytearray(b"x") * size
    while block:
        ctypes.PyDLL(None).pause()


def hold_memory_in_child(path: str, size: int) -> None:
    line = jobs.take_line(path)
    code = f"import time; block = bytearray(b'x') * {size}; time.sleep(1000)"
    subprocess.run([sys.executable, "-c", code], pass_fds=[line], check=True)


def descriptors_in_fork() -> list[str]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        held = []
        for number in range(3, 20):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            # libffi, which ctypes loads, may keep its own file open.
            if number not in (reader, writer) and "pidfd" not in target and "libffi" not in target:
                held.append(target)
        import faulthandler

        if faulthandler.is_enabled():
            held.append("faulthandler")
        os.write(writer, "\n".join(held).encode() + b"\0")
        os._exit(0)
    os.wait()
    told = os.read(reader, 10_000).decode().strip("\0")
    os.close(reader)
    os.close(writer)
    return told.splitlines()
