"""Run synchronous functions in worker processes and await them from Trio.

What to use:

===============================  =================================================================
run_sync                         one call
map, starmap                     one function for many items
stream                           the values of a generator function, one by one
open_process                     one long job, with a channel in each direction
open_actor                       an object that lives in a worker, such as a loaded model
-------------------------------  -----------------------------------------------------------------
open_worker_context              workers with options: memory_limit, init, retire, idle_timeout
cache_scope                      such workers for all calls of a block
configure_default_context        options for all other calls
retire_when                      conditions for ``retire``: memory, number of jobs, age
prewarm                          workers that are ready before the first call
current_default_worker_limiter   the limit for the number of simultaneous calls
default_context_statistics       the workers of the default context, and counters
-------------------------------  -----------------------------------------------------------------
callback, share                  functions and objects of this program that jobs call
open_channel, WorkQueue          items between tasks and jobs
Lock, RLock, Condition, Event    locks and signals between tasks and jobs; also Semaphore,
                                 BoundedSemaphore, CapacityLimiter and Barrier
SharedArray, SharedCounter       memory that this program and its jobs share
===============================  =================================================================

A call raises the exception of its job, or one of these:

===============================  =================================================================
BrokenWorkerError                the worker died; ``crash`` has the facts and the Python stack
WorkerMemoryError                the job was above a memory limit
WorkerTimeoutError               the job took longer than its ``timeout``
WorkerStartError, LocateError    no worker could be started
JobExitError                     the job called :func:`sys.exit`, or raised another such exception
RemoteError                      the job's exception could not be pickled
===============================  =================================================================

A job imports :mod:`trio_offload_worker.from_worker` to talk to this program, and to notice that it
is cancelled. :mod:`trio_offload.connection` speaks with programs that use
``multiprocessing.connection``. :mod:`trio_offload.telemetry` records spans and metrics.

Times are in seconds. Sizes are in bytes, or text such as ``"500MiB"``.

::

    import math

    import trio
    import trio_offload


    async def main():
        print(await trio_offload.run_sync(math.gcd, 12, 18))


    if __name__ == "__main__":
        trio.run(main)
"""

import sys as _sys
import typing as _typing

if _sys.platform == "win32":
    raise ImportError("trio-offload does not support Windows yet: it needs Unix sockets that a child inherits")

from trio_offload_worker import publish as _publish

from ._api import current_default_process_limiter, map, open_worker_context, prewarm, retire_when, run_sync, starmap
from ._context import WorkerContext
from ._crash import CrashRecord
from ._default import (
    atexit_shutdown_grace_period,
    cache_scope,
    configure_default_context,
    default_context_statistics,
)
from ._exceptions import (
    AbandonedLockError,
    BrokenBarrierError,
    BrokenWorkerError,
    DeadlockError,
    JobExitError,
    LocateError,
    RemoteError,
    WorkerMemoryError,
    WorkerStartError,
    WorkerTimeoutError,
)
from ._limiter import current_default_worker_limiter
from ._options import WorkerType
from ._statistics import JobProgress, WaitingJob, WorkerContextCounters, WorkerContextStatistics, WorkerStatistics
from ._version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from ._actors.actor import Actor
    from ._actors.open_actor import open_actor
    from ._actors.process import Process, open_process
    from ._actors.share import SharedObject, share
    from ._actors.statistics import ActorStatistics
    from ._lives import stream
    from ._map.results import Results
    from ._shared.arrays import SharedArray
    from ._shared.counters import SharedCounter
    from ._streams.statistics import StreamStatistics
    from ._streams.stream import Stream
    from ._sync.barriers import Barrier
    from ._sync.callbacks import callback
    from ._sync.channels import ReceiveChannel, SendChannel
    from ._sync.conditions import Condition
    from ._sync.events import Event
    from ._sync.limiters import CapacityLimiter
    from ._sync.locks import Lock, RLock
    from ._sync.open_channel import open_channel
    from ._sync.queue_grants import FailedItemsError
    from ._sync.queues import WorkQueue
    from ._sync.semaphores import BoundedSemaphore, Semaphore

__all__ = [
    "AbandonedLockError",
    "Actor",
    "ActorStatistics",
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "BrokenWorkerError",
    "CapacityLimiter",
    "Condition",
    "CrashRecord",
    "DeadlockError",
    "Event",
    "FailedItemsError",
    "JobExitError",
    "JobProgress",
    "LocateError",
    "Lock",
    "Process",
    "RLock",
    "ReceiveChannel",
    "RemoteError",
    "Results",
    "Semaphore",
    "SendChannel",
    "SharedArray",
    "SharedCounter",
    "SharedObject",
    "Stream",
    "StreamStatistics",
    "WaitingJob",
    "WorkQueue",
    "WorkerContext",
    "WorkerContextCounters",
    "WorkerContextStatistics",
    "WorkerMemoryError",
    "WorkerStartError",
    "WorkerStatistics",
    "WorkerTimeoutError",
    "WorkerType",
    "atexit_shutdown_grace_period",
    "cache_scope",
    "callback",
    "configure_default_context",
    "current_default_process_limiter",
    "current_default_worker_limiter",
    "default_context_statistics",
    "map",
    "open_actor",
    "open_channel",
    "open_process",
    "open_worker_context",
    "prewarm",
    "retire_when",
    "run_sync",
    "share",
    "starmap",
    "stream",
]

# Names for jobs that talk and work that lives, each with its module. They are imported when they
# are used first.
_MODULES = {
    "Actor": "_actors.actor",
    "ActorStatistics": "_actors.statistics",
    "Barrier": "_sync.barriers",
    "BoundedSemaphore": "_sync.semaphores",
    "CapacityLimiter": "_sync.limiters",
    "Condition": "_sync.conditions",
    "Event": "_sync.events",
    "FailedItemsError": "_sync.queue_grants",
    "Lock": "_sync.locks",
    "Process": "_actors.process",
    "RLock": "_sync.locks",
    "ReceiveChannel": "_sync.channels",
    "Results": "_map.results",
    "Semaphore": "_sync.semaphores",
    "SendChannel": "_sync.channels",
    "SharedArray": "_shared.arrays",
    "SharedCounter": "_shared.counters",
    "SharedObject": "_actors.share",
    "Stream": "_streams.stream",
    "StreamStatistics": "_streams.statistics",
    "WorkQueue": "_sync.queues",
    "callback": "_sync.callbacks",
    "open_actor": "_actors.open_actor",
    "open_channel": "_sync.open_channel",
    "open_process": "_actors.process",
    "share": "_actors.share",
    "stream": "_lives",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    path = _MODULES[name]
    module = import_module(f".{path}", __name__)
    # All of the module, because one may be the base of another one.
    for known in [key for key in _MODULES if _MODULES[key] == path]:
        globals()[known] = value = getattr(module, known)
        _publish(__name__, value)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({name for name in globals() if not name.startswith("_")} | {*__all__, "__version__"})


# Tracebacks and pickles name things where users find them.
for _name in __all__:
    if _name not in _MODULES:
        # `globals()` would give a lazy import (PEP 810) in place of the object.
        _publish(__name__, getattr(_sys.modules[__name__], _name))
del _name, _sys
