"""What a user calls: :func:`run_sync`, contexts to open, and the default context with its end at exit."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import outcome
import tricycle
import trio

from trio_offload_worker._retire import RetireWhen

from . import _at_exit
from ._context import Limiter, WorkerContext, WorkerContextStatistics, WorkerType, current_default_worker_limiter
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
    """Run ``sync_fn(*args)`` in a worker process, and return or raise what it returned or raised.

    Workers are kept and used again, the last one first, so what a job leaves in global variables is there for some
    later job: rely on it only for caches. Entry is a checkpoint.

    Args:
        sync_fn: a synchronous callable that can be pickled: a function at the top of a module or of the main script.
            With the package cloudpickle installed also lambdas, functions defined inside others, and what was typed
            into a REPL or a notebook.
        *args: its positional arguments, not to be changed until the call has returned. For keyword arguments use
            :func:`functools.partial`.
        kill_on_cancel: whether the call can be cancelled. If it is, the worker is killed (SIGKILL) at whatever point
            the job has reached, together with all processes that it started, before the cancellation goes on. If it
            cannot be cancelled the call waits for the job's end. Ctrl+C does not reach the job, only programs that it
            started. A deadline round the call is by Trio's clock, as round anything else.
        cancellable: the same under another name; either is enough.
        limiter: an async context manager round the call, as a rule a :class:`trio.CapacityLimiter`; None: that of
            :func:`current_default_worker_limiter`.

    Raises:
        BaseException: what the job raised, with its traceback, causes and notes.
        RemoteError: the job raised something that could not make the journey.
        BrokenWorkerError: the worker ended before it had answered.
        WorkerStartError: no worker could be started.
    """
    return await _default.context().run_sync(
        sync_fn, *args, kill_on_cancel=kill_on_cancel, cancellable=cancellable, limiter=limiter
    )


@overload
def map(
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
    """Call ``fn`` with each item, in several workers at once; the results come from an async iterator.

    ::

        async with trio_offload.map(thumbnail, paths, chunk_size="auto") as thumbnails:
            async for thumbnail in thumbnails:
                ...

    Each item is one positional argument; where ``fn`` takes more use :func:`functools.partial`, or let it take a tuple. The
    work begins at the start of the block. At its end, however it is reached, nothing is left running: what runs then is
    killed (SIGKILL), with all processes that it started. An item is run once at most. If its worker leaves or dies
    before it has begun, it is run by another one.

    The iteration is a checkpoint whenever it waits, and once for each chunk.

    Args:
        fn: a synchronous callable that can be pickled, as for :func:`run_sync`. It is pickled for each chunk, with what a
            partial has bound.
        items: an iterable, which is read in the event loop, so its ``__next__`` must not take long; or an async iterable. It
            may be endless: it is read only as far as the ``window`` allows. An async generator is closed when it is no
            longer needed.
        ordered: whether the results come in the order of the items, or each as soon as it is there.
        chunk_size: how many items travel together. With many small items the journey takes most of the time, and chunks save
            it: "auto" measures how long the items take, and chooses chunks that last about 20 milliseconds, of 512 KiB at
            most, from one item on. A chunk is one job to ``retire``, ``memory_limit`` and the statistics. If
            a worker dies in it, the item that killed it fails, those after it are run elsewhere, and of those before
            it the results are lost: they were to travel together. (Items that take less than a microsecond are counted by up
            to 64; then all of those fail.) With 1 only the item itself is lost. Where the
            context has a ``retire``, or there is a ``timeout``, "auto" is 1.
        timeout: seconds that an item may take. The worker of one that takes longer is killed. The time counts from when the
            worker is ready for the item and has imported ``fn``. Items travel alone then. These are seconds of the machine's
            clock, also in a run of Trio with another one.
        return_outcomes: whether the iterator gives an :class:`outcome.Outcome` for each item, with its value or error.
            Otherwise the first error of an item ends the iteration: it is raised by the iterator after the results that come
            before it, and all else is given up.
        workers: how many workers are used at most. None: as many as the ``limiter`` has tokens.
        window: how many items may be between the source and the consumer: read, and their chunk not consumed
            yet. None: eight chunks for each worker, and up to 32 where a chunk takes less than half a millisecond. A
            consumer that is slower than the workers stops them when it is full; with ``ordered``, so does one item that
            takes very long.
        limiter: each worker that is in use holds a token of it; None: that of :func:`current_default_worker_limiter`, unless
            ``workers`` is given.

    Returns:
        An async context manager round an async iterator, to be iterated by one task.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        Exception: at the start of the block: ``fn`` cannot be pickled.
        trio.ClosedResourceError: the context is closed, or the iterator is used after its block.

    The iterator raises what an item raised, with a note that says which, and where :func:`run_sync` would:
    :exc:`BrokenWorkerError`, :exc:`RemoteError` and what the pickler raises. :exc:`WorkerTimeoutError` is for an item that
    took too long. These are outcomes with ``return_outcomes``. What is no item's fault ends the iteration in either case:
    :exc:`WorkerStartError` if no worker can be started, and what ``items`` itself raises.
    """
    return _default.context().map(
        fn,
        items,
        ordered=ordered,
        chunk_size=chunk_size,
        timeout=timeout,
        return_outcomes=return_outcomes,
        workers=workers,
        window=window,
        limiter=limiter,
    )


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_worker_context(
    idle_timeout: float = 600.0,
    init: Callable[[], Any] = bool,
    retire: Callable[[], Any] = bool,
    grace_period: float = 30.0,
    worker_type: WorkerType = WorkerType.SPAWN,
    *,
    memory_limit: int | str | None = None,
    report_interval: float = 1.0,
    crash_dir: str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    forkserver_preload: Iterable[str] = (),
    forkserver_threads: Iterable[str] = (),
) -> AsyncIterator[WorkerContext]:
    """Open a context with workers of its own.

    At the end of the block the context waits for the calls in progress, which cannot be cancelled, and for the
    workers to leave.

    Args:
        idle_timeout: seconds that an idle worker waits for a job before it leaves; :data:`math.inf`: for ever.
        init: called in each worker before its first job. If it raises, the calls that wanted the worker raise
            :exc:`WorkerStartError` from that exception. The context variables that it sets are those of every job.
        retire: called in the worker after each job, once the result is on its way; if it returns something true the
            worker leaves. If it raises, the worker breaks, which a later call is told.
        grace_period: seconds of the machine's clock that the workers get to leave at the end of the block, before they are
            killed and :exc:`BrokenWorkerError` is raised; :data:`math.inf`: for ever.
        worker_type: how workers are started.
        memory_limit: what a job may hold, with the child processes that it starts: bytes, or text like "500MiB" or "2 GB".
            A job that passes it is ended within half a second, and its call raises :exc:`WorkerMemoryError`. A worker
            that holds more than that when a job has ended takes no other.
        report_interval: seconds between a worker's reports of its memory while a job runs; :data:`math.inf`: it tells only
            with results.
        crash_dir: a directory that gets a JSON file for each worker that dies in a call (see :class:`CrashRecord`); it is
            made if it is not there.
        trace: a file that gets the run in the Chrome trace-event format, which https://ui.perfetto.dev shows: a row for each
            worker, a slice for each job, a curve of the memory. It is overwritten.
        forkserver_preload: with :attr:`WorkerType.FORKSERVER`: the names of modules that every worker finds imported. They are
            imported once, in the template. One that cannot be imported, or leaves a thread running that it does not stop for
            a fork, makes each start of a worker fail with :exc:`WorkerStartError`.
        forkserver_threads: the names of threads that may run in the template when it forks, as ``ps -L -o comm`` shows them; a
            ``*`` at the end stands for anything. A worker has no such threads, and whatever they held or were about to do stays
            as it was at that moment: a lock that one of them has is locked for ever. So name a thread only if you know that its
            library is made for forks. Those of jemalloc (in pyarrow, which pandas imports) need not be named.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        BrokenWorkerError: at the end of the block: a worker did not leave in good order.
    """
    context: WorkerContext = WorkerContext._create(
        idle_timeout,
        init,
        retire,
        grace_period,
        worker_type,
        memory_limit=memory_limit,
        report_interval=report_interval,
        crash_dir=crash_dir,
        trace=trace,
        forkserver_preload=forkserver_preload,
        forkserver_threads=forkserver_threads,
    )
    try:
        yield context
    finally:
        await context._close()


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def cache_scope(
    idle_timeout: float = 600.0,
    init: Callable[[], Any] = bool,
    retire: Callable[[], Any] = bool,
    grace_period: float = 30.0,
    worker_type: WorkerType = WorkerType.SPAWN,
    *,
    memory_limit: int | str | None = None,
    report_interval: float = 1.0,
    crash_dir: str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    forkserver_preload: Iterable[str] = (),
    forkserver_threads: Iterable[str] = (),
) -> AsyncIterator[None]:
    """Within the block, :func:`run_sync` in this task and in all tasks below it uses workers of its own.

    It follows the task tree: a task in a nursery that was opened inside of the block is in the scope, whoever starts
    it; one in a nursery from outside is not, even if it is started here. Scopes may be nested. A context from
    :func:`open_worker_context` is not affected. The arguments and exceptions are those of that function.
    """
    context: WorkerContext = WorkerContext._create(
        idle_timeout,
        init,
        retire,
        grace_period,
        worker_type,
        memory_limit=memory_limit,
        report_interval=report_interval,
        crash_dir=crash_dir,
        trace=trace,
        forkserver_preload=forkserver_preload,
        forkserver_threads=forkserver_threads,
    )
    token = _scope.set(context)
    try:
        yield
    finally:
        _scope.reset(token)
        await context._close()


def configure_default_context(
    idle_timeout: float = 600.0,
    init: Callable[[], Any] = bool,
    retire: Callable[[], Any] = bool,
    grace_period: float = 30.0,
    worker_type: WorkerType = WorkerType.SPAWN,
    *,
    memory_limit: int | str | None = None,
    report_interval: float = 1.0,
    crash_dir: str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    forkserver_preload: Iterable[str] = (),
    forkserver_threads: Iterable[str] = (),
) -> None:
    """Replace the context that :func:`run_sync` uses outside of any :func:`cache_scope`.

    Best called once, before the first call. If workers of the previous one are still there a warning says so: idle
    ones are told to leave, running ones leave at the interpreter's exit. The arguments are those of
    :func:`open_worker_context`; the ``grace_period`` applies at the interpreter's exit.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        RuntimeError: not called from the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the default context can be configured from the main thread only")
    _default.replace(
        WorkerContext._create(
            idle_timeout,
            init,
            retire,
            grace_period,
            worker_type,
            memory_limit=memory_limit,
            report_interval=report_interval,
            crash_dir=crash_dir,
            trace=trace,
            forkserver_preload=forkserver_preload,
            forkserver_threads=forkserver_threads,
        )
    )


