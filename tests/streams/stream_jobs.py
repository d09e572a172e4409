"""Generator functions for tests of streams."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from trio_offload_worker import from_worker


def count(end: int, result: str = "done") -> Generator[int, None, str]:
    yield from range(end)
    return result


def letters(text: str) -> str:
    return text


def number() -> int:
    return 3


def fail_after(values: int, by: BaseException) -> Iterator[int]:
    yield from range(values)
    raise by


def pid_then_die() -> Iterator[int]:
    yield os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def unpicklable() -> Iterator[Any]:
    yield 1
    yield threading.Lock()


def same_list() -> Iterator[list[int]]:
    values: list[int] = []
    while True:
        values.append(len(values))
        yield values


def watched(report: Any) -> Iterator[int]:
    """Report the number of values that are about to be yielded, and the end."""
    number = 0
    try:
        while True:
            number += 1
            report(number)
            yield number
    except GeneratorExit:
        report("GeneratorExit")
        raise
    finally:
        report("finally")


def awaits_in_cleanup(answer: Any) -> Iterator[int]:
    try:
        while True:
            yield 0
    finally:
        answer("finally")


def fails_in_cleanup() -> Iterator[int]:
    try:
        while True:
            yield 0
    finally:
        raise ValueError("cleanup")


def never_yields_again(report: Any) -> Iterator[int]:
    yield 1
    try:
        from_worker.sleep(60)
    except from_worker.Cancelled:
        report("Cancelled")
        raise


def ignores_all(report: Any) -> Iterator[int]:
    yield os.getpid()
    report("goes on")
    time.sleep(60)


def slow_after(fast: int) -> Iterator[int]:
    yield from range(fast)
    time.sleep(60)


def large(sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield bytes([size % 256]) * size


def channels(send: Any) -> Iterator[Any]:
    for number in range(3):
        clone = send.clone()
        yield clone
        clone.close()
        yield number


def waits_at(gate: str, before: int, after: int = 0) -> Iterator[int]:
    yield from range(before)
    with open(gate, "rb") as file:
        file.read(1)
    if after:
        yield from range(after)
        time.sleep(0.1)  # a held value is sent after a millisecond
        os.kill(os.getpid(), signal.SIGKILL)


def dies_in_cleanup() -> Iterator[int]:
    try:
        while True:
            yield 0
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def squares(answer: Any, end: int) -> Iterator[int]:
    for number in range(end):
        yield answer(number)
