"""Keeps ``min_idle`` workers of a context ready for the next calls.

A Trio system task does the work. It belongs to one of the runs of Trio that use the context, and
ends with that run. Without ``min_idle`` there is none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from .. import _clock
from .._worker.peer import logger
from .._worker.states import IDLE, RUNNING

if TYPE_CHECKING:
    from .._worker.launcher import Launcher
    from .._worker.worker import Worker
    from .cache import WorkerCache
    from .tracker import CallTracker

_INTERVAL: Final = 1.0  # seconds between two looks at the idle workers
_PROBATION: Final = 10.0  # seconds idle after which a new worker counts as sound
_FIRST_DELAY: Final = 1.0  # seconds until another try after a failed start; doubles
_LONGEST_DELAY: Final = 60.0  # seconds


class Keeper:
    """Replaces idle workers that are taken, have exited or have died.

    :meth:`notice` may be called by any thread, also from a signal handler. Everything else runs in
    the event loop of the task.
    """

    def __init__(
        self,
        launcher: Launcher,
        cache: WorkerCache,
        calls: CallTracker,
        finish: Callable[[Worker, bool], Awaitable[None]],
    ) -> None:
        self._launcher: Final = launcher
        self._cache: Final = cache
        self._calls: Final = calls
        self._finish: Final = finish
        self._stopped = False
        self.forget()

    def forget(self) -> None:
        """Drop the parent's task and workers, in a fork of this process."""
        # Held by the one task of all runs.
        self._owner = threading.Lock()
        # Token of the run that has the task, if any.
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._pause = trio.lowlevel.ParkingLot()
        # Workers that it has started, and the time since when they are idle.
        self._new: dict[Worker, float] = {}
        self._retry_at = 0.0
        self._delay = 0.0

    def missing(self) -> int:
        """Return how many workers must be started to have enough."""
        cache = self._cache
        return self._launcher.options.min_idle - len(cache) - cache.spares - len(cache.rising)

    def notice(self) -> None:
        """Let the task look at once if workers are missing. Does not wait."""
        token = self._token
        if token is not None and self.missing() <= 0:
            return
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._wake, idempotent=True)
            return
        # Outside of a run, the next call in a run does this.
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.current_trio_token().run_sync_soon(self._begin, idempotent=True)

    def stop(self) -> None:
        """End the task for good, from any thread. Does not wait."""
        self._stopped = True
        token, scope = self._token, self._scope
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

    def _wake(self) -> None:
        self._pause.unpark_all()

    def _begin(self) -> None:
        if self._stopped or self._calls.closed or not self._owner.acquire(blocking=False):
            return
        self._scope = trio.CancelScope()
        self._token = trio.lowlevel.current_trio_token()
        trio.lowlevel.spawn_system_task(self._keep, name="trio_offload: min_idle")

    async def _keep(self) -> None:
        owner = self._owner
        try:
            with self._scope:
                while not self._stopped and await self._attend():
                    # Without a checkpoint in between, so no notice is lost.
                    if self.missing() <= 0 or time.monotonic() < self._retry_at:
                        with _clock.move_on_after(_INTERVAL):
                            await self._pause.park()
        except Exception:
            # A system task that raises would end the run.
            logger.exception("the task that keeps min_idle workers ready failed; the next call starts another")
        finally:
            if self._stopped:
                # A start may have ended since.
                self._cache.dismiss()
            if self._owner is owner:  # not in a fork of this process
                self._token = None
                owner.release()

    async def _attend(self) -> bool:
        """Look at the idle workers, and start those that are missing.

        Return False once the pool is closed.
        """
        calls, cache = self._calls, self._cache
        try:
            # The end of the context waits for this, so it misses no worker.
            key = calls.enter(object(), counted=False)
        except trio.ClosedResourceError:
            return False
        try:
            cache.settle()
            cache.dismiss_expired(self._launcher.options.min_idle)
            self._review()
            if time.monotonic() >= self._retry_at:
                await self._start_missing()
        finally:
            calls.leave(key)
        return True

    def _review(self) -> None:
        """Count a new worker that has died without a call as a failed start."""
        now = time.monotonic()
        for worker, since in list(self._new.items()):
            lives = worker.state in (IDLE, RUNNING)
            if worker.had_call or (lives and now - since > _PROBATION):
                self._delay = 0.0
            elif lives:
                continue
            elif not worker.process.dismissed:
                self._note_failure(f"worker {worker.process.pid} ended without a call")
            del self._new[worker]

    async def _start_missing(self) -> None:
        cache, launcher = self._cache, self._launcher
        # After a failure, one worker tries whether the cause is gone.
        for _ in range(min(self.missing(), 1) if self._delay else self.missing()):
            try:
                cache.push_spare(launcher.begin())
            except Exception as error:
                self._note_failure(error)
                break
            # Each takes the event loop about a millisecond.
            await trio.lowlevel.checkpoint()
        while (worker := cache.take_oldest_spare()) is not None:
            try:
                await self._finish(worker, True)
                self._new[worker] = time.monotonic()
                launcher.prepare_next()
            except Exception as error:
                self._note_failure(error)
            finally:
                cache.push(worker)
                cache.rising.discard(worker)

    def _note_failure(self, why: object) -> None:
        """Put off the next try. Calls do not wait for it: they start their own workers."""
        now = time.monotonic()
        if now < self._retry_at:
            return  # several that were started together
        first = not self._delay
        self._delay = min(max(2 * self._delay, _FIRST_DELAY), _LONGEST_DELAY)
        self._retry_at = now + self._delay
        if first:
            logger.warning(
                "no idle worker could be started for min_idle: %s. The next attempt is in %g seconds, later ones up to %g "
                "seconds apart",
                why,
                self._delay,
                _LONGEST_DELAY,
            )
