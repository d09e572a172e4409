"""A forked worker has copies of the program's handles. They work as if they were arguments of the job."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

import inherited_jobs as jobs
import pytest
import trio

import trio_offload
from trio_offload import AbandonedLockError, WorkerContext, WorkerType

TIMEOUT = 20.0  # seconds: a test that hangs fails


@pytest.fixture
async def context() -> AsyncIterator[WorkerContext]:
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=WorkerType.FORK) as context:
            yield context


@pytest.fixture(autouse=True)
def _fresh_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a run of Trio of its own."""
    send, receive = trio_offload.open_channel[int](20)
    lock = trio_offload.Lock()
    handles = {name: type(handle) for name, handle in jobs.HANDLES.items()}
    made = {
        name: trio_offload.callback(len)
        if name == "callback"
        else cls(lock)
        if name == "condition"
        else cls(1)
        if name in ("semaphore", "limiter", "barrier")
        else cls()
        for name, cls in handles.items()
    }
    made["lock"] = lock
    monkeypatch.setattr(jobs, "HANDLES", made)
    for name, value in {"LOCK": lock, "EVENT": made["event"], "SEND": send, "RECEIVE": receive}.items():
        monkeypatch.setattr(jobs, name, value)


@pytest.mark.parametrize("is_used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("name", jobs.USES)
async def test_copy_works(context: WorkerContext, name: str, is_used: bool) -> None:
    """Also if the program has not used it before the fork: then it belongs to this run now."""
    handle, _, expected = jobs.USES[name]
    if is_used:
        assert jobs.HANDLES[handle].grant().id
    if name == "queue":
        await jobs.HANDLES[handle].put(5)
    for _ in range(1 if name in ("queue", "limiter") else 2):
        assert await context.run_sync(jobs.use, name) == expected


async def test_the_program_sees_it(context: WorkerContext) -> None:
    await context.run_sync(jobs.use, "set")
    assert jobs.EVENT.is_set()
    result, nested = await context.run_sync(jobs.give_back)
    assert result is jobs.LOCK
    assert nested["again"] is jobs.LOCK
    assert "pickled only by trio-offload" in await context.run_sync(jobs.pickle_it)


async def test_job_that_keeps_a_lock(context: WorkerContext) -> None:
    await context.run_sync(jobs.keep_lock)
    with pytest.raises(AbandonedLockError):
        await jobs.LOCK.acquire()
    assert jobs.LOCK.recover()


async def test_ends_of_a_channel(context: WorkerContext) -> None:
    """A copy is a clone from its first use to the end of the call."""
    assert await context.run_sync(jobs.send_and_receive) == [5, 6, 7]
    statistics = jobs.SEND.statistics()
    assert (statistics.open_send_channels, statistics.open_receive_channels) == (1, 1)
    assert await context.run_sync(jobs.close_send)
    assert jobs.SEND.statistics().open_send_channels == 1
    jobs.SEND.close()
    assert [item async for item in jobs.RECEIVE] == [8]


async def test_worker_that_dies_with_a_copy(context: WorkerContext) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(context.run_sync, jobs.send_for_ever, kill_on_cancel=True))
        assert await jobs.RECEIVE.receive() == 0
        nursery.cancel_scope.cancel()
    jobs.SEND.close()
    with pytest.raises(trio.BrokenResourceError, match="send_for_ever"):
        while True:
            await jobs.RECEIVE.receive()


async def test_handle_of_a_later_moment(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in no copy; as an argument it works. A handle that a job makes is a handle of its own."""
    assert not await context.run_sync(jobs.make_new)
    monkeypatch.setattr(jobs, "EVENT", trio_offload.Event())
    event = trio_offload.Event()
    assert not await context.run_sync(jobs.use_given, event)
    assert event.is_set()


async def test_argument_and_copy_are_one(context: WorkerContext) -> None:
    assert await context.run_sync(jobs.use_given, jobs.EVENT)
    assert jobs.EVENT.is_set()
