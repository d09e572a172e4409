"""Contract: an end of a connection is an argument of a job, and there it is one of multiprocessing."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing.connection
import os
from collections.abc import AsyncIterator
from typing import Any

import passing_connection_jobs as jobs
import pytest
import trio
from connection_support import TIMEOUT

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerStartError, WorkerType, connection
from trio_offload.connection import Connection

LARGE = 1_000_000  # bytes, which no buffer holds


@pytest.fixture
async def context(of_any_kind: Any) -> AsyncIterator[WorkerContext]:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(TIMEOUT):
            yield context


def copies_here(end: Connection) -> int:
    """Return how many descriptors of this process are open on the same socket."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this folder
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return links.count(os.readlink(f"/proc/self/fd/{end.fileno()}"))


async def talk(ours: Connection, *values: Any) -> None:
    for value in values:
        await ours.send(value)
        assert await ours.receive() == value


async def test_a_job_talks_over_a_connection(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    names = []

    async def work() -> None:
        names.append(await context.run_sync(jobs.echo, theirs.move()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async with ours:
            await talk(ours, 1, "text", bytes(LARGE))
    assert names == ["multiprocessing.connection.Connection"]
    assert theirs.closed


@pytest.mark.parametrize("duplex", [True, False])
async def test_a_passed_end_blocks(context: WorkerContext, duplex: bool) -> None:
    reader, writer = connection.pipe(duplex)
    async with reader, writer:
        for end in (reader, writer):
            assert await context.run_sync(jobs.facts, end) == {
                "blocking": True,
                "inheritable": False,
                "readable": end.readable,
                "writable": end.writable,
            }
            assert not end.closed
        # More than a pipe holds, in both directions.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.send_large, writer, LARGE)
            assert await reader.receive_bytes() == bytes(LARGE)
            nursery.start_soon(writer.send_bytes, bytes(LARGE))
            assert await context.run_sync(jobs.count, reader) == LARGE


async def test_both_ends_are_of_jobs(context: WorkerContext) -> None:
    reader, writer = connection.pipe(duplex=False)
    limiter = trio.CapacityLimiter(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(context.run_sync, limiter=limiter), jobs.send_large, writer.move(), LARGE)
        assert await context.run_sync(jobs.count, reader.move(), limiter=limiter) == LARGE


async def test_the_end_is_noticed_when_the_job_closes_it(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    send, receive = trio_offload.open_channel[int](1)
    async with trio.open_nursery() as nursery, ours:
        nursery.start_soon(context.run_sync, jobs.close_and_wait, theirs.move(), receive.move())
        with pytest.raises(trio.EndOfChannel):
            await ours.receive()
        await send.send(1)
        send.close()


async def test_the_end_is_noticed_when_the_job_dies(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()

    async def work() -> None:
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(jobs.die, theirs.move())

    async with trio.open_nursery() as nursery, ours:
        nursery.start_soon(work)
        assert await ours.receive() == "last words"
        with pytest.raises(trio.EndOfChannel):
            await ours.receive()


async def test_nothing_is_left_of_passed_ends(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    async with ours, theirs:
        await context.run_sync(jobs.facts, theirs)
        before = await context.run_sync(jobs.descriptors)
        for _ in range(20):
            await context.run_sync(jobs.facts, theirs)
        assert await context.run_sync(jobs.descriptors) == before
        assert copies_here(theirs) == 1


async def test_a_call_that_does_not_begin_keeps_nothing_open(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    with trio.CancelScope() as scope:
        scope.cancel()
        await context.run_sync(jobs.echo, theirs.move())
    theirs.close()
    async with ours:
        with pytest.raises(trio.EndOfChannel):
            await ours.receive()


@pytest.mark.parametrize("duplex", [True, False])
async def test_a_job_in_a_thread(context: WorkerContext, duplex: bool) -> None:
    reader, writer = connection.pipe(duplex)
    async with reader, writer:
        for run in (trio.to_thread.run_sync, context.run_sync):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, jobs.send_large, writer.handle, LARGE)
                assert await run(jobs.count, reader.handle) == LARGE
        assert isinstance(reader.handle, multiprocessing.connection.Connection)
        gc.collect()
        assert (copies_here(reader), copies_here(writer)) == ((1, 1) if duplex else (2, 2))


async def test_items_of_a_map_have_ends(context: WorkerContext) -> None:
    pairs = [connection.pipe() for _ in range(6)]
    items = [(number, theirs.move()) for number, (_, theirs) in enumerate(pairs)]
    async with context.map(jobs.double, items, workers=2) as results:
        assert [number async for number in results] == list(range(6))
    for number, (ours, _) in enumerate(pairs):
        assert await ours.receive() == 2 * number
        ours.close()


async def test_ends_go_through_channels(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[Any](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.echo_from, receive.move())
        async with send:
            for _ in range(3):
                ours, theirs = connection.pipe()
                await send.send(theirs.move())
                assert theirs.closed
                async with ours:
                    await talk(ours, 1, 2)


async def test_a_task_receives_an_end() -> None:
    send, receive = trio_offload.open_channel[Any](10)
    for duplex in (True, False):
        ours, theirs = connection.pipe(duplex)
        async with ours:
            await send.send(theirs.move())
            async with await receive.receive() as received:
                assert isinstance(received, Connection)
                await received.send(1)
                assert await ours.receive() == 1
            with pytest.raises(trio.EndOfChannel):
                await ours.receive()
    send.close()
    receive.close()


async def test_an_item_that_is_dropped_closes_its_end(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[Any](10)
    ours, theirs = connection.pipe()
    async with send, ours:
        await send.send(theirs.move())
        receive.close()
        with pytest.raises(trio.EndOfChannel):
            await ours.receive()


async def test_an_end_in_init(of_any_kind: Any) -> None:
    """Only a job can ask for the descriptor. The copy of a fork asks later, in its first job."""
    ours, theirs = connection.pipe()
    init = functools.partial(jobs.keep, theirs)
    with trio.fail_after(TIMEOUT):
        async with ours, theirs:
            async with trio_offload.open_worker_context(worker_type=of_any_kind, init=init) as context:
                if of_any_kind is not WorkerType.FORK:
                    with pytest.raises(WorkerStartError, match="init"):
                        await context.run_sync(jobs.echo_of_kept, 0)
                    return
                for number in range(3):
                    await context.run_sync(jobs.echo_of_kept, number)
                    assert await ours.receive() == number


async def test_the_copy_of_a_fork() -> None:
    ours, theirs = connection.pipe()
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type="fork") as context, ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(context.run_sync, jobs.echo_captured(theirs))
                assert await ours.receive() == "from the copy"
                await ours.send("an answer")


async def test_a_job_cannot_pickle_its_end(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    async with ours, theirs:
        assert "only by multiprocessing" in await context.run_sync(jobs.try_to_pickle, theirs)
        with pytest.raises(Exception, match="only by multiprocessing"):
            await context.run_sync(jobs.give_back, theirs)


async def test_a_closed_end_cannot_be_passed(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    theirs.close()
    for end in (theirs, theirs.move()):
        with pytest.raises(trio.ClosedResourceError):
            await context.run_sync(jobs.echo, end)
    ours.close()


async def test_an_end_within_a_message_cannot_be_passed(context: WorkerContext) -> None:
    ours, theirs = connection.pipe()
    async with ours, theirs:
        with trio.move_on_after(0.01):
            await ours.send_bytes(bytes(LARGE))
        with trio.move_on_after(0.01):
            await theirs.receive()
        for end in (ours, theirs):
            with pytest.raises(RuntimeError, match="a part of a message"):
                await context.run_sync(jobs.echo, end)
