"""A context: workers with one configuration, the calls that run in them, and the limits on both."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import outcome
import trio
from trio import CapacityLimiter
from trio.lowlevel import checkpoint_if_cancelled, current_task

from ._documented import DocumentedType, documented, shows_progress
from ._late_methods import LateMethods
from ._launch.select import launcher_for
from ._limiter import Limiter, current_default_worker_limiter
from ._options import ContextOptions, map_settings, takes_map_options
from ._pickling.calls import dump_call, dump_call_to_fork
from ._pool.cache import WorkerCache
from ._pool.pool import WorkerPool
from ._pool.tracker import CallTracker
from ._sizes import check_count
from ._statistics import WorkerContextStatistics
from ._worker.endings import raise_cancelled, with_lost
from ._worker.states import STARTING, CallNotRun

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from ._map.results import Results
    from ._map.signature import StarMap
    from ._options import MapOptions
    from ._pickling.payload import Payload
    from ._process.process import WorkerProcess
    from ._worker.launcher import Launcher
    from ._worker.watch import CallOptions

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ItemType = TypeVar("ItemType")
ResultType = TypeVar("ResultType")
ContextType = TypeVar("ContextType")


class _NoPublicConstructor(DocumentedType):
    # Instances are made with `_create` only. A docstring would hide the base's property.
    __doc__ = DocumentedType.__doc__

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (a metaclass)
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no public constructor; use open_worker_context()")

    def _create(cls: type[ContextType], options: ContextOptions) -> ContextType:  # noqa: N805
        return super().__call__(options)  # type: ignore[misc,no-any-return]


@documented
class WorkerContext(ContextOptions, LateMethods, metaclass=_NoPublicConstructor):
    """Workers that share one set of options, from :func:`open_worker_context`.

    The options are attributes, under the names of that function's parameters::

        async with trio_offload.open_worker_context(idle_timeout=60) as context:
            await context.prewarm(2)
            print(await context.run_sync(parse, path), context.idle_timeout)
    """

    _is_constructible = False

    _pool: WorkerPool
    # Parts of the pool and its launcher. A call saves two attributes for each.
    _launcher: Launcher
    _cache: WorkerCache
    _calls: CallTracker
    _dump_call: Callable[[Callable[..., Any], tuple[Any, ...]], Payload]

    def __init__(self, options: ContextOptions) -> None:
        """Raises as :func:`launcher_for`."""
        launcher = launcher_for(options)
        pool = WorkerPool(launcher)
        private = {"_pool": pool, "_launcher": launcher, "_cache": pool.cache, "_calls": pool.calls}
        private["_dump_call"] = dump_call_to_fork if launcher.inherits_main else dump_call
        for name, value in {**vars(options), **private}.items():
            object.__setattr__(self, name, value)  # attributes are read-only

    @shows_progress
    @trio.lowlevel.enable_ki_protection
    async def run_sync(
        self,
        sync_fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        *args: Unpack[ArgumentTypes],
        kill_on_cancel: bool = False,
        cancellable: bool = False,
        limiter: Limiter | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # not Trio's clock, and not the whole call
        grace: float | None = None,
        **more: Unpack[CallOptions],
    ) -> ResultType:
        """Run ``sync_fn(*args)`` in a worker of this context. See :func:`trio_offload.run_sync`.

        Raises:
            trio.ClosedResourceError: The context is closed or closing.
        """
        if limiter is None:
            limiter = current_default_worker_limiter()
        kill_on_cancel = kill_on_cancel or cancellable
        if timeout is not None or grace is not None or more or type(limiter) is not CapacityLimiter:
            return await self._run_checked(sync_fn, args, timeout, grace, kill_on_cancel, limiter, more)
        # The same as ``async with limiter``, at a fifth of its cost when a token is free.
        task, calls, cache = current_task(), self._calls, self._cache
        call: Payload | None = None
        waited = 0.0
        waits = calls.entered and limiter.borrowed_tokens >= limiter.total_tokens
        if not waits:
            await checkpoint_if_cancelled()
            try:
                limiter.acquire_on_behalf_of_nowait(task)
            except trio.WouldBlock:
                waits = True  # a free token is reserved for a task that waits
        if waits:
            began = self._pool.begin_wait()
            try:
                await limiter.acquire_on_behalf_of(task)
            except BaseException:
                self._pool.note_wait(began)
                raise
            waited = self._pool.end_wait() - began
        try:
            calls.enter(task)
            call = self._dump_call(sync_fn, args)
            lost: list[WorkerProcess] | None = None
            while True:
                worker = cache.pop()
                new = worker is None
                if worker is None:
                    worker = self._pool.begin(call)
                try:
                    if worker.state is STARTING:
                        await self._pool.finish(worker, kill_on_cancel, call, not new)
                    else:
                        worker.submit(call)
                    worker.limiter = limiter
                    if waited:
                        worker.waited, waited = worker.waited + waited, 0.0
                    value, error = await worker.answer(kill_on_cancel, True)
                    if self.retire is not bool:
                        self._pool.retire_if_due(worker)
                except CallNotRun:
                    if new:  # and not an idle one, which may have retired
                        lost = with_lost(lost, worker.process, call.name)
                    await checkpoint_if_cancelled()  # also if not cancellable: it has not begun
                    continue
                finally:
                    cache.push(worker)
                    if new:
                        self._launcher.prepare_next()
                if error is None:
                    result: ResultType = value
                    return result
                try:
                    if not isinstance(error, Exception):
                        await raise_cancelled(error)
                    raise error
                finally:
                    error = None  # it refers to this frame, in a cycle that would keep it alive
        except BaseException:
            self._pool.settle(call, waited)
            raise
        finally:
            calls.leave(task)
            limiter.release_on_behalf_of(task)

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        return_outcomes: Literal[False] = False,
        return_items: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[ResultType]]: ...

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        return_outcomes: Literal[True],
        return_items: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[outcome.Outcome[ResultType]]]: ...

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        return_outcomes: Literal[False] = False,
        return_items: Literal[True],
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[tuple[ItemType, ResultType]]]: ...

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        return_outcomes: Literal[True],
        return_items: Literal[True],
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[tuple[ItemType, outcome.Outcome[ResultType]]]]: ...

    @overload
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        *,
        return_outcomes: bool = False,
        return_items: bool = False,
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[Any]]: ...

    @takes_map_options
    def map(
        self,
        fn: Callable[[ItemType], ResultType],
        items: Iterable[ItemType] | AsyncIterable[ItemType],
        **options: Any,
    ) -> contextlib.AbstractAsyncContextManager[Results[Any]]:
        """Call ``fn`` with each item in several workers at once, and iterate over the results.

        ::

            async with trio_offload.map(thumbnail, paths, chunk_size="auto") as thumbnails:
                async for thumbnail in thumbnails:
                    ...

        :func:`trio_offload.map` uses the innermost :func:`cache_scope`, else the default context.

        The work starts when the block is entered. When the block is left, for any reason, all
        running items are killed (SIGKILL). ``collect()`` and ``batches()`` return lists of results.

        Each item is one positional argument. For several use :meth:`starmap`, for constant ones
        :func:`functools.partial`. An item runs once at most. If its worker exits or dies before the
        item has begun, another worker runs it.

        The iteration, by one task, is a checkpoint when it waits, and once for each chunk.

        Args:
            fn: A synchronous callable that can be pickled, as for :func:`run_sync`. A partial
                is sent once to each worker, with its arguments. Any other is sent with each chunk.
            items: An iterable or an async iterable. It may be endless, because it is read only as
                far as ``window`` allows. An iterable is read in the event loop, so its ``__next__``
                must be quick. An async generator is closed at the end.
            ordered: If true, results come in the order of the items; else as they are ready.
            chunk_size: Number of items that travel together. Chunks make many small items much
                faster. "auto" measures the items and chooses chunks that take about 20
                milliseconds, 512 KiB at most. With ``timeout``, or in a context with ``retire``,
                "auto" means 1. A chunk counts as one job for ``retire``, ``memory_limit`` and the
                statistics.

                If a worker dies in a chunk, the item that killed it fails with those before it. Up
                to 64 items around it fail too, if an item takes less than a microsecond.
            timeout: Seconds that an item may take, as for :func:`run_sync`. Requires a
                ``chunk_size`` of 1 or "auto".
            grace: Seconds that an item has to end by itself after it was notified
                (:mod:`trio_offload_worker.from_worker`). Then it is killed. None means no time.
            return_outcomes: If true, the iterator returns an :class:`outcome.Outcome` for each
                item, with its value or its exception. If false, the first exception ends the
                iteration. The iterator raises it after the results before it, and abandons all
                other items.
            return_items: If true, the iterator returns tuples of an item and its result (or its
                outcome). Each item then stays in memory until its result has been consumed.
            workers: Largest number of workers. None means as many as ``limiter`` has tokens.
            window: Largest number of items that have been read and whose chunk has not been
                consumed. A full window stops the workers: when the consumer is slow, or, if
                ``ordered``, when one item takes very long. None means eight chunks for each worker,
                and up to 32 if a chunk takes less than half a millisecond.
            limiter: Async context manager, of which each busy worker holds a token. None means the
                :func:`current_default_worker_limiter`; with ``workers``, it means unlimited.
            progress: A function as for :func:`run_sync`. Its unit is an item.

        Returns:
            An async context manager, which returns an async iterator.

        Raises:
            TypeError, ValueError: An argument is wrong.
            Exception: At the start of the block: ``fn`` cannot be pickled.
            trio.ClosedResourceError: The context, or the iterator's block, has ended.

        The iterator raises an item's exception, with the item in its note and its attributes
        ``item`` and ``item_index`` (from 0). These are the exceptions of :func:`run_sync`, and
        :exc:`WorkerTimeoutError`. Other exceptions end the iteration, also with
        ``return_outcomes``: :exc:`WorkerStartError`, and errors of ``items`` or the main script.
        """
        from ._map.map import Map  # not needed by programs without a map

        return Map(self._pool, fn, items, map_settings(options))

    if TYPE_CHECKING:
        starmap: StarMap
    else:

        @takes_map_options
        def starmap(
            self,
            fn: Callable[..., ResultType],
            items: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
            **options: Any,
        ) -> contextlib.AbstractAsyncContextManager[Results[Any]]:
            """Call ``fn(*item)`` for each item: :meth:`map` with several arguments.

            ::

                async with trio_offload.starmap(pow, [(2, 5), (3, 2)]) as powers:
                    ...

            An item is a tuple of positional arguments, or another iterable. Text, bytes and
            dictionaries are refused, because their parts are seldom meant. A wrong item fails with
            TypeError, as if the function had raised it. The options are as for :meth:`map`.
            """
            from ._map.map import Map

            return Map(self._pool, fn, items, map_settings(options, "starmap"), unpacks=True)

    @trio.lowlevel.enable_ki_protection
    def statistics(self) -> WorkerContextStatistics:
        """Return the numbers of idle and busy workers, and a record for each worker."""
        return self._pool.statistics()

    @trio.lowlevel.enable_ki_protection
    async def prewarm(self, workers: int) -> int:
        """Start workers until that many are idle.

        They start side by side. This is a checkpoint; if it is cancelled, workers that are not
        ready yet are killed.

        Args:
            workers: Number of idle workers to reach. Concurrent calls may take some of them.

        Returns:
            The number of workers started; 0 if enough were idle.

        Raises:
            TypeError, ValueError: ``workers`` is not an integer, or is negative.
            WorkerStartError: A worker could not be started. Those that were ready stay.
            trio.ClosedResourceError: The context is closed or closing.
        """
        check_count("workers", workers, at_least=0)
        await trio.lowlevel.checkpoint()
        return await self._pool.prewarm(workers)
