"""Code as a user writes it. It is type-checked, never run: a checker must infer what is asserted here."""

from __future__ import annotations

import functools
import math
import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Literal

import outcome
import trio
from typing_extensions import assert_type

import trio_offload
import trio_offload_worker
import trio_offload_worker.handles as job_handles
from trio_offload import (
    BrokenWorkerError,
    CrashRecord,
    WorkerContext,
    WorkerMemoryError,
    WorkerStatistics,
    WorkerTimeoutError,
    WorkerType,
    cache_scope,
    configure_default_context,
    connection,
    current_default_worker_limiter,
    default_context_statistics,
    open_worker_context,
    prewarm,
    retire_when,
    run_sync,
)
from trio_offload_worker import from_worker


def shout(text: str, times: int = 1) -> str:
    return text.upper() * times


def measure(path: Path) -> tuple[int, float]:
    return path.stat().st_size, 0.5


def nothing() -> None: ...


def show(done: float, total: float | None, note: str | None) -> None: ...


def total(*numbers: int) -> int:
    return sum(numbers)


class Counter:
    def add(self, amount: int) -> list[int]:
        return [amount]

    @staticmethod
    def parse(text: str) -> bytes:
        return text.encode()


async def results() -> None:
    assert_type(await run_sync(shout, "hello"), str)
    assert_type(await run_sync(shout, "hello", 3), str)
    assert_type(await run_sync(measure, Path("file")), tuple[int, float])
    assert_type(await run_sync(total, 1, 2, 3), int)
    assert_type(await run_sync(Counter().add, 1), list[int])
    assert_type(await run_sync(Counter.parse, "text"), bytes)
    assert_type(await run_sync(Counter), Counter)
    assert_type(await run_sync(math.sqrt, 2), float)
    assert_type(await run_sync(functools.partial(shout, times=2), "hello"), str)
    await run_sync(nothing)


async def options() -> None:
    limiter = trio.CapacityLimiter(3)
    assert_type(await run_sync(shout, "hello", limiter=limiter), str)
    assert_type(await run_sync(shout, "hello", kill_on_cancel=True), str)
    assert_type(await run_sync(shout, "hello", cancellable=True), str)
    assert_type(await run_sync(shout, "hello", timeout=2.5), str)
    assert_type(await run_sync(shout, "hello", 3, progress=print), str)
    assert_type(await run_sync(shout, "hello", progress=show, timeout=5), str)
    # Any async context manager limits.
    assert_type(await run_sync(shout, "hello", limiter=trio.Lock()), str)
    assert_type(current_default_worker_limiter(), trio.CapacityLimiter)


async def maps() -> None:
    async with trio_offload.map(shout, ["a", "b"]) as texts:
        async for text in texts:
            assert_type(text, str)
        assert_type(await texts.collect(), list[str])
        async for batch in texts.batches():
            assert_type(batch, list[str])
        iterator: AsyncIterator[str] = texts
        assert_type(await anext(iterator), str)
        assert_type(texts.progress, trio_offload.JobProgress)
    async with trio_offload.map(shout, ["a"], return_items=True, progress=show) as shown:
        assert_type(await shown.collect(), list[tuple[str, str]])
    async with trio_offload.map(measure, [Path("file")], chunk_size="auto", ordered=False, workers=2, window=50) as sizes:
        assert_type(await sizes.collect(), list[tuple[int, float]])
    async with trio_offload.map(math.sqrt, range(5), timeout=1.5, return_outcomes=True) as roots:
        async for root in roots:
            assert_type(root, outcome.Outcome[float])
    send, receive = trio.open_memory_channel[Path](5)
    async with open_worker_context() as context, context.map(measure, receive, limiter=trio.CapacityLimiter(2)) as sizes:
        assert_type(await sizes.__anext__(), tuple[int, float])
        async with context.map(functools.partial(shout, times=2), ["a"], return_outcomes=True) as outcomes:
            assert_type((await outcomes.__anext__()).unwrap(), str)
        async with context.map(math.sqrt, range(5), return_items=True) as pairs:
            assert_type(await pairs.collect(), list[tuple[int, float]])
        async with trio_offload.map(math.sqrt, [1.5], ordered=False, return_items=True, return_outcomes=True) as tried:
            async for number, root in tried:
                assert_type(number, float)
                assert_type(root.unwrap(), float)
        async with context.starmap(shout, [("a", 2)], chunk_size=5) as texts:
            assert_type(await texts.collect(), list[str])
        async with context.starmap(shout, [("a",)], return_outcomes=True, return_items=True) as shouts:
            assert_type(await shouts.collect(), list[tuple[tuple[str], outcome.Outcome[str]]])
        async with trio_offload.starmap(shout, zip("ab", range(2), strict=True), timeout=2, return_items=True) as both:
            assert_type(await both.collect(), list[tuple[tuple[str, int], str]])
        async with context.map(shout, ["a"], return_outcomes=False, chunk_size=5, window=None, limiter=None) as texts:
            assert_type(await texts.collect(), list[str])
    try:
        pass
    except WorkerTimeoutError as error:
        assert_type(error.timeout, float)
        assert_type(error.crash, CrashRecord | None)
        assert_type(error.item_index, int | None)
    await send.aclose()


