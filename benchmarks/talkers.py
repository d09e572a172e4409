"""Those that are compared in the rows about jobs that talk: channels, queues and locks.

Each has its processes up, and offers some of the rounds that the rows need, by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from multiprocessing.connection import Connection
from typing import Any

import talking_jobs
import trio
from contenders import OURS, OURS_TALKING, Contender
from measure import Settings

# Gives the seconds of an item, or of an acquisition.
Round = Callable[[Settings], Awaitable[float]]
Rounds = dict[str, Round]
TO_TASK, TO_JOB, JOB_TO_JOB, LOCK = "job → task", "task → job", "job → job", "lock"

AIO_QUEUE = "aioprocessing.AioQueue"
QUEUE = "multiprocessing.Queue"
# Between two tasks of one program: what Trio itself takes for an item.
MEMORY_CHANNEL = "Trio's memory channel"
MP_LOCK = "multiprocessing.Lock"
MANAGER_LOCK = "multiprocessing.Manager's lock"
TOGETHER = 100
OURS_TOGETHER = f"{OURS}, {TOGETHER} at a time"

# Items in a channel or queue at most.
_BUFFER = 1000
# How far ahead the beginning of a contention is fixed, so that both are there.
_NOTICE = 0.02


def _ours(together: int) -> Callable[[int], AbstractAsyncContextManager[Rounds]]:
    @contextlib.asynccontextmanager
    async def open_jobs(_: int) -> AsyncIterator[Rounds]:
        # Any: a version that has no channels is type-checked, and measured, without these rows.
        trio_offload: Any = importlib.import_module("trio_offload")

        async with trio_offload.open_worker_context() as context:
            call = functools.partial(context.run_sync, limiter=trio.CapacityLimiter(2))
            async with trio.open_nursery() as nursery:
                # Both workers start.
                nursery.start_soon(call, time.sleep, 0.2)
                nursery.start_soon(call, time.sleep, 0.2)

            async def to_task(settings: Settings) -> float:
                send, receive = trio_offload.open_channel(_BUFFER)
                received = 0
                began = time.perf_counter()
                async with trio.open_nursery() as nursery, receive:
                    nursery.start_soon(call, talking_jobs.produce, send.move(), settings.messages, together)
                    if together == 1:
                        async for _ in receive:
                            received += 1
                    else:
                        with contextlib.suppress(trio.EndOfChannel):
                            while True:
                                received += len(await receive.receive_many(together))
                return _each(began, received, settings)

            async def to_job(settings: Settings) -> float:
                send, receive = trio_offload.open_channel(_BUFFER)

                async def produce() -> None:
                    async with send:
                        for first in range(0, settings.messages, together):
                            if together == 1:
                                await send.send(first)
                            else:
                                await send.send_many(range(first, min(first + together, settings.messages)))

                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(produce)
                    received = await call(talking_jobs.consume, receive.move(), together)
                return _each(began, received, settings)

            async def job_to_job(settings: Settings) -> float:
                send, receive = trio_offload.open_channel(_BUFFER)
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call, talking_jobs.produce, send.move(), settings.messages, together)
                    received = await call(talking_jobs.consume, receive.move(), together)
                return _each(began, received, settings)

            async def lock(settings: Settings) -> float:
                counts: list[int] = []
                span, shared = _span(settings), trio_offload.Lock()

                async def acquire() -> None:
                    counts.append(await call(talking_jobs.acquire, shared, *span))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(acquire)
                    nursery.start_soon(acquire)
                return (span[1] - span[0]) / sum(counts)

            yield {TO_TASK: to_task, TO_JOB: to_job, JOB_TO_JOB: job_to_job, LOCK: lock}

    return open_jobs


def _each(began: float, received: int, settings: Settings) -> float:
    duration = time.perf_counter() - began
    if received != settings.messages:
        raise AssertionError(f"{received} of {settings.messages} items have arrived")
    return duration / received


def _span(settings: Settings) -> tuple[float, float]:
    begin = time.monotonic() + _NOTICE
    return begin, begin + settings.seconds / 2


@contextlib.asynccontextmanager
async def _processes(count: int, queue: Any = None, lock: Any = None) -> AsyncIterator[list[Connection]]:
    """Processes of multiprocessing's, and the ends by which they are told what to do."""
    context = multiprocessing.get_context("spawn")
    told: list[Connection] = []
    processes = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=talking_jobs.serve, args=(theirs, queue, lock))
        process.start()
        theirs.close()
        told.append(ours)
        processes.append(process)
    try:
        yield told
    finally:
        for process, ours in zip(processes, told, strict=True):
            ours.send(("end",))
            ours.close()
            process.join()


def _blocking(run: Callable[[Settings], float]) -> Round:
    """A round as a Trio program has it: all of it in one thread, which shows what blocks at its best."""

    async def in_a_thread(settings: Settings) -> float:
        return await trio.to_thread.run_sync(run, settings)

    return in_a_thread


