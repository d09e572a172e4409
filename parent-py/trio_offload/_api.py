"""What a user calls: :func:`run_sync`, contexts to open, and the default context with its end at exit."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import tricycle
import trio

from trio_offload_worker._retire import RetireWhen

from . import _at_exit
from ._context import WorkerContext, WorkerContextStatistics
from ._limiter import Limiter, current_default_worker_limiter
from ._options import ContextOptions, check_count, check_seconds, takes_map_options, takes_options
from ._sizes import parse_size

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ItemType = TypeVar("ItemType")
ResultType = TypeVar("ResultType")


async def run_sync(
    sync_fn: Callable[[Unpack[ArgumentTypes]], ResultType],
    *args: Unpack[ArgumentTypes],
    kill_on_cancel: bool = False,
    cancellable: bool = False,
    limiter: Limiter | None = None,
) -> ResultType:
    """Run ``sync_fn(*args)`` in a worker process and return its result.

    An exception raised by the job is raised here. Workers are reused, the most recently used first,
    so a job may find global variables as an earlier job left them. Rely on that for caches only.

    The workers are those of the innermost :func:`cache_scope` around the calling task, else of the
    default context. Entry is a checkpoint.

    Args:
        sync_fn: A synchronous callable that can be pickled: a function at the top level of a module
            or of the main script. If the package cloudpickle is installed, lambdas, nested
            functions and functions from a REPL or a notebook work as well.
        *args: Its positional arguments. Do not change them until the call has returned, because
            large ones are sent without copying. For keyword arguments use
            :func:`functools.partial`.
        kill_on_cancel: If true, cancelling the call kills the worker (SIGKILL) at once, with all
            processes that it started. If false, the call ignores cancellation and waits for the
            job. In either case Ctrl+C does not reach the job, only programs that the job started.
        cancellable: Another name of ``kill_on_cancel``. Either is enough.
        limiter: An async context manager around the call, usually a :class:`trio.CapacityLimiter`.
            None means the :func:`current_default_worker_limiter`.

    Raises:
        BaseException: The job's exception, with its traceback, causes and notes.
        RemoteError: The job raised an exception that cannot be pickled.
        BrokenWorkerError: The worker died before it answered.
        WorkerStartError: A worker could not be started.
    """
    return await _default.context().run_sync(
        sync_fn, *args, kill_on_cancel=kill_on_cancel, cancellable=cancellable, limiter=limiter
    )


if TYPE_CHECKING:
    # The overloads of the method: they stand there only.
    map = WorkerContext._create(ContextOptions()).map
else:

    @takes_map_options
    def map(
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        **options: Any,
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Any]]:
        return _default.context().map(fn, items, **options)

    map.__doc__ = WorkerContext.map.__doc__


@takes_options(ContextOptions)
@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_worker_context(options: ContextOptions) -> AsyncIterator[WorkerContext]:
    """Open a context: workers that share one set of options.

    ::

        async with trio_offload.open_worker_context(retire=retire_when(rss="500MiB")) as context:
            await context.run_sync(parse, path)

    At the end of the block the context waits for its calls in progress and for its workers to exit.
    That wait cannot be cancelled.

    Args:
        idle_timeout: Seconds after which an idle worker exits. :data:`math.inf` keeps it until the
            context closes.
        init: Function that each worker calls before its first job. Context variables that it sets
            are visible to every job. If it raises, calls that need the worker raise
            :exc:`WorkerStartError` from that exception.
        retire: Function that a worker calls after each job, once the result has been sent. If it
            returns a true value, the worker exits; see :func:`retire_when`. If it raises, the
            worker breaks, and a later call raises the error.
        grace_period: Seconds that workers get to exit at the end of the block, measured on the
            machine's clock. Then they are killed, and :exc:`BrokenWorkerError` is raised.
            :data:`math.inf` means unlimited.
        worker_type: How workers are started; see :class:`WorkerType`.
        memory_limit: Memory that a job may use, with its child processes: a number of bytes, or
            text like "500MiB" or "2 GB". A job above it is killed within half a second, and its
            call raises :exc:`WorkerMemoryError`. A worker that is above it after a job exits.
            None means unlimited.
        report_interval: Seconds between a worker's memory reports while a job runs, at least 0.01.
            :data:`math.inf` disables them; memory use then arrives with results only.
        crash_dir: Directory for a JSON file about each worker that dies during a call; see
            :class:`CrashRecord`. It is created if necessary. None means disabled.
        trace: File for a trace of the run, in the Chrome trace-event format, which
            https://ui.perfetto.dev shows: one row for each worker, a slice for each job, a curve of
            its memory use. An existing file is overwritten. None means disabled.
        forkserver_preload: Names of modules that the template imports once, so that every worker
            has them. For :attr:`WorkerType.FORKSERVER` only. A module must be importable and must
            not leave a thread running, unless the module stops that thread for forks. Otherwise
            calls raise :exc:`WorkerStartError`.
        forkserver_threads: Names of threads that may run in the template when it forks, as
            ``ps -L -o comm`` shows them. A ``*`` at the end matches any text. Such a thread does
            not exist in a worker. Its state stays as it was at the fork: a lock that it held is
            locked forever. Name a thread only if its library supports forks. Threads of jemalloc
            (in pyarrow, which pandas imports) are always allowed.

    Raises:
        TypeError, ValueError: An option is wrong.
        BrokenWorkerError: At the end of the block: a worker died or had to be killed.
    """
    context = WorkerContext._create(options)
    try:
        yield context
    finally:
        await context._close()


@takes_options(ContextOptions)
@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def cache_scope(options: ContextOptions) -> AsyncIterator[None]:
    """Give this part of the task tree workers of its own.

    Within the block, :func:`run_sync`, :func:`map` and :func:`prewarm` use them in this task and in
    all tasks below it. A scope follows the task tree: a task is in the scope if its nursery was
    opened inside of the block, whichever task starts it. A task in a nursery from outside is not.

    Scopes can be nested; the innermost one counts. Contexts of :func:`open_worker_context` are not
    affected. The parameters and exceptions are the same as for that function.
    """
    context = WorkerContext._create(options)
    token = _scope.set(context)
    try:
        yield
    finally:
        _scope.reset(token)
        await context._close()


@takes_options(ContextOptions)
def configure_default_context(options: ContextOptions) -> None:
    """Set the options of the default context, which :func:`run_sync` uses outside of any scope.

    Call it once, before the first call. A later call replaces the context and warns if the previous
    one still has workers. Its idle workers exit at once, the others when the interpreter exits.

    The parameters are the same as for :func:`open_worker_context`. The ``grace_period`` applies
    when the interpreter exits.

    Raises:
        TypeError, ValueError: An option is wrong.
        RuntimeError: Called from a thread other than the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("configure_default_context() must be called from the main thread")
    _default.replace(WorkerContext._create(options))