async def fetch(name: str) -> bytes:
    return name.encode()


def rows(path: Path, first: int = 0) -> Generator[tuple[str, int], None, float]:
    yield str(path), first
    return 0.5


def names(path: Path) -> Iterator[str]:
    yield path.name


async def sizes_of(path: Path) -> AsyncIterator[int]:
    yield len(path.name)


async def lives(path: Path) -> None:
    async with trio_offload.stream(rows, path, 5, window=100, chunk=1, grace=None) as stream:
        async for row in stream:
            assert_type(row, tuple[str, int])
    assert_type(stream.result, float)
    async with trio_offload.stream(sizes_of, path, window=5) as sizes:
        assert_type([size async for size in sizes], list[int])
    assert_type(stream.statistics().taken, int)
    async with open_worker_context() as context, context.stream(names, path) as texts:
        assert_type([text async for text in texts], list[str])
    async with trio_offload.open_process(shout, "hello", 2, name="shouts", memory_limit="1 GiB") as process:
        await process.send(1)
        assert_type(await process.wait(), str)
        assert_type(process.exitcode, int | None)
        assert_type(process.crash, CrashRecord | None)


async def annotated(
    results: trio_offload.Results[int],
    stream: trio_offload.Stream[int, str],
    process: trio_offload.Process[float],
    actor: trio_offload.Actor,
) -> list[int]:
    assert_type([value async for value in stream], list[int])
    assert_type(stream.result, str)
    assert_type(stream.statistics(), trio_offload.StreamStatistics)
    assert_type(await process.wait(), float)
    assert_type(actor.statistics(), trio_offload.ActorStatistics)
    return await results.collect()


async def annotates(path: Path) -> None:
    async with (
        trio_offload.map(len, ["a"]) as lengths,
        trio_offload.stream(names, path) as texts,
        trio_offload.open_process(math.sqrt, 2.0) as process,
        trio_offload.open_actor(Counter) as actor,
    ):
        results: trio_offload.Results[int] = lengths
        stream: trio_offload.Stream[str, object] = texts
        await results.collect()
        assert_type([text async for text in stream], list[str])
        numbers: trio_offload.Stream[int, str] = actor.stream.count_to(5)
        await annotated(results, numbers, process, actor)


def async_job() -> bytes:
    channel = from_worker.channel()
    channel.send(channel.receive(timeout=5))
    return from_worker.run_async(fetch, "name")


def talking_job(path: Path) -> str:
    from_worker.check_cancelled()
    assert_type(from_worker.cancelled(), bool)
    assert_type(from_worker.run(fetch, "name"), bytes)
    try:
        from_worker.sleep(0.5)
    except from_worker.Cancelled:
        with from_worker.shielded(seconds=5), from_worker.shielded():
            assert_type(from_worker.run_sync(measure, path), tuple[int, float])
        raise
    job = from_worker.job()
    job.adopt()
    assert_type(job, from_worker.Job)
    return from_worker.run_sync(shout, "hello", 2)


async def contexts() -> None:
    async with open_worker_context() as context:
        assert_type(context, WorkerContext)
        assert_type(await context.run_sync(shout, "hello", 2), str)
        assert_type(await context.run_sync(measure, Path("file"), kill_on_cancel=True), tuple[int, float])
        statistics = context.statistics()
        assert_type(statistics.idle_workers, int)
        assert_type(statistics.running_workers, int)
        assert_type(context.idle_timeout, float)
        assert_type(context.grace_period, float)
        assert_type(context.worker_type, WorkerType)
    async with open_worker_context(
        idle_timeout=math.inf, init=bool, retire=object, grace_period=1, worker_type=WorkerType.SPAWN
    ) as context:
        await context.run_sync(nothing)
    async with open_worker_context(worker_type="forkserver", memory_limit="2G") as context:
        assert_type(context.worker_type, WorkerType)
        assert_type(context.memory_limit, int | None)
    async with cache_scope(idle_timeout=10, retire=lambda: True, worker_type="fork"):
        assert_type(await trio_offload.run_sync(shout, "hello"), str)
    # The first five may be positional.
    async with open_worker_context(5, nothing, nothing, 3, WorkerType.FORK) as context:
        assert_type(context.memory_limit, int | None)
        assert_type(context.report_interval, float)
        assert_type(context.crash_dir, str | None)
        assert_type(context.report, str | None)
        assert_type(context.trace, str | None)
        assert_type(context.forkserver_preload, tuple[str, ...])
    async with cache_scope(
        5, nothing, nothing, 3, WorkerType.SPAWN, crash_dir=Path("crashes"), trace="run.json", report="run.html"
    ):
        pass
    async with open_worker_context(
        worker_type=WorkerType.FORKSERVER, forkserver_preload=["json"], forkserver_threads=(name for name in ["io*"])
    ):
        pass
    configure_default_context(5, nothing, nothing, 3, "spawn", memory_limit="1 GB", forkserver_preload=())
    configure_default_context(idle_timeout=5.0, init=nothing, grace_period=3)
    assert_type(default_context_statistics().idle_workers, int)


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_sync, measure, Path("file"))
        nursery.start_soon(functools.partial(run_sync, kill_on_cancel=True), shout, "hello", 2)


