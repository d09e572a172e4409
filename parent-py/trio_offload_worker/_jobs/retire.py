"""``retire_when`` in the worker. It imports only modules that a worker has already loaded."""

from __future__ import annotations

import time

from .. import resident_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class RetireWhen:
    """A ``retire`` function that is true as soon as one of its conditions holds.

    :func:`trio_offload.retire_when` makes it. Each worker has its own copy, made after ``init`` and
    before the first job, which counts from that moment.
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
        """Check the conditions. The worker calls this after each job."""
        self._jobs_done += 1
        if self.jobs is not None and self._jobs_done >= self.jobs:
            return True
        if self.seconds is not None and time.monotonic() - self._since >= self.seconds:
            return True
        return self.rss is not None and resident_memory() > self.effective_rss(self._baseline)

    def effective_rss(self, baseline: int) -> int:
        """Return the limit in bytes for a worker with this baseline.

        A limit below the baseline applies to growth instead; otherwise every worker would be
        replaced after its first job.
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
