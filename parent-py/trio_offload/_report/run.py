"""A traced run, as records: the jobs, the workers, their memory, and the calls that waited.

Times are seconds of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from .._trace import WAITS

OK: Final = "ok"
RAISED: Final = "raised"
CANCELLED: Final = "cancelled"
_SECOND: Final = 1e6  # microseconds


class NoTrace(Exception):
    """The text is no trace of trio-offload."""


@attrs.frozen
class TracedFailure:
    """The failure of a job, or of one item of a chunk."""

    kind: str
    """The exception's type, and the signal or the exit status of a worker that died."""
    place: str
    """The function and the item, the time and the worker."""
    error: str
    """The exception's type and message."""
    stack: str
    """Its traceback, or the stack of the crash."""


@attrs.frozen
class TracedJob:
    """A call that has ended: a job, or a chunk of a map."""

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
    item: str = ""
    """The item, or the first and the last of a chunk."""
    items: int = 1
    """Number of its items."""
    failed: int = 0
    """Number of items that raised, in a chunk that has returned."""
    ended_by: str = ""
    """The signal or the exit status of a worker that died."""
    item_failures: tuple[tuple[str, str, str], ...] = ()
    """The item, the error and the stack of some of these failures."""

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended - self.began

    @property
    def has_failed(self) -> bool:
        """True if it has raised, or if its worker was killed or has died."""
        return self.outcome not in (OK, CANCELLED)

    @property
    def has_died(self) -> bool:
        """True if its worker was killed or has died."""
        return self.outcome not in (OK, RAISED, CANCELLED)

    @property
    def failures(self) -> Iterator[TracedFailure]:
        """Its failure, or the failures of its items."""
        where = f"at {self.began:.3f} s in worker {self.worker}"
        if self.item_failures:
            for item, error, stack in self.item_failures:
                yield TracedFailure(_kind(error), f"{self.name}, {item}, {where}", error, stack)
        elif self.has_failed:
            kind = _kind(self.error) or self.outcome
            # In the other outcomes the worker was killed for the reason that the type names.
            if self.outcome == "BrokenWorkerError" and self.ended_by:
                kind = f"{kind} ({self.ended_by})"
            name = f"{self.name}, {self.item}" if self.item else self.name
            yield TracedFailure(kind, f"{name}, {where}", self.error, self.stack)


def _kind(error: str) -> str:
    return error.partition(":")[0]


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
    ceiling: int | None = None
    """Resident memory in bytes above which it retires. None means unlimited, or unknown."""
    died: str = ""
    """How it died without a job. Empty if it has not."""


@attrs.define
class TracedRun:
    """Everything in a trace."""

    jobs: list[TracedJob] = attrs.field(factory=list)
    """In the order in which they ended."""
    workers: dict[int, TracedWorker] = attrs.field(factory=dict)
    """By process ID, in the order of their starts."""
    memory_limit: int | None = None
    """Bytes that a job may use."""
    waiting: list[tuple[float, int]] = attrs.field(factory=list)
    """Times, and the number of calls that waited from then on."""

    @property
    def seconds(self) -> float:
        """From the first event to the last."""
        ends = [job.ended for job in self.jobs] + [when for when, _ in self.waiting[-1:]]
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
            found = json.loads(event)
        except ValueError:
            if number != last:
                raise NoTrace(f"line {number + 2} is no event") from None
            return
        yield _encodable(found) if r"\ud" in event else found


def _encodable(value: Any) -> Any:
    """Return a part of an event without lone surrogates, which names of files may have."""
    if isinstance(value, dict):
        return {_encodable(key): _encodable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_encodable(part) for part in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _add(run: TracedRun, event: dict[str, Any]) -> None:
    phase, when, args = event["ph"], event.get("ts", 0.0) / _SECOND, event["args"]
    if phase == "M":
        if event["name"] == "process_name":
            run.memory_limit = args.get("memory_limit")
        return
    if event["name"] == WAITS and phase == "C":
        run.waiting.append((when, args["calls"]))
        return
    pid = event["tid"]
    worker = run.workers.setdefault(pid, TracedWorker(pid))
    if phase == "C":
        worker.memory.append((when, args["rss"]))
    elif phase == "i":
        worker.ended, worker.died = when, args.get("died", "")
    elif event["cat"] == "worker":
        worker.started, worker.ready = when, when + event["dur"] / _SECOND
        worker.ceiling = args.get("retire_rss")
    else:
        run.jobs.append(_job(event, when, args))


def _job(event: dict[str, Any], when: float, args: dict[str, Any]) -> TracedJob:
    plain = event["tid"], event["name"], when, when + event["dur"] / _SECOND, args["outcome"]
    if len(args) == 1:
        return TracedJob(*plain)  # as most jobs are
    return TracedJob(
        *plain,
        args.get("error", ""),
        args.get("stack", ""),
        _items(args),
        args.get("items", 1),
        args.get("failed", 0),
        args.get("ended_by", ""),
        tuple((f"item {index}: {text}", error, stack) for index, text, error, stack in args.get("failures", ())),
    )


def _items(args: dict[str, Any]) -> str:
    if "item" not in args:
        return ""
    first, count = args["item"], args.get("items", 1)
    if count <= 1:
        return f"item {first}: {args['text']}"
    return f"items {first} to {first + count - 1}: {args['text']} to {args['last']}"
