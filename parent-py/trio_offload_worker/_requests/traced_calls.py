"""A job of a traced call: its times go into the record, and its caller's span into its context.

The parent makes the span of the job from these times. The worker makes it itself if it has a tracer
provider that records: then spans of the job's code are children of that span. Either way the names
and attributes are the same.

OpenTelemetry takes longer to import than Python takes to start. So this module waits until the job
or its module imports it.
"""

from __future__ import annotations

import os
import sys
from time import time_ns

from .._jobs import imports
from .._jobs.guards import evaluate_in_main, refuse_asynchronous, report_unraisable
from .._protocol.frames import TIMES_AT, TIMES_SIZE, TIMES_SLOTS
from .errors import Cancelled
from .line import current_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from typing import Any, Final


def run(trace: bytes, job: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    """Run a job.

    Args:
        trace: Lines of UTF-8. The first is the number of the call, the second ``1`` if this process
            may record the job's span, the third the name of the function. The others are HTTP
            headers with the caller's context.
        job: The function and its arguments.
    """
    global _running
    function, arguments = job
    line = current_line()
    number, may_record, name, *headers = trace.decode().split("\n")
    slot = (TIMES_AT + int(number) % TIMES_SLOTS * TIMES_SIZE) // 8
    _running = span = _JobSpan(name, headers, line.words, slot, may_record == "1")
    span.begin()
    error: BaseException | None = None
    try:
        value = _call_builtin(function, arguments) if type(function) is _BUILTIN else function(*arguments)
        refuse_asynchronous(function, value)
        return value
    except BaseException as raised:
        error = raised
        raise
    finally:
        _running = None
        # A copy of this process that the job has forked comes here too.
        if os.getpid() == line.pid:
            span.end(error)
        error = None  # it refers to this frame


class _JobSpan:
    """The times of a job, and its span if this process records one."""

    __slots__ = ("_headers", "_is_attached", "_may_record", "_name", "_slot", "_span", "_words")

    def __init__(self, name: str, headers: list[str], words: Any, slot: int, may_record: bool) -> None:
        self._name = name
        self._headers = headers
        self._words = words
        self._slot = slot
        self._may_record = may_record
        self._is_attached = False
        self._span: Any = None

    def begin(self) -> None:
        """Note the beginning. The caller's span becomes current if OpenTelemetry is imported."""
        words, slot = self._words, self._slot
        words[slot + _ENDED] = words[slot + _SPAN] = 0
        words[slot] = time_ns()
        if _MODULE in sys.modules:
            self.attach()
        elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())

    def attach(self) -> None:
        """Make the caller's span current in the job's context, or a child of it."""
        if self._is_attached:
            return
        self._is_attached = True
        try:
            self._attach()
        except Exception as error:
            # A tracer of the user's that fails must not fail the job.
            report_unraisable(error)

    def _attach(self) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = dict(header.split(": ", 1) for header in self._headers)
        current = TraceContextTextMapPropagator().extract(headers, context.get_current())
        if "baggage" in headers:
            from opentelemetry.baggage.propagation import W3CBaggagePropagator

            current = W3CBaggagePropagator().extract(headers, current)
        if self._may_record:
            attributes: dict[str, Any] = {"code.function.name": self._name, "process.pid": os.getpid()}
            tracer = trace.get_tracer("trio_offload")
            span = tracer.start_span(f"run {self._name}", current, attributes=attributes, start_time=self._words[self._slot])
            if span.is_recording():
                self._span = span
                self._words[self._slot + _SPAN] = span.get_span_context().span_id
                current = trace.set_span_in_context(span, current)
        # The job's context is a copy, which ends with the job.
        context.attach(current)

    def end(self, error: BaseException | None) -> None:
        """Note the end."""
        ended = self._words[self._slot + _ENDED] = time_ns()
        if self._span is None:
            return
        try:
            if error is not None and type(error) is not Cancelled:
                from opentelemetry.trace import Status, StatusCode

                kind = type(error)
                name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
                self._span.set_attribute("error.type", name)
                self._span.record_exception(error)
                self._span.set_status(Status(StatusCode.ERROR, f"{name}: {error}"))
            self._span.end(ended)
        except Exception as problem:
            report_unraisable(problem)


class _Finder:
    """A finder that waits for the import of OpenTelemetry, and then removes itself."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        return imports.find_spec(name, path, target, _attach_running)


def _attach_running() -> None:
    if _running is not None:
        _running.attach()


def _call_builtin(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a builtin function. Some inspect their caller, which must be the user's main module."""
    global _trampoline
    if _trampoline is None:
        _trampoline = evaluate_in_main("lambda function, arguments: function(*arguments)")
    return _trampoline(function, arguments)


_MODULE: Final = "opentelemetry.trace"
_BUILTIN: Final = type(len)
_ENDED: Final = 1
_SPAN: Final = 2
_running: _JobSpan | None = None
_trampoline: Any = None
