"""Collaboration with fakes, and from outside: ``starmap``, whose items are tuples of arguments."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import map_jobs
import pytest
from bad_jobs import Boom
from fakes import Plan
from outcome import Error, Value

import trio_offload
from trio_offload import BrokenWorkerError, open_worker_context


async def collect(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


async def one_by_one(items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.mark.parametrize("source", [iter, one_by_one], ids=["iterable", "async iterable"])
@pytest.mark.parametrize("chunk_size", [1, 3, "auto"])
async def test_each_item_is_the_arguments(plan: Plan, source: Any, chunk_size: Any) -> None:
    items = [(number, 2) for number in range(10)]
    async with trio_offload.starmap(pow, source(items), chunk_size=chunk_size, workers=2) as results:
        assert await collect(results) == [number**2 for number in range(10)]


@pytest.mark.parametrize("chunk_size", [1, 5])
async def test_an_item_may_be_any_iterable(plan: Plan, chunk_size: int) -> None:
    items: list[Any] = [(), ("one",), ["one", "two"], range(3), iter("abc"), {5: 6}.items()]
    async with trio_offload.starmap(map_jobs.arguments, items, chunk_size=chunk_size, workers=2) as results:
        assert await collect(results) == [(), ("one",), ("one", "two"), (0, 1, 2), ("a", "b", "c"), ((5, 6),)]


@pytest.mark.parametrize("chunk_size", [1, 5])
@pytest.mark.parametrize("wrong", ["ab", b"ab", bytearray(b"ab"), {"a": 1}, 5, None], ids=repr)
async def test_an_item_without_arguments_fails_alone(plan: Plan, chunk_size: int, wrong: Any) -> None:
    items: list[Any] = [("a",), wrong, ("c",)]
    async with trio_offload.starmap(
        map_jobs.arguments, items, chunk_size=chunk_size, workers=1, return_outcomes=True
    ) as results:
        found = await collect(results)
    assert [found[0], found[2]] == [Value(("a",)), Value(("c",))]
    error: Any = found[1].error
    assert type(error) is TypeError
    assert "must be a tuple of positional arguments, got " + repr(wrong) in str(error)
    assert (error.item_index, error.item) == (1, wrong)


@pytest.mark.parametrize("chunk_size", [1, 4])
async def test_errors_have_the_tuple(plan: Plan, chunk_size: int) -> None:
    items: Any = [(3, 0), (3, 3), (threading.Lock(), 1), (1, 2, 3)]
    async with trio_offload.starmap(
        map_jobs.raise_at, items, chunk_size=chunk_size, return_outcomes=True, return_items=True
    ) as results:
        found = await collect(results)
    assert [item for item, _ in found] == items
    assert [type(result.error) for _, result in found[1:]] == [Boom, TypeError, TypeError]
    assert found[0][1] == Value(0)
    assert [result.error.item for _, result in found[1:]] == items[1:]


@pytest.mark.parametrize("chunk_size", [1, 3])
async def test_in_workers_of_each_kind(kind: str, tmp_path: Path, chunk_size: int) -> None:
    """What travels, what fails, what ends the worker, and which frames a traceback has."""
    journal = tmp_path / "journal"
    items: Any = [("no such", "a"), ("Exception", "Exception"), ("SIGKILL", "SIGKILL"), ("no such", [])]
    async with open_worker_context() as context:
        function = functools.partial(map_jobs.write_down_and_fail_if, str(journal), text="text")
        async with context.starmap(function, items, chunk_size=chunk_size, workers=1, return_outcomes=True) as results:
            found = await collect(results)
        async with context.starmap(eval, [("__name__",), ("1 + a", {"a": 2})], chunk_size=chunk_size) as values:
            assert await collect(values) == [await context.run_sync(eval, "__name__"), 3]
    assert found[3] == Value([])
    assert isinstance(found[2], Error)
    assert isinstance(found[2].error, BrokenWorkerError)
    assert found[2].error.item == ("SIGKILL", "SIGKILL")
    assert found[2].error.crash is not None
    assert "write_down_and_fail_if" in str(found[2].error)
    assert found[2].error.crash.item == "('SIGKILL', 'SIGKILL')"
    if chunk_size == 1:
        error = found[1].error
        assert isinstance(error, Boom)
        frame, names = error.__traceback__, []
        while frame is not None:
            names.append(frame.tb_frame.f_code.co_name)
            frame = frame.tb_next
        assert "<lambda>" not in names[: names.index("write_down_and_fail_if")]
    assert journal.read_text().splitlines() == ["a text", "Exception text", "SIGKILL text", "[] text"]


async def test_the_frames_of_a_chunk_are_the_users() -> None:
    async with (
        open_worker_context() as context,
        context.starmap(map_jobs.raise_at, [(1, 1), (0, 1)], chunk_size=2, return_outcomes=True) as results,
    ):
        frame = (await results.__anext__()).error.__traceback__  # type: ignore[union-attr]
    names = []
    while frame is not None:
        names.append((Path(frame.tb_frame.f_code.co_filename).name, frame.tb_frame.f_code.co_name))
        frame = frame.tb_next
    assert names[-1:] == [("map_jobs.py", "raise_at")]
    assert not any(file == "chunks.py" for file, _ in names)


async def test_functions_that_travel_by_value() -> None:
    pytest.importorskip("cloudpickle")
    async with open_worker_context() as context:
        for chunk_size in (1, 4):
            async with context.starmap(
                lambda a, b: [a, b], zip("abcd", range(4), strict=True), chunk_size=chunk_size
            ) as results:
                assert await collect(results) == [["a", 0], ["b", 1], ["c", 2], ["d", 3]]