@contextlib.asynccontextmanager
async def _queue(_: int) -> AsyncIterator[Rounds]:
    queue = multiprocessing.get_context("spawn").Queue(_BUFFER)
    async with _processes(2, queue) as (one, other):

        def to_task(settings: Settings) -> float:
            count = settings.messages
            began = time.perf_counter()
            one.send(("put", count))
            for _ in range(count):
                queue.get()
            duration = time.perf_counter() - began
            one.recv()
            return duration / count

        def to_job(settings: Settings) -> float:
            count = settings.messages
            began = time.perf_counter()
            one.send(("get", count))
            for number in range(count):
                queue.put(number)
            one.recv()
            return (time.perf_counter() - began) / count

        def job_to_job(settings: Settings) -> float:
            count = settings.messages
            began = time.perf_counter()
            one.send(("put", count))
            other.send(("get", count))
            other.recv()
            duration = time.perf_counter() - began
            one.recv()
            return duration / count

        yield {name: _blocking(run) for name, run in ((TO_TASK, to_task), (TO_JOB, to_job), (JOB_TO_JOB, job_to_job))}
    queue.close()
    queue.join_thread()


@contextlib.asynccontextmanager
async def _aio_queue(_: int) -> AsyncIterator[Rounds]:
    """It needs asyncio, so the task is one of an event loop of its own, in a thread of this program."""
    import aioprocessing

    queue = aioprocessing.AioQueue(_BUFFER, context=multiprocessing.get_context("spawn"))
    async with _processes(1, queue) as (told,):

        async def get(count: int) -> None:
            for _ in range(count):
                await queue.coro_get()

        async def put(count: int) -> None:
            for number in range(count):
                await queue.coro_put(number)

        def to_task(settings: Settings) -> float:
            began = time.perf_counter()
            told.send(("put", settings.messages))
            asyncio.run(get(settings.messages))
            duration = time.perf_counter() - began
            told.recv()
            return duration / settings.messages

        def to_job(settings: Settings) -> float:
            began = time.perf_counter()
            told.send(("get", settings.messages))
            asyncio.run(put(settings.messages))
            told.recv()
            return (time.perf_counter() - began) / settings.messages

        yield {TO_TASK: _blocking(to_task), TO_JOB: _blocking(to_job)}
    queue.close()
    queue.join_thread()


@contextlib.asynccontextmanager
async def _memory_channel(_: int) -> AsyncIterator[Rounds]:
    async def to_task(settings: Settings) -> float:
        send, receive = trio.open_memory_channel[int](_BUFFER)
        received = 0

        async def produce() -> None:
            async with send:
                for number in range(settings.messages):
                    await send.send(number)

        began = time.perf_counter()
        async with trio.open_nursery() as nursery, receive:
            nursery.start_soon(produce)
            async for _ in receive:
                received += 1
        return _each(began, received, settings)

    yield {TO_TASK: to_task, TO_JOB: to_task, JOB_TO_JOB: to_task}


def _contended(told: list[Connection]) -> Round:
    def run(settings: Settings) -> float:
        span = _span(settings)
        for process in told:
            process.send(("acquire", *span))
        counts: list[int] = [process.recv() for process in told]
        return (span[1] - span[0]) / sum(counts)

    return _blocking(run)


@contextlib.asynccontextmanager
async def _mp_lock(_: int) -> AsyncIterator[Rounds]:
    async with _processes(2, lock=multiprocessing.get_context("spawn").Lock()) as told:
        yield {LOCK: _contended(told)}


@contextlib.asynccontextmanager
async def _manager_lock(_: int) -> AsyncIterator[Rounds]:
    with multiprocessing.get_context("spawn").Manager() as manager:
        async with _processes(2, lock=manager.Lock()) as told:
            yield {LOCK: _contended(told)}


def _talks() -> bool:
    return hasattr(importlib.import_module("trio_offload"), "open_channel")


_FEATURE = ("trio_offload", "open_channel", _talks)

TALKERS: list[Contender[Rounds]] = [
    Contender(OURS_TALKING, _ours(1), *_FEATURE),
    Contender(OURS_TOGETHER, _ours(TOGETHER), *_FEATURE),
    Contender(AIO_QUEUE, _aio_queue, "aioprocessing"),
    Contender(QUEUE, _queue),
    Contender(MEMORY_CHANNEL, _memory_channel),
    Contender(MP_LOCK, _mp_lock),
    Contender(MANAGER_LOCK, _manager_lock),
]


def talkers(settings: Settings, *names: str) -> list[Contender[Rounds]]:
    """Those of these names that take part, in the order of the names."""
    by_name = {contender.name: contender for contender in TALKERS}
    chosen = [by_name[name] for name in names]
    return [contender for contender in chosen if contender.lacking() is None and (settings.peers or not contender.is_peer)]
