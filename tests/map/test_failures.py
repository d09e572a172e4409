"""Unit, and collaboration with fakes: the errors of items, and items beside their results."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import attrs
import map_jobs
import pytest
from bad_jobs import Boom
from fakes import Plan, pass_gate
from lifeline import Lifeline
from outcome import Error, Value
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, RemoteError, WorkerMemoryError, WorkerTimeoutError, open_worker_context
from trio_offload._map import failures
from trio_offload._map.source import Chunk
from trio_offload_worker._jobs.notes import add_note


def facts_of(error: Any) -> tuple[Any, Any]:
    return error.item_index, error.item


class HasItem(Exception):
    """An exception that had the name first."""

    def __init__(self, item: str) -> None:
        super().__init__(item)
        self.item = item


class HasProperty(Exception):
    @property
    def item(self) -> str:
        return "of the class"


class HasDefault(Exception):
    item = "of the class"


@attrs.frozen
class Frozen(Exception):
    code: int


class Stubborn(Exception):
    """Cannot be copied."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")


class NoSlots(Exception):
    __slots__ = ("code",)


def mark(error: BaseException, items: Any, indexes: list[int], start: int = 10) -> None:
    failures.mark(error, abs, Chunk(start, items), indexes)


# --- the attributes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [ValueError("text"), Frozen(5), NoSlots(), KeyError(), OSError(2, "text")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_has_its_item(error: Any) -> None:
    mark(error, ["a", "b"], [1])
    assert facts_of(error) == (11, "b")
    assert error.__notes__ == ["(item 11 of a map of abs: 'b')"]


@pytest.mark.parametrize(
    ("error", "own"), [(HasItem("its own"), "its own"), (HasProperty(), "of the class"), (HasDefault(), "of the class")]
)
def test_an_attribute_of_the_exception_stays(error: Any, own: str) -> None:
    mark(error, ["a", "b"], [1])
    assert facts_of(error) == (11, own)
    mark(error, ["a", "b"], [0])
    assert facts_of(error) == (10, own)


def test_the_outer_of_two_maps_is_the_last_word() -> None:
    inner: Any = ValueError()
    mark(inner, ["inner"], [0])
    outer = pickle.loads(pickle.dumps(inner))
    mark(outer, [["inner"]], [0], start=3)
    assert facts_of(outer) == (3, ["inner"])


def test_errors_of_no_map_have_no_item() -> None:
    for error in (BrokenWorkerError("it broke"), WorkerTimeoutError("slow", 1.0), RemoteError("E", "m", "t")):
        assert facts_of(error) == (None, None)


def test_each_item_gets_its_copy_of_a_shared_error() -> None:
    cause = ValueError("cause")
    shared = BrokenWorkerError("it broke")
    shared.__cause__ = cause
    add_note(shared, "the first note")
    single = ValueError("alone")
    failed: dict[int, Any] = {4: shared, 0: shared, 2: single, 1: shared}
    assert failures.separate(failed) == {0: [0], 1: [1], 2: [2], 4: [4]}
    assert len(set(map(id, failed.values()))) == 4
    for index in (0, 1, 4):
        mark(failed[index], range(5), [index])
        assert facts_of(failed[index]) == (10 + index, index)
        assert failed[index].__cause__ is cause
        assert len(failed[index].__notes__) == 2
    assert failed[2] is single


def test_an_error_that_cannot_be_copied_is_shared() -> None:
    shared = Stubborn()
    failed: dict[int, BaseException] = dict.fromkeys(range(3), shared)
    assert failures.separate(failed) == {0: [0, 1, 2]}
    mark(shared, "abc", [0, 1, 2])
    assert facts_of(shared) == (10, "a")
    assert shared.__notes__ == ["(items 10 to 12 of a map of abs)"]  # type: ignore[attr-defined]


# --- in a map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_raised_error_and_an_outcome_have_the_item(plan: Plan, chunk_size: int, ordered: bool) -> None:
    function = functools.partial(map_jobs.raise_at, 6)
    items = iter(range(10))
    async with trio_offload.map(function, items, chunk_size=chunk_size, ordered=ordered, workers=2) as results:
        with pytest.raises(Boom) as caught:
            async for _ in results:
                pass
    assert facts_of(caught.value) == (6, 6)
    async with trio_offload.map(
        function, range(10), chunk_size=chunk_size, ordered=ordered, workers=2, return_outcomes=True
    ) as outcomes:
        errors = [result.error async for result in outcomes if isinstance(result, Error)]
    assert [facts_of(error) for error in errors] == [(6, 6)]


async def test_the_item_that_broke_the_worker_is_the_cause(plan: Plan) -> None:
    plan.breaks_at.add("c")
    for item in "abcd":
        plan.gate(item).set()
    async with trio_offload.map(pass_gate, list("abcd"), workers=1, chunk_size=4) as results:
        with pytest.raises(BrokenWorkerError, match="lost") as caught:
            await results.__anext__()
    assert facts_of(caught.value) == (0, "a")
    assert facts_of(caught.value.__cause__) == (2, "c")
    async with trio_offload.map(pass_gate, list("abcd"), workers=1, chunk_size=4, return_outcomes=True) as outcomes:
        found = [result async for result in outcomes]
    assert [facts_of(result.error) for result in found if isinstance(result, Error)] == [(0, "a"), (1, "b"), (2, "c")]
    assert isinstance(found[3], Value)


