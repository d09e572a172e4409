"""The functions that users call: jobs, contexts, and conditions for ``retire``.

Functions about the default context and its scopes are in :mod:`._default`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from trio_offload_worker._jobs.retire import RetireWhen

from ._context import WorkerContext
from ._default import current_context
from ._documented import shows_progress
from ._limiter import Limiter, current_default_worker_limiter, require_trio
from ._options import ContextOptions, takes_map_options, takes_options
from ._sizes import check_count, check_seconds, parse_size

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from ._map.results import Results
    from ._worker.watch import CallOptions

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ItemType = TypeVar("ItemType")
ResultType = TypeVar("ResultType")


# Protected, because Ctrl+C between the call and its await would leave a coroutine without an await.
@shows_progress
@trio.lowlevel.enable_ki_protection
async def run_sync(
    sync_fn: Callable[[Unpack[ArgumentTypes]], ResultType],
    *args: Unpack[ArgumentTypes],
    kill_on_cancel: bool = False,
    cancellable: bool = False,
    limiter: Limiter | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # as in the method
    grace: float | None = None,
    **more: Unpack[CallOptions],
) -> ResultType:
    """Run ``sync_fn(*args)`` in a worker process and return its result.

    ::

        print(await trio_offload.run_sync(word_count, path, timeout=60))

        with trio.move_on_after(5):  # kills the job
            await trio_offload.run_sync(recognize, "page.png", kill_on_cancel=True)

    An exception raised by the job is raised here. Workers are reused, the most recently used first,
    so a job may find global variables as an earlier job left them. Rely on that for caches only.

    The workers belong to the innermost :func:`cache_scope` around the calling task, else to the
    default context. Entry is a checkpoint.

    Args:
        sync_fn: A synchronous callable that can be pickled: a function at the top level of a module
            or of the main script. If the package cloudpickle is installed, lambdas, nested
            functions and functions from a REPL or a notebook work as well.
        *args: Its positional arguments. Do not change them until the call has returned, because
            large ones are sent without copying. For keyword arguments use
            :func:`functools.partial`.
        kill_on_cancel: If true, cancelling the call kills the worker (SIGKILL) at once, with all
            processes that it started. If false, the job is notified, and the call waits for it:
            see :mod:`trio_offload_worker.from_worker`. A job that ignores that returns its result
            as usual. In either case Ctrl+C reaches only programs that the job started, not the job.
        cancellable: Another name of ``kill_on_cancel``. Either is enough.
        limiter: An async context manager around the call, usually a :class:`trio.CapacityLimiter`.
            None means the :func:`current_default_worker_limiter`.
        timeout: Seconds that the job may take, by the machine's clock. They start when a worker
            begins with the job: behind the wait for a token, the start of a worker, and the import
            of ``sync_fn``. Then the worker is killed, also without ``kill_on_cancel``.
        grace: Seconds that a job has to end by itself after it was notified of a cancellation. Then
            its worker is killed. None means no time with ``kill_on_cancel``, else unlimited time.
        progress: A function that is called here, ten times a second at most and at the end. It gets
            ``done``, ``total`` and ``note`` of the job's last ``from_worker.progress``.

    Raises:
        BaseException: The job's exception, with its traceback, causes and notes.
        JobExitError: The job raised SystemExit or KeyboardInterrupt, which is the ``__cause__``.
        WorkerTimeoutError: The job timed out. Its ``crash`` has the Python stack of that moment.
        RemoteError: The job raised an exception that cannot be pickled.
        BrokenWorkerError: The worker died before it answered.
        WorkerStartError: A worker could not be started.
        trio.Cancelled: The call was cancelled, and the job was killed, or raised
            ``from_worker.Cancelled``.
    """
    return await current_context().run_sync(
        sync_fn, *args, kill_on_cancel=kill_on_cancel or cancellable, limiter=limiter, timeout=timeout, grace=grace, **more
    )


if TYPE_CHECKING:
    # The overloads of the method: they stand there only.
    map = current_context().map
    starmap = current_context().starmap
else:

    @takes_map_options
    def map(
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        **options: Any,
    ) -> contextlib.AbstractAsyncContextManager[Results[Any]]:
        return current_context().map(fn, items, **options)

    map.__doc__ = WorkerContext.map.__doc__

    @takes_map_options
    def starmap(
        fn: Callable[..., ResultType],
        items: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
        **options: Any,
    ) -> contextlib.AbstractAsyncContextManager[Results[Any]]:
        return current_context().starmap(fn, items, **options)

    starmap.__doc__ = WorkerContext.starmap.__doc__


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
        idle_timeout: Seconds after which an idle worker exits. :data:`math.inf` keeps it.
        init: Function that each worker calls before its first job. Context variables that it sets
            are visible to every job. If it raises, calls that need the worker raise
            :exc:`WorkerStartError` from that exception.
        retire: Function that a worker calls after each job, once the result has been sent. If it
            returns a true value, the worker exits; see :func:`retire_when`. If it raises, the
            worker breaks. A later call raises the error, or the end of the block.
        grace_period: Seconds that workers get to exit at the end of the block, measured on the
            machine's clock. Then they are killed, and :exc:`BrokenWorkerError` is raised.
            :data:`math.inf` means unlimited.
        worker_type: How workers are started: a :class:`WorkerType`, or its value, such as "spawn".
        memory_limit: Memory that a job may use, with its child processes. It is a number of bytes,
            or text like "500MiB", "2G" (powers of 1024) or "2 GB" (of 1000). A job above it is
            killed within half a second, and its call raises :exc:`WorkerMemoryError`. A worker that
            is above it after a job exits. None means unlimited.
        min_idle: Number of idle workers to keep ready. They have no ``idle_timeout``. 0 means none.
        report_interval: Seconds between a worker's memory reports while a job runs, at least 0.01.
            :data:`math.inf` disables them; memory use then arrives with results only.
        max_waiting_jobs: Number of jobs that may lend their token of the limiter to another job
            while they wait for this program. ``docs/talking.md`` describes the bound.
        stall_report: Seconds after which a warning names all waits of jobs, if all jobs wait, one
            for a lock, and none goes on. None means never.
        forward_logging: True, a level, or levels by logger: handle log records of jobs here.
        keep_handlers: Names of handlers of workers that handle these records too.
        output: "inherit", "lines" or a function: for text that workers print (``docs/logging.md``).
        crash_dir: Directory for a JSON :class:`CrashRecord` of each worker that dies during a call.
        trace: File for a trace of the run, for https://ui.perfetto.dev. None means disabled.
        report: File for an HTML page about the run, written when the block ends, also by an
            exception. It requires the extra ``report``. None means disabled.
        forkserver_preload: Names of modules that the template imports once, so that every worker
            has them. For :attr:`WorkerType.FORKSERVER` only. A module must be importable, and its
            threads must not run at a fork. Otherwise calls raise :exc:`WorkerStartError`.
        forkserver_threads: Names of threads that may run in the template when it forks, as
            ``ps -L -o comm`` shows them. A ``*`` at the end matches any text. A lock that such a
            thread holds is locked forever in the worker, so its library must support forks.

    Raises:
        TypeError, ValueError: An option is wrong, or a file cannot be written.
        ModuleNotFoundError: The package of the extra ``report`` is missing.
        BrokenWorkerError: At the end of the block: a worker died or had to be killed.
    """
    require_trio()
    context = WorkerContext._create(options)
    context._pool.open()
    try:
        yield context
    finally:
        await context._pool.close(context.grace_period)


