"""The workers of one context: taken for calls, returned, and replaced."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from trio_offload_worker._jobs.retire import RetireWhen

from .._cache import WorkerCache
from .._exceptions import BrokenWorkerError
from .._sizes import readable_size
from .._worker.peer import logger
from .._worker.states import IDLE, STARTING
from .tracker import CallTracker

if TYPE_CHECKING:
    from .._pickling.payload import Payload
    from .._process.process import WorkerProcess
    from .._worker.worker import Worker, WorkerSettings

MAX_LOST: Final = 5  # new workers that may exit before they begin one call


class WorkerPool:
    """The workers and the calls of a context.

    A call that finds an idle worker uses ``cache`` and ``calls`` directly.
    """

    def __init__(self, settings: WorkerSettings, make: Callable[[], Worker]) -> None:
        self.settings = settings
        self.cache = WorkerCache()
        self.calls = CallTracker()
        self._make = make
        self._warned = threading.Lock()  # taken by the first thread that warns

    async def take(self) -> tuple[Worker, bool]:
        """Return a worker that takes calls, and True if it is new. See :meth:`give_back`.

        A checkpoint if a worker must be started. If that is cancelled, the worker is killed.
        """
        worker = self.cache.pop()
        new = worker is None
        if worker is None:
            worker = self._make()
            worker.begin()
        if worker.state is STARTING:
            try:
                await self.finish(worker, True)
            except BaseException:
                self.cache.push(worker)
                raise
            worker.fork_next()
        return worker, new

    def give_back(self, worker: Worker) -> None:
        """Take back a worker, and start a replacement if it retires."""
        if worker.state is IDLE and worker.will_retire():
            # As after a call: it would count as idle, and get calls, until it says that it retires.
            worker.ask_to_retire()
            self.begin_spare()
        self.cache.push(worker)

    async def finish(self, worker: Worker, cancellable: bool, call: Payload | None = None) -> None:
        """Wait until a worker is ready, and submit a call that was not sent with the greeting."""
        await worker.finish(cancellable=cancellable)
        self.cache.note_started(worker)
        self.warn_of_baseline(worker)
        if call is not None and worker.state is IDLE:
            worker.submit(call)

    def begin_spare(self) -> None:
        """Begin the replacement of a retiring worker, so the next call finds one ready."""
        if not self.calls.closed:
            spare = self._make()
            try:
                spare.begin()
            except Exception as error:
                # The next call tries again and raises. Here, a result must not be lost.
                logger.warning("no worker could be started ahead of the next call: %s", error)
            else:
                self.cache.push_spare(spare)

    def warn_of_baseline(self, worker: Worker) -> None:
        """Warn once about a ``retire_when`` below a worker's memory before its first job."""
        retire, baseline = self.settings.retire, worker.baseline
        if type(retire) is not RetireWhen or retire.rss is None or baseline < retire.rss:
            return
        if self._warned.acquire(blocking=False):
            warnings.warn(
                f"retire_when(rss={retire.rss}): {readable_size(retire.rss)} is under the baseline, a "
                f"worker's memory before its first job: {readable_size(baseline)}. Every worker would "
                "be replaced after one job, so the limit applies to growth above the baseline instead. "
                "Give more than the baseline",
                stacklevel=2,
            )


def workers_lost(function_name: str, lost: Sequence[WorkerProcess]) -> BrokenWorkerError:
    """Return the error of a call whose new workers exited before they began it."""
    return BrokenWorkerError(
        f"{len(lost)} workers that were started for a call of {function_name} left one after the other "
        "before they had begun with it; does something that init starts end them?",
        *lost,
    )
