"""Handles at the top of a module, which a worker that is a fork of the program inherits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import trio_offload

LOCK = trio_offload.Lock()
EVENT = trio_offload.Event()
SEND, RECEIVE = trio_offload.open_channel[int](1)
USES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "with a lock": (LOCK, lambda lock: lock.__enter__()),
    "release": (trio_offload.RLock(), lambda lock: lock.release()),
    "locked": (LOCK, lambda lock: lock.locked()),
    "set": (EVENT, lambda event: event.set()),
    "is_set": (EVENT, lambda event: event.is_set()),
    "semaphore": (trio_offload.Semaphore(1), lambda semaphore: semaphore.release()),
    "limiter": (trio_offload.CapacityLimiter(1), lambda limiter: limiter.release()),
    "condition": (trio_offload.Condition(LOCK), lambda condition: condition.notify_all()),
    "barrier": (trio_offload.Barrier(1), lambda barrier: barrier.abort()),
    "send": (SEND, lambda send: send.send_nowait(5)),
    "receive": (RECEIVE, iter),
    "queue": (trio_offload.WorkQueue[int](), lambda queue: queue.statistics()),
    "callback": (trio_offload.callback(len), lambda callback: callback("x")),
    "pickle": (LOCK, pickle.dumps),
}


def use(name: str) -> str:
    handle, function = USES[name]
    try:
        function(handle)
    except RuntimeError as error:
        return str(error)
    return "nothing raised"


def use_given(event: Any) -> bool:
    """The same event, as an argument."""
    event.set()
    return event is not EVENT


def make_new() -> bool:
    """A handle that the job itself makes is a handle of its own."""
    event = trio_offload.Event()
    return event.is_set()
