"""A forked worker has copies of the program's handles. They raise, because they have no effect."""

from __future__ import annotations

import inherited_jobs
import pytest

import trio_offload
from trio_offload import WorkerType


@pytest.mark.parametrize("name", inherited_jobs.USES)
async def test_copy_raises(name: str) -> None:
    async with trio_offload.open_worker_context(worker_type=WorkerType.FORK) as context:
        assert "pass it to the job as an argument" in await context.run_sync(inherited_jobs.use, name)


async def test_argument_and_the_programs_own_work() -> None:
    async with trio_offload.open_worker_context(worker_type=WorkerType.FORK) as context:
        assert await context.run_sync(inherited_jobs.use_given, inherited_jobs.EVENT)
        assert inherited_jobs.EVENT.is_set()
        assert not await context.run_sync(inherited_jobs.make_new)
    async with inherited_jobs.LOCK:
        assert inherited_jobs.LOCK.locked()
