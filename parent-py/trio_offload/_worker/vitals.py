"""Figures of a worker: their record, and the retirement that they announce."""

from __future__ import annotations

from collections.abc import Sequence

from trio_offload_worker._jobs.retire import RetireWhen

from .._statistics import Figures


def figures(sent: Sequence[int] | None) -> Figures:
    """Return figures as a worker sends them, in bytes and microseconds, as a record. None means none."""
    if sent is None:
        return Figures()
    rss, peak_rss, vms, microseconds = sent
    return Figures(rss, peak_rss, vms, microseconds / 1e6)


def will_retire(retire: RetireWhen, jobs: int, seconds: float, rss: int | None, baseline: int) -> bool:
    """Return True if a worker with these figures retires after its job, as far as the parent can tell.

    Args:
        retire: the policy.
        jobs: the jobs that it has run.
        seconds: the time since it was ready.
        rss: its resident memory in bytes, None if it is unknown.
        baseline: its resident memory before the first job.
    """
    if retire.jobs is not None and jobs >= retire.jobs:
        return True
    if retire.seconds is not None and seconds >= retire.seconds:
        return True
    return retire.rss is not None and rss is not None and rss > retire.effective_rss(baseline)
