"""`results.batches()` and `results.collect()`: the results of a map as lists."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import map_jobs
import pytest
import trio
import trio.testing
from fakes import Plan

import trio_offload

DOUBLES = [2 * number for number in range(100)]


@pytest.mark.parametrize("chunk_size", [1, 7, 100, "auto"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "as completed"])
async def test_batches_have_all_results(plan: Plan, chunk_size: Any, ordered: bool) -> None:
    async with trio_offload.map(map_jobs.double, range(100), chunk_size=chunk_size, ordered=ordered, workers=3) as results:
        batches = [batch async for batch in results.batches()]
        assert [batch async for batch in results.batches()] == []
    found = list(itertools.chain.from_iterable(batches))
    assert (found if ordered else sorted(found)) == DOUBLES
    assert all(type(batch) is list and batch for batch in batches)


@pytest.mark.parametrize("chunk_size", [1, 7, "auto"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "as completed"])
async def test_collect(plan: Plan, chunk_size: Any, ordered: bool) -> None:
    async with trio_offload.map(map_jobs.double, range(100), chunk_size=chunk_size, ordered=ordered, workers=3) as results:
        found = await results.collect()
        assert await results.collect() == []
    assert (found if ordered else sorted(found)) == DOUBLES


async def test_no_items(plan: Plan) -> None:
    async with trio_offload.map(map_jobs.double, []) as results:
        assert await results.collect() == []
    async with trio_offload.map(map_jobs.double, ()) as results:
        assert [batch async for batch in results.batches()] == []


async def test_starmap_with_items_and_outcomes(plan: Plan) -> None:
    async with trio_offload.starmap(divmod, [(7, 2), (1, 0)], return_items=True, return_outcomes=True) as results:
        (first, value), (second, error) = await results.collect()
    assert (first, value.unwrap()) == ((7, 2), (3, 1))
    assert second == (1, 0)
    with pytest.raises(ZeroDivisionError):
        error.unwrap()


async def test_loops_of_each_kind_share_the_results(plan: Plan) -> None:
    async with trio_offload.map(map_jobs.double, range(100), chunk_size=10, workers=2) as results:
        found = [await anext(results), await anext(results)]
        async for result in results:
            found.append(result)
            if len(found) == 15:
                break
        async for batch in results.batches():
            found += batch
            break
        assert len(found) > 15
        found.append(await anext(results))
        found += await results.collect()
    assert found == DOUBLES


async def test_lists_are_the_callers(plan: Plan) -> None:
    found: list[int] = []
    async with trio_offload.map(map_jobs.double, range(100), chunk_size=10, workers=2) as results:
        async for batch in results.batches():
            found += batch
            batch.clear()
    assert found == DOUBLES


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
async def test_error_comes_after_the_results_before_it(plan: Plan, chunk_size: int) -> None:
    found = []
    function = functools.partial(map_jobs.raise_at, 42)
    async with trio_offload.map(function, range(100), chunk_size=chunk_size, workers=2) as results:
        with pytest.raises(map_jobs.Boom) as caught:
            async for batch in results.batches():
                found += batch
        assert await results.collect() == []
    assert found == list(range(42))
    assert caught.value.item == 42  # type: ignore[attr-defined]


async def test_error_of_collect(plan: Plan) -> None:
    function = functools.partial(map_jobs.raise_at, 42)
    async with trio_offload.map(function, range(100), chunk_size=5, ordered=False) as results:
        with pytest.raises(map_jobs.Boom):
            await results.collect()


async def test_window_bounds_what_is_read(plan: Plan) -> None:
    read = 0

    def items() -> Any:
        nonlocal read
        while True:
            read += 1
            yield read

    taken = 0
    async with trio_offload.map(map_jobs.double, items(), chunk_size=10, window=40, workers=2) as results:
        async for batch in results.batches():
            # The items of this batch are inside until the next step.
            assert read <= taken + 40
            taken += len(batch)
            await trio.testing.wait_all_tasks_blocked()
            assert read <= taken + 40
            if taken >= 500:
                break


async def test_cancellation_keeps_what_was_not_handed_out(plan: Plan) -> None:
    send, receive = trio.open_memory_channel[int](10)
    async with trio_offload.map(map_jobs.double, receive, ordered=False) as results:
        await send.send(1)
        assert [await anext(results.batches()) for _ in range(1)] == [[2]]
        with trio.move_on_after(0.01) as scope:
            await anext(results.batches())
        assert scope.cancelled_caught
        await send.send(2)
        await send.aclose()
        assert await results.collect() == [4]


async def test_after_the_block(plan: Plan) -> None:
    async with trio_offload.map(map_jobs.double, range(10), chunk_size=5) as results:
        batches = results.batches()
        await anext(batches)
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    with pytest.raises(trio.ClosedResourceError):
        await results.collect()


async def test_large_batches_come_in_parts(plan: Plan) -> None:
    async with trio_offload.map(map_jobs.double, range(10_000), chunk_size=5000) as results:
        sizes = [len(batch) async for batch in results.batches()]
    assert sum(sizes) == 10_000
    assert max(sizes) <= 2048


@pytest.mark.slow
async def test_with_workers() -> None:
    async with (
        trio_offload.open_worker_context() as context,
        context.map(map_jobs.double, range(20_000), chunk_size=1000, workers=2) as results,
    ):
        assert await results.collect() == list(range(0, 40_000, 2))
