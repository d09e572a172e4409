"""Jobs that do what stops other processes, or loses items, with multiprocessing's objects."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_with(lock: Any) -> None:
    with lock:
        die()


def wait_for(event: Any) -> bool:
    event.wait()
    return bool(event.is_set())


def receive_late(receive: Any, timeout: float) -> str:
    try:
        receive.receive(timeout=timeout)
    except TimeoutError:
        return "nothing"
    return "an item"


def receive_all(receive: Any) -> list[Any]:
    return list(receive)


def receive_one(receive: Any) -> Any:
    return receive.receive()


def acquire_late(lock: Any, timeout: float) -> str:
    try:
        lock.acquire(timeout=timeout)
    except TimeoutError:
        return "not acquired"
    lock.release()
    return "acquired"


def send_and_die(send: Any, count: int) -> None:
    for number in range(count):
        send.send(number)
    die()


def take_and_leave(queue: Any) -> Any:
    return queue.get().item


def take_and_die(queue: Any) -> None:
    queue.get()
    die()


def finish_all(queue: Any) -> list[Any]:
    done = []
    for lease in queue:
        with lease:
            done.append(lease.item)
    return done
