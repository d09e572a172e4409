"""The tracer and the instruments of the program, and the attributes that spans have in common."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import metrics, trace

from .._exceptions import BrokenWorkerError, WorkerMemoryError, WorkerStartError, WorkerTimeoutError
from .._version import __version__

SCOPE: Final = "trio_offload"
FUNCTION: Final = "code.function.name"
ERROR_TYPE: Final = "error.type"
PID: Final = "process.pid"
OUTCOME: Final = "trio_offload.outcome"
WORKER_TYPE: Final = "trio_offload.worker.type"

# Seconds. A warm call takes 50 µs, and a job may take minutes.
_BOUNDARIES: Final = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Recorder:
    """The tracer and the meter, of these providers or of the global ones."""

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
    ) -> None:
        self.tracer: Final = trace.get_tracer(SCOPE, __version__, tracer_provider)
        self.meter: Final = metrics.get_meter(SCOPE, __version__, meter_provider)
        self.call_duration: Final = self.meter.create_histogram(
            "trio_offload.call.duration",
            unit="s",
            description="Duration of calls, with the wait for a token and for a worker.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self.waiting: Final = self.meter.create_up_down_counter(
            "trio_offload.call.waiting", unit="{call}", description="Calls that wait for a token or a worker."
        )
        self.job_duration: Final = self.meter.create_histogram(
            "trio_offload.job.duration",
            unit="s",
            description="Duration of functions in their workers.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )


def outcome_of(error: BaseException | None, has_job: bool) -> str:
    """Return how a call ended, in the words of :class:`~trio_offload.WorkerContextCounters`.

    Args:
        error: Its exception.
        has_job: True if a worker has begun with it.
    """
    if error is None:
        return "returned"
    if not isinstance(error, Exception):
        return "cancelled"
    if isinstance(error, WorkerStartError) or not has_job:
        return "not_run"
    if isinstance(error, WorkerMemoryError):
        return "over_memory"
    if isinstance(error, BrokenWorkerError):
        return "died"
    return "timed_out" if isinstance(error, WorkerTimeoutError) else "raised"


def type_name(error: BaseException) -> str:
    """Return the value of ``error.type``."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def mark_failed(span: trace.Span, error: BaseException, *, with_event: bool) -> None:
    """Let a span have failed. A cancellation is ignored: it is another BaseException.

    Args:
        span: The span.
        error: The exception.
        with_event: True to add an event for the exception, with its traceback and notes.
    """
    if not isinstance(error, Exception):
        return
    name = type_name(error)
    span.set_attribute(ERROR_TYPE, name)
    span.set_status(trace.Status(trace.StatusCode.ERROR, f"{name}: {error}"))
    if not with_event or not span.is_recording():
        return
    span.record_exception(error)
    crash = getattr(error, "crash", None)
    if crash is not None:
        facts: dict[str, Any] = {
            PID: crash.pid,
            "process.exit.code": crash.exitcode,
            "trio_offload.crash.signal": None if crash.signal is None else crash.signal.name,
            "trio_offload.crash.memory": crash.rss,
            "trio_offload.crash.stack": crash.stack or None,
        }
        span.add_event("trio_offload.crash", {name: value for name, value in facts.items() if value is not None})
