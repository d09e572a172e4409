"""A context: workers with one configuration, the calls that run in them, and the limits on both."""

from __future__ import annotations

import contextlib
import enum
import math
import numbers
import os
import threading
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import attrs
import outcome
import trio
from trio import CapacityLimiter
from trio.lowlevel import checkpoint_if_cancelled, current_task

from trio_offload_worker._retire import RetireWhen

from ._cache import WorkerCache
from ._exceptions import BrokenWorkerError
from ._map import Map, MapOptions
from ._payload import dump_call, dump_call_to_fork
from ._process.processors import usable_processors
from ._sizes import parse_size, readable_size
from ._template import Templates
from ._trace import TraceWriter
from ._worker import STARTING, CallNotRun, Worker, WorkerSettings, WorkerStatistics, logger

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from ._process.process import WorkerProcess

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ItemType = TypeVar("ItemType")
ResultType = TypeVar("ResultType")
Limiter = contextlib.AbstractAsyncContextManager[Any]


class WorkerType(str, enum.Enum):
    """How a context starts its workers.

    ``SPAWN`` starts the worker executable afresh.
    """

    SPAWN = "spawn"
    FORKSERVER = "forkserver"
    """Workers are forked off a template: a process of the context's own with a running Python, and with the modules imported
    that ``forkserver_preload`` names. Each takes a tenth of the time, and shares memory with the template.

    A worker has the working directory, environment, standard streams, ``sys.path``, ``sys.argv`` and warning filters that this
    program has when the worker starts. Fixed when the template starts, with the context's first call, are: Python's switches
    (``-X`` and the like), how the standard streams encode and buffer, the seed of ``hash()``, limits (:mod:`resource`), the
    umask, priorities. :mod:`random` and NumPy's global generator are seeded anew in each worker; other generators that a
    preloaded module makes are the same in all of them. Exit handlers of preloaded modules run at the end of each worker.
    A context keeps two processes beside its workers: the template, and one that is forked ahead and becomes the next worker. That one
    is told nothing before it does. They take three open files each.

    It needs Linux and the worker executable, see «trio-offload doctor».
    """
    FORK = "fork"
    """For experiments. A worker is a fork of this process and has all that it has, as it was at that moment.

    ``init`` and ``retire`` are not pickled but inherited: lambdas, closures and methods of objects with locks work. Calls are
    pickled as always; what they name is found in the modules that are there, ``__main__`` among them, which is not run again.
    What is meanwhile defined anew in ``__main__`` is noticed (the next call that names something in it gets a new worker); no
    other change in this process is. The exit handlers of this process are not called in a worker, those of its jobs are.

    What can go wrong, and with ``SPAWN`` cannot:

    * Of the threads of this process only the one that forks is in the worker. A lock that another one held at that moment, in
      Python or in a C library, is locked there for ever: the first job that needs it hangs. (From 3.12 on Python warns of forks
      beside other threads. Here it does not: this is the warning.)
    * Libraries with threads or devices of their own (CUDA and other graphics processors, OpenMP, gRPC, most of macOS's system
      libraries) do not survive a fork. Use them in workers only, or not with this type.
    * All descriptors of this process are in the worker too, but those of Trio and of other workers: a connection that is closed
      here stays open, one that is used on both sides has its data mixed up, a file's position is common to both.
    * What this process has written to a file but not flushed may be written twice; standard output and error are flushed before.
    * :mod:`random` begins anew in each worker. Generators of other libraries do not: with ``numpy.random`` all workers draw the
      same numbers, unless ``init`` seeds them.
    * Memory is shared until one side writes to it, be it a reference count; both may come to hold all of it. What is inherited
      counts in a worker's figures, for ``memory_limit`` and ``retire_when``, and its cyclic garbage is not collected.
    * The fork blocks the event loop for as long as the kernel copies page tables: the documentation has figures.
    """


@attrs.frozen
class WorkerContextStatistics:
    """The workers that a context has at this moment."""

    idle_workers: int
    """Workers that wait for a job."""
    running_workers: int
    """Calls in progress, each with a worker of its own (or about to get one)."""
    workers: tuple[WorkerStatistics, ...] = attrs.field(default=(), eq=False)
    """A record for each worker that is idle or runs a job, the oldest first. One that is being started has none yet.

    Statistics are equal if the two numbers are, as they are in trio-parallel.
    """


