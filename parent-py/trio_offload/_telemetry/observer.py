"""The span of a callback: a function of this program that a job has called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from .._worker.callbacks import call_now
from .recorder import FUNCTION, Recorder, mark_failed


class CallbackObserver:
    """Follows one callback. Its span is current in the function, and a child of the job's."""

    def __init__(self, recorder: Recorder, name: str, parent: Context) -> None:
        self._span = recorder.tracer.start_span(f"callback {name}", parent, attributes={FUNCTION: name})
        self._context = trace.set_span_in_context(self._span, parent)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As :func:`call_now`."""
        token = otel_context.attach(self._context)
        try:
            return call_now(function, args, kwargs)
        finally:
            otel_context.detach(token)

    def returned(self) -> None:
        """Note that the callback was a synchronous function, and has returned."""
        self._span.end()

    def failed(self, error: BaseException) -> None:
        """Note that the callback has raised, or is of the wrong kind."""
        mark_failed(self._span, error, with_event=True)
        self._span.end()

    def awaited(self, awaitable: Any) -> Any:
        """Return an awaitable around the one that the callback has returned."""
        coroutine: Any = self._await(awaitable)
        coroutine.__qualname__ = getattr(awaitable, "__qualname__", coroutine.__qualname__)
        return coroutine

    async def _await(self, awaitable: Any) -> Any:
        token = otel_context.attach(self._context)
        try:
            return await awaitable
        except BaseException as error:
            mark_failed(self._span, error, with_event=True)
            raise
        finally:
            otel_context.detach(token)
            self._span.end()
