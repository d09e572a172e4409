"""The default context, for calls outside of a context.

All runs of Trio share it. It is closed at exit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import trio

from . import _at_exit
from ._context import WorkerContext
from ._limiter import require_trio
from ._options import ContextOptions, takes_options
from ._statistics import WorkerContextStatistics

if TYPE_CHECKING:
    import tricycle


class DefaultContext:
    """Holds the default context and the contexts that it has replaced.

    Threads read the reference to the current one. Only the main thread replaces it.
    """

    def __init__(self) -> None:
        self._current = _context_for_all_runs(ContextOptions())
        self._grace_period: float | None = None
        self._replaced: list[WorkerContext] = []
        self._scopes: tricycle.TreeVar[WorkerContext] | None = None
        self._lock = threading.Lock()
        _at_exit.register(self.shutdown)
        os.register_at_fork(after_in_child=self._forget)

    def context(self) -> WorkerContext:
        """Return the context of the innermost scope around this task, else the default one."""
        if self._scopes is None:
            return self._current
        try:
            return self._scopes.get(self._current)
        except RuntimeError:
            # Outside of trio.run. Statistics are available; calls fail with Trio's own error.
            return self._current

    def scopes(self) -> tricycle.TreeVar[WorkerContext]:
        """Return the variable with the context of each scope. The first scope creates it."""
        # Takes 3 ms, and few programs need it.
        import tricycle

        with self._lock:
            if self._scopes is None:
                self._scopes = tricycle.TreeVar("trio_offload_scope")
        return self._scopes

    def replace(self, context: WorkerContext) -> None:
        """Make this the default context; the idle workers of the previous one exit."""
        statistics = self._current.statistics()
        if statistics.idle_workers or statistics.running_workers:
            warnings.warn(
                "configure_default_context() replaces a default context that still has workers. "
                "Call it before the first run_sync()",
                stacklevel=4,
            )
        previous, self._current = self._current, context
        self._grace_period = None
        self._replaced.append(previous)
        previous._pool.dismiss()
        # A context's calls reap its exited workers, and the previous one does not get further
        # calls.
        context._cache.take_over(previous._cache)

    def all_contexts(self) -> list[WorkerContext]:
        """Return the default context, and those that it has replaced."""
        return [*self._replaced, self._current]

    def grace_period(self, grace_period: float) -> float:
        """Set the grace period unless it is negative, and return it."""
        if grace_period >= 0:
            self._grace_period = grace_period
        return self._current.grace_period if self._grace_period is None else self._grace_period

    def shutdown(self) -> None:
        """End all workers, also in replaced contexts. A later call starts new ones."""
        replaced, self._replaced = self._replaced, []
        errors = []
        for context in [*replaced, self._current]:
            grace_period = self.grace_period(-1.0) if context is self._current else context.grace_period
            try:
                context._pool.close_sync(grace_period)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _forget(self) -> None:
        # In a fork of this process. Another thread may have held the lock.
        self._lock = threading.Lock()
        for context in self.all_contexts():
            context._pool.forget()


def _context_for_all_runs(options: ContextOptions) -> WorkerContext:
    context = WorkerContext._create(options)
    context._launcher.outlives_run = True
    return context


default_context: Final = DefaultContext()
current_context: Final = default_context.context


@takes_options(ContextOptions)
@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def cache_scope(options: ContextOptions) -> AsyncIterator[None]:
    """Give this part of the task tree separate workers.

    ::

        async with trio_offload.cache_scope(memory_limit="1GiB"):
            await library.process(path)  # its calls of run_sync have workers with this limit

    Within the block, :func:`run_sync`, :func:`map` and :func:`prewarm` use them in this task and in
    all tasks below it. A scope follows the task tree: a task is in the scope if its nursery was
    opened inside of the block, whichever task starts it. A task in a nursery from outside is not.

    Scopes can be nested; the innermost one counts. Contexts of :func:`open_worker_context` are not
    affected. The parameters and exceptions are the same as for that function.
    """
    require_trio()
    scopes = default_context.scopes()
    context = WorkerContext._create(options)
    token = scopes.set(context)
    context._pool.open()
    try:
        yield
    finally:
        scopes.reset(token)
        await context._pool.close(context.grace_period)


@takes_options(ContextOptions)
def configure_default_context(options: ContextOptions) -> None:
    """Set the options of the default context, which :func:`run_sync` uses outside of any scope.

    ::

        trio_offload.configure_default_context(idle_timeout=60, memory_limit="1GiB")

    Call it once, before the first call. A later call replaces the context and warns if the previous
    one still has workers. Its idle workers exit at once, the others when the interpreter exits.

    The parameters are the same as for :func:`open_worker_context`. The ``grace_period`` applies
    when the interpreter exits. A ``report`` is written then, with all runs of Trio in it.

    Raises:
        TypeError, ValueError: An option is wrong.
        RuntimeError: Called from a thread other than the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("configure_default_context() must be called from the main thread")
    default_context.replace(_context_for_all_runs(options))


def default_context_statistics() -> WorkerContextStatistics:
    """Return the statistics of the context that :func:`run_sync` would use here.

    ::

        before = trio_offload.default_context_statistics().counters.calls_returned
        await library.process(path)
        after = trio_offload.default_context_statistics().counters.calls_returned
        print(f"{after - before} calls of run_sync")

    See :meth:`WorkerContext.statistics`. Other threads may use the default context too, so the
    figures may be outdated when this returns.
    """
    return current_context().statistics()


def atexit_shutdown_grace_period(grace_period: float = -1.0) -> float:
    """Older name: set the grace period of the default context.

    ::

        seconds = trio_offload.atexit_shutdown_grace_period(10)
        print(f"workers get {seconds} s at exit")

    New code passes ``grace_period`` to :func:`configure_default_context`.

    Args:
        grace_period: Seconds that workers get to exit when the interpreter exits. A negative number
            leaves them as they are.

    Returns:
        The number of seconds now in force.
    """
    return default_context.grace_period(grace_period)