def current_default_worker_limiter() -> trio.CapacityLimiter:
    """The :class:`trio.CapacityLimiter` that calls use which bring none of their own.

    Its ``total_tokens`` may be changed. At first it is the number of processors that this program may use: those of its affinity
    mask (taskset, cpusets), no more than the control groups' quota of processor time (containers), or what ``-X cpu_count`` or
    ``PYTHON_CPU_COUNT`` says. Each :func:`trio.run` has one limiter.

    Raises:
        RuntimeError: not inside of :func:`trio.run`.
    """
    try:
        return _default_limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(usable_processors())
        _default_limiter.set(limiter)
        return limiter


def _size_or_none(value: Any) -> int | None:
    return None if value is None else parse_size(value, "memory_limit")


def _path_or_none(value: Any) -> str | None:
    if value is None:
        return None
    try:
        # The working directory may be another one by the time that it is used.
        return os.path.abspath(os.fsdecode(value))
    except TypeError:
        raise TypeError(f"crash_dir and trace are paths, not {value!r}") from None


def _plain_number(value: Any) -> Any:
    """Python's own number for one of another kind (NumPy's, a fraction): Trio's clock takes no others."""
    if isinstance(value, (int, float)):
        return value
    return float(value) if isinstance(value, numbers.Real) else value


def _names(value: Any, option: str, of: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{option} is an iterable of the names of {of}, not a single string ({value!r})")
    try:
        names = tuple(value)
    except TypeError:
        raise TypeError(f"{option} is an iterable of the names of {of}, not {value!r}") from None
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{option} has the names of {of}, not {name!r}")
    return names


def _thread_names(value: Any) -> tuple[str, ...]:
    names = _names(value, "forkserver_threads", "threads")
    if not all(names):
        raise ValueError(f"forkserver_threads has the names of threads, none of which is empty, not {list(names)!r}")
    return names


def _module_names(value: Any) -> tuple[str, ...]:
    names = _names(value, "forkserver_preload", "modules")
    for name in names:
        if name == "__main__":
            raise ValueError("forkserver_preload cannot have __main__: a worker loads the main script when a job needs it")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"forkserver_preload has the full names of modules, like 'package.module', not {name!r}")
    return names