async def prewarm(workers: int) -> int:
    """Start workers of the context that :func:`run_sync` would use here; see :meth:`WorkerContext.prewarm`."""
    return await _default.context().prewarm(workers)


def retire_when(
    *, rss: int | str | None = None, jobs: int | None = None, seconds: float | None = None
) -> Callable[[], bool]:
    """A function for ``retire``: the worker leaves after the job with which any of the conditions has come true.

    The next call does not wait for the worker's successor: it is started while the last result is on its way.

    Args:
        rss: the worker holds more resident memory than this, in bytes or as text like "500MiB" or "2 GB". It is the memory
            of that moment that counts, not its peak. A ceiling under what a worker holds before its first job (with
            what ``init`` has imported) would replace every worker at once: then it is taken as what a worker may grow by,
            and a warning says so.
        jobs: it has run so many.
        seconds: it has lived so long since it was ready for its first job.

    Raises:
        TypeError, ValueError: a condition is not what it should be, or there is none.
    """
    if rss is None and jobs is None and seconds is None:
        raise ValueError("retire_when needs at least one of rss, jobs and seconds")
    if jobs is not None:
        if isinstance(jobs, bool) or not isinstance(jobs, int):
            raise TypeError(f"jobs is a number of jobs, not {jobs!r}")
        if jobs < 1:
            raise ValueError(f"jobs is a number of jobs, one or more, not {jobs!r}")
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"seconds is a number of seconds, not {seconds!r}")
        if not seconds >= 0:
            raise ValueError(f"seconds is a number of seconds, zero or more, not {seconds!r}")
    return RetireWhen(None if rss is None else parse_size(rss, "rss"), jobs, seconds)


def default_context_statistics() -> WorkerContextStatistics:
    """The statistics of the context that :func:`run_sync` would use here; see :meth:`WorkerContext.statistics`.

    With several threads that run Trio the figures are those of one moment, which may have passed.
    """
    return _default.context().statistics()


def atexit_shutdown_grace_period(grace_period: float = -1.0) -> float:
    """Older name: the seconds that workers of the default context get to leave at the interpreter's exit.

    New code passes ``grace_period`` to :func:`configure_default_context`.

    Args:
        grace_period: the new number of seconds; a negative one changes nothing.

    Returns:
        The number of seconds that is in force now.
    """
    return _default.grace_period(grace_period)


def current_default_process_limiter() -> trio.CapacityLimiter:
    """Older name of :func:`current_default_worker_limiter`."""
    return current_default_worker_limiter()


class _DefaultContext:
    """The context of calls that name none. It is shared by all runs of Trio, in all threads, and ends at exit."""

    def __init__(self) -> None:
        self._current: WorkerContext = WorkerContext._create()
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
                stacklevel=3,
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
