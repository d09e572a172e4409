"""Contract: a job gets a duplicate of a handle's file descriptor, and none is lost or left open."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import descriptor_jobs as jobs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext
from trio_offload._sync.descriptors import DescriptorHandle

TIMEOUT = 30.0  # seconds: a test that hangs fails


class File(DescriptorHandle):
    """A handle of a nameless file."""

    def __init__(self, contents: bytes) -> None:
        super().__init__()
        self.descriptor = os.memfd_create("of-the-test")
        os.write(self.descriptor, contents)

    def fileno(self) -> int:
        if self.descriptor < 0:
            raise ValueError("it is closed")
        return self.descriptor

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@pytest.fixture
async def context(of_any_kind: Any) -> AsyncIterator[WorkerContext]:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(TIMEOUT):
            yield context


@pytest.fixture
def file() -> Iterator[File]:
    file = File(b"contents")
    yield file
    file.close()


async def test_fetched_by_a_job(context: WorkerContext, file: File) -> None:
    assert await context.run_sync(jobs.read, file) == [(b"contents", True)]
    assert await context.run_sync(jobs.read_often, file, 100) == 0
    assert await context.run_sync(os.getpid) > 0


async def test_each_thread_gets_the_one_that_it_asked_for(context: WorkerContext) -> None:
    files = [File(b"%d" % number) for number in range(4)]
    try:
        found = await context.run_sync(jobs.read_in_threads, files, 8, 50)
    finally:
        for file in files:
            file.close()
    assert found == {(number, b"%d" % number) for number in range(4)}


async def test_closed_handle_raises_in_the_job(context: WorkerContext, file: File) -> None:
    file.close()
    assert await context.run_sync(jobs.fetch_and_error, file) == "ValueError: it is closed"


async def test_worker_without_room(context: WorkerContext, file: File) -> None:
    assert await context.run_sync(jobs.fetch_without_room, file) == ("Too many open files", b"contents")


async def test_signal_handlers_that_raise(context: WorkerContext, file: File) -> None:
    assert await context.run_sync(jobs.fetch_in_a_storm, file, 50) == 0


@pytest.mark.parametrize("how", ["exit", "kill"])
async def test_job_that_dies(context: WorkerContext, file: File, how: str) -> None:
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.fetch_and_die, file, how)
    assert await context.run_sync(jobs.read, file) == [(b"contents", True)]


async def test_job_that_dies_in_the_middle(context: WorkerContext, file: File) -> None:
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.die_while_fetching, file)


async def test_reply_that_crosses_with_the_end_of_its_job(context: WorkerContext, file: File) -> None:
    for _ in range(20):
        await context.run_sync(jobs.keep_for_later, file)
    # A reply that came late has taken its descriptor with it.
    assert await context.run_sync(jobs.read_often, file, 20) <= 0


async def test_behind_large_items(context: WorkerContext, file: File) -> None:
    """A segment that is received in place ends before the frame that carries a descriptor."""
    send, receive = trio_offload.open_channel(4)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def produce() -> None:
            async with send:
                for number in range(8):
                    await send.send(bytes(100_000 + number))

        sizes, contents = await context.run_sync(jobs.receive_and_fetch, receive, file)
    assert sizes == [100_000 + number for number in range(8)]
    assert contents == b"contents"


async def test_in_a_map(context: WorkerContext, file: File) -> None:
    async with context.map(jobs.read, [file] * 20) as results:
        assert [found async for found in results] == [[(b"contents", True)]] * 20


class StoppingFile(File):
    """It stops the worker that asks for it, before the reply."""

    def __init__(self, contents: bytes) -> None:
        super().__init__(contents)
        self.pid = 0
        self.asked = trio.Event()

    def fileno(self) -> int:
        os.kill(self.pid, signal.SIGSTOP)
        self.asked.set()
        return super().fileno()


async def test_worker_dies_with_the_reply_in_its_socket(context: WorkerContext) -> None:
    file = StoppingFile(b"contents")
    outcomes: list[BaseException] = []

    async def call() -> None:
        try:
            tell = trio_offload.callback(lambda pid: setattr(file, "pid", pid))
            await context.run_sync(jobs.tell_and_fetch, tell, file)
        except BrokenWorkerError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await file.asked.wait()
        await wait_all_tasks_blocked()
        file.close()  # the socket has a duplicate
        os.kill(file.pid, signal.SIGKILL)
    assert len(outcomes) == 1
    other = File(b"other")
    assert await context.run_sync(jobs.read, other) == [(b"other", True)]
    other.close()
