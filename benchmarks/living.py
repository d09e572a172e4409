"""Rows about actors: a call from here, and a hosted dict as jobs have it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import jobs
import talking_jobs
from contenders import OURS, Pools
from measure import Samples, Settings, median_call

WARM_CALL = "trio-offload, a warm call"
SHARED = f"{OURS}, share({{}})"
MANAGER = "multiprocessing.Manager's dict"


def _trio_offload() -> Any:
    # Any: a version without actors is type-checked, and measured, without these rows.
    return importlib.import_module("trio_offload")


async def actor_call(settings: Settings) -> Samples:
    """Seconds of a method that returns at once, from here; and of such a function."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack, _trio_offload().open_actor(jobs.Idle) as actor:
        call = (await stack.opened(settings, OURS))[OURS].call
        for number in range(2 * settings.rounds + 1):
            taken = {
                OURS: await median_call(actor.nothing, settings.calls),
                WARM_CALL: await median_call(call, settings.calls, bool),
            }
            if number:
                for name, duration in taken.items():
                    samples[name].append(duration)
    return samples


@contextlib.asynccontextmanager
async def _of_a_manager(times: int) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A Manager's dict, and a process of multiprocessing's that uses it."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        ours, theirs = context.Pipe()
        hosted = manager.dict()  # kept, or it is gone before the process has unpickled it
        process = context.Process(target=talking_jobs.serve_dict, args=(theirs, hosted))
        process.start()
        theirs.close()

        async def run() -> float:
            ours.send(times)
            duration: float = ours.recv()
            return duration

        try:
            yield run
        finally:
            ours.send(0)
            process.join()


async def hosted_dict(settings: Settings) -> Samples:
    """Seconds of a set and a get of one key, from a job."""
    samples: Samples = defaultdict(list)
    trio_offload = _trio_offload()
    async with Pools() as stack:
        call = (await stack.opened(settings, OURS))[OURS].call
        hosted = await stack.enter_async_context(trio_offload.open_actor(dict))
        shared = await stack.enter_async_context(trio_offload.share({}))
        runs: dict[str, Callable[[], Awaitable[float]]] = {
            OURS: functools.partial(call, talking_jobs.set_and_get, hosted, settings.calls),
            SHARED: functools.partial(call, talking_jobs.set_and_get, shared, settings.calls),
        }
        if settings.peers:
            runs[MANAGER] = await stack.enter_async_context(_of_a_manager(settings.calls))
        for number in range(settings.rounds + 1):
            for name, run in runs.items():
                taken = await run()
                if number:
                    samples[name].append(taken)
    return samples
