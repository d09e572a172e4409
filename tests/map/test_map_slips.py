"""Unit: slips of those who call ``map``, and what its results show."""

from __future__ import annotations

import pydoc
import re
from typing import Any

import map_jobs
import pytest
from fakes import Plan

import trio_offload


async def loop_over(made: Any) -> None:
    async for _ in made:
        pass


async def enter(made: Any) -> None:
    with made:
        pass


async def loop_in_the_old_way(made: Any) -> None:
    list(made)


async def wait_for(made: Any) -> None:
    await made


@pytest.mark.parametrize("use", [loop_over, enter, loop_in_the_old_way, wait_for])
@pytest.mark.parametrize("function", [trio_offload.map, trio_offload.starmap])
async def test_without_the_block_it_says_how(plan: Plan, use: Any, function: Any) -> None:
    with pytest.raises(TypeError) as caught:
        await use(function(map_jobs.double, [1, 2]))
    assert "Write `async with map(fn, items) as results:`, and in it `async for result in results:`" in str(caught.value)
    assert not plan.workers


async def test_methods_of_the_results_without_the_block(plan: Plan) -> None:
    made: Any = trio_offload.map(map_jobs.double, [1, 2])
    for name in ("collect", "batches", "progress"):
        with pytest.raises(
            AttributeError, match=rf"inside a block\. Write `async with map\(.*, and in it `results\.{name}`"
        ):
            getattr(made, name)
    assert not hasattr(made, "_nothing")


async def made_later() -> list[int]:
    return [1]


async def make_one_by_one() -> Any:
    yield 1


@pytest.mark.parametrize("function", [trio_offload.map, trio_offload.starmap])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1, 2], map_jobs.double), "map takes the function first, then the items: write map(double, items)"),
        (([1, 2], int), "write map(int, items)"),
        (([1, 2], [3]), "fn must be a callable, got [1, 2]"),
        ((map_jobs.double, "a.csv"), "got the single text 'a.csv'. For one item pass ['a.csv'], for its parts list(...)"),
        ((map_jobs.double, b"a.csv"), "got the single text b'a.csv'"),
        ((map_jobs.double, 5), "items must be an iterable or an async iterable, got 5"),
        ((map_jobs.double, make_one_by_one), "If it makes the items, call it: make_one_by_one()"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_wrong_arguments(plan: Plan, function: Any, arguments: Any, text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        function(*arguments)


async def test_items_that_come_later() -> None:
    items = made_later()
    with pytest.raises(TypeError, match="Await it first"):
        trio_offload.map(map_jobs.double, items)  # type: ignore[call-overload]
    assert await items == [1]


async def test_its_results_show_what_users_call(plan: Plan) -> None:
    async with trio_offload.map(map_jobs.double, range(3)) as results:
        assert [name for name in dir(results) if not name.startswith("_")] == ["batches", "collect", "progress"]
        text = pydoc.plain(pydoc.render_doc(type(results)))
        assert re.findall(r"^ \|  (?:async )?([a-z]\w*)\(", text, re.MULTILINE) == ["batches", "collect"]
        assert await results.__anext__() == 0
        assert await anext(results) == 2
        assert [result async for result in results] == [4]
