"""End to end: async callbacks with nurseries, which raise groups of exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import talking_jobs as jobs
import trio
from lifeline import PATIENCE

from trio_offload import WorkerContext, WorkerType, callback, open_worker_context


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


async def _wait_in_nursery(began: trio.Event, error: BaseException | None = None) -> None:
    """Wait in a nursery, whose other task raises the error once it is cancelled."""

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if error is not None:
                raise error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        began.set()
        await trio.sleep_forever()


async def test_cancelled_caller_gets_no_group(context: WorkerContext) -> None:
    began = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.call_back, callback(lambda: _wait_in_nursery(began)))
            await began.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert await context.run_sync(jobs.double, 4) == 8


async def test_group_that_a_job_gets_is_without_cancellations(context: WorkerContext) -> None:
    began = trio.Event()
    caught: list[tuple[str, str]] = []

    async def call() -> None:
        function = callback(lambda: _wait_in_nursery(began, LookupError("not here")))
        caught.append(await context.run_sync(jobs.catch, function))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await began.wait()
        nursery.cancel_scope.cancel()
    assert caught == [("ExceptionGroup", "Exceptions from Trio nursery (1 sub-exception)")]


async def test_interrupt_in_a_nursery_ends_the_program(context: WorkerContext) -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt

    async def open_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)

    with pytest.raises(BaseException, match="Trio nursery") as caught:
        await context.run_sync(jobs.catch, callback(open_nursery))
    assert [type(error) for error in getattr(caught.value, "exceptions", ())] == [KeyboardInterrupt]
