"""The workers of a program at one moment: their records, with the memory and time of ``/proc``."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import attrs

from trio_offload_worker._system.figures import Meter
from trio_offload_worker._system.linux import stat_fields

from .._statistics import JobProgress
from .programs import Listing, Program


@attrs.frozen
class WorkerSample:
    """One worker. The figures mean the same as in ``WorkerStatistics``, but are of this moment."""

    pid: int
    context: int
    """Number of its context, from 1 in the order in which the program made them."""
    state: Literal["idle", "running"]
    function: str | None
    progress: JobProgress | None
    jobs: int
    rss: int | None
    peak_rss: int | None
    vms: int | None
    cpu_time: float | None
    cpu_percent: float | None
    """Processor time since the sample before, in percent of one processor."""
    age: float


@attrs.frozen
class Sample:
    """A program at one moment."""

    time: float
    """Seconds since the epoch."""
    program: Program
    workers: list[WorkerSample]

    def as_json(self) -> dict[str, Any]:
        """Return values that JSON can represent."""
        # JSON has no infinite numbers.
        program = {"time": self.time, "pid": self.program.pid, "command": self.program.command}
        return {**program, "workers": [attrs.asdict(worker, value_serializer=_finite) for worker in self.workers]}


class Sampler:
    """Samples one program again and again."""

    def __init__(self, program: Program) -> None:
        self.program = program
        # Of each worker: the time of its last sample, and its processor time then.
        self._last: dict[int, tuple[float, float]] = {}

    def sample(self) -> Sample:
        """Return the workers that live.

        Raises:
            NoProgram: as for :meth:`Program.listings`.
        """
        last, self._last = self._last, {}
        workers = [self._worker(listing, last) for listing in self.program.listings() if _lives(listing.pid)]
        return Sample(time.time(), self.program, workers)

    def _worker(self, listing: Listing, last: dict[int, tuple[float, float]]) -> WorkerSample:
        entry, step, pid = listing.entry, listing.step, listing.pid
        rss, peak_rss, vms, microseconds = Meter(pid).read() or (None, None, None, None)
        cpu_time = percent = None
        if microseconds is not None:
            now, cpu_time = time.monotonic(), microseconds / 1e6
            if pid in last:
                seconds, before = now - last[pid][0], last[pid][1]
                percent = round(max(cpu_time - before, 0) / max(seconds, 1e-3) * 100, 1)
            self._last[pid] = now, cpu_time
        return WorkerSample(
            pid=pid,
            context=entry.context,
            state="running" if entry.call else "idle",
            function=entry.function if entry.call else None,
            progress=None if step is None else JobProgress(step.done, step.total, step.note),
            jobs=entry.jobs,
            rss=rss,
            peak_rss=peak_rss,
            vms=vms,
            cpu_time=cpu_time,
            cpu_percent=percent,
            age=time.monotonic() - entry.started,
        )


def _finite(_owner: object, _field: object, value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lives(pid: int) -> bool:
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in (b"Z", b"X")
