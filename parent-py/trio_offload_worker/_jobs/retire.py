"""``retire_when``, in the worker: it needs neither trio nor anything else that the worker has not got already."""

from __future__ import annotations

import time

from .. import resident_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class RetireWhen:
    """A ``retire`` function: true as soon as one of the conditions holds. Made by :func:`trio_offload.retire_when`.

    A copy is made in each worker, after ``init`` and before the first job; it counts from there.
    """

    __slots__ = ("_baseline", "_jobs_done", "_since", "jobs", "rss", "seconds")

    def __init__(self, rss: int | None, jobs: int | None, seconds: float | None) -> None:
        self.rss = rss
        self.jobs = jobs
        self.seconds = seconds
        self._baseline = 0
        self._jobs_done = 0
        self._since = time.monotonic()

    def __call__(self) -> bool:
        """Called in the worker after each job."""
        self._jobs_done += 1
        if self.jobs is not None and self._jobs_done >= self.jobs:
            return True
        if self.seconds is not None and time.monotonic() - self._since >= self.seconds:
            return True
        return self.rss is not None and resident_memory() > self.effective_rss(self._baseline)

    def effective_rss(self, baseline: int) -> int:
        """The ceiling in bytes for a worker that holds ``baseline`` bytes before its first job.

        Under the baseline, every worker would be replaced after its first job, for ever. Then the limit is what a worker may
        grow by.
        """
        rss = self.rss or 0
        return rss if baseline < rss else baseline + rss

    def __reduce__(self) -> tuple[Any, ...]:
        return _begin, (self.rss, self.jobs, self.seconds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RetireWhen):
            return NotImplemented
        return (self.rss, self.jobs, self.seconds) == (other.rss, other.jobs, other.seconds)

    def __hash__(self) -> int:
        return hash((self.rss, self.jobs, self.seconds))

    def __repr__(self) -> str:
        given = {"rss": self.rss, "jobs": self.jobs, "seconds": self.seconds}
        return f"retire_when({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"


def _begin(rss: int | None, jobs: int | None, seconds: float | None) -> RetireWhen:
    made = RetireWhen(rss, jobs, seconds)
    if rss is not None:
        made._baseline = resident_memory()
    return made
