"""Handles at the top of a module, which a worker that is a fork of the program inherits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import trio_offload

LOCK: Any = trio_offload.Lock()
EVENT: Any = trio_offload.Event()
SEND: Any
RECEIVE: Any
SEND, RECEIVE = trio_offload.open_channel[int](20)
HANDLES: dict[str, Any] = {
    "lock": LOCK,
    "rlock": trio_offload.RLock(),
    "event": EVENT,
    "semaphore": trio_offload.Semaphore(1),
    "limiter": trio_offload.CapacityLimiter(1),
    "condition": trio_offload.Condition(LOCK),
    "barrier": trio_offload.Barrier(1),
    "queue": trio_offload.WorkQueue[int](),
    "callback": trio_offload.callback(len),
}


def wait_and_notify(condition: Any) -> bool:
    with condition:
        condition.notify_all()
        try:
            condition.wait(timeout=0.01)
        except TimeoutError:
            return True
    return False


def take_lease(queue: Any) -> int:
    with queue.get() as lease:
        item: int = lease.item
    return item


def hold(lock: Any) -> bool:
    with lock:
        locked: bool = lock.locked()
    return locked


USES: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
    "with a lock": ("lock", hold, True),
    "with an rlock": ("rlock", lambda lock: (lock.acquire(), hold(lock), lock.release())[1], True),
    "set": ("event", lambda event: (event.set(), event.is_set(), event.wait())[1], True),
    "semaphore": ("semaphore", lambda semaphore: (semaphore.acquire(), semaphore.value, semaphore.release())[1], 0),
    "limiter": ("limiter", lambda limiter: limiter.__enter__(), None),
    "condition": ("condition", wait_and_notify, True),
    "barrier": ("barrier", lambda barrier: barrier.wait(), 0),
    "queue": ("queue", take_lease, 5),
    "callback": ("callback", lambda callback: callback("four"), 4),
    "names": ("callback", repr, "<callback len of the parent>"),
}


def use(name: str) -> Any:
    handle, function, _ = USES[name]
    return function(HANDLES[handle])


def send_and_receive() -> list[int]:
    SEND.send(5)
    SEND.send_many([6, 7])
    first = RECEIVE.receive()
    return [first, *(next(RECEIVE) for _ in range(2))]


def send_for_ever() -> None:
    number = 0
    while True:
        SEND.send(number)
        number += 1


def close_send() -> bool:
    SEND.send(8)
    SEND.close()
    return True


def give_back() -> Any:
    return [LOCK, {"again": LOCK}]


def pickle_it() -> str:
    try:
        pickle.dumps(LOCK)
    except TypeError as error:
        return str(error)
    return "nothing raised"


def keep_lock() -> None:
    LOCK.acquire()


def use_given(event: Any) -> bool:
    """The same event, as an argument."""
    event.set()
    return bool(event.is_set() and EVENT.is_set())


def make_new() -> bool:
    """A handle that the job itself makes is a handle of its own."""
    event = trio_offload.Event()
    return event.is_set()
