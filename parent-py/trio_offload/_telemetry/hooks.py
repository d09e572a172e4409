"""The methods that are replaced while telemetry is on. While it is off, calls pay nothing.

* `WorkerContext.run_sync` and `ActorHost._take_turn` have the span of the call.
* `WorkerPool.begin` and `JobCalls._dump_for` bind the payload to its call. Another task may
  send it.
* `WorkerPool._finish` has the span of a worker's start.
* `CallSender.submit` and `send_ahead` put the caller's context around the payload.
* `Worker.answer`, `end_cancelled` and `explain_timeout` end the span of the job.
* `WorkerPool.__init__` and `close` keep the list of contexts, for metrics.

The span of a map's chunk begins when the chunk is sent, because it belongs to a lane.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import trio
from opentelemetry import trace

from .._actors.host import ActorHost
from .._actors.job_calls import JobCalls
from .._context import WorkerContext
from .._pickling.payload import function_name
from .._pool import checked_call
from .._pool.pool import WorkerPool
from .._worker import callbacks
from .._worker.call_sender import CallSender
from .._worker.states import CallNotRun
from .._worker.worker import Worker
from .calls import Call, bind, call_of, current_call, running
from .contexts import Contexts
from .jobs import Jobs, around
from .observer import CallbackObserver
from .recorder import PID, WORKER_TYPE, Recorder, mark_failed

Method = Callable[..., Any]


class Hooks:
    """Replaces the methods, and restores them."""

    def __init__(self, recorder: Recorder, contexts: Contexts) -> None:
        self._recorder: Final = recorder
        self._contexts: Final = contexts
        self._jobs: Final = Jobs()
        # When the starts of workers began, in nanoseconds since the epoch.
        self._started: weakref.WeakKeyDictionary[Worker, int] = weakref.WeakKeyDictionary()
        self._originals: list[tuple[type, str, Method]] = []

    def install(self) -> None:
        """Replace the methods."""
        self._replace(WorkerContext, "run_sync", self._run_sync)
        self._replace(ActorHost, "_take_turn", self._take_turn)
        self._replace(JobCalls, "_dump_for", self._dump_for)
        self._replace(WorkerPool, "begin", self._begin)
        self._replace(WorkerPool, "_finish", self._finish)
        self._replace(CallSender, "submit", self._submit)
        self._replace(CallSender, "send_ahead", self._send_ahead)
        self._replace(Worker, "answer", self._answer)
        self._replace(Worker, "end_cancelled", self._end_cancelled)
        self._replace(Worker, "explain_timeout", self._explain_timeout)
        self._replace(WorkerPool, "__init__", self._init_pool)
        self._replace(WorkerPool, "close", self._close_pool)
        callbacks.observe = self._observe

    def remove(self) -> None:
        """Restore the methods."""
        callbacks.observe = None
        while self._originals:
            setattr(*self._originals.pop())

    def _replace(self, owner: type, name: str, make: Callable[[Method], Method]) -> None:
        original = vars(owner)[name]
        self._originals.append((owner, name, original))
        setattr(owner, name, functools.wraps(original)(make(original)))

    # --- calls in this program --------------------------------------------------------------------

    def _run_sync(self, original: Method) -> Method:
        recorder = self._recorder

        @trio.lowlevel.enable_ki_protection
        async def run_sync(context: WorkerContext, sync_fn: Any, *args: Any, **options: Any) -> Any:
            if options.get("limiter") is checked_call.PASSED:
                # The second half of a call with another limiter.
                return await original(context, sync_fn, *args, **options)
            with running(Call(recorder, function_name(sync_fn), context.worker_type)):
                return await original(context, sync_fn, *args, **options)

        return run_sync

    def _take_turn(self, original: Method) -> Method:
        recorder = self._recorder

        async def take_turn(actor: ActorHost, payload: Any) -> Any:
            call = Call(recorder, payload.name, actor.worker_type)
            bind(payload, call)
            with running(call):
                return await original(actor, payload)

        return take_turn

    def _dump_for(self, original: Method) -> Method:
        def dump_for(calls: Any, request: Any, *options: Any) -> Any:
            payload = original(calls, request, *options)
            parent, kind = self._jobs.context_of(request.owner.call), calls._actor.worker_type
            bind(payload, Call(self._recorder, payload.name, kind, parent, ends_with_job=True))
            return payload

        return dump_for

    # --- workers ----------------------------------------------------------------------------------

    def _begin(self, original: Method) -> Method:
        def begin(pool: WorkerPool, call: Any = None) -> Worker:
            if call is not None and (current := current_call()) is not None:
                bind(call, current)
            now = time.time_ns()
            worker: Worker = original(pool, call)
            self._started[worker] = now
            return worker

        return begin

    def _finish(self, original: Method) -> Method:
        recorder = self._recorder

        async def finish(pool: WorkerPool, worker: Worker, cancellable: bool) -> None:
            if not trace.get_current_span().get_span_context().is_valid:
                # It starts for later calls.
                await original(pool, worker, cancellable)
                return
            attributes = {WORKER_TYPE: worker.options.worker_type.value}
            since = self._started.pop(worker, None)
            span = recorder.tracer.start_span("start worker", attributes=attributes, start_time=since)
            try:
                await original(pool, worker, cancellable)
                span.set_attribute(PID, worker.process.pid)
            except BaseException as error:
                mark_failed(span, error, with_event=True)
                raise
            finally:
                span.end()

        return finish

    def _submit(self, original: Method) -> Method:
        def submit(worker: Worker, payload: Any, prepares: bool = False) -> None:
            if prepares:
                original(worker, payload, prepares)
                return
            call = call_of(payload) or Call(self._recorder, payload.name, worker.options.worker_type, ends_with_job=True)
            number = worker.last_number + 1
            # Before the worker can begin: `submit` may write at once.
            self._jobs.add(worker, number, call)
            try:
                original(worker, around(worker, payload, number, call), prepares)
            except BaseException:
                self._jobs.remove(worker, number)
                raise

        return submit

    def _send_ahead(self, original: Method) -> Method:
        def send_ahead(worker: Worker, payload: Any) -> Any:
            call = call_of(payload)
            if call is None:
                return original(worker, payload)
            self._jobs.add(worker, 1, call)
            return original(worker, around(worker, payload, 1, call))

        return send_ahead

    # --- their answers ----------------------------------------------------------------------------

    def _answer(self, original: Method) -> Method:
        jobs = self._jobs

        async def answer(worker: Worker, *options: Any, **more: Any) -> Any:
            number, items = worker.oldest_number, worker.items_in_flight
            try:
                result = await original(worker, *options, **more)
            except CallNotRun:
                jobs.lost(worker)
                raise
            except Exception as error:
                jobs.broken(worker, number, error)
                raise
            jobs.returned(worker, number, result, items[0] if items else None)
            return result

        return answer

    def _end_cancelled(self, original: Method) -> Method:
        async def end_cancelled(worker: Worker) -> None:
            number = worker.oldest_number
            try:
                await original(worker)
            finally:
                self._jobs.broken(worker, number, None)

        return end_cancelled

    def _explain_timeout(self, original: Method) -> Method:
        def explain_timeout(worker: Worker, timeout: float, problem: str) -> Any:
            error = original(worker, timeout, problem)
            self._jobs.broken(worker, worker.oldest_number, error)
            return error

        return explain_timeout

    # --- the rest ---------------------------------------------------------------------------------

    def _observe(self, owner: Any, function: Callable[..., Any]) -> CallbackObserver | None:
        parent = self._jobs.context_of(owner.call)
        return None if parent is None else CallbackObserver(self._recorder, function_name(function), parent)

    def _init_pool(self, original: Method) -> Method:
        def init(pool: WorkerPool, launcher: Any) -> None:
            original(pool, launcher)
            self._contexts.add(pool)

        return init

    def _close_pool(self, original: Method) -> Method:
        async def close(pool: WorkerPool, grace_period: float) -> None:
            try:
                await original(pool, grace_period)
            finally:
                self._contexts.remove(pool)

        return close
