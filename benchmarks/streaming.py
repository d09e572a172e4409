"""The row about streams: small values of one generator, beside the results of a map over two workers."""

from __future__ import annotations

import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import jobs
from contenders import OURS, OURS_MAP, OURS_STREAM, POOL, Map, Pools
from measure import Samples, Settings

SMALL_WINDOW = f"{OURS}, window of 16"
MAP_IN_CHUNKS = f"{OURS}, map in chunks of 100"
STREAM_IMAP = f"{POOL}.imap"
_WINDOW = 1024


async def _stream(values: range, window: int) -> int:
    # Any: a version without streams is type-checked, and measured, without this row.
    trio_offload: Any = importlib.import_module("trio_offload")
    count = 0
    async with trio_offload.stream(jobs.values_of, values, window=window) as stream:
        async for _ in stream:
            count += 1
    return count


async def _mapped(run_map: Map, chunk: int, values: range) -> int:
    return await run_map(jobs.same, values, chunk)


async def stream_rate(settings: Settings) -> Samples:
    """Values a second."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS_STREAM, OURS_MAP, POOL, workers=2)
        few = range(settings.items // 20)
        measured: dict[str, tuple[range, Callable[[range], Awaitable[int]]]] = {
            OURS: (range(settings.items), lambda values: _stream(values, _WINDOW)),
            SMALL_WINDOW: (few, lambda values: _stream(values, 16)),
        }
        for name, kind, items, chunk in (
            (MAP_IN_CHUNKS, OURS_MAP, range(settings.items), 100),
            (STREAM_IMAP, POOL, few, 1),
        ):
            if kind in pools:
                run_map = pools[kind].maps["imap" if kind == POOL else next(iter(pools[kind].maps))]
                measured[name] = items, functools.partial(_mapped, run_map, chunk)
        for number in range(settings.rounds + 1):
            for name, (values, run) in measured.items():
                began = time.perf_counter()
                count = await run(values)
                duration = time.perf_counter() - began
                if count != len(values):
                    raise AssertionError(f"{name} gave {count} of {len(values)} values")
                if number:
                    samples[name].append(count / duration)
    return samples
