"""Jobs whose calls are traced. The module imports no OpenTelemetry: some jobs do."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def times() -> tuple[int, int]:
    """Nanoseconds since the epoch, at the beginning and the end."""
    begun = time.time_ns()
    return begun, time.time_ns()


def current_span() -> tuple[str, str, bool]:
    """The trace and span IDs that the job's code sees, and whether it is sampled."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x"), format(context.span_id, "016x"), context.trace_flags.sampled


def current_span_of(item: Any) -> str:
    return current_span()[1]


def baggage() -> dict[str, object]:
    import opentelemetry.trace
    from opentelemetry import baggage

    del opentelemetry
    return dict(baggage.get_all())


def loads_opentelemetry() -> bool:
    return any(name.partition(".")[0] == "opentelemetry" for name in sys.modules)


def invert(number: float) -> float:
    return 1 / number


def refuse(*_: Any) -> None:
    raise ValueError("init refuses")


def name_of_caller() -> str:
    """The module of the frame around this call."""
    return str(inspect.stack()[1].frame.f_globals["__name__"])


def child_of_job() -> int:
    """Fork, and let the copy return from the job too. The pid of the copy."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return pid


def count_to(number: int) -> Iterator[int]:
    yield from range(number)


def ask(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def ask_and_forgive(function: Callable[..., Any]) -> str:
    try:
        function()
    except ZeroDivisionError as error:
        return str(error)
    return ""


class Adder:
    """An actor."""

    def __init__(self) -> None:
        self.sum = 0

    def add(self, number: int) -> int:
        self.sum += number
        return self.sum

    def count_to(self, number: int) -> Iterator[int]:
        yield from range(number)


def count_in(adder: Any, number: int) -> list[int]:
    return list(adder.count_to(number))


def add_in(adder: Any, number: int) -> int:
    return int(adder.add(number))


def export_to(path: str) -> None:
    """An ``init``: the worker gets a provider that writes each span into a file."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    provider = TracerProvider()
    file = open(path, "a", buffering=1)  # noqa: SIM115  # until the worker exits
    provider.add_span_processor(
        SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(None) + "\n"))
    )
    trace.set_tracer_provider(provider)


def make_span(name: str) -> str:
    """Make a span in the job, and return its ID."""
    from opentelemetry import trace

    with trace.get_tracer("jobs").start_as_current_span(name) as span:
        return format(span.get_span_context().span_id, "016x")
