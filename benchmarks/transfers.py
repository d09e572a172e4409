"""Rows about large objects."""

from __future__ import annotations

import gc
import importlib
import time
from collections import defaultdict
from typing import Any

import jobs
from contenders import ANYIO, EXECUTOR, INTERPRETERS, LOKY, OURS, POOL, TRIO_PARALLEL, Pools
from measure import Samples, Settings, one_call

MEMCPY = "memcpy to fresh memory"
AS_ARGUMENT = "trio-offload, as an argument"


class Transfer:
    """Gigabytes (10^9 bytes) a second of one object of 100 MB, in one direction."""

    def __init__(self, kind: str, to_worker: bool) -> None:
        self.kind = kind
        self.to_worker = to_worker

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        size = settings.transfer_size
        value = jobs.make(self.kind, size)
        async with Pools() as stack:
            names = [OURS, TRIO_PARALLEL, ANYIO, EXECUTOR, POOL, LOKY]
            if self.kind != "array":
                # NumPy refuses to be imported by a second interpreter of a process.
                names.append(INTERPRETERS)
            pools = await stack.opened(settings, *names)
            for pool in pools.values():
                await pool.call(jobs.keep, self.kind, size)
            for number in range(settings.transfer_rounds + 1):
                for name, pool in pools.items():
                    gc.collect()
                    if self.to_worker:
                        duration = await one_call(pool.call, jobs.size_of, value)
                    else:
                        duration = await one_call(pool.call, jobs.kept, self.kind, size)
                    if number:
                        samples[name].append(size / duration / 1e9)
                if self.kind == "array":
                    duration = _copied(value)
                    if number:
                        samples[MEMCPY].append(size / duration / 1e9)
        return samples


async def shared_array(settings: Settings) -> Samples:
    """Seconds of a call that reads an item of an array: of a shared one, and of an argument."""
    samples: Samples = defaultdict(list)
    array = jobs.make("array", settings.transfer_size)
    async with Pools() as stack:
        call = (await stack.opened(settings, OURS))[OURS].call
        # Any: a version without it is type-checked too.
        trio_offload: Any = importlib.import_module("trio_offload")
        with trio_offload.SharedArray.copy_of(array) as shared:
            for number in range(settings.transfer_rounds + 1):
                for name, value in {OURS: shared, AS_ARGUMENT: array}.items():
                    gc.collect()
                    duration = await one_call(call, jobs.last_item, value)
                    if number:
                        samples[name].append(duration)
    return samples


def _copied(array: object) -> float:
    # NumPy asks for huge pages for memory of this size, so this is the fastest copy that Python code can have.
    began = time.perf_counter()
    copy = array.copy()  # type: ignore[attr-defined]
    duration = time.perf_counter() - began
    del copy
    return duration
