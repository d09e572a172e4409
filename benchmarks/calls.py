"""Rows about calls: how long one takes, how many there are a second, what reports cost them, and map."""

from __future__ import annotations

import time
from collections import defaultdict

import jobs
from contenders import (
    ANYIO,
    ECHO,
    EXECUTOR,
    INTERPRETERS,
    LOKY,
    OURS,
    OURS_MAP,
    OURS_PROGRESS,
    POOL,
    TRIO_PARALLEL,
    TRIO_THREAD,
    WITHOUT_REPORTS,
    Map,
    Pools,
)
from measure import Samples, Settings, median_call
from starts import calls_per_second

POOL_IMAP = f"{POOL}.imap"
POOL_MAP = f"{POOL}.map"


async def warm_call(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(
            settings, OURS, ECHO, TRIO_PARALLEL, ANYIO, TRIO_THREAD, EXECUTOR, INTERPRETERS, POOL, LOKY
        )
        for pool in pools.values():
            await median_call(pool.call, settings.calls // 4, bool)
        # Who comes after whom changes: a process that goes to sleep slowly takes time from the next.
        for number in range(2 * settings.rounds):
            for name, pool in list(pools.items())[:: -1 if number % 2 else 1]:
                samples[name].append(await median_call(pool.call, settings.calls, bool))
    return samples


async def reports_warm(settings: Settings) -> Samples:
    """What it costs a call that workers tell of their memory. The two change places at each round.

    Many short rounds: the machine has a fast and a slow state, of half a second each and more, and of a few long rounds one of
    the two may have got more of the slow one.
    """
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS, WITHOUT_REPORTS)
        for number in range(20 * settings.rounds):
            for name, pool in sorted(pools.items(), reverse=bool(number % 2)):
                samples[name].append(await median_call(pool.call, settings.calls // 2, bool))
    return samples


async def throughput(settings: Settings) -> Samples:
    """Calls a second of four tasks that share two workers. Short rounds, for the reason given above."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS, TRIO_PARALLEL, ANYIO, EXECUTOR, INTERPRETERS, POOL, LOKY, workers=2)
        for number in range(4 * settings.rounds + 1):
            for name, pool in pools.items():
                rate = await calls_per_second(pool.call, settings.seconds / 4, tasks=4)
                if number:
                    samples[name].append(rate)
    return samples


class MapRate:
    """Items a second of a function that does nothing, over two workers. `chunk` of them travel together; None: as each
    chooses by itself."""

    def __init__(self, chunk: int | None) -> None:
        self.chunk = chunk

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        # One at a time costs all of them much more.
        items = range(settings.items if self.chunk != 1 else settings.items // 20)
        names = [OURS_MAP, POOL, EXECUTOR, INTERPRETERS, LOKY]
        if self.chunk is None:
            # An executor takes one at a time unless it is told a number.
            names = [OURS_MAP, POOL]
        async with Pools() as stack:
            pools = await stack.opened(settings, *names, workers=2)
            maps: dict[str, Map] = {}
            for name, pool in pools.items():
                for kind, run_map in pool.maps.items():
                    maps[{OURS_MAP: OURS, POOL: f"{POOL}.{kind}"}.get(name, name)] = run_map
            if self.chunk is None:
                # imap, too.
                maps.pop(POOL_IMAP, None)
            # Of large chunks a round takes a twentieth of a second, and the machine has slow moments that last longer.
            rounds = settings.rounds * (4 if self.chunk is None or self.chunk >= 1000 else 1)
            for number in range(rounds + 1):
                for name, run_map in maps.items():
                    began = time.perf_counter()
                    count = await run_map(jobs.same, items, self.chunk)
                    duration = time.perf_counter() - began
                    if count != len(items):
                        raise AssertionError(f"{name} gave {count} results for {len(items)} items")
                    if number:
                        samples[name].append(count / duration)
        return samples


async def lists_of_map(settings: Settings) -> Samples:
    """Items a second of the same function, if the results come as one list. 1,000 items travel together."""
    samples: Samples = defaultdict(list)
    items = range(settings.items)
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS_PROGRESS, POOL, workers=2)
        for number in range(4 * settings.rounds + 1):
            for name, pool in pools.items():
                if pool.list_map is None:
                    continue
                began = time.perf_counter()
                count = await pool.list_map(jobs.same, items, 1000)
                duration = time.perf_counter() - began
                if count != len(items):
                    raise AssertionError(f"{name} gave {count} results for {len(items)} items")
                if number:
                    samples[{OURS_PROGRESS: OURS, POOL: POOL_MAP}.get(name, name)].append(count / duration)
    return samples
