"""Jobs that talk to their parent. They run unchanged in a thread of Trio's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from jobs import take_line

from trio_offload_worker import from_worker


def call_back(callback: Callable[..., Any], *args: Any) -> Any:
    return callback(*args)


def call_both(first: Callable[[], Any], second: Callable[[int], Any]) -> Any:
    first()
    return second(os.getpid())


def call_back_and_tell(path: str, callback: Callable[[], Any]) -> None:
    with on_the_line(path):
        try:
            callback()
        except from_worker.Cancelled:
            raise
        go_on()


def go_on() -> None:
    time.sleep(60)


def call_back_often(callback: Callable[[int], int], times: int) -> list[int]:
    return [callback(number) for number in range(times)]


def call_back_until_killed(callback: Callable[[], Any]) -> None:
    while True:
        callback()


def catch(callback: Callable[..., Any], *args: Any) -> tuple[str, str]:
    try:
        callback(*args)
    except Exception as error:
        return type(error).__qualname__, str(error)
    return "", ""


def pid_of_parent() -> int:
    return from_worker.run_sync(os.getpid)


def sleep_in_parent(seconds: float) -> str:
    from_worker.run(trio.sleep, seconds)
    return "slept"


@contextmanager
def on_the_line(path: str) -> Iterator[None]:
    """Say on a lifeline that the job has begun, and then by which exception it ended."""
    descriptor = take_line(path)
    try:
        yield
    except BaseException as error:
        os.write(descriptor, f"{type(error).__qualname__}\n".encode())
        raise
    finally:
        os.close(descriptor)


def wait_for_ever(path: str) -> None:
    with on_the_line(path):
        from_worker.run(trio.sleep_forever)


def spin_until_cancelled(path: str) -> None:
    with on_the_line(path):
        while True:
            from_worker.check_cancelled()


def sleep_until_cancelled(path: str) -> None:
    with on_the_line(path):
        from_worker.sleep(1000)


def swallow_cancelled(path: str) -> str:
    """Finish although it is cancelled."""
    try:
        sleep_until_cancelled(path)
    except from_worker.Cancelled:
        return f"finished, {from_worker.cancelled()}"
    return "not cancelled"


def fail_when_cancelled(path: str) -> None:
    try:
        sleep_until_cancelled(path)
    except from_worker.Cancelled:
        raise ValueError("half done") from None


def clean_up_when_cancelled(path: str, callback: Callable[[str], Any]) -> None:
    try:
        sleep_until_cancelled(path)
    finally:
        with from_worker.shielded():
            callback("cleaned up")


def ignore_cancelled(path: str) -> None:
    with on_the_line(path):
        time.sleep(1000)


def double(number: int) -> int:
    return 2 * number


def tell_item(callback: Callable[[int], Any], item: int) -> int:
    callback(item)
    return item


def tell_pair(pair: tuple[Callable[[int], Any], int]) -> int:
    callback, item = pair
    callback(item)
    return item


def die_after(callback: Callable[[int], Any], number: int) -> None:
    callback(number)
    os._exit(3)


def return_it(value: Any) -> Any:
    return value


def raise_for_the_parent(name: str) -> None:
    raise getattr(from_worker, name)("told by a job")


def hold_with_clean_up(line: str, item: int) -> int:
    """Wait until it is cancelled. The lifeline says which item that was."""
    descriptor = take_line(line)
    try:
        from_worker.sleep(1000)
    except from_worker.Cancelled:
        os.write(descriptor, f"cancelled {item}\n".encode())
        raise
    finally:
        os.close(descriptor)
    return item


def wait_and_tell(event: Any, callback: Callable[[str], Any]) -> None:
    try:
        event.wait()
    except from_worker.Cancelled:
        callback("told")
