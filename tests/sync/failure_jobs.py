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


def keep(lock: Any) -> None:
    """End, and still hold it."""
    lock.acquire()


def keep_and_die(lock: Any) -> None:
    lock.acquire()
    die()


def acquire(lock: Any) -> None:
    with lock:
        pass


def wait_in(condition: Any) -> None:
    with condition:
        condition.wait()


def meet(barrier: Any) -> int:
    index: int = barrier.wait()
    return index


def send_one(send: Any) -> None:
    send.send("from a job")


def receive_and_die(receive: Any) -> None:
    receive.receive()
    die()


def call_in_thread(callback: Any, started: Any) -> None:
    """End while a thread of the job waits for a callback."""
    import threading

    threading.Thread(target=_call, args=(callback,)).start()
    started.wait()


def _call(callback: Any) -> None:
    try:
        callback()
    except Exception:  # the job has ended
        pass


def call_and_be_killed(callback: Any) -> None:
    callback()


# --- shared memory -------------------------------------------------------------------------------

kept: list[Any] = []


def write(array: Any, counter: Any) -> None:
    view = array.array
    view[3] = 7
    counter.add(1)


def write_and_keep(array: Any, counter: Any) -> None:
    write(array, counter)
    kept.append((array, array.array, counter))


def write_and_die(array: Any, counter: Any) -> None:
    write_and_keep(array, counter)
    os.kill(os.getpid(), signal.SIGKILL)