@trio.lowlevel.enable_ki_protection
async def prewarm(workers: int) -> int:
    """Start workers of the context that :func:`run_sync` would use here.

    ::

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_offload.prewarm, 2)
            settings = await read_settings()  # while the workers start

    See :meth:`WorkerContext.prewarm`.
    """
    require_trio()
    return await current_context().prewarm(workers)


def retire_when(
    *, rss: int | str | None = None, jobs: int | None = None, seconds: float | None = None
) -> Callable[[], bool]:
    """Return a function for ``retire``: a worker exits once any of the conditions is true.

    ::

        retire = trio_offload.retire_when(rss="500MiB", jobs=1000)
        async with trio_offload.open_worker_context(retire=retire) as context:
            await context.run_sync(parse, path)

    Conditions are checked after each job. The replacement is started while the last result is being
    sent, so the next call need not wait for it.

    Args:
        rss: Resident memory that a worker may use after a job: a number of bytes, or text as
            for ``memory_limit``. Peaks during a job do not count. A worker's baseline is its memory
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


def current_default_process_limiter() -> trio.CapacityLimiter:
    """Older name of :func:`current_default_worker_limiter`.

    ::

        limiter = trio_offload.current_default_process_limiter()
        print(f"{limiter.borrowed_tokens} of {limiter.total_tokens} tokens are in use")
    """
    return current_default_worker_limiter()
