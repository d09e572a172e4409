"""Run synchronous functions in worker processes and await them from Trio."""

import sys as _sys

if _sys.platform == "win32":
    raise ImportError("trio-offload does not support Windows yet: it needs Unix sockets that a child inherits")

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
from ._statistics import WorkerContextCounters, WorkerContextStatistics, WorkerStatistics
from ._version import __version__ as __version__

__all__ = [
    "AbandonedLockError",
    "BrokenBarrierError",
    "BrokenWorkerError",
    "CrashRecord",
    "DeadlockError",
    "JobExitError",
    "LocateError",
    "RemoteError",
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
    "configure_default_context",
    "current_default_process_limiter",
    "current_default_worker_limiter",
    "default_context_statistics",
    "map",
    "open_worker_context",
    "prewarm",
    "retire_when",
    "run_sync",
    "starmap",
]

# Tracebacks and pickles name things where users find them.
for _name in __all__:
    # `globals()` would give a lazy import (PEP 810) in place of the object.
    getattr(_sys.modules[__name__], _name).__module__ = __name__
del _name, _sys
