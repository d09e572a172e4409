"""The span of a call in this program, from the wait for a token to the result.

A call is found again where its bytes are sent: by its task, or by its payload, if another task may
send that.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from opentelemetry import context as otel_context
from opentelemetry import trace

from .recorder import ERROR_TYPE, FUNCTION, OUTCOME, WORKER_TYPE, Recorder, mark_failed, outcome_of, type_name

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from .._options import WorkerType
    from .._pickling.payload import Payload

_MAX_EVENTS: Final = 16  # for failed items of a chunk


class Call:
    """One call. Its span is a child of the current one."""

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        worker_type: WorkerType,
        parent: Context | None = None,
        *,
        ends_with_job: bool = False,
    ) -> None:
        """``ends_with_job`` means that the end of the job ends it."""
        self.recorder: Final = recorder
        self.name: Final = name
        self.attributes: Final = {FUNCTION: name, WORKER_TYPE: worker_type.value}
        self.span: Final = recorder.tracer.start_span(f"call {name}", parent, attributes=self.attributes)
        self.context: Final = trace.set_span_in_context(self.span, parent)
        self.ends_with_job: Final = ends_with_job
        # True once a worker has begun with it.
        self.has_job = False
        self._began = time.perf_counter()
        # A chunk of a map begins when it is sent.
        self._waits = not ends_with_job
        if self._waits:
            self._count_waiting(1)

    def note_sent(self) -> None:
        """Note that a worker gets the call. It may get it again, if another one had left."""
        if self._waits:
            self._waits = False
            self._count_waiting(-1)

    def _count_waiting(self, change: int) -> None:
        self.recorder.waiting.add(change, {WORKER_TYPE: self.attributes[WORKER_TYPE]})

    def end(self, error: BaseException | None, *, is_cancelled: bool = False) -> None:
        """End the span, and count the call."""
        self.note_sent()
        outcome = "cancelled" if is_cancelled else outcome_of(error, self.has_job)
        measured = {**self.attributes, OUTCOME: outcome}
        self.span.set_attribute(OUTCOME, outcome)
        if error is not None:
            # The span of the job has the event.
            mark_failed(self.span, error, with_event=not self.has_job)
            if isinstance(error, Exception):
                measured[ERROR_TYPE] = type_name(error)
        self.span.end()
        self.recorder.call_duration.record(time.perf_counter() - self._began, measured, self.context)

    def note_items(self, start: int, count: int, failures: dict[int, Any]) -> None:
        """Note the items of a chunk.

        Args:
            start: Index of the first one.
            count: Number of items.
            failures: Each failure of the chunk's outcome, by the item's index in the chunk.
        """
        self.span.set_attribute("trio_offload.item.count", count)
        if not failures:
            return
        self.span.set_attribute("trio_offload.item.failed", len(failures))
        self.span.set_attribute(ERROR_TYPE, next(iter(failures.values()))[2])
        self.span.set_status(trace.Status(trace.StatusCode.ERROR, f"{len(failures)} of {count} items failed"))
        for index, (_, _, kind, message, traceback) in list(failures.items())[:_MAX_EVENTS]:
            event = {"exception.type": kind, "exception.message": message, "exception.stacktrace": traceback}
            self.span.add_event("exception", {**event, "trio_offload.item.index": start + index})


@attrs.frozen
class _OfTask:
    """The call of a task. Tasks that it starts inherit the variable, but not the call."""

    task: trio.lowlevel.Task
    call: Call


_of_task: Final[contextvars.ContextVar[_OfTask | None]] = contextvars.ContextVar("trio_offload_call", default=None)
# By the payload's id, because it cannot be hashed. The reference removes the entry.
_of_payload: Final[dict[int, tuple[weakref.ref[Payload], Call]]] = {}


@contextlib.contextmanager
def running(call: Call) -> Iterator[None]:
    """Let a call be the one of this task in the block, which ends it. Its span is current."""
    var_token = _of_task.set(_OfTask(trio.lowlevel.current_task(), call))
    token = otel_context.attach(call.context)
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        otel_context.detach(token)
        _of_task.reset(var_token)
        call.end(error)
        error = None  # it refers to this frame


def current_call() -> Call | None:
    """Return the call of this task."""
    found = _of_task.get()
    return found.call if found is not None and found.task is trio.lowlevel.current_task() else None


def bind(payload: Payload, call: Call) -> None:
    """Let :func:`call_of` find the call of a payload, whichever task sends it."""
    key = id(payload)
    _of_payload[key] = weakref.ref(payload, lambda _: _of_payload.pop(key, None)), call


def call_of(payload: Payload) -> Call | None:
    """Return the call of a payload: the one that was bound, or the task's."""
    found = _of_payload.get(id(payload))
    return current_call() if found is None else found[1]