async def broken() -> None:
    try:
        await run_sync(shout, "hello")
    except BrokenWorkerError as error:
        assert_type(error.exitcode, int | None)
        assert_type(error.signal, signal.Signals | None)
        assert_type(error.crash, CrashRecord | None)
        raise


async def memory() -> None:
    policy = retire_when(rss="500MiB", jobs=5, seconds=1.5)
    async with open_worker_context(
        retire=policy, memory_limit="2 GB", report_interval=0.1, crash_dir=Path("crashes"), trace="run.json"
    ) as context:
        assert_type(await context.prewarm(2), int)
        for worker in context.statistics().workers:
            assert_type(worker, WorkerStatistics)
            assert_type(worker.rss, int | None)
            assert_type(worker.state, Literal["idle", "running"])
        try:
            await context.run_sync(nothing)
        except WorkerMemoryError as error:
            assert_type(error.limit, int | None)
    async with cache_scope(retire=retire_when(jobs=1), memory_limit=10**9):
        assert_type(await prewarm(1), int)
    configure_default_context(memory_limit=10**9, report_interval=math.inf, min_idle=2)
    assert_type(trio_offload_worker.memory_info().rss, int)


async def connections() -> None:
    async with connection.listen(("", 0), b"key", allow_md5=True) as listener:
        assert_type(await listener.accept(), connection.Connection)
        async for client in listener:
            assert_type(client, connection.Connection)
            assert_type(await client.receive_bytes(5), bytes)
            assert_type(await client.receive_bytes_into(bytearray(5)), int)
    async with await connection.open_client(Path("socket")) as ours, trio.open_nursery() as nursery:
        await ours.send({"any": "object"})
        nursery.start_soon(connection.serve, echo, None, b"key")
    reader, writer = connection.pipe(duplex=False)
    assert_type(await run_sync(received, reader.handle), int)
    assert_type(connection.adopt(multiprocessing.Pipe()[0]), connection.Connection)
    writer.close()


async def echo(one: connection.Connection) -> None:
    async for value in one:
        await one.send(value)


def received(theirs: multiprocessing.connection.Connection) -> int:
    return len(theirs.recv_bytes())


def typed_job(lock: job_handles.Lock, send: job_handles.SendChannel[int], queue: job_handles.WorkQueue[str]) -> bool:
    with lock:
        assert_type(lock.acquire(timeout=5), None)
        assert_type(send.send(5, timeout=1), None)
    for lease in queue:
        assert_type(lease.item, str)
    return lock.locked()


async def handles_of_jobs() -> None:
    lock, queue = trio_offload.Lock(), trio_offload.WorkQueue[str]()
    send, receive = trio_offload.open_channel[int](5)
    assert_type(await run_sync(typed_job, lock.handle, send.handle, queue.handle), bool)
    assert_type(await trio.to_thread.run_sync(typed_job, lock.handle, send.handle, queue.handle), bool)
    assert_type(receive.handle, job_handles.ReceiveChannel[int])
    assert_type(trio_offload.Event().handle.is_set(), bool)
    assert_type(trio_offload.Barrier(1).handle, job_handles.Barrier)
    assert_type(trio_offload.SharedArray.allocate(3).handle, job_handles.SharedArray)
    assert_type(trio_offload.SharedArray.copy_of(b"").read_only.nbytes, int)
    assert_type(trio_offload.SharedCounter().handle.value, int)
    trio_offload.SharedCounter().handle.add(2)
    assert_type(trio_offload.RLock().handle, job_handles.RLock)
    assert_type(trio_offload.Condition().handle, job_handles.Condition)
    assert_type(trio_offload.Semaphore(1).handle, job_handles.Semaphore)
    assert_type(trio_offload.CapacityLimiter(1).handle, job_handles.CapacityLimiter)
