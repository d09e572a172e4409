"""An actor with generator methods, and jobs that iterate over their values."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any

from trio_offload_worker import from_worker

kept: Any = None


class Source:
    """Yields."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, number: int = 1) -> int:
        self.calls += number
        return self.calls

    def count(self, end: int, *, result: Any = "done") -> Generator[int, None, Any]:
        yield from range(end)
        return result

    def values(self, values: list[Any]) -> Iterator[Any]:
        yield from values

    def plain(self) -> list[int]:
        return [1, 2]

    def fail_after(self, values: int, error: BaseException) -> Iterator[int]:
        yield from range(values)
        raise error

    def unpicklable(self) -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    def large(self, sizes: list[int]) -> Iterator[bytes]:
        for size in sizes:
            yield bytes([size % 256]) * size

    def watched(self, report: Any) -> Iterator[int]:
        """Report each number before it is yielded, and the end."""
        number = 0
        try:
            while True:
                report(number)
                yield number
                number += 1
        except GeneratorExit:
            report("GeneratorExit")
            raise
        finally:
            report("finally")

    def fail_in_cleanup(self) -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            raise ValueError("cleanup")

    def wait_after(self, values: int, event: Any, more: int = 0) -> Iterator[int]:
        yield from range(values)
        event.wait()
        yield from range(values, values + more)

    def deaf_after(self, values: int, report: Any) -> Iterator[int]:
        yield from range(values)
        report("deaf")
        threading.Event().wait()

    def die_after(self, values: int, cause: str = "SIGKILL") -> Iterator[int]:
        yield from range(values)
        # The held values are sent after a millisecond.
        from_worker.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, cause))
        threading.Event().wait()

    def pass_on(self, other: Any, name: str, *args: Any) -> Iterator[Any]:
        """Yield the values of another actor's generator, and return its result."""
        return (yield from getattr(other, name)(*args))

    def call_each(self, other: Any, times: int) -> Iterator[Any]:
        for _ in range(times):
            yield other.add()


def collect(actor: Any, name: str, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
    """Return the values and the result."""
    values = getattr(actor, name)(*args, **kwargs)
    return [value for value in values], values.result  # noqa: C416  # `__iter__`, then `__next__`


def collect_with_window(actor: Any, window: int, name: str, *args: Any) -> list[Any]:
    return list(getattr(actor.stream(window=window), name)(*args))


def collect_until_error(actor: Any, name: str, *args: Any) -> tuple[list[Any], str, str]:
    """Return the values before an error, its class and its text. Later there are no values."""
    values: list[Any] = []
    stream = getattr(actor, name)(*args)
    try:
        for value in stream:
            values.append(value)  # noqa: PERF402  # values before an error count
    except Exception as error:
        assert list(stream) == []
        return values, type(error).__name__, str(error)
    return values, "", ""


def take(actor: Any, count: int, name: str, *args: Any) -> list[Any]:
    """Leave the loop after some values."""
    values: list[Any] = []
    for value in getattr(actor, name)(*args):
        values.append(value)
        if len(values) == count:
            break
    return values


def end_each(actor: Any, alive: Any) -> list[int]:
    """Return how many streams the program has after each way to end one."""
    counts = [alive()]
    collect(actor, "count", 3)
    counts.append(alive())
    collect_until_error(actor, "fail_after", 2, ValueError("no"))
    counts.append(alive())
    take(actor, 1, "count", 1000)
    counts.append(alive())
    with actor.count(1000) as values:
        next(values)
    counts.append(alive())
    return counts


def take_in_block(actor: Any, report: Any, name: str, *args: Any) -> str:
    try:
        with getattr(actor, name)(*args) as values:
            next(values)
        report("left")
        assert next(values, None) is None
    except ValueError as error:
        return str(error)
    return ""


def take_and_keep(actor: Any, count: int, name: str, *args: Any) -> list[Any]:
    global kept
    kept = getattr(actor, name)(*args)
    return [next(kept) for _ in range(count)]


def take_and_wait(report: Any, actor: Any, count: int, name: str, *args: Any) -> None:
    """Wait inside of the loop."""
    values = getattr(actor, name)(*args)
    for _ in range(count):
        next(values)
    report("inside")
    threading.Event().wait()


def take_step_by_step(step: Any, actor: Any, count: int, name: str, *args: Any) -> list[Any]:
    """Call a function before each value."""
    values, taken = getattr(actor, name)(*args), []
    for _ in range(count):
        step(len(taken))
        taken.append(next(values))
    return taken


def call_within(actor: Any, window: int) -> tuple[str, str]:
    """Call the actor that streams."""
    try:
        for _ in actor.stream(window=window).count(1000):
            actor.add()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def misuse(actor: Any, send: Any) -> list[str]:
    """Return the errors of mistakes."""
    errors = []
    values = actor.count(3)
    for mistake in (
        lambda: values.result,
        lambda: send.send(values),
        lambda: actor.stream(window=0),
        lambda: actor.stream.nothing(),
        lambda: list(actor.stream.add()),
    ):
        try:
            mistake()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    values.close()
    return errors


def catch_cancellation(report: Any, actor: Any, name: str, *args: Any) -> None:
    try:
        for _ in getattr(actor, name)(*args):
            pass
    except from_worker.Cancelled:
        with from_worker.shielded():
            report("Cancelled")
        raise


class Alarm(Exception):
    pass


def interrupted(actor: Any, pid_is: Any, name: str, *args: Any) -> tuple[list[Any], int]:
    """Return the values, and how often a signal handler has raised in the wait for one."""

    def ring(*_: Any) -> None:
        raise Alarm

    signal.signal(signal.SIGUSR1, ring)
    pid_is(os.getpid())
    values, taken, rung = getattr(actor, name)(*args), [], 0
    while True:
        try:
            taken.append(next(values))
        except StopIteration:
            return taken, rung
        except Alarm:
            rung += 1
            pid_is(os.getpid())
