"""Jobs whose worker dies, for tests of the effect on others."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio

from trio_offload import BrokenWorkerError, WorkerContext


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # a job brings it about
        await trio.sleep(0.001)


async def expect_death(context: WorkerContext, function: Any, *args: Any) -> None:
    with pytest.raises(BrokenWorkerError) as caught:
        await context.run_sync(function, *args, limiter=trio.CapacityLimiter(1))
    assert caught.value.signal == signal.SIGKILL


def pid_of_job(context: WorkerContext) -> int:
    (pid,) = (worker.pid for worker in context.statistics().workers if worker.state == "running")
    return pid


async def kill_when(context: WorkerContext, is_waiting: Callable[[], bool], function: Any, *args: Any) -> None:
    """Run a job, and kill its worker while it waits."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_death, context, function, *args)
        await until(is_waiting)
        os.kill(pid_of_job(context), signal.SIGKILL)
