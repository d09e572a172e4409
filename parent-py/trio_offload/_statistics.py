"""Statistics of a context and its workers."""

from __future__ import annotations

from typing import Literal

import attrs

from ._documented import documented


@attrs.frozen
class Figures:
    """A worker's last memory report: bytes, and seconds of CPU time.

    None means not reported yet.
    """

    rss: int | None = None
    peak_rss: int | None = None
    vms: int | None = None
    cpu_time: float | None = None


@documented
@attrs.frozen
class WorkerStatistics:
    """One worker at one moment."""

    pid: int
    """Process ID."""

    state: Literal["idle", "running"]
    """Idle, or running a job."""

    jobs: int
    """Number of completed jobs."""

    rss: int | None
    """Resident memory in bytes, without child processes.

    For an idle worker: after its last job. For a running one: at its last report, at most one
    ``report_interval`` ago. None means that the system does not provide it.
    """

    peak_rss: int | None
    """Largest resident memory so far, in bytes."""

    vms: int | None
    """Size of the address space, in bytes."""

    cpu_time: float | None
    """CPU time of all its threads so far, in seconds."""

    age: float
    """Seconds since the worker was started."""

    function: str | None
    """Name of the running function. None means idle."""


@documented
@attrs.frozen
class WorkerContextStatistics:
    """The workers of a context at one moment.

    Two of these are equal if their two numbers are, as in trio-parallel.
    """

    idle_workers: int
    """Number of workers that wait for a job."""

    running_workers: int
    """Number of calls in progress. Each has a worker, or is about to get one."""

    workers: tuple[WorkerStatistics, ...] = attrs.field(default=(), eq=False)
    """A record for each idle or running worker, the oldest first. Starting workers have none."""
