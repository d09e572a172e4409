"""Rows about jobs that talk: callbacks, channels, locks, and many requests that wait."""

from __future__ import annotations

import contextlib
import gc
import importlib
import time
from collections import defaultdict
from typing import Any

import jobs
import talking_jobs
import trio
from contenders import ECHO, OURS, OURS_PROGRESS, OURS_TALKING, Pools
from measure import Places, Samples, Settings, median_call, one_call
from talkers import AIO_QUEUE, LOCK, MANAGER_LOCK, MEMORY_CHANNEL, MP_LOCK, OURS_TOGETHER, QUEUE, Rounds, talkers

ASYNC_CALLBACK = f"{OURS}, async callback"
RUN_SYNC = f"{OURS}, from_worker.run_sync"
AS_RESULT = f"{OURS}, as a result"
AS_ARGUMENT = f"{OURS}, as an argument"
EMPTY_FUNCTION = "an empty function"
# Threads of a process that sleep share the kernel's table of locks, where many of them are slow to wake.
MOST_OF_A_JOB = 1000


def _trio_offload() -> Any:
    # Any: a version whose jobs do not talk is type-checked, and measured, without these rows.
    return importlib.import_module("trio_offload")


def _nothing() -> None:
    pass


async def _nothing_async() -> None:
    pass


async def callback(settings: Settings) -> Samples:
    """A job's call of a callback that does nothing, from the job; and an echo, from here."""
    trio_offload = _trio_offload()
    samples: Samples = defaultdict(list)
    callbacks = {OURS: trio_offload.callback(_nothing), ASYNC_CALLBACK: trio_offload.callback(_nothing_async)}
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS, ECHO)

        async def in_a_job(handle: Any, times: int) -> float:
            duration: float = await pools[OURS].call(talking_jobs.median_call, handle, times)
            return duration

        for number in range(2 * settings.rounds + 1):
            taken = {name: await in_a_job(handle, settings.calls) for name, handle in callbacks.items()}
            taken[ECHO] = await median_call(pools[ECHO].call, settings.calls, bool)
            if number:
                for name, duration in taken.items():
                    samples[name].append(duration)
    return samples


class Items:
    """Items a second of a stream of integers, one after the other; ours also some at a time."""

    def __init__(self, direction: str) -> None:
        self.direction = direction

    async def __call__(self, settings: Settings) -> Samples:
        each = await _by_turns(settings, self.direction, OURS_TALKING, OURS_TOGETHER, AIO_QUEUE, QUEUE, MEMORY_CHANNEL)
        return {name: [1 / seconds for seconds in durations] for name, durations in each.items()}


async def contended_lock(settings: Settings) -> Samples:
    """Seconds of an acquisition, while two jobs do nothing else."""
    return await _by_turns(settings, LOCK, OURS_TALKING, MP_LOCK, MANAGER_LOCK)


async def _by_turns(settings: Settings, what: str, *names: str) -> Samples:
    samples: Samples = defaultdict(list)
    async with contextlib.AsyncExitStack() as stack:
        up: dict[str, Rounds] = {}
        for contender in talkers(settings, *names):
            up[OURS if contender.name == OURS_TALKING else contender.name] = await stack.enter_async_context(
                contender.open(2)
            )
        for number in range(settings.rounds + 1):
            for name, rounds in up.items():
                if what in rounds:
                    taken = await rounds[what](settings)
                    # The first round starts workers.
                    if number:
                        samples[name].append(taken)
    return samples


class ArrayThroughChannel:
    """Gigabytes (10^9 bytes) a second of an array of 100 MB that is one item; and of the same without a channel."""

    def __init__(self, to_job: bool) -> None:
        self.to_job = to_job

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        size = settings.transfer_size
        value = jobs.make("array", size)
        async with Pools() as stack:
            call = (await stack.opened(settings, OURS))[OURS].call
            await call(jobs.keep, "array", size)

            async def from_job() -> Any:
                send, receive = _trio_offload().open_channel(1, "1GB")
                async with trio.open_nursery() as nursery, receive:
                    nursery.start_soon(call, talking_jobs.send_kept, send.move(), "array", size)
                    return await receive.receive()

            async def to_job() -> None:
                send, receive = _trio_offload().open_channel(1, "1GB")
                async with trio.open_nursery() as nursery, send:
                    nursery.start_soon(call, talking_jobs.size_of_next, receive.move())
                    await send.send(value)

            for number in range(settings.transfer_rounds + 1):
                gc.collect()
                durations = {OURS: await one_call(to_job if self.to_job else from_job)}
                gc.collect()
                if self.to_job:
                    durations[AS_ARGUMENT] = await one_call(call, jobs.size_of, value)
                else:
                    durations[AS_RESULT] = await one_call(call, jobs.kept, "array", size)
                if number:
                    for name, duration in durations.items():
                        samples[name].append(size / duration / 1e9)
        return samples


