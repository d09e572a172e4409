"""A worker's part of the trace: its start, its jobs, its memory, and its end."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

from .._trace import shortened
from .endings import describe_ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._pickling.payload import Payload
    from .._process.process import WorkerProcess
    from .._trace import TraceWriter
    from .call_sender import ItemsOfCall


class WorkerTrace:
    """Writes what happens to one worker."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer

    def started(self, pid: int, began: float, ready: float, baseline: int, ceiling: int | None) -> None:
        """Write that the worker is ready.

        Args:
            pid: the worker.
            began: start of its start.
            ready: end of its start.
            baseline: its resident memory, in bytes.
            ceiling: resident memory in bytes above which it retires. None means unlimited.
        """
        facts = {"baseline": baseline}
        if ceiling is not None:
            facts["retire_rss"] = ceiling
        self._writer.worker_started(pid, began, ready, facts)

    def memory(self, pid: int, rss: int) -> None:
        """Write its resident memory, in bytes."""
        self._writer.memory(pid, time.monotonic(), rss)

    def job(
        self, pid: int, name: str | None, item: tuple[int, str] | None, began: float, how: str, facts: dict[str, Any]
    ) -> None:
        """Write a job that has ended just now. A worker without a job has no ``name``."""
        if item is not None:
            facts["item"], facts["text"] = item
        if name is not None:
            self._writer.job(pid, name, began, time.monotonic(), how, facts)

    def answer(
        self,
        pid: int,
        call: Payload | None,
        began: float,
        items: Sequence[ItemsOfCall],
        value: Any,
        error: BaseException | None,
    ) -> None:
        """Write a job that has returned or raised just now."""
        if call is None:
            return
        facts: dict[str, Any] = items[0].facts(value) if items else {}
        # A function that reports errors in its result.
        failure_in = getattr(call.function, "failure_in", None)
        if error is None and failure_in is not None and (found := failure_in(value)) is not None:
            facts.update(failure(*found))
        facts.update(facts_of(error))
        self.job(pid, call.name, None, began, "raised" if "error" in facts or "failures" in facts else "ok", facts)

    def end(self, process: WorkerProcess, *, has_job: bool) -> None:
        """Write the end of its process, and how it died without a job."""
        has_died = not (has_job or process.dismissed or process.killed)
        self._writer.worker_ended(process.pid, time.monotonic(), {"died": describe_ending(process)} if has_died else {})


def failure(text: str, stack: str) -> dict[str, Any]:
    """Return the facts of a failure with this text and stack."""
    text, stack = shortened(text, stack)
    return {"error": text, "stack": stack}


def facts_of(error: BaseException | None) -> dict[str, Any]:
    """Return the facts of an exception: its text, where it was raised, and a death's signal."""
    if error is None:
        return {}
    crash = getattr(error, "crash", None)
    stack = crash.stack if crash is not None else "".join(traceback.format_tb(error.__traceback__))
    return failure(f"{type(error).__name__}: {error}", stack or "")


def facts_of_death(error: BaseException, process: WorkerProcess) -> dict[str, Any]:
    """Return the facts of the error of a worker that died, or was killed, while it had a job."""
    facts = facts_of(error)
    if process.signal is not None:
        facts["ended_by"] = process.signal.name
    elif process.exitcode is not None:
        facts["ended_by"] = f"exit status {process.exitcode}"
    return facts
