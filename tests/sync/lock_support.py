"""A task that holds a lock, for tests of locks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import trio


@contextlib.asynccontextmanager
async def held_by_another(lock: Any) -> AsyncIterator[None]:
    """Another task has the lock. If this one had it, a job that it waits for would get DeadlockError."""

    async def hold(release: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
        async with lock:
            task_status.started()
            await release.wait()

    async with trio.open_nursery() as nursery:
        release = trio.Event()
        await nursery.start(functools.partial(hold, release))
        yield
        release.set()
