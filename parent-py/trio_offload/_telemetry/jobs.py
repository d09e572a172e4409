"""The calls that workers have got, and their spans: each is a child of its call's.

The caller's context travels inside the pickle of the call, and the times come back in the record of
the worker. So a traced job takes as many messages as another. Its span is made at the end, because
only then its beginning is known.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

import attrs
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from trio_offload_worker._requests import traced_calls as _worker_side

from .._pickling.calls import dump_around
from .calls import Call
from .recorder import PID, mark_failed

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from .._pickling.payload import Payload
    from .._worker.requests import JobCall
    from .._worker.worker import Worker


@attrs.define(eq=False)
class _Job:
    """A call that a worker has got."""

    call: Call
    sent: int = attrs.field(factory=time.time_ns)


class Jobs:
    """The traced calls in flight, by worker and number."""

    def __init__(self) -> None:
        self._of_worker: weakref.WeakKeyDictionary[Worker, dict[int, _Job]] = weakref.WeakKeyDictionary()

    def add(self, worker: Worker, number: int, call: Call) -> None:
        """Note that a worker gets a call."""
        call.note_sent()
        self._of_worker.setdefault(worker, {})[number] = _Job(call)

    def remove(self, worker: Worker, number: int) -> None:
        """Forget a call that the worker has refused."""
        self._of_worker.get(worker, {}).pop(number, None)

    def returned(self, worker: Worker, number: int, result: tuple[Any, BaseException | None], items: Any) -> None:
        """End the span of a call that was answered.

        Args:
            worker: The worker.
            number: The number of the call.
            result: As :meth:`Worker.answer` returns it.
            items: The chunk, if the call is one of a map.
        """
        job = self._of_worker.get(worker, {}).pop(number, None)
        if job is None:
            return
        value, error = result
        if items is not None and error is None:
            count = len(items.items)
            job.call.note_items(items.start, count, value[2] if count > 1 else {})
        _end(job, worker, number, error, is_answered=True)

    def broken(self, worker: Worker, number: int, error: BaseException | None) -> None:
        """End the span of a call whose worker has ended. The calls behind it were not begun.

        Without an error the call was cancelled.
        """
        job = self._of_worker.pop(worker, {}).get(number)
        if job is not None:
            _end(job, worker, number, error, is_answered=False)

    def lost(self, worker: Worker) -> None:
        """Drop the calls of a worker that has not begun them. They go to another one."""
        for job in self._of_worker.pop(worker, {}).values():
            if not job.call.ends_with_job:
                job.call.span.add_event("trio_offload.call.resent", {PID: worker.process.pid})

    def context_of(self, job_call: JobCall) -> Context | None:
        """Return the context for spans that a running job causes here."""
        for worker, jobs in list(self._of_worker.items()):
            if worker.process.pid == job_call.pid and job_call.number in jobs:
                call = jobs[job_call.number].call
                span = worker.times_of(job_call.number).span
                return call.context if not span else _remote_context(call, span)
        return None


def around(worker: Worker, payload: Payload, number: int, call: Call) -> Payload:
    """Return the payload that a worker gets in place of the call's."""
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, call.context)
    W3CBaggagePropagator().inject(headers, call.context)
    # A fork has this program's tracer provider, with exporters that may not survive a fork.
    lines = [str(number), "01"[not worker.inherits_program], call.name.replace("\n", " ")]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return dump_around(_worker_side.run, "\n".join(lines).encode(errors="replace"), payload)


def _end(job: _Job, worker: Worker, number: int, error: BaseException | None, *, is_answered: bool) -> None:
    call = job.call
    recorder, times = call.recorder, worker.times_of(number)
    call.has_job = True
    # Another number means a slot of an earlier call: this one has failed before it began.
    begun = max(times.begun, job.sent)
    ended = times.ended if times.ended >= begun else time.time_ns()
    if not (is_answered and times.span and begun == times.begun):
        attributes = {**call.attributes, PID: worker.process.pid}
        span = recorder.tracer.start_span(f"run {call.name}", call.context, attributes=attributes, start_time=begun)
        if error is not None:
            mark_failed(span, error, with_event=True)
        span.end(ended)
    recorder.job_duration.record((ended - begun) / 1e9, call.attributes, call.context)
    if job.call.ends_with_job:
        call.end(error, is_cancelled=not is_answered and error is None)


def _remote_context(call: Call, span: int) -> Context:
    own = call.span.get_span_context()
    remote = trace.SpanContext(own.trace_id, span, is_remote=True, trace_flags=own.trace_flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), call.context)
