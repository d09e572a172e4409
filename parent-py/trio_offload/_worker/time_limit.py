"""A call's time limit: the answer in time, or an error with the stack of where the job was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from .. import _clock
from .._process.stacks import write_stacks
from .states import RUNNING

if TYPE_CHECKING:
    from .._exceptions import WorkerTimeoutError
    from .worker import Worker


async def answer_in_time(
    worker: Worker, since: float, seconds: float, *, cancellable: bool = True, spin: bool = False
) -> tuple[Any, BaseException | None]:
    """Return the outcome of the oldest call in flight, as :meth:`Worker.answer`, within its time.

    An answer that has arrived counts even if the time is over. What the worker says after it was
    asked for its stacks does not count: the signal may have interrupted the job. The same holds for
    its death in that time.

    Args:
        worker: the worker that runs the call.
        since: when the time began, by the machine's clock (`_clock.now`).
        seconds: the timeout of the call.
        cancellable: as for :meth:`Worker.answer`. A cancellation wins over the timeout, also while
            the worker writes its stacks.
        spin: as for :meth:`Worker.answer`.

    Raises:
        WorkerTimeoutError: the time was over, and the worker was killed.
    """
    answer = None
    try:
        with _clock.move_on_after(since + seconds - _clock.now()) as deadline:
            worker.deadline = deadline
            # On a busy machine the answer may be there before the expired deadline is seen. The
            # worker has then gone on to the next call, which must not run twice.
            answer = await worker.answer(cancellable, spin, deadline)
        if answer is None:
            raise await _end_late(worker, seconds, cancellable)
    except trio.Cancelled:
        if worker.state is RUNNING:
            # Cancelled from outside too.
            await worker.end_cancelled()
        raise
    finally:
        worker.deadline = None
    return answer


async def _end_late(worker: Worker, seconds: float, cancellable: bool) -> WorkerTimeoutError:
    """Kill a worker whose call has timed out, after the Python stacks have been written.

    If this is cancelled, the worker is killed at once. Return the error of the call.
    """
    problem = ""
    try:
        with trio.CancelScope(shield=not cancellable):
            problem = await write_stacks(worker.process, worker.record)
            await worker.give_grace()
    except BaseException:
        worker.trace_job("cancelled")
        raise
    finally:
        await worker.end_in_flight()
    return worker.explain_timeout(seconds, problem)
