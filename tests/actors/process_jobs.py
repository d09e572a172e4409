"""Functions for tests of processes."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from typing import Any

import trio

from trio_offload_worker import from_worker


def echo() -> str:
    channel = from_worker.channel()
    for item in channel:
        channel.send(item)
    return "done"


def pid() -> int:
    return os.getpid()


def each_method() -> list[Any]:
    channel = from_worker.channel()
    got: list[Any] = [channel.receive(), channel.receive(timeout=30), channel.receive_many(1)]
    try:
        channel.receive_nowait()
    except from_worker.WouldBlock:
        got.append("WouldBlock")
    try:
        channel.receive(timeout=0.01)
    except TimeoutError:
        got.append("TimeoutError")
    channel.send(1)
    channel.send(2, timeout=30)
    channel.send_nowait(3)
    channel.send_many([4, 5])
    channel.send_eof()
    got.append(list(channel))
    return got


def fails() -> None:
    raise LookupError("by itself")


def exits(code: Any) -> None:
    sys.exit(code)


def dies() -> None:
    from_worker.channel().send("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def waits() -> None:
    channel = from_worker.channel()
    channel.send("begun")
    try:
        channel.receive()
    except from_worker.Cancelled:
        with from_worker.shielded():
            channel.send("cleaned up")
        raise


def ignores_all() -> None:
    from_worker.channel().send("begun")
    time.sleep(60)


def handles_sigterm() -> str:
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    from_worker.channel().send("begun")
    while not received:
        from_worker.sleep(0.01)
    return "SIGTERM"


def allocates() -> int:
    memory = bytearray(400 * 1024 * 1024)
    time.sleep(60)
    return len(memory)


def no_channel() -> str:
    try:
        from_worker.channel()
    except RuntimeError as error:
        return str(error)
    return ""


async def count_slowly(end: int) -> int:
    for _ in range(end):
        await trio.sleep(0.001)
    return end


async def group() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_async)
        await trio.sleep_forever()


async def fail_async() -> None:
    raise LookupError("async")


async def sleep_and_report(report: Any) -> None:
    try:
        await trio.to_thread.run_sync(adopting, from_worker.job(), report, "begun")
        await trio.sleep_forever()
    finally:
        report("finally")


def adopting(job: Any, function: Any, *args: Any) -> None:
    job.adopt()
    function(*args)


def misuse_run_async() -> list[str]:
    said = []
    with warnings.catch_warnings():
        # No coroutine that was never awaited.
        warnings.simplefilter("error")
        for wrong in (count_slowly(1), pid, 5):
            try:
                from_worker.run_async(wrong)  # type: ignore[arg-type]
            except TypeError as error:
                said.append(f"{type(error).__name__}: {error}")
    return said


def run_async(*call: Any) -> Any:
    return from_worker.run_async(*call)
