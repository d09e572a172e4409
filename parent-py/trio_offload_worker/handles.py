"""The classes of locks, channels and so on as a job has them, for annotations and checks.

::

    from trio_offload_worker.handles import Lock, SendChannel


    def job(lock: Lock, send: SendChannel[int]) -> None:
        with lock:
            send.send(5)


    await trio_offload.run_sync(job, lock.handle, send.handle)

``lock.handle`` has this type for type checkers, and ``lock`` itself has the same effect. The job
also runs in a thread: ``await trio.to_thread.run_sync(job, lock.handle, send.handle)``.

A class is imported when its name is used first, because most jobs only annotate it.
"""

from __future__ import annotations

from . import import_late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._requests.callbacks import Callback as Callback
    from ._requests.channels import ReceiveChannel as ReceiveChannel
    from ._requests.channels import SendChannel as SendChannel
    from ._requests.counters import CapacityLimiter as CapacityLimiter
    from ._requests.counters import Semaphore as Semaphore
    from ._requests.locks import Condition as Condition
    from ._requests.locks import Lock as Lock
    from ._requests.locks import RLock as RLock
    from ._requests.meetings import Barrier as Barrier
    from ._requests.meetings import Event as Event
    from ._requests.queues import Lease as Lease
    from ._requests.queues import WorkQueue as WorkQueue
    from ._requests.shared import SharedArray as SharedArray
    from ._requests.shared import SharedCounter as SharedCounter

_MODULES: Final = {
    "Barrier": "meetings",
    "Callback": "callbacks",
    "CapacityLimiter": "counters",
    "Condition": "locks",
    "Event": "meetings",
    "Lease": "queues",
    "Lock": "locks",
    "RLock": "locks",
    "ReceiveChannel": "channels",
    "Semaphore": "counters",
    "SendChannel": "channels",
    "SharedArray": "shared",
    "SharedCounter": "shared",
    "WorkQueue": "queues",
}
__all__ = [*_MODULES]  # strings


def __getattr__(name: str) -> Any:
    return import_late(globals(), _MODULES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