class _NoPublicConstructor(type):
    """Instances are made with ``_create`` only."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no public constructor; use open_worker_context()")

    def _create(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


@attrs.frozen(eq=False, slots=False)
class WorkerContext(metaclass=_NoPublicConstructor):
    """Workers with a configuration of their own, from :func:`open_worker_context`.

    What that was called with can be read from the attributes of the same names.
    """

    idle_timeout: float = attrs.field(default=600.0, converter=_plain_number)
    init: Callable[[], Any] = attrs.field(default=bool)
    retire: Callable[[], Any] = attrs.field(default=bool)
    grace_period: float = attrs.field(default=30.0, converter=_plain_number)
    worker_type: WorkerType = attrs.field(default=WorkerType.SPAWN)
    memory_limit: int | None = attrs.field(default=None, kw_only=True, converter=_size_or_none)
    report_interval: float = attrs.field(default=1.0, kw_only=True, converter=_plain_number)
    crash_dir: str | None = attrs.field(default=None, kw_only=True, converter=_path_or_none)
    trace: str | None = attrs.field(default=None, kw_only=True, converter=_path_or_none)
    forkserver_preload: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_module_names)
    forkserver_threads: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_thread_names)
    _cache: WorkerCache = attrs.field(factory=WorkerCache, repr=False, init=False)
    _calls: _Calls = attrs.field(factory=lambda: _Calls(), repr=False, init=False)
    _settings: WorkerSettings = attrs.field(repr=False, init=False)
    # Taken by the first who warns.
    _warned: threading.Lock = attrs.field(factory=threading.Lock, repr=False, init=False)

    @_settings.default
    def _make_settings(self) -> WorkerSettings:
        if self.worker_type == WorkerType.FORK:
            # Imported now, and not in the middle of the first call.
            from . import _forked  # noqa: F401
        return WorkerSettings(
            idle_timeout=self.idle_timeout,
            init=self.init,
            retire=self.retire,
            memory_limit=self.memory_limit,
            report_interval=self.report_interval,
            crash_dir=self.crash_dir,
            trace=None if self.trace is None else TraceWriter(self.trace),
            fork=self.worker_type == WorkerType.FORK,
            templates=Templates(self.forkserver_preload, self.forkserver_threads)
            if self.worker_type == WorkerType.FORKSERVER
            else None,
        )

    def __attrs_post_init__(self) -> None:
        # When all arguments have been looked at: a call that is refused must not have overwritten a file.
        if self._settings.trace is not None:
            self._settings.trace.open()

    @report_interval.validator
    @idle_timeout.validator
    @grace_period.validator
    def _check_seconds(self, attribute: attrs.Attribute[float], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{attribute.name} is a number of seconds, not {value!r}")
        if math.isnan(value) or value < 0:
            raise ValueError(f"{attribute.name} is a number of seconds, zero or more (math.inf: for ever), not {value!r}")
        if attribute.name == "report_interval" and value < _SHORTEST_REPORT:
            raise ValueError(
                f"report_interval is at least {_SHORTEST_REPORT} seconds (math.inf: no reports), not {value!r}: memory does "
                "not change so fast that more could be learnt"
            )

    @init.validator
    @retire.validator
    def _check_callable(self, attribute: attrs.Attribute[Any], value: object) -> None:
        if not callable(value):
            raise TypeError(f"{attribute.name} is a function that takes no arguments, not {value!r}")

    @worker_type.validator
    def _check_worker_type(self, attribute: attrs.Attribute[WorkerType], value: object) -> None:
        try:
            WorkerType(value)
        except ValueError:
            names = ", ".join(f"WorkerType.{member.name}" for member in WorkerType)
            raise ValueError(f"{attribute.name} is one of {names}, not {value!r}") from None

    @forkserver_preload.validator
    @forkserver_threads.validator
    def _check_for_templates(self, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
        if value and self.worker_type != WorkerType.FORKSERVER:
            raise ValueError(f"{attribute.name} is for worker_type=WorkerType.FORKSERVER, not for {self.worker_type!r}")

    @trio.lowlevel.enable_ki_protection
    async def run_sync(
        self,
        sync_fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        *args: Unpack[ArgumentTypes],
        kill_on_cancel: bool = False,
        cancellable: bool = False,
        limiter: Limiter | None = None,
    ) -> ResultType:
        """Run ``sync_fn(*args)`` in a worker of this context. :func:`trio_offload.run_sync` says all about it.

        Raises:
            trio.ClosedResourceError: the context is closed, or about to be.
        """
        if limiter is None:
            limiter = current_default_worker_limiter()
        if type(limiter) is not CapacityLimiter:
            await checkpoint_if_cancelled()
            async with limiter:
                # This once more and not in a method of its own: through each coroutine on its way up Trio goes at every step.
                return await self.run_sync(
                    sync_fn, *args, kill_on_cancel=kill_on_cancel, cancellable=cancellable, limiter=_PASSED
                )
        # The same as ``async with limiter``, at a fifth of its cost when a token is free.
        task = current_task()
        if limiter is _PASSED:
            pass
        elif limiter.borrowed_tokens >= limiter.total_tokens:
            await limiter.acquire_on_behalf_of(task)
        else:
            await checkpoint_if_cancelled()
            try:
                limiter.acquire_on_behalf_of_nowait(task)
            except trio.WouldBlock:
                # It is for somebody who waits already.
                await limiter.acquire_on_behalf_of(task)
        calls, cache = self._calls, self._cache
        key = None
        try:
            key = calls.enter()
            call = (dump_call_to_fork if self._settings.fork else dump_call)(sync_fn, args)
            lost: list[WorkerProcess] = []
            while True:
                worker = cache.pop()
                new = worker is None
                if worker is None:
                    worker = Worker(self._settings)
                    worker.begin(call)
                try:
                    if worker.state is STARTING:
                        await self._finish(worker, kill_on_cancel or cancellable)
                    value, error = await worker.run_sync(call, cancellable=kill_on_cancel or cancellable)
                    if self.retire is not bool and worker.will_retire():
                        # Told to, and not only expected to: until it says so it would count as idle, and be sent calls.
                        worker.ask_to_retire()
                        self._begin_spare()
                except CallNotRun:
                    # A worker that was idle may have left for good reasons. One that was started for this call has no
                    # reason to; when one after the other does, to go on would start processes without end.
                    if new:
                        lost.append(worker.process)
                    if len(lost) == _MOST_LOST:
                        raise BrokenWorkerError(
                            f"{len(lost)} workers that were started for a call of {call.name} left one after the other "
                            "before they had begun with it; does something that init starts end them?",
                            *lost,
                        ) from None
                    # A call that may not be cancelled can be here: it has not begun.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    continue
                finally:
                    cache.push(worker)
                    if new:
                        worker.fork_next()
                if error is None:
                    result: ResultType = value
                    return result
                try:
                    raise error
                finally:
                    # It refers to this frame, so it would live until the cycle is found.
                    error = None
        finally:
            if key is not None:
                calls.leave(key)
            if limiter is not _PASSED:
                limiter.release_on_behalf_of(task)

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        ordered: bool = True,
        chunk_size: int | Literal["auto"] = 1,
        timeout: float | None = None,
        return_outcomes: Literal[False] = False,
        workers: int | None = None,
        window: int | None = None,
        limiter: Limiter | None = None,
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[ResultType]]: ...

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        ordered: bool = True,
        chunk_size: int | Literal["auto"] = 1,
        timeout: float | None = None,
        return_outcomes: Literal[True],
        workers: int | None = None,
        window: int | None = None,
        limiter: Limiter | None = None,
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[outcome.Outcome[ResultType]]]: ...

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        ordered: bool = True,
        chunk_size: int | Literal["auto"] = 1,
        timeout: float | None = None,
        return_outcomes: bool,
        workers: int | None = None,
        window: int | None = None,
        limiter: Limiter | None = None,
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Any]]: ...

    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        ordered: bool = True,
        chunk_size: int | Literal["auto"] = 1,
        timeout: float | None = None,
        return_outcomes: bool = False,
        workers: int | None = None,
        window: int | None = None,
        limiter: Limiter | None = None,
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Call ``fn`` with each item in workers of this context. :func:`trio_offload.map` says all about it."""
        options = MapOptions.checked(
            ordered=ordered,
            chunk_size=chunk_size,
            timeout=timeout,
            return_outcomes=return_outcomes,
            workers=workers,
            window=window,
        )
        if limiter is None and workers is None:
            limiter = current_default_worker_limiter()
        return Map(self, fn, items, options, limiter)

    @trio.lowlevel.enable_ki_protection
    def statistics(self) -> WorkerContextStatistics:
        """How many workers there are, idle and running, and what each of them holds."""
        self._cache.settle()
        return WorkerContextStatistics(
            idle_workers=len(self._cache), running_workers=self._calls.running, workers=self._cache.statistics()
        )

    @trio.lowlevel.enable_ki_protection
    async def prewarm(self, workers: int) -> int:
        """Start as many workers as are missing, so that ``workers`` calls at once find an idle one each.

        They are started side by side. A checkpoint; if it is cancelled, those that are not ready yet are ended.

        Args:
            workers: how many are to be idle afterwards, unless calls have taken some meanwhile.

        Returns:
            How many were started; 0 if there were enough.

        Raises:
            TypeError, ValueError: ``workers`` is not a number, or is negative.
            WorkerStartError: one could not be started. Those that were ready by then stay.
            trio.ClosedResourceError: the context is closed, or about to be.
        """
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"workers is a number of workers, not {workers!r}")
        if workers < 0:
            raise ValueError(f"workers is a number of workers, zero or more, not {workers!r}")
        await trio.lowlevel.checkpoint()
        calls, cache = self._calls, self._cache
        key = calls.enter(counted=False)
        begun: list[Worker] = []
        ready = 0
        try:
            cache.settle()
            begun += cache.take_spares()
            missing = workers - len(cache) - len(begun)
            for _ in range(missing):
                worker = Worker(self._settings)
                worker.begin()
                begun.append(worker)
                # Each takes the event loop about a millisecond.
                await trio.lowlevel.checkpoint()
            for worker in begun:
                await worker.finish(cancellable=True)
                worker.fork_next()
                cache.note_started(worker)
                cache.push(worker)
                ready += 1
                self._warn_of_baseline(worker)
        finally:
            try:
                for worker in begun[ready:]:
                    await worker.end()
            finally:
                calls.leave(key)
        return ready

    async def _ready_worker(self) -> tuple[Worker, bool]:
        """For ``map``: a worker that takes calls, and whether it is a new one. To be given back with ``_cache.push``.

        A checkpoint if one has to be started; cancelled, it is ended.
        """
        while True:
            worker = self._cache.pop()
            new = worker is None
            if worker is None:
                worker = Worker(self._settings)
                worker.begin()
            if worker.state is STARTING:
                try:
                    await self._finish(worker, True)
                except BaseException:
                    self._cache.push(worker)
                    raise
                worker.fork_next()
            if worker.keeps_privileges():
                return worker, new
            worker.ask_to_retire()
            self._cache.push(worker)

    async def _finish(self, worker: Worker, cancellable: bool) -> None:
        """Wait until a worker that was begun takes calls."""
        await worker.finish(cancellable=cancellable)
        self._cache.note_started(worker)
        self._warn_of_baseline(worker)

    def _begin_spare(self) -> None:
        """Somebody is about to leave: who comes next is not to wait for a cold start."""
        if not self._calls.closed:
            spare = Worker(self._settings)
            try:
                spare.begin()
            except Exception as error:
                # Whoever needs a worker tries again, and is told. Here there is a result that must not be lost.
                logger.warning("no worker could be started ahead of the next call: %s", error)
            else:
                self._cache.push_spare(spare)

    def _warn_of_baseline(self, worker: Worker) -> None:
        """Say once that a ``retire_when`` is under what a worker holds before its first job."""
        retire, baseline = self.retire, worker.baseline
        if type(retire) is not RetireWhen or retire.rss is None or baseline < retire.rss:
            return
        if self._warned.acquire(blocking=False):
            warnings.warn(
                f"retire_when(rss={retire.rss}): {readable_size(retire.rss)} is under the baseline, what a worker holds before "
                f"its first job: {readable_size(baseline)}. Every worker would be replaced after one job; instead they are "
                f"replaced when they have grown by {readable_size(retire.rss)}. Give more than the baseline",
                stacklevel=2,
            )

    async def _close(self) -> None:
        """Let the running calls finish, refuse new ones, and see all workers off. Not cancellable."""

        async def close() -> None:
            await self._calls.close()
            self._dismiss_templates()
            try:
                await self._cache.shutdown(self.grace_period)
            finally:
                self._close_trace()

        await _to_the_end(close)

    def _close_sync(self, grace_period: float) -> None:
        """See the idle workers off when the interpreter exits."""
        self._dismiss_templates()
        try:
            self._cache.shutdown_sync(grace_period)
        finally:
            self._close_trace()

    def _forget(self) -> None:
        """In a fork of this process: no worker, call or thread of it is here."""
        self._cache.forget()
        self._calls.forget()
        self._settings.regions.forget()

    def _dismiss_templates(self) -> None:
        if self._settings.templates is not None:
            for template in self._settings.templates.dismiss():
                self._cache.push(template)

    def _close_trace(self) -> None:
        if self._settings.trace is not None:
            self._settings.trace.close()


