"""The workers of one context: taken for calls, returned, replaced, and ended."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from trio_offload_worker._jobs.retire import RetireWhen

from .._exceptions import WorkerStartError
from .._pickling.payload import release
from .._sizes import readable_limit, readable_size
from .._statistics import WorkerContextCounters, WorkerContextStatistics
from .._worker.peer import logger
from .._worker.states import IDLE, STARTING, CallNotRun
from .cache import WorkerCache
from .tracker import CallTracker, Counters, run_shielded

if TYPE_CHECKING:
    from .._pickling.payload import Payload
    from .._worker.launcher import Launcher
    from .._worker.worker import Worker
    from .keeper import Keeper

_FAILED_START: Final = WorkerContextCounters(workers_failed_to_start=1)


class WorkerPool:
    """The workers and the calls of a context.

    A call that finds an idle worker uses ``cache`` and ``calls`` directly.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher: Final = launcher
        self.counters: Final = Counters()
        self.cache: Final = WorkerCache(self.counters)
        self.calls: Final = CallTracker()
        # Called when a call begins to wait, and when it has waited. Both return the time. Without a
        # trace that is all that they do, and most calls of a busy program wait.
        self.begin_wait: Final[Callable[[], float]] = launcher.trace.begin_wait if launcher.trace else time.monotonic
        self.end_wait: Final[Callable[[], float]] = launcher.trace.end_wait if launcher.trace else time.monotonic
        self.keeper: Keeper | None = None
        if launcher.options.min_idle:
            from .keeper import Keeper  # few contexts have one

            self.keeper = Keeper(launcher, self.cache, self.calls, self._finish)
            self.cache.on_use = self.keeper.notice
        if launcher.options.forward_logging:
            from .._forwarding.logs import LogForwarder

            launcher.forwarder = LogForwarder(launcher.options.forward_logging, launcher.options.keep_handlers)
        if launcher.options.output != "inherit":
            from .._forwarding.output import receiver_for

            launcher.receiver = receiver_for(launcher.options.output)
        self._warned = threading.Lock()  # taken by the first thread that warns

    def begin(self, call: Payload | None = None) -> Worker:
        """As :meth:`Launcher.begin`, and count a failure."""
        try:
            return self.launcher.begin(call)
        except WorkerStartError:
            self.counters.add(_FAILED_START)
            raise

    async def take(self, cancellable: bool = True) -> tuple[Worker, bool]:
        """Return a worker that takes calls, and True if it is new. See :meth:`give_back`.

        A checkpoint if a worker must be started. If that is cancelled, the worker is killed, unless
        ``cancellable`` is false: then cancellation is deferred.
        """
        while True:
            worker = self.cache.pop()
            new = worker is None
            if worker is None:
                worker = self.begin()
            if worker.state is STARTING:
                try:
                    await self.finish(worker, cancellable, ahead=not new)
                except CallNotRun:
                    self.cache.push(worker)
                    continue
                except BaseException:
                    self.cache.push(worker)
                    raise
                self.launcher.prepare_next()
            return worker, new

    def give_back(self, worker: Worker) -> None:
        """Take back a worker, and start a replacement if it retires."""
        if worker.state is IDLE:
            self.retire_if_due(worker)
        self.cache.push(worker)

    def retire_if_due(self, worker: Worker) -> None:
        """After a job, let a worker retire that is about to, and start a replacement."""
        if worker.will_retire():
            # Until its RETIRED arrives, it would count as idle and get calls.
            worker.ask_to_retire()
            self.begin_spare()

    async def _finish(self, worker: Worker, cancellable: bool) -> None:
        try:
            await worker.finish(cancellable=cancellable)
        except WorkerStartError:
            self.counters.add(_FAILED_START)
            raise
        self.cache.note_started(worker)
        self._warn_of_baseline(worker)

    def note_wait(self, began: float) -> None:
        """End a wait that began at this time, and count it."""
        self.counters.add(self.end_wait() - began)

    def settle(self, call: Payload | None, waited: float) -> None:
        """After a call, count a wait that no worker has counted, and release the call's grants."""
        if waited:
            self.counters.add(waited)
        if call is not None:
            release(call)

    def open(self) -> None:
        """Begin to keep ``min_idle`` workers ready, if this is in a run of Trio."""
        if self.keeper is not None:
            self.keeper.notice()

    async def finish(self, worker: Worker, cancellable: bool, call: Payload | None = None, ahead: bool = False) -> None:
        """Wait until a worker is ready, and submit a call that was not sent with the greeting.

        Args:
            worker: its start has begun.
            cancellable: False to defer cancellation.
            call: the first call of the worker.
            ahead: the start began before the call. If it has failed, the caller starts a worker of
                its own.

        Raises:
            CallNotRun: such a start failed.
            WorkerStartError: another start failed.
        """
        began = self.begin_wait()
        try:
            await self._finish(worker, cancellable)
        except WorkerStartError as error:
            if not ahead:
                raise
            logger.warning("a worker that was started ahead of the call failed: %s", error)
            raise CallNotRun from error
        finally:
            self.note_wait(began)
        if call is not None and worker.state is IDLE:
            worker.submit(call)

    def begin_spare(self) -> None:
        """Begin the replacement of a retiring worker, so the next call finds one ready."""
        if not self.calls.closed:
            try:
                spare = self.begin()
            except Exception as error:
                # The next call tries again and raises. Here, a result must not be lost.
                logger.warning("no worker could be started ahead of the next call: %s", error)
            else:
                self.cache.push_spare(spare)

    def statistics(self) -> WorkerContextStatistics:
        """See :meth:`WorkerContext.statistics`."""
        self.cache.settle()
        return WorkerContextStatistics(
            idle_workers=len(self.cache),
            running_workers=self.calls.running,
            workers=self.cache.statistics(),
            counters=self.cache.counters(),
            waiting=self.cache.waiting(),
        )

    async def prewarm(self, workers: int) -> int:
        """Start workers until that many are idle. See :meth:`WorkerContext.prewarm`."""
        calls, cache = self.calls, self.cache
        key = calls.enter(object(), counted=False)
        begun: list[Worker] = []
        ready = 0
        try:
            cache.settle()
            begun += cache.take_spares()
            cache.rising.update(begun)
            missing = workers - len(cache) - len(begun)
            for _ in range(missing):
                begun.append(self.begin())
                cache.rising.add(begun[-1])
                # Each takes the event loop about a millisecond.
                await trio.lowlevel.checkpoint()
            for worker in begun:
                await self._finish(worker, True)
                self.launcher.prepare_next()
                cache.push(worker)
                ready += 1
        finally:
            cache.rising.difference_update(begun)
            try:
                for worker in begun[ready:]:
                    await worker.end()
            finally:
                calls.leave(key)
        return ready

    async def close(self, grace_period: float) -> None:
        """Refuse new calls, let the running ones finish, and end all workers. Not cancellable.

        Raises:
            BrokenWorkerError: see :meth:`WorkerCache.shutdown`.
        """

        async def close() -> None:
            if self.keeper is not None:
                self.keeper.stop()
            await self.calls.close()
            self._close_launcher()
            try:
                await self.cache.shutdown(grace_period)
            finally:
                self._close_trace()
                if self.launcher.report is not None:
                    # Takes a second for many jobs. The default limiter may be used up.
                    await trio.to_thread.run_sync(self.launcher.report.write, limiter=trio.CapacityLimiter(1))

        await run_shielded(close)

    def close_sync(self, grace_period: float) -> None:
        """End the idle workers, for the interpreter's exit. Raises as :meth:`close`."""
        self._close_launcher()
        try:
            self.cache.shutdown_sync(grace_period)
        finally:
            self._close_trace()
            if self.launcher.report is not None:
                self.launcher.report.write()

    def dismiss(self) -> None:
        """Ask all idle workers to exit, and replace none from now on."""
        if self.keeper is not None:
            self.keeper.stop()
        self.cache.dismiss()

    def forget(self) -> None:
        """Drop the parent's workers and calls, in a fork of this process."""
        if self.keeper is not None:
            self.keeper.forget()
        self.cache.forget()
        self.calls.forget()
        self.launcher.forget()

    def _close_launcher(self) -> None:
        for peer in self.launcher.close():
            self.cache.push_leaving(peer)

    def _close_trace(self) -> None:
        if self.launcher.trace is not None:
            self.launcher.trace.close()

    def _warn_of_baseline(self, worker: Worker) -> None:
        """Warn once about a ``retire_when`` below a worker's memory before its first job."""
        retire, baseline = self.launcher.options.retire, worker.baseline
        if type(retire) is not RetireWhen or retire.rss is None or baseline < retire.rss:
            return
        if self._warned.acquire(blocking=False):
            warnings.warn(
                f"retire_when(rss={retire.rss}): {readable_limit(retire.rss)} is below the baseline, a "
                f"worker's memory before its first job: {readable_size(baseline, like=retire.rss)}. The limit applies to "
                "growth above the baseline instead; otherwise every worker would be replaced after one job. "
                "Pass more than the baseline",
                stacklevel=2,
            )
