"""What ``trio-offload map`` says at its end: jobs, failures by kind, workers, memory and time.

* What it holds does not grow with the number of items, nor with that of workers.
* Processor time and the largest memory are the system's own account of the processes that this one has waited for: they are
  those of workers too that were killed, or left unheard, and cost nothing while the run goes on.
"""

from __future__ import annotations

import collections
import resource
import sys
import time
from typing import TYPE_CHECKING, Final

import trio

from trio_offload_worker import memory_info

from .._sizes import readable_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import trio_offload


class Tally:
    """Counts what the tasks of a run tell it."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        """Whether anybody will ask for :meth:`lines`; otherwise looking costs nothing."""
        self._began = time.monotonic()
        self._jobs = 0
        self._failures: collections.Counter[str] = collections.Counter()
        self._workers = 0
        self._known: set[int] = set()  # process ids: all that live, and some that do not
        self._largest = 0
        self._look: Callable[[], trio_offload.WorkerContextStatistics] | None = None

    def watch(self, look: Callable[[], trio_offload.WorkerContextStatistics] | None) -> None:
        """From now on, ask here who is there; ``None``: no more."""
        self._look = look

    def count(self, failure: str | None) -> None:
        """An item is finished; of what kind its failure was, if it failed."""
        self._jobs += 1
        if failure is not None:
            # The names of exceptions are the user's: they might all be different.
            self._failures[failure if failure in self._failures or len(self._failures) < _MOST_KINDS else _OTHERS] += 1

    def note_worker(self, pid: int) -> None:
        """A worker has run an item."""
        if pid not in self._known:
            self._workers += 1
            if len(self._known) >= _MOST_KNOWN and self._look is not None:
                self._known = {worker.pid for worker in self._look().workers} & self._known
            self._known.add(pid)

    def note_death(self, error: trio_offload.BrokenWorkerError) -> None:
        """A worker has ended in an item."""
        if error.pid is not None:
            self.note_worker(error.pid)
            # The system may give its number to another one.
            self._known.discard(error.pid)
        if error.crash is not None:
            self._largest = max(self._largest, error.crash.peak_rss or 0)

    def look(self) -> Sequence[trio_offload.WorkerStatistics]:
        """See who is there."""
        if self._look is None:
            return ()
        workers = self._look().workers
        for worker in workers:
            self._largest = max(self._largest, worker.peak_rss or 0)
            if worker.state == "running" or worker.jobs:
                self.note_worker(worker.pid)
        return workers

    def look_soon(self) -> None:
        """:meth:`look`, when the calling task lets others run. Done once, however many ask before."""
        if self.wanted:
            trio.lowlevel.current_trio_token().run_sync_soon(self._look_quietly, idempotent=True)

    def lines(self) -> list[str]:
        """The summary; nothing if there was nothing to do."""
        if not self._jobs:
            return []
        failed = sum(self._failures.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._failures.most_common())
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        largest = max(self._largest, _largest_child(usage))
        return [
            f"{_number(self._jobs, 'job')}, {failed} failed" + (f": {kinds}" if kinds else ""),
            _number(self._workers, "worker") + (f", the largest held {readable_size(largest)}" if largest else ""),
            f"{time.monotonic() - self._began:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of processor time in workers",
        ]

    def _look_quietly(self) -> None:
        self.look()


def _largest_child(usage: resource.struct_rusage) -> int:
    """The most memory that a process held which this one has waited for, in bytes; 0 if the system's figure does not tell.

    A process that is started begins its life in its parent's memory, and Linux counts that as its own (exec_mmap() in
    fs/exec.c): a figure that is no larger than this process's own peak says nothing. That peak is not its ``ru_maxrss``,
    which in turn has in it what the program held that started this one.
    """
    try:
        own = memory_info().peak_rss
    except RuntimeError:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    largest = usage.ru_maxrss * _UNIT
    return 0 if largest <= own else largest


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


_UNIT: Final = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, getrusage(2)
_MOST_KINDS: Final = 50
_MOST_KNOWN: Final = 1000
_OTHERS: Final = "of other kinds"
