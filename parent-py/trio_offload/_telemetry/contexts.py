"""The worker contexts of the program, for metrics: open ones, and the sum of the others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .._options import WorkerType
from .._statistics import WorkerContextCounters, sum_counters

if TYPE_CHECKING:
    from .._pool.pool import WorkerPool


class Contexts:
    """Contexts with their counters. Thread-safe: readers of metrics have threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[WorkerPool] = set()
        self._closed: dict[WorkerType, WorkerContextCounters] = {}

    def add(self, pool: WorkerPool) -> None:
        """Note a context that was opened."""
        with self._lock:
            self._open.add(pool)

    def remove(self, pool: WorkerPool) -> None:
        """Note a context that was closed. Its numbers are kept, because they only grow."""
        with self._lock:
            if pool in self._open:
                self._open.remove(pool)
                kind = pool.launcher.options.worker_type
                self._closed[kind] = sum_counters([self._of_closed(kind), pool.cache.counters()])

    def open_pools(self) -> list[WorkerPool]:
        """Return the workers of each open context."""
        with self._lock:
            return list(self._open)

    def counters(self) -> dict[WorkerType, WorkerContextCounters]:
        """Return the sums of all contexts, by the type of their workers."""
        with self._lock:
            sums = dict(self._closed)
            for pool in self._open:
                kind = pool.launcher.options.worker_type
                sums[kind] = sum_counters([sums.get(kind, WorkerContextCounters()), pool.cache.counters()])
            return sums

    def _of_closed(self, kind: WorkerType) -> WorkerContextCounters:
        return self._closed.get(kind, WorkerContextCounters())
