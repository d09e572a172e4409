"""Jobs that are killed at a chosen moment of an operation."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

import trio
from jobs import take_line

from trio_offload_worker import from_worker


def begin(handle: Any, op: str) -> Any:
    """Do the operation that may wait, and return what came of it."""
    if op in ("acquire", "get", "receive"):
        return getattr(handle, op)()
    if op == "send":
        return handle.send("from the job")
    if op == "call":
        return handle()
    if op == "run":
        return from_worker.run(trio.sleep_forever)
    if op == "wait in a condition":
        handle.acquire()
        return handle.wait()
    return handle.wait()


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
