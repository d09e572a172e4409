"""Jobs that get handles in every way in which a handle may be passed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

from trio_offload_worker import from_worker

kept: Any = None


def use(handle: Any) -> str:
    """Do something with a handle that only works if the program knows it. Return the name of its class."""
    name = type(handle).__name__
    if name == "InheritedHandle":
        name = repr(handle).split()[0].strip("<").replace("callback", "Callback").replace("proxy", "Proxy")
    if name == "Callback":
        assert handle("called") == len("called")
    elif name == "Event":
        handle.set()
    elif name == "Barrier":
        assert handle.wait() == 0
    elif name == "SendChannel":
        handle.send("sent by a job")
    elif name == "ReceiveChannel":
        assert handle.receive(timeout=20) == "for a job"
    elif name == "WorkQueue":
        handle.put("put by a job")
    elif name == "SharedArray":
        handle.array[0] = handle.array[1]
    elif name == "SharedCounter":
        handle.add()
    elif name == "Proxy":
        handle.append("by a job")
    else:
        with handle:
            handle.statistics()
    return name


def use_item(handle: Any, item: int) -> tuple[str, int]:
    return use(handle), item


def use_received(receive: Any) -> str:
    return use(receive.receive(timeout=20))


def use_leased(queue: Any) -> str:
    with queue.get(timeout=20) as lease:
        return use(lease.item)


def send_on(send: Any, handle: Any) -> None:
    send.send(handle)


def give(handle: Any) -> Any:
    return [handle, {"again": handle}]


def keep(handle: Any) -> None:
    global kept
    kept = handle


def use_kept() -> str:
    return use(kept)


def is_set(event: Any) -> bool:
    return bool(event.is_set())


def fail_with(handle: Any) -> None:
    raise LookupError("no start")


def close_kept() -> None:
    kept.send("the last one")
    kept.close()


def hold_kept() -> None:
    kept.acquire()


def die_with_kept() -> None:
    import os
    import signal

    kept.send("before the death")
    os.kill(os.getpid(), signal.SIGKILL)


def use_global_lock() -> None:
    import trio_offload

    with trio_offload.Lock():  # type: ignore[attr-defined]
        pass


def refusals(handle: Any) -> list[str]:
    """What the picklers and copies of other libraries say."""
    return [refusal(function, handle) for function in (pickle.dumps, copy.copy, copy.deepcopy)]


def refusal(function: Callable[[Any], Any], *args: Any) -> str:
    try:
        function(*args)
    except TypeError as error:
        return str(error)
    return "not refused"


def lease(queue: Any) -> Any:
    return queue.get(timeout=20)


def send_lease(queue: Any, send: Any) -> str:
    with queue.get(timeout=20) as lease:
        return refusal(send.send, lease)


def refusals_of_lease(queue: Any) -> list[str]:
    with queue.get(timeout=20) as lease:
        return refusals(lease)


def job() -> Any:
    return from_worker.job()


def send_job(send: Any) -> str:
    return refusal(send.send, from_worker.job())


def refusals_of_job() -> list[str]:
    return refusals(from_worker.job())
