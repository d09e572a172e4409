"""The figures of ``statistics()`` as metrics. They are read when a reader collects them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import CallbackOptions, Observation

from .recorder import OUTCOME, PID, WORKER_TYPE, Recorder

if TYPE_CHECKING:
    from .._options import WorkerType
    from .._pool.pool import WorkerPool
    from .._statistics import WorkerContextCounters
    from .contexts import Contexts

_STATE: Final = "trio_offload.worker.state"
_END: Final = "trio_offload.worker.end"
_OUTCOMES: Final = ("returned", "raised", "died", "over_memory", "timed_out", "cancelled")
_ENDS: Final = ("retired", "died", "killed")

Attributes = dict[str, Any]


class Instruments:
    """The observable instruments. They are empty once they are switched off."""

    def __init__(self, recorder: Recorder, contexts: Contexts) -> None:
        self._meter = recorder.meter
        self._contexts = contexts
        self.is_on = True
        self._gauge("trio_offload.worker.count", "{worker}", "Workers that are ready for jobs.", _workers)
        self._gauge("trio_offload.worker.memory", "By", "Resident memory of each worker.", _memory)
        self._gauge("trio_offload.call.active", "{call}", "Calls in progress that have a token.", _active_calls)
        self._gauge("trio_offload.job.waiting", "{job}", "Jobs that wait for this program.", _waiting_jobs)
        self._counter("trio_offload.call.count", "{call}", "Calls that have ended in a worker.", _calls)
        self._counter("trio_offload.call.wait_time", "s", "Time that calls have waited for a token or a worker.", _wait_time)
        self._counter("trio_offload.worker.busy_time", "s", "Time that workers have had a call.", _busy_time)
        self._counter("trio_offload.worker.started", "{worker}", "Workers that became ready.", _started)
        self._counter("trio_offload.worker.failed_starts", "{worker}", "Workers whose start failed.", _failed_starts)
        self._counter("trio_offload.worker.ended", "{worker}", "Workers that have ended.", _ended)

    def _gauge(
        self, name: str, unit: str, description: str, read: Callable[[WorkerPool], Iterator[tuple[float, Attributes]]]
    ) -> None:
        """Make an instrument whose values are added up over the open contexts."""

        def observe(_: CallbackOptions) -> list[Observation]:
            sums: dict[tuple[tuple[str, Any], ...], float] = {}
            for pool in self._contexts.open_pools() if self.is_on else ():
                kind = {WORKER_TYPE: pool.launcher.options.worker_type.value}
                for value, attributes in read(pool):
                    key = tuple((kind | attributes).items())
                    sums[key] = sums.get(key, 0) + value
            return [Observation(value, dict(key)) for key, value in sums.items()]

        self._meter.create_observable_up_down_counter(name, [observe], unit, description)

    def _counter(
        self,
        name: str,
        unit: str,
        description: str,
        read: Callable[[WorkerContextCounters], Iterator[tuple[float, Attributes]]],
    ) -> None:
        """Make an instrument for numbers that only grow."""

        def observe(_: CallbackOptions) -> list[Observation]:
            sums: dict[WorkerType, WorkerContextCounters] = self._contexts.counters() if self.is_on else {}
            return [
                Observation(value, {WORKER_TYPE: kind.value, **attributes})
                for kind, counters in sums.items()
                for value, attributes in read(counters)
            ]

        self._meter.create_observable_counter(name, [observe], unit, description)


def _workers(pool: WorkerPool) -> Iterator[tuple[float, Attributes]]:
    states = [worker.state for worker in pool.cache.statistics()]
    for state in ("idle", "running"):
        yield states.count(state), {_STATE: state}


def _memory(pool: WorkerPool) -> Iterator[tuple[float, Attributes]]:
    for worker in pool.cache.statistics():
        if worker.rss is not None:
            yield worker.rss, {PID: worker.pid}


def _active_calls(pool: WorkerPool) -> Iterator[tuple[float, Attributes]]:
    yield pool.calls.running, {}


def _waiting_jobs(pool: WorkerPool) -> Iterator[tuple[float, Attributes]]:
    yield len({wait.pid for wait in pool.cache.waiting()}), {}


def _calls(counters: WorkerContextCounters) -> Iterator[tuple[float, Attributes]]:
    for outcome in _OUTCOMES:
        yield getattr(counters, f"calls_{outcome}"), {OUTCOME: outcome}


def _wait_time(counters: WorkerContextCounters) -> Iterator[tuple[float, Attributes]]:
    yield counters.seconds_waited, {}


def _busy_time(counters: WorkerContextCounters) -> Iterator[tuple[float, Attributes]]:
    yield counters.seconds_run, {}


def _started(counters: WorkerContextCounters) -> Iterator[tuple[float, Attributes]]:
    yield counters.workers_started, {}


def _failed_starts(counters: WorkerContextCounters) -> Iterator[tuple[float, Attributes]]:
    yield counters.workers_failed_to_start, {}


def _ended(counters: WorkerContextCounters) -> Iterator[tuple[float, Attributes]]:
    for end in _ENDS:
        yield getattr(counters, f"workers_{end}"), {_END: end}
