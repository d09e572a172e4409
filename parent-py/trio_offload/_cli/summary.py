"""The summary of ``trio-offload map``: jobs, failures by kind, workers, memory and time.

* Its memory use does not depend on the number of items and workers.
* Processor time and peak memory are the system's figures for the processes that this one has
  reaped. They include killed workers, and are free during the run.
"""

from __future__ import annotations

import collections
import resource
import sys
import time
from typing import TYPE_CHECKING, Final

from trio_offload_worker import memory_info

from .._sizes import readable_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import trio_offload


class Summary:
    """Counts the reports of a run's tasks."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        """True if :meth:`lines` will be called."""
        self._began = time.monotonic()
        self._jobs = 0
        self._retries = 0
        self._failures: collections.Counter[str] = collections.Counter()
        self._workers = 0
        # Process IDs of all living workers, and of some that have exited.
        self._known: set[int] = set()
        self._largest = 0
        self._look: Callable[[], trio_offload.WorkerContextStatistics] | None = None

    def watch(self, look: Callable[[], trio_offload.WorkerContextStatistics] | None) -> None:
        """Set the source of worker statistics. None removes it."""
        self._look = look

    def count(self, failure: str | None) -> None:
        """Count a finished item, and the kind of its failure."""
        self._jobs += 1
        if failure is not None:
            # Exception names are the user's, so their number is unbounded.
            self._failures[failure if failure in self._failures or len(self._failures) < _MAX_KINDS else _OTHERS] += 1

    def count_retry(self) -> None:
        """Count a further try of an item."""
        self._retries += 1

    def note_worker(self, pid: int, peak_rss: int | None = None) -> None:
        """Count a worker that has run an item, with its peak memory in bytes."""
        if peak_rss is not None and peak_rss > self._largest:
            self._largest = peak_rss
        if pid not in self._known:
            self._workers += 1
            if len(self._known) >= _MAX_KNOWN and self._look is not None:
                self._known = {worker.pid for worker in self._look().workers} & self._known
            self._known.add(pid)

    def note_death(self, crash: trio_offload.CrashRecord | None) -> None:
        """Count a worker that died, or was killed, during an item."""
        if crash is not None:
            self.note_worker(crash.pid, crash.peak_rss)
            # The system may reuse its process ID.
            self._known.discard(crash.pid)

    def look(self) -> Sequence[trio_offload.WorkerStatistics]:
        """Read the workers' statistics, and return them."""
        if self._look is None:
            return ()
        workers = self._look().workers
        for worker in workers:
            self._largest = max(self._largest, worker.peak_rss or 0)
            if worker.state == "running" or worker.jobs:
                self.note_worker(worker.pid)
        return workers

    def lines(self) -> list[str]:
        """Return the lines of the summary. Empty before the first item."""
        if not self._jobs:
            return []
        failed = sum(self._failures.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._failures.most_common())
        retried = f"; {count_of(self._retries, 'retry', 'retries')}" if self._retries else ""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        largest = max(self._largest, _largest_child(usage))
        return [
            f"{count_of(self._jobs, 'job')}, {failed} failed" + (f": {kinds}" if kinds else "") + retried,
            count_of(self._workers, "worker") + (f", the largest used {readable_size(largest)}" if largest else ""),
            f"{time.monotonic() - self._began:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of processor time in workers",
        ]


def _largest_child(usage: resource.struct_rusage) -> int:
    """Return the peak memory of the processes that this one has reaped, in bytes. 0 means unknown.

    A new process starts in its parent's memory, and Linux counts that as its own (exec_mmap() in
    fs/exec.c). So a figure below this process's own peak is meaningless. That peak is not its
    ``ru_maxrss``, which in turn includes the memory of the program that started this one.
    """
    try:
        own = memory_info().peak_rss
    except RuntimeError:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    largest = usage.ru_maxrss * _UNIT
    return 0 if largest <= own else largest


def count_of(count: int, what: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 job", "2 jobs"."""
    return f"{count} {what}" if count == 1 else f"{count} {plural or what + 's'}"


_UNIT: Final = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, getrusage(2)
_MAX_KINDS: Final = 50
_MAX_KNOWN: Final = 1000
_OTHERS: Final = "of other kinds"
