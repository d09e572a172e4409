"""A call with a limiter, a timeout, a grace or a progress. Few calls have one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from .._limiter import Limiter, checked_limiter, counted_tokens
from .._sizes import check_progress, check_seconds

if TYPE_CHECKING:
    from .._worker.watch import CallOptions

ResultType = TypeVar("ResultType")

# Stands for a limiter that has let the call pass.
PASSED: Final = trio.CapacityLimiter(math.inf)


async def _run_checked(
    self: Any,
    sync_fn: Callable[..., ResultType],
    args: tuple[Any, ...],
    seconds: float | None,
    grace: float | None,
    cancellable: bool,
    limiter: Limiter,
    more: CallOptions,
) -> ResultType:
    """As :meth:`WorkerContext.run_sync`, with arguments that few calls have, or that it lacks."""
    if more.keys() - {"progress"}:
        from .._slips import unknown_keyword

        raise unknown_keyword(sync_fn, more)
    progress = more.get("progress")
    check_progress(progress)
    if seconds is not None:
        check_seconds("timeout", seconds, positive=True)
        seconds = None if seconds == math.inf else seconds
    if grace is not None:
        check_seconds("grace", grace)
    await trio.lowlevel.checkpoint_if_cancelled()
    limiter = checked_limiter(limiter)
    waits = True
    began = self._pool.begin_wait()
    try:
        async with limiter:
            self._pool.note_wait(began)
            waits = False
            is_plain = seconds is None and grace is None and progress is None
            if is_plain and counted_tokens(limiter) == math.inf:
                result: ResultType = await self.run_sync(sync_fn, *args, kill_on_cancel=cancellable, limiter=PASSED)
                return result
            from .timed_call import run_in_time  # few programs need it

            return await run_in_time(self._pool, sync_fn, args, seconds, grace, cancellable, limiter, progress)
    finally:
        if waits:
            self._pool.note_wait(began)
