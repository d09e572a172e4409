"""A traced run, as records: the jobs, the workers, and their memory.

Times are seconds of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import attrs

OK: Final = "ok"
RAISED: Final = "raised"
CANCELLED: Final = "cancelled"
_SECOND: Final = 1e6  # microseconds


class NoTrace(Exception):
    """The text is no trace of trio-offload."""


@attrs.frozen
class TracedJob:
    """A call that has ended."""

    worker: int
    """Process ID of its worker."""
    name: str
    began: float
    ended: float
    outcome: str
    """"ok", "raised", "cancelled", or the name of our exception."""
    error: str = ""
    """The exception's type and message."""
    stack: str = ""
    """Its traceback, or the stack of the crash."""

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended - self.began

    @property
    def has_failed(self) -> bool:
        """True if it has raised, or if its worker was killed or has died."""
        return self.outcome not in (OK, CANCELLED)


@attrs.define
class TracedWorker:
    """A worker of the run."""

    pid: int
    started: float = 0.0
    """When its start began."""
    ready: float = 0.0
    ended: float | None = None
    """When its process ended. None if the trace ends earlier."""
    memory: list[tuple[float, int]] = attrs.field(factory=list)
    """Times, and the resident memory in bytes at each."""


@attrs.define
class TracedRun:
    """Everything in a trace."""

    jobs: list[TracedJob] = attrs.field(factory=list)
    """In the order in which they ended."""
    workers: dict[int, TracedWorker] = attrs.field(factory=dict)
    """By process ID, in the order of their starts."""
    memory_limit: int | None = None
    """Bytes that a job may use."""

    @property
    def seconds(self) -> float:
        """From the first event to the last."""
        ends = [job.ended for job in self.jobs]
        for worker in self.workers.values():
            ends += [worker.ready, worker.ended or 0.0, *(when for when, _ in worker.memory[-1:])]
        return max(ends, default=0.0)


def read_run(text: str) -> TracedRun:
    """Return the run of a trace file. The file may end early, if the program was killed.

    Raises:
        NoTrace: it is another file.
    """
    run = TracedRun()
    for number, event in enumerate(_events(text), start=1):
        try:
            _add(run, event)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise NoTrace(f"event {number} is not one of trio-offload's: {json.dumps(event)[:100]}") from None
    return run


def _events(text: str) -> Iterable[Any]:
    """Return the events of a JSON array that has one on each line, and may lack its end."""
    first, *lines = text.splitlines() or [""]
    if first != "[":
        raise NoTrace('its first line is not "["')
    last = len(lines) - 1
    for number, line in enumerate(lines):
        event = line.rstrip(",")
        if event in ("", "]"):
            continue
        try:
            yield json.loads(event)
        except ValueError:
            if number != last:
                raise NoTrace(f"line {number + 2} is no event") from None


def _add(run: TracedRun, event: dict[str, Any]) -> None:
    phase, when = event["ph"], event.get("ts", 0.0) / _SECOND
    if phase == "M":
        if event["name"] == "process_name":
            run.memory_limit = event["args"].get("memory_limit")
        return
    pid = event["tid"]
    worker = run.workers.setdefault(pid, TracedWorker(pid))
    if phase == "C":
        worker.memory.append((when, event["args"]["rss"]))
    elif phase == "i":
        worker.ended = when
    elif event["cat"] == "worker":
        worker.started, worker.ready = when, when + event["dur"] / _SECOND
    else:
        args = event["args"]
        end = when + event["dur"] / _SECOND
        details = args.get("error", ""), args.get("stack", "")
        run.jobs.append(TracedJob(pid, event["name"], when, end, args["outcome"], *details))