async def prewarm(workers: int) -> int:
    """Start workers of the context that :func:`run_sync` would use here.

    See :meth:`WorkerContext.prewarm`.
    """
    return await _default.context().prewarm(workers)


def retire_when(
    *, rss: int | str | None = None, jobs: int | None = None, seconds: float | None = None
) -> Callable[[], bool]:
    """Return a function for ``retire``: a worker exits once any of the conditions is true.

    Conditions are checked after each job. The replacement is started while the last result is being
    sent, so the next call need not wait for it.

    Args:
        rss: Resident memory that a worker may use after a job: a number of bytes, or text like
            "500MiB" or "2 GB". Peaks during a job do not count. A worker's baseline is its memory
            before the first job, with the imports of ``init``. If ``rss`` is below the baseline, it
            applies to growth above the baseline, and a warning is issued. Otherwise every worker
            would be replaced after one job.
        jobs: Number of jobs after which a worker exits.
        seconds: Age at which a worker exits, in seconds since it was ready for its first job.

    Raises:
        TypeError, ValueError: A condition is wrong, or all are missing.
    """
    if rss is None and jobs is None and seconds is None:
        raise ValueError("retire_when needs at least one of rss, jobs and seconds")
    if jobs is not None:
        check_count("jobs", jobs)
    if seconds is not None:
        check_seconds("seconds", seconds)
    return RetireWhen(None if rss is None else parse_size(rss, "rss"), jobs, seconds)


def default_context_statistics() -> WorkerContextStatistics:
    """Return the statistics of the context that :func:`run_sync` would use here.

    See :meth:`WorkerContext.statistics`. Other threads may use the default context too, so the
    figures may be outdated when this returns.
    """
    return _default.context().statistics()


def atexit_shutdown_grace_period(grace_period: float = -1.0) -> float:
    """Older name: set the grace period of the default context.

    New code passes ``grace_period`` to :func:`configure_default_context`.

    Args:
        grace_period: Seconds that workers get to exit when the interpreter exits. A negative number
            leaves them as they are.

    Returns:
        The number of seconds now in force.
    """
    return _default.grace_period(grace_period)


def current_default_process_limiter() -> trio.CapacityLimiter:
    """Older name of :func:`current_default_worker_limiter`."""
    return current_default_worker_limiter()


class _DefaultContext:
    """The context of calls that name none. It is shared by all runs of Trio, in all threads, and ends at exit."""

    def __init__(self) -> None:
        self._current = WorkerContext._create(ContextOptions())
        self._grace_period: float | None = None
        self._replaced: list[WorkerContext] = []
        _at_exit.register(self.shutdown)
        os.register_at_fork(after_in_child=self._forget)

    def context(self) -> WorkerContext:
        """The context of the innermost :func:`cache_scope` round this task, else the default one."""
        try:
            return _scope.get(self._current)
        except RuntimeError:
            # Outside of trio.run, where statistics may be asked for and calls fail with Trio's own error.
            return self._current

    def replace(self, context: WorkerContext) -> None:
        statistics = self._current.statistics()
        if statistics.idle_workers or statistics.running_workers:
            warnings.warn(
                "the default context of trio_offload is replaced while workers of the previous one are there; "
                "call configure_default_context() before the first run_sync()",
                stacklevel=4,
            )
        previous, self._current = self._current, context
        self._grace_period = None
        self._replaced.append(previous)
        previous._cache.dismiss()
        # No call comes by there any more, and so nobody who would reap them.
        context._cache.take_over(previous._cache)

    def grace_period(self, grace_period: float) -> float:
        if grace_period >= 0:
            self._grace_period = grace_period
        return self._current.grace_period if self._grace_period is None else self._grace_period

    def shutdown(self) -> None:
        """End all workers of the default context and of those that it replaced. They may be used again afterwards."""
        replaced, self._replaced = self._replaced, []
        errors = []
        for context in [*replaced, self._current]:
            grace_period = self.grace_period(-1.0) if context is self._current else context.grace_period
            try:
                context._close_sync(grace_period)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _forget(self) -> None:
        for context in [*self._replaced, self._current]:
            context._forget()


_scope: Final[tricycle.TreeVar[WorkerContext]] = tricycle.TreeVar("trio_offload_scope")
_default: Final = _DefaultContext()
