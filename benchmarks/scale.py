"""Curves: what a call costs as workers, or calls that wait for one, become many."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict

import trio
from contenders import OURS, TRIO_PARALLEL, Call, Pool, Pools, contenders
from measure import Places, Settings

# A worker of trio-parallel's takes several times the memory and start of one of ours, so it goes a part of the way.
MOST_OF_A_PEER = 50


async def many_workers(settings: Settings) -> Places:
    """Seconds a call, with as many calls under way as there are workers, all of which are up the whole time."""
    places: Places = defaultdict(lambda: defaultdict(list))
    async with contextlib.AsyncExitStack() as stack:
        pools: dict[str, tuple[Pool, list[int]]] = {}
        for contender in contenders(settings, OURS, TRIO_PARALLEL):
            sizes = [size for size in settings.workers if contender.name == OURS or size <= MOST_OF_A_PEER]
            pool = await stack.enter_async_context(contender.open(max(sizes)))
            await _all_at_work(pool, max(sizes))
            pools[contender.name] = pool, sizes
        for number in range(settings.rounds + 1):
            for size in settings.workers:
                for name, (pool, sizes) in pools.items():
                    if size in sizes:
                        cost = await _cost_of(pool.call, tasks=size, calls=max(5 * settings.calls // size, 1))
                        # The first round finds workers that have never been used again.
                        if number:
                            places[name][size].append(cost)
    return places


async def _all_at_work(pool: Pool, size: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(size):
            nursery.start_soon(pool.call, bool)


async def _cost_of(call: Call, tasks: int, calls: int) -> float:
    async def caller() -> None:
        for _ in range(calls):
            await call(bool)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(caller)
    return (time.perf_counter() - began) / (tasks * calls)


async def many_waiting(settings: Settings) -> Places:
    """Seconds a call, when so many are made at the same moment and two workers do them."""
    places: Places = defaultdict(lambda: defaultdict(list))
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS, TRIO_PARALLEL, workers=2)
        for number in range(settings.rounds // 2 + 1):
            for count in settings.waiting:
                # Few calls are over so soon that they have to be made again and again.
                times = max(settings.waiting[-1] // count // 10, 1)
                for name, pool in pools.items():
                    costs = [await _cost_of(pool.call, tasks=count, calls=1) for _ in range(times)]
                    if number:
                        places[name][count].append(sum(costs) / times)
    return places
