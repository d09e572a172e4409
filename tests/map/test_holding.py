"""A partial of a map is sent once to each worker, which drops it when the map has ended."""

from __future__ import annotations

import functools
import os
import signal
from typing import Any

import pytest
import trio

import trio_offload
from trio_offload import WorkerContext, WorkerType, open_worker_context
from trio_offload._map import lane
from trio_offload_worker._jobs import chunks as worker_side


class Large:
    """Counts how often it was pickled here, and unpickled in this process."""

    pickled = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        Large.pickled += 1
        return Large, (self.value,)


class Refuses:
    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")


def added(large: Large, item: int) -> int:
    return large.value + item


def added_two(large: Large, item: int, other: int) -> int:
    return large.value + item * other


def dies_at_seven(large: Large, item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return large.value + item


def held_here() -> bool:
    return worker_side._held is not None


async def results_of(context: WorkerContext, function: Any, items: Any, **options: Any) -> list[Any]:
    async with context.map(function, items, **options) as results:
        return [result async for result in results]


@pytest.mark.parametrize("kind", list(WorkerType))
@pytest.mark.parametrize("options", [{}, {"chunk_size": 5}, {"chunk_size": "auto"}, {"timeout": 60}])
async def test_it_is_sent_once_to_each_worker(kind: WorkerType, options: Any) -> None:
    Large.pickled = 0
    async with open_worker_context(worker_type=kind) as context:
        function = functools.partial(added, Large(1000))
        assert await results_of(context, function, range(100), workers=2, **options) == list(range(1000, 1100))
        # Once more at the start of the block, to learn whether it can be.
        assert Large.pickled <= 3
        assert not await context.run_sync(held_here)


async def test_starmap() -> None:
    Large.pickled = 0
    async with open_worker_context() as context:
        pairs = [(number, 2) for number in range(50)]
        async with context.starmap(functools.partial(added_two, Large(1000)), pairs, workers=2) as results:
            assert [result async for result in results] == list(range(1000, 1100, 2))
    assert Large.pickled <= 3


async def test_maps_that_share_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives the token away after each answer, so that the worker's function is replaced in between."""
    monkeypatch.setattr(lane, "_LANE_TIME_SLICE", 0.0)
    async with open_worker_context() as context:
        limiter = trio.CapacityLimiter(1)
        found: dict[int, list[int]] = {}

        async def run(base: int) -> None:
            found[base] = await results_of(context, functools.partial(added, Large(base)), range(300), limiter=limiter)

        async with trio.open_nursery() as nursery:
            for base in (1000, 2000, 3000):
                nursery.start_soon(run, base)
        assert found == {base: list(range(base, base + 300)) for base in (1000, 2000, 3000)}
        assert len(context.statistics().workers) == 1
        # One call at a time for one worker, so the last map found it idle.
        assert not await context.run_sync(held_here)


async def test_the_worker_after_a_dead_one_gets_it() -> None:
    async with open_worker_context() as context:
        function = functools.partial(dies_at_seven, Large(1000))
        outcomes = await results_of(context, function, range(20), workers=1, return_outcomes=True)
        assert [index for index, outcome in enumerate(outcomes) if not hasattr(outcome, "value")] == [7]
        assert outcomes[19].unwrap() == 1019


async def test_each_worker_for_one_job_gets_it() -> None:
    async with open_worker_context(worker_type=WorkerType.FORKSERVER, retire=object) as context:
        assert await results_of(context, functools.partial(added, Large(1000)), range(8)) == list(range(1000, 1008))


async def test_what_cannot_be_unpickled_fails_each_item() -> None:
    async with open_worker_context() as context:
        for options in ({}, {"chunk_size": 2}, {"timeout": 60}):
            outcomes = await results_of(
                context, functools.partial(added, Refuses()), range(6), return_outcomes=True, **options
            )
            assert [str(outcome.error) for outcome in outcomes] == ["not here"] * 6


async def test_a_block_that_is_left_early_leaves_nothing() -> None:
    async with open_worker_context() as context:
        async with context.map(functools.partial(added, Large(1000)), range(10**6), workers=1) as results:
            async for _ in results:
                break
        assert not await context.run_sync(held_here)


async def test_messages_and_statistics_name_the_inner_function() -> None:
    async with open_worker_context() as context:
        with pytest.raises(trio_offload.BrokenWorkerError, match=r"while it ran .*\.dies_at_seven") as told:
            await results_of(context, functools.partial(dies_at_seven, Large(1000)), [7])
        assert told.value.crash is not None
        assert (told.value.crash.function or "").endswith(".dies_at_seven")
        assert told.value.item == 7
