"""The parent's facts about a worker: its times, jobs and memory, and the kills around it.

Statistics, the forecast of its retirement and the verdict on its death are drawn from this.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._jobs.retire import RetireWhen
from trio_offload_worker._protocol.frames import Frame

from .. import _crash
from .._exceptions import BrokenWorkerError, WorkerStartError, WorkerTimeoutError
from .._process import oom as _oom
from .._process import record as _record
from .._sizes import readable_limit, readable_size
from .._statistics import Figures, JobProgress, WorkerContextCounters, WorkerStatistics
from .endings import contained, is_cancellation, judge_death, load_exception

if TYPE_CHECKING:
    from .._options import ContextOptions
    from .._process.output import OutputPipes
    from .._process.process import WorkerProcess
    from .._trace import TraceWriter
    from .traced import WorkerTrace


class Vitals:
    """The times, figures and counters of one worker."""

    __slots__ = (
        "_figures",
        "_kills",
        "_next_kills",
        "_options",
        "_stderr_size",
        "baseline",
        "kills_look_at",
        "pipes",
        "raised",
        "ready",
        "started",
        "trace",
    )

    def __init__(self, options: ContextOptions, trace: TraceWriter | None) -> None:
        self._options = options
        # Pipes of its output, if this program reads it.
        self.pipes: OutputPipes | None = None
        # Its part of the context's trace, if there is one.
        self.trace: WorkerTrace | None = None
        if trace is not None:
            from .traced import WorkerTrace  # few contexts are traced

            self.trace = WorkerTrace(trace)
        # On the clock of time.monotonic().
        self.started = time.monotonic()
        self.ready = self.started
        # Jobs that raised.
        self.raised = 0
        # Resident memory before the first job, in bytes.
        self.baseline = 0
        self._figures: list[int] | None = None
        # Counters of the OOM killer when the worker was last known to live. Those that were read at
        # its last report follow them with its next report.
        self._kills = _oom.OomKills(None, None)
        self._next_kills: _oom.OomKills | None = None
        # Time of the next read of these counters.
        self.kills_look_at = -math.inf
        # Size of this program's standard error, which a worker shares.
        self._stderr_size: int | None = None

    def observe(self, kills: _oom.OomKills | None = None) -> None:
        """Note the surroundings of a worker that has just been sent its greeting.

        Args:
            kills: the counters of the OOM killer; None reads them.
        """
        self._kills = kills or _oom.count_kills()
        self._stderr_size = _crash.stderr_size()

    def become_ready(self, ready: Frame, process: WorkerProcess) -> None:
        """Note that the start has ended with this frame.

        Raises:
            WorkerStartError: the memory limit leaves no room for a job.
        """
        self.update(ready, process)
        if self._figures is not None:
            self.baseline = self._figures[0]
        limit = self._options.memory_limit
        if limit is not None and self.baseline > limit:
            raise WorkerStartError(
                f"memory_limit={limit} ({readable_limit(limit)}) is below the baseline, a worker's memory before its first job: "
                f"{readable_size(self.baseline, like=limit)}. Raise it above the baseline, or let init import less",
                process,
            )
        self.ready = time.monotonic()
        self.kills_look_at = self._kills.moment + _oom.CHECK_INTERVAL
        if self.trace is not None:
            retire, baseline = self._options.retire, self.baseline
            ceiling = retire.effective_rss(baseline) if type(retire) is RetireWhen and retire.rss is not None else None
            self.trace.started(process.pid, self.started, self.ready, baseline, ceiling)

    def update(self, frame: Frame, process: WorkerProcess) -> None:
        """Take the figures of a frame that has them."""
        body = frame.body
        if "figures" in body:
            self._figures = figures = body["figures"]
            if self.trace is not None:
                self.trace.memory(process.pid, figures[0])

    def report(self, frame: Frame, process: WorkerProcess) -> None:
        """Take the figures of a report."""
        # The worker lived when it wrote the report, and may have died since. So the counters that
        # are read now count from its next report on.
        self._kills = self._next_kills or self._kills
        self._next_kills = self._kills.refreshed()
        self.update(frame, process)

    def look_for_kills(self, now: float) -> None:
        """Read the OOM killer's counters. The worker lives: it has just got a call."""
        self._kills, self.kills_look_at = self._kills.at_call(now)
        self._next_kills = None

    @property
    def figures(self) -> Figures:
        """The figures that the worker sent last, in bytes and seconds."""
        if self._figures is None:
            return Figures()
        rss, peak_rss, vms, microseconds = self._figures
        return Figures(rss, peak_rss, vms, microseconds / 1e6)

    def will_retire(self, jobs: int) -> bool:
        """Return True if a worker retires after its job, as far as the parent can tell.

        Args:
            jobs: number of its jobs.
        """
        retire = self._options.retire
        if type(retire) is not RetireWhen:
            return False
        if retire.jobs is not None and jobs >= retire.jobs:
            return True
        if retire.seconds is not None and time.monotonic() - self.ready >= retire.seconds:
            return True
        if retire.rss is None or self._figures is None:
            return False
        return self._figures[0] > retire.effective_rss(self.baseline)

    def load_exception(self, frame: Frame, *, was_cancelled: bool = False) -> BaseException:
        """Return the exception of a job. A job that ``was_cancelled`` may raise Cancelled."""
        self.raised += 1
        error = load_exception(frame)
        return error if was_cancelled and is_cancellation(error) else contained(error)

    def counters(
        self, jobs: int, busy: float, waited: float, failure: str, *, lives: bool, in_order: bool
    ) -> WorkerContextCounters:
        """Return the numbers that only grow.

        Args:
            jobs: number of its jobs.
            busy: seconds that it had a call.
            waited: seconds that these calls have waited for a token.
            failure: the counter of the call that ended with it, or "".
            lives: the worker takes calls.
            in_order: it was asked to exit, or has sent RETIRED.
        """
        raised = self.raised
        counts: dict[str, Any] = {"calls_returned": jobs - raised, "calls_raised": raised}
        counts.update(seconds_run=busy, seconds_waited=waited)
        if failure:
            counts[failure] = 1
        if not lives:
            killed = failure in ("calls_cancelled", "calls_timed_out")
            fate = "killed" if killed else "died" if failure or not in_order else "retired"
            counts["workers_" + fate] = 1
        return WorkerContextCounters(**counts)

    def statistics(self, pid: int, jobs: int, function: str | None, step: _record.Step | None) -> WorkerStatistics:
        """Return the record for a worker with this process ID, running function and progress."""
        figures = self.figures
        return WorkerStatistics(
            pid=pid,
            state="idle" if function is None else "running",
            jobs=jobs,
            rss=figures.rss,
            peak_rss=figures.peak_rss,
            vms=figures.vms,
            cpu_time=figures.cpu_time,
            age=time.monotonic() - self.started,
            function=function,
            progress=None if step is None else JobProgress(step.done, step.total, step.note),
        )

    def explain_death(
        self,
        process: WorkerProcess,
        left_behind: str,
        function: str | None,
        item: tuple[int, str] | None,
        began: float,
        jobs: int,
        when: str,
    ) -> BrokenWorkerError:
        """Return the error for a worker that ended in a call by itself, or by the system.

        Args:
            process: its process, reaped.
            left_behind: the text of its record.
            function: name of the function that it ran.
            item: index and text of the item of a map that it ran.
            began: start of the call, on the clock of time.monotonic().
            jobs: number of its jobs before that call.
            when: the end of the message's first clause.
        """
        limit, stack = _record.parse_record(left_behind)
        crash = self._crash_record(process, stack, function, item, began)
        # A new worker may get its first call before the counters are read.
        since = began if jobs else self.started
        error = judge_death(process, when, limit, crash, self._kills, since, self._options.memory_limit)
        self._publish(error, crash)
        self.trace_death(error, process, function, item, began)
        return error

    def explain_timeout(
        self,
        process: WorkerProcess,
        left_behind: str,
        function: str | None,
        item: tuple[int, str] | None,
        began: float,
        timeout: float,
        problem: str,
    ) -> WorkerTimeoutError:
        """Return the error for a job that timed out. Its worker has been killed for that.

        Args:
            process: its process, reaped.
            left_behind: the text of its record.
            function: name of the function that it ran.
            item: index and text of the item of a map that it ran.
            began: start of the call, on the clock of time.monotonic().
            timeout: seconds that the job was allowed.
            problem: why the stack is missing.
        """
        _, stack = _record.parse_record(left_behind)
        crash = self._crash_record(
            process, stack, function, item, began, timeout=timeout, stack_problem="" if stack else problem
        )
        error = WorkerTimeoutError(
            f"{function} timed out: it took more than {timeout:g} seconds, and its worker {process.pid} was killed",
            timeout,
        )
        self._publish(error, crash)
        self.trace_death(error, process, function, item, began)
        return error

    def trace_death(
        self,
        error: BaseException,
        process: WorkerProcess,
        function: str | None,
        item: tuple[int, str] | None,
        began: float,
    ) -> None:
        """Write the job of a worker that has ended, with its error, to the trace."""
        if self.trace is not None:
            from .traced import facts_of_death

            self.trace.job(process.pid, function, item, began, type(error).__name__, facts_of_death(error, process))

    def _publish(self, error: BrokenWorkerError | WorkerTimeoutError, crash: _crash.CrashRecord) -> None:
        """Attach a record to its error, and keep it in the context's ``crash_dir``."""
        error.crash = crash
        add_note(error, crash.note())
        if self._options.crash_dir is not None:
            _crash.save_crash_record(crash, self._options.crash_dir)

    def _crash_record(
        self,
        process: WorkerProcess,
        stack: str,
        function: str | None,
        item: tuple[int, str] | None,
        began: float,
        **more: Any,
    ) -> _crash.CrashRecord:
        figures = self.figures
        index, text = item or (None, None)
        return _crash.CrashRecord(
            pid=process.pid,
            exitcode=process.exitcode,
            signal=process.signal,
            function=function,
            age=time.monotonic() - began,
            stack=stack,
            rss=figures.rss,
            peak_rss=figures.peak_rss,
            vms=figures.vms,
            cpu_time=figures.cpu_time,
            stderr=_crash.stderr_since(self._stderr_size),
            output=None if self.pipes is None else self.pipes.tail_text(),
            item_index=index,
            item=text,
            **more,
        )