@pytest.mark.parametrize("chunk_size", [1, 3])
async def test_items_come_beside_their_results(plan: Plan, chunk_size: int) -> None:
    for ordered in (True, False):
        async with trio_offload.map(
            map_jobs.double, iter("abcde"), chunk_size=chunk_size, ordered=ordered, workers=2, return_items=True
        ) as pairs:
            found = [pair async for pair in pairs]
        assert (found if ordered else sorted(found)) == [(item, 2 * item) for item in "abcde"]
    async with trio_offload.map(
        functools.partial(map_jobs.raise_at, 2), range(5), chunk_size=chunk_size, return_items=True, return_outcomes=True
    ) as tried:
        outcomes = {item: result async for item, result in tried}
    assert [type(outcomes[item]) for item in range(5)] == [Value, Value, Error, Value, Value]
    async with trio_offload.map(
        functools.partial(map_jobs.raise_at, 2), range(5), chunk_size=chunk_size, return_items=True
    ) as pairs:
        found = []
        with pytest.raises(Boom):
            async for pair in pairs:
                found.append(pair)
    assert found == [(0, 0), (1, 1)]


class Item:
    """An item that can be watched."""

    def __reduce__(self) -> Any:
        return int, ()


@pytest.mark.parametrize("return_items", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 2])
async def test_items_live_no_longer_than_they_must(plan: Plan, chunk_size: int, return_items: bool) -> None:
    alive: weakref.WeakSet[Item] = weakref.WeakSet()

    def items() -> Any:
        for _ in itertools.count():
            item = Item()
            alive.add(item)
            yield item

    async with trio_offload.map(
        map_jobs.double, items(), workers=2, window=8, chunk_size=chunk_size, return_items=return_items
    ) as results:
        for _ in range(4):
            await wait_all_tasks_blocked()
            gc.collect()
            # The generator and the idle lanes have what they read last.
            assert len(alive) == 8 if return_items else len(alive) <= 2 * chunk_size + 1
            await results.__anext__()


async def test_an_idle_worker_has_forgotten_the_items(plan: Plan) -> None:
    """Another call may kill it while the lane feeds the next worker."""
    plan.gate("a").set()
    async with trio_offload.map(pass_gate, ["a", "b"], workers=1) as results:
        assert await results.__anext__() == "a"
        await wait_all_tasks_blocked()
        (worker,) = plan.workers
        assert [chunk.item_at(worker.progress) for chunk in worker.items_in_flight] == [(1, "'b'")]  # type: ignore[attr-defined]
        plan.gate("b").set()
        assert await results.__anext__() == "b"
        await wait_all_tasks_blocked()
        assert worker.items_in_flight == ()  # type: ignore[attr-defined]


# --- from outside --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4])
async def test_the_record_of_a_crash_has_the_item(kind: str, tmp_path: Path, chunk_size: int) -> None:
    journal, crashes = tmp_path / "journal", tmp_path / "crashes"
    journal.touch()
    async with open_worker_context(crash_dir=crashes) as context:
        function = functools.partial(map_jobs.write_down_and_fail, str(journal), "text 2", "segfault")
        items = [f"text {number}" for number in range(4)]
        async with context.map(function, items, chunk_size=chunk_size, workers=1, return_outcomes=True) as results:
            errors = [result.error async for result in results if isinstance(result, Error)]
        alone = None
        with pytest.raises(BrokenWorkerError) as caught:
            await context.run_sync(function, "text 2")
        alone = caught.value.crash
    assert facts_of(errors[-1]) == (2, "text 2")
    assert isinstance(errors[-1], BrokenWorkerError)
    assert errors[-1].crash is not None
    assert (errors[-1].crash.item_index, errors[-1].crash.item) == (2, "'text 2'")
    records = [json.loads(path.read_text()) for path in crashes.iterdir()]
    assert sorted((record["item_index"], record["item"]) for record in records if record["item"]) == [(2, "'text 2'")]
    assert alone is not None
    assert (alone.item_index, alone.item) == (None, None)
    assert len(records) == 2


async def test_items_over_memory_and_over_time_are_found(line: Lifeline) -> None:
    function = functools.partial(map_jobs.take_memory_at, 1)
    async with open_worker_context(memory_limit="150MB") as context:
        async with context.map(function, range(3), chunk_size=3, workers=1, return_outcomes=True) as results:
            found = [result async for result in results]
    assert isinstance(found[1], Error)
    assert isinstance(found[1].error, WorkerMemoryError)
    assert facts_of(found[1].error) == (1, 1)
    assert found[1].error.crash is not None
    assert found[1].error.crash.item_index == 1
    async with open_worker_context() as context:
        function = functools.partial(map_jobs.hold_at, line.path, 2)
        async with context.map(function, range(3), timeout=1.5, workers=1, return_outcomes=True) as results:
            found = [result async for result in results]
        await line.ended()
    assert isinstance(found[2], Error)
    assert isinstance(found[2].error, WorkerTimeoutError)
    assert facts_of(found[2].error) == (2, 2)