async def check_cancelled(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        call = (await stack.opened(settings, OURS))[OURS].call
        for _ in range(2 * settings.rounds):
            check, empty = await call(talking_jobs.cost_of_check, 100 * settings.calls)
            samples[OURS].append(check)
            samples[EMPTY_FUNCTION].append(empty)
    return samples


async def step_of_progress(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS_PROGRESS)
        for _ in range(2 * settings.rounds):
            step, empty = await pools[OURS_PROGRESS].call(talking_jobs.cost_of_step, 100 * settings.calls)
            samples[OURS].append(step)
            samples[EMPTY_FUNCTION].append(empty)
    return samples


class _Parked:
    """A job with threads whose requests wait."""

    def __init__(self, count: int) -> None:
        trio_offload = _trio_offload()
        self._count = count
        self._callback = trio_offload.callback(_nothing)
        self._wake, self._woken = trio_offload.Semaphore(0), trio_offload.Semaphore(0)
        self._commands, self._to_job = trio_offload.open_channel(1)
        self._from_job, self._answers = trio_offload.open_channel(1)

    async def run(self, context: Any, limiter: trio.CapacityLimiter) -> None:
        arguments = (self._wake, self._woken, self._to_job.move(), self._callback, self._from_job.move())
        await context.run_sync(talking_jobs.park, self._count, *arguments, limiter=limiter)

    async def until_parked(self) -> None:
        # Nothing tells of a request that parks.
        while self._wake.statistics().tasks_waiting < self._count:  # noqa: ASYNC110
            await trio.sleep(0.01)

    async def time_callback(self, times: int) -> float:
        await self._commands.send(times)
        duration: float = await self._answers.receive()
        return duration

    def wake_all(self) -> None:
        for _ in range(self._count):
            self._wake.release()

    async def until_woken(self) -> None:
        for _ in range(self._count):
            await self._woken.acquire()

    def stop(self) -> None:
        self._commands.close()


async def _time_wakes(group: list[_Parked], size: int) -> float:
    """Seconds of a request, if all are answered, and their threads make it again."""
    began = time.perf_counter()
    for one in group:
        one.wake_all()
    for one in group:
        await one.until_woken()
    duration = time.perf_counter() - began
    for one in group:
        await one.until_parked()
    return duration / size


class Parked:
    """Seconds of a callback, or of a wake, among so many requests that wait for their replies."""

    def __init__(self, wakes: bool) -> None:
        self.wakes = wakes

    async def __call__(self, settings: Settings) -> Places:
        places: Places = defaultdict(lambda: defaultdict(list))
        groups = {
            size: [_Parked(min(size, MOST_OF_A_JOB)) for _ in range(max(size // MOST_OF_A_JOB, 1))]
            for size in settings.parked
        }
        count = sum(map(len, groups.values()))
        limiter = trio.CapacityLimiter(count)
        async with _trio_offload().open_worker_context() as context, trio.open_nursery() as nursery:
            for one in [one for group in groups.values() for one in group]:
                nursery.start_soon(one.run, context, limiter)
                await one.until_parked()
            for number in range(settings.rounds + 1):
                for size, group in groups.items():
                    if self.wakes:
                        # A few are over so soon that they are woken again and again.
                        times = max(settings.parked[-1] // size // 10, 1)
                        cost = sum([await _time_wakes(group, size) for _ in range(times)]) / times
                    else:
                        cost = await group[0].time_callback(settings.calls)
                    if number:
                        places[OURS][size].append(cost)
            for group in groups.values():
                for one in group:
                    one.stop()
        return places
