"""Statistics of a context and its workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from trio_offload_worker import PublicType

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
class JobProgress(metaclass=PublicType):
    """How far a job is, by its own ``from_worker.progress``.

    ::

        async with trio_offload.map(thumbnail, paths) as thumbnails:
            async for small in thumbnails:
                progress = thumbnails.progress
                print(f"{progress.done} of {progress.total}, {progress.fraction:.0%}")
    """

    done: float
    """The amount of work that is done. A whole number is an ``int``."""

    total: float | None
    """The amount of all work, if it is known."""

    note: str | None
    """The job's last note, if any."""

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1. None means that the total is unknown."""
        if self.total is None or not self.total > 0:
            return None
        return min(max(self.done / self.total, 0), 1) if self.done == self.done else None


@documented
@attrs.frozen
class WorkerStatistics(metaclass=PublicType):
    """One worker at one moment.

    ::

        worker = max(context.statistics().workers, key=lambda worker: worker.peak_rss or 0)
        print(f"worker {worker.pid} took {worker.peak_rss} bytes, in {worker.jobs} jobs")
    """

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

    progress: JobProgress | None = None
    """Progress of the running job. None means that it reports none."""


@documented
@attrs.frozen
class WorkerContextCounters(metaclass=PublicType):
    """Events in a context since it was made. Each number only grows.

    ::

        counters = trio_offload.default_context_statistics().counters
        calls = counters.calls_returned + counters.calls_raised
        print(f"{calls} calls, {counters.seconds_run / calls:.3f} s each")
        if counters.calls_died:
            print(f"{counters.calls_died} crashes")

    A call is counted once it has ended in a worker, with one outcome. A chunk of a ``map`` is one
    call. ``workers_started - workers_retired - workers_died - workers_killed`` workers are left.
    """

    calls_returned: int = 0
    """Calls whose function returned."""

    calls_raised: int = 0
    """Calls whose function raised."""

    calls_died: int = 0
    """Calls whose worker died: :exc:`BrokenWorkerError`, without those below."""

    calls_over_memory: int = 0
    """Calls with :exc:`WorkerMemoryError`."""

    calls_timed_out: int = 0
    """Calls with :exc:`WorkerTimeoutError`."""

    calls_cancelled: int = 0
    """Calls that were cancelled while they ran; their workers were killed."""

    workers_started: int = 0
    """Workers that became ready for jobs."""

    workers_failed_to_start: int = 0
    """Workers whose start failed, also if it was ahead of the calls."""

    workers_retired: int = 0
    """Workers that exited in order: ``retire``, an idle timeout, the end of the context."""

    workers_died: int = 0
    """Workers that ended by themselves, or by the system, or above ``memory_limit``."""

    workers_killed: int = 0
    """Workers that were killed because their call was cancelled or timed out."""

    seconds_waited: float = 0.0
    """Seconds that calls have waited for a token of their limiter, and for a new worker."""

    seconds_run: float = 0.0
    """Seconds that workers had a call, from its sending to its outcome."""


def sum_counters(parts: Iterable[WorkerContextCounters]) -> WorkerContextCounters:
    """Return the sum of counters, field by field."""
    return WorkerContextCounters(*map(sum, zip(*map(attrs.astuple, parts), strict=True)))


@documented
@attrs.frozen
class WaitingJob(metaclass=PublicType):
    """A request of a job that its parent has not answered yet.

    ::

        for wait in trio_offload.default_context_statistics().waiting:
            print(f"{wait.function}: {wait.operation} of {wait.handle}, {wait.seconds:.0f} s")
    """

    pid: int
    """Process ID of the worker."""

    function: str
    """Name of the function that the job runs."""

    operation: str
    """The awaited operation: ``"acquire"``, ``"receive"``, ``"wait"``, ``"call"`` and so on."""

    handle: str | None
    """Text of the lock, channel or callback, with its holder, who may end the wait.

    None means a function that the job names, or a sleep.
    """

    seconds: float
    """Seconds since the request came."""


@documented
@attrs.frozen
class WorkerContextStatistics(metaclass=PublicType):
    """The workers of a context at one moment.

    ::

        statistics = context.statistics()
        memory = sum(worker.rss or 0 for worker in statistics.workers)
        print(f"{statistics.running_workers} calls, {statistics.idle_workers} idle, {memory} bytes")

    Two of these are equal if their two numbers are, as in trio-parallel.
    """

    idle_workers: int
    """Number of workers that wait for a job."""

    running_workers: int
    """Number of calls in progress. Each has a worker, or is about to get one."""

    workers: tuple[WorkerStatistics, ...] = attrs.field(default=(), eq=False)
    """A record for each idle or running worker, the oldest first. Starting workers have none."""

    counters: WorkerContextCounters = attrs.field(default=WorkerContextCounters(), eq=False)
    """Numbers that only grow, for metrics."""

    waiting: tuple[WaitingJob, ...] = attrs.field(default=(), eq=False)
    """A record for each wait of a job on this program, the longest first."""
