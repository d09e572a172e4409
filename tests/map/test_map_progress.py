"""The progress of a map: finished items, and the parts of those that run."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import map_jobs
import progress_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE, Lifeline

import trio_offload
from trio_offload import JobProgress, WorkerContext, WorkerType, open_worker_context


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


class Shown(list[tuple[Any, ...]]):
    """A function for `progress`. It keeps its arguments, and sets an event at a certain step."""

    def __init__(self, awaited: tuple[Any, ...] | None = None) -> None:
        super().__init__()
        self.event = trio_offload.Event()
        self._awaited = awaited

    def __call__(self, *step: Any) -> None:
        self.append(step)
        if step == self._awaited:
            self.event.set()


@pytest.mark.parametrize("chunk_size", [1, 4, "auto"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_last_step_has_all_items(context: WorkerContext, chunk_size: Any, ordered: bool) -> None:
    shown = Shown()
    async with context.map(
        map_jobs.double, range(50), chunk_size=chunk_size, ordered=ordered, workers=2, progress=shown
    ) as results:
        assert results.progress.total == 50
        assert sorted(await results.collect()) == list(range(0, 100, 2))
        assert results.progress == JobProgress(50, 50, None)
        assert shown[-1] == (50, 50, None)
    assert shown[-1] == (50, 50, None)
    assert results.progress == JobProgress(50, 50, None)
    assert shown == sorted(set(shown))


async def test_parts_of_running_items_count(context: WorkerContext) -> None:
    """Two jobs at three quarters and at a half are 1.25 items. Their notes are shown too."""
    shown = Shown((1.25, 2, "a note"))
    items = [([(3, 4)], shown.event), ([(1, 2), (2, 4, "a note")], shown.event)]
    async with context.starmap(jobs.item_and_wait, items, workers=2, progress=shown) as results:
        assert await results.collect() == [1, 2]
    assert shown[-1] == (2, 2, "a note")


async def test_items_of_a_running_chunk_count(context: WorkerContext) -> None:
    """A chunk of three: the first item is done, and half of the second."""
    shown = Shown((1.5, 3, None))
    other = trio_offload.Event()
    other.set()
    items = [([(1, 1)], other), ([(1, 2)], shown.event), ([], other)]
    async with context.starmap(jobs.item_and_wait, items, chunk_size=3, workers=1, progress=shown) as results:
        assert await results.collect() == [1, 1, 0]
    assert shown[-1] == (3, 3, None)


async def test_unknown_number_of_items(context: WorkerContext) -> None:
    shown = Shown()
    async with context.map(map_jobs.double, iter(range(10)), workers=1, window=4, progress=shown) as results:
        assert results.progress.total is None
        assert len(await results.collect()) == 10
    assert shown[-1] == (10, 10, None)


async def test_error_of_the_function_ends_the_map(context: WorkerContext, line: Lifeline) -> None:
    def fail(done: float, total: float | None, note: str | None) -> None:
        if done:
            raise LookupError("not shown")

    job = functools.partial(jobs.tell_and_hang, path=line.path)
    async with context.map(job, [[(1, 2)]], workers=1, progress=fail) as results:
        with pytest.raises(LookupError, match="not shown"):
            await results.collect()
    await line.ended()


async def test_error_of_the_function_at_the_end(context: WorkerContext) -> None:
    def fail(done: float, total: float | None, note: str | None) -> None:
        if done == 3:
            raise LookupError("not shown")

    async with context.map(map_jobs.double, range(3), progress=fail) as results:
        with pytest.raises(LookupError, match="not shown"):
            await results.collect()


async def test_block_that_is_left_early(context: WorkerContext, line: Lifeline) -> None:
    """The running item does not count any more."""
    shown = Shown()
    job = functools.partial(jobs.tell_and_hang, path=line.path)
    async with context.map(job, [[(1, 2)]], workers=1, progress=shown) as results:
        await line.pid()
        assert await line.line() == "told"
        assert results.progress == JobProgress(0.5, 1, None)
    assert shown[-1] == (0, 1, None)
    await line.ended()


async def test_wrong_function() -> None:
    async def show_later(*news: Any) -> None: ...

    wrong: Any = 5
    with pytest.raises(TypeError, match="progress must be a callable with three arguments, got 5"):
        trio_offload.map(map_jobs.double, range(3), progress=wrong)
    with pytest.raises(TypeError, match="progress must be a synchronous function"):
        trio_offload.map(map_jobs.double, range(3), progress=show_later)
