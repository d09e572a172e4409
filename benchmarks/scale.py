"""Curves: what a call costs as workers, or calls that wait for one, become many."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence

import trio
from contenders import ECHO, OURS, TRIO_PARALLEL, Call, Pools, contenders
from measure import Places, Settings

# A worker of trio-parallel's takes several times the memory and start of one of ours, so it goes a part of the way.
MOST_OF_A_PEER = 50


async def many_workers(settings: Settings) -> Places:
    """Seconds a call, with as many calls under way as there are workers, all of which are up the whole time.

    So many bare echoes show what part of it is the machine's: processes that push each other out of its caches.
    """
    places: Places = defaultdict(lambda: defaultdict(list))
    async with contextlib.AsyncExitStack() as stack:
        # For each contender, what the tasks call: one each.
        callers: dict[str, list[Call]] = {}
        for contender in contenders(settings, OURS, TRIO_PARALLEL):
            most = max(size for size in settings.workers if contender.name == OURS or size <= MOST_OF_A_PEER)
            pool = await stack.enter_async_context(contender.open(most))
            callers[contender.name] = [pool.call] * most
        for contender in contenders(settings, ECHO):
            echoes = [await stack.enter_async_context(contender.open(1)) for _ in range(max(settings.workers))]
            callers[contender.name] = [echo.call for echo in echoes]
        for calls in callers.values():
            await _cost_of(calls, times=1)
        for number in range(settings.rounds + 1):
            for size in settings.workers:
                for name, calls in callers.items():
                    if size <= len(calls):
                        cost = await _cost_of(calls[:size], times=max(5 * settings.calls // size, 1))
                        # The first round finds workers that have never been used again.
                        if number:
                            places[name][size].append(cost)
    return places


async def _cost_of(calls: Sequence[Call], times: int) -> float:
    """Seconds a call: a task for each of them, which makes it so many times."""

    async def caller(call: Call) -> None:
        for _ in range(times):
            await call(bool)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(caller, call)
    return (time.perf_counter() - began) / (len(calls) * times)


async def many_waiting(settings: Settings) -> Places:
    """Seconds a call, when so many are made at the same moment and two workers do them."""
    places: Places = defaultdict(lambda: defaultdict(list))
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS, TRIO_PARALLEL, workers=2)
        for pool in pools.values():
            await _cost_of([pool.call] * 2, times=1)
        for number in range(settings.rounds + 1):
            for count in settings.waiting:
                # Few calls are over so soon that they have to be made again and again.
                times = max(settings.waiting[-1] // count // 10, 1)
                for name, pool in pools.items():
                    costs = [await _cost_of([pool.call] * count, times=1) for _ in range(times)]
                    if number:
                        places[name][count].append(sum(costs) / times)
    return places