class _Calls:
    """Knows the calls in progress, in any thread, and lets one task wait until there are none.

    Each is a key in a dictionary, and :meth:`enter` first puts it there and then looks whether the context is closed, while
    :meth:`close` does it the other way round. So one of the two always sees the other, and neither needs a lock: an
    operation on a dictionary is one step.
    """

    def __init__(self) -> None:
        self._closed: tuple[trio.lowlevel.TrioToken, trio.Event] | None = None
        # What is not counted is waited for as well, but is not a call.
        self._entered: dict[object, bool] = {}

    def forget(self) -> None:
        """In a fork of this process none of them is there."""
        self._entered.clear()

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def running(self) -> int:
        """How many calls there are."""
        return sum(self._entered.copy().values())

    def enter(self, *, counted: bool = True) -> object:
        """A call begins; what is returned is for :meth:`leave`."""
        key = object()
        self._entered[key] = counted
        if self._closed is not None:
            self.leave(key)
            raise trio.ClosedResourceError("this worker context is closed")
        return key

    def leave(self, key: object) -> None:
        """A call has come to its end."""
        try:
            del self._entered[key]
        except KeyError:
            return  # This is a fork of the process in which it was entered.
        if self._closed is not None and not self._entered:
            token, finished = self._closed
            if token is trio.lowlevel.current_trio_token():
                finished.set()
            else:
                # Two that leave at the same time may both be the last, and the first of them lets the other's run come to its end.
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(finished.set)

    async def close(self) -> None:
        finished = trio.Event()
        self._closed = trio.lowlevel.current_trio_token(), finished
        if not self._entered:
            finished.set()
        await finished.wait()


async def _to_the_end(operation: Callable[[], Awaitable[None]]) -> None:
    """Await what must not be left half done.

    A shield keeps a cancellation away, but not KeyboardInterrupt, which Trio raises in the main task at whatever it
    awaits. So the operation runs in a task of its own; an interrupt that came meanwhile is raised when it is done.
    """
    results: list[outcome.Outcome[None]] = []

    @trio.lowlevel.enable_ki_protection
    async def run() -> None:
        with trio.CancelScope(shield=True):
            results.append(await outcome.acapture(operation))

    interrupted = False
    with trio.CancelScope(shield=True):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
        except BaseException:
            # Of the nursery's own: the task keeps to itself what the operation raises.
            interrupted = True
    try:
        results[0].unwrap()
    finally:
        if interrupted:
            raise KeyboardInterrupt


_MOST_LOST: Final = 5
# Stands for a limiter that has let the call pass.
_PASSED: Final = trio.CapacityLimiter(1)
_SHORTEST_REPORT: Final = 0.01  # seconds
_default_limiter: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("trio_offload_limiter")
