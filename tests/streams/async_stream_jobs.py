"""Async generator functions for tests of streams."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import trio

from trio_offload_worker import from_worker


async def count(end: int) -> AsyncIterator[int]:
    for number in range(end):
        if not number % 7:
            await trio.lowlevel.checkpoint()
        yield number


async def mixed(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


class Letters:
    """An async iterable of another kind."""

    def __init__(self, text: str) -> None:
        self.rest = [*text]

    def __aiter__(self) -> Letters:
        return self

    async def __anext__(self) -> str:
        if not self.rest:
            raise StopAsyncIteration
        return self.rest.pop(0)


async def fail_after(values: int, error: BaseException) -> AsyncIterator[int]:
    for number in range(values):
        yield number
    raise error


async def report_end(report: Any) -> AsyncIterator[int]:
    """Report how it is ended, and wait in the cleanup."""
    number = 0
    try:
        while True:
            yield number
            number += 1
    except GeneratorExit:
        report("GeneratorExit")
        raise
    finally:
        await trio.sleep(0.001)
        report("finally")


async def wait_for_ever(report: Any) -> AsyncIterator[int]:
    yield 1
    try:
        report("waits")
        await trio.sleep_forever()
    except trio.Cancelled:
        report("Cancelled")
        raise


async def fail_in_cleanup() -> AsyncIterator[int]:
    try:
        while True:
            yield 0
    finally:
        raise ValueError("cleanup")


async def tick(report: Any) -> AsyncIterator[int]:
    """Has a task that goes on while the consumer is slow."""

    async def background() -> None:
        for number in range(3):
            await trio.sleep(0.01)
            report(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(background)
        for number in range(3):
            yield number


async def ask_in_threads(callback: Any, end: int) -> AsyncIterator[Any]:
    job = from_worker.job()

    def ask(number: int) -> Any:
        job.adopt()
        return callback(number)

    for number in range(end):
        yield await trio.to_thread.run_sync(ask, number)


async def die_after(values: int) -> AsyncIterator[int]:
    for number in range(values):
        yield number
    await trio.sleep(0.05)  # a held value is sent after a millisecond
    os.kill(os.getpid(), signal.SIGKILL)


async def ignore_all(report: Any) -> AsyncIterator[int]:
    yield os.getpid()
    report("goes on")
    with trio.CancelScope(shield=True):
        await trio.sleep(60)
