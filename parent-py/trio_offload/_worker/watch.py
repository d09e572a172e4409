"""Shows the progress of a running job to a function of this program.

The job writes its progress into the record (``from_worker.progress``). A task looks at the record
while the call runs.

Rules:

* The function runs in the event loop, in the caller's context. It is called if something has
  changed, ten times a second at most, and once more at the end, also after a failure.
* Its last call is over before the job's call returns.
* An exception of it ends the job, and the caller gets it, as from a callback without a wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import outcome
import trio

from .. import _clock
from .._exceptions import is_cancelled
from .callbacks import call_now

if TYPE_CHECKING:
    from .._process.record import Step
    from .worker import Worker

AnswerType = TypeVar("AnswerType")
ShowProgress = Callable[[float, float | None, str | None], object]

INTERVAL: Final = 0.1  # seconds between two looks


class CallOptions(TypedDict, total=False):
    """The options of ``run_sync`` that its warm path does not know."""

    progress: ShowProgress | None


class Watch:
    """Looks at the progress of one call, and shows each change."""

    def __init__(self, worker: Worker, show: ShowProgress) -> None:
        self._worker = worker
        self._number = worker.running_number
        self._show = show
        self._shown: tuple[Any, ...] | None = None
        # Shielded, because a job that was told of a cancellation goes on.
        self.scope = trio.CancelScope(shield=True)
        self.error: BaseException | None = None

    def look(self) -> None:
        """Call the function if there is something new."""
        step: Step | None = self._worker.last_step(self._number)
        if step is None or self.error is not None:
            return
        news = step.done, step.total, step.note
        if news != self._shown:
            self._shown = news
            try:
                call_now(self._show, news, {})
            except BaseException as error:
                self.error = error

    @trio.lowlevel.enable_ki_protection
    async def run(self, of_answer: trio.CancelScope) -> None:
        """Look until :attr:`scope` is cancelled. If the function raises, end the job."""
        with self.scope:
            while self.error is None:
                await _clock.sleep(INTERVAL)
                if self.scope.cancel_called:
                    return
                self.look()
            self._worker.is_refused = True
            of_answer.cancel()
            # The caller may have been cancelled before, and wait behind a shield.
            self._worker.kill()


async def watched(worker: Worker, show: ShowProgress, answer: Callable[[], Awaitable[AnswerType]]) -> AnswerType:
    """Return the answer of a call that was submitted, and show its progress until then.

    Args:
        worker: The worker.
        show: The function that is called with ``done``, ``total`` and ``note``.
        answer: Waits for the answer.

    Raises:
        BaseException: the exception of ``answer`` or, before it, of ``show``.
    """
    watch = Watch(worker, show)
    result: outcome.Outcome[AnswerType] | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run, nursery.cancel_scope)
            # Captured, because the nursery would wrap the exception into a group.
            result = await outcome.acapture(answer)
            watch.scope.cancel()
    except BaseException as error:
        # The watch captures its exceptions, so this is the cancellation of an outer scope. It comes
        # again at the next checkpoint.
        if result is None or not is_cancelled(error):
            raise
    finally:
        worker.is_refused = False
    watch.look()
    if watch.error is not None:
        raise watch.error
    if result is None:
        raise RuntimeError("a watched call has no answer")
    return result.unwrap()
