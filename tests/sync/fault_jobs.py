"""Jobs that are killed at a chosen moment of an operation."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any, NoReturn

from jobs import take_line


def begin(handle: Any, op: str, **options: float) -> Any:
    """Do the operation that may wait, and return what came of it."""
    if op == "send":
        return handle.send("from the job", **options)
    if op == "call":
        return handle()
    if op == "wait in a condition":
        handle.acquire()
        return handle.wait(**options)
    return getattr(handle, op)(**options)


def wait_inside(handle: Any, op: str, line: str) -> None:
    """Wait in the operation. The test kills the worker there, or with the reply in its socket."""
    begin(handle, op)
    os.write(take_line(line), b"it came back\n")


def hold(handle: Any, op: str, line: str, how: str) -> NoReturn:
    """End the operation, say so, and hold what it gave; or die of it."""
    taken = begin(handle, op)
    descriptor = take_line(line)
    if how == "exit":
        os._exit(3)
    if how != "wait":
        os.kill(os.getpid(), getattr(signal, how))
    while True:
        signal.pause()
        os.write(descriptor, repr(taken).encode())  # it lives as long as this frame


def give_up(handle: Any, op: str, line: str, gate: str, timeout: float | None) -> str:
    """Do the operation behind a gate, end what it gave, and say how it ended: with a value, or by which exception.

    SIGUSR1 raises LookupError in it.
    """
    signal.signal(signal.SIGUSR1, _raise)
    descriptor = take_line(line)
    try:
        with open(gate, "rb", buffering=0) as waiting:
            waiting.read(1)
        taken = begin(handle, op, **({} if timeout is None else {"timeout": timeout}))
    except BaseException as error:
        # A condition is left with its lock, unless that was not acquired.
        if op == "wait in a condition":
            with contextlib.suppress(RuntimeError):
                handle.release()
        return type(error).__name__
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.close(descriptor)
    if op in ("acquire", "wait in a condition"):
        handle.release()
    elif op == "get":
        taken.done()
    return "value"


def _raise(number: int, frame: object) -> NoReturn:
    raise LookupError(number)


def say(handle: Any, ops: tuple[str, ...], line: str, gate: str) -> NoReturn:
    """Do all operations but the last, wait at the gate, do that, and say so. It needs no reply."""
    taken = handle
    for op in ops[:-1]:
        taken = begin(handle, op) or handle
    descriptor = take_line(line)
    with open(gate, "rb", buffering=0) as waiting:
        waiting.read(1)
    if ops[-1] == "call":
        handle(7)
    elif ops[-1] == "notify":
        handle.notify()
    else:
        getattr(taken, ops[-1])()
    os.write(descriptor, b"said\n")
    while True:
        signal.pause()
