"""Shared objects: they live in the program, and jobs call them."""

from __future__ import annotations

from typing import Any

import actor_jobs as jobs
import pytest
import trio
from actor_jobs import Table

import trio_offload
from trio_offload import WorkerContext, share


async def test_job_calls_the_object(context: WorkerContext) -> None:
    table = Table()
    async with share(table) as shared:
        assert await context.run_sync(jobs.call, shared, "put", "a", 1) is shared  # it returns itself
        assert await context.run_sync(jobs.compute, shared, "(len(it), it.keys())") == (1, ["a"])
    assert table.rows == {"a": 1}


async def test_async_method_is_awaited(context: WorkerContext) -> None:
    event = trio_offload.Event()
    async with share(Table()) as shared, trio.open_nursery() as nursery:
        results: list[Any] = []

        async def call() -> None:
            results.append(await context.run_sync(jobs.call, shared, "wait", event))

        nursery.start_soon(call)
        while not event.statistics().tasks_waiting:
            await trio.lowlevel.checkpoint()
        event.set()
    assert results == ["waited"]


async def test_only_named_methods(context: WorkerContext) -> None:
    async with share(Table(), methods=["put"]) as shared:
        assert await context.run_sync(jobs.catch, shared, "put", "a", 1) == ("", "")
        kind, text = await context.run_sync(jobs.catch, shared, "fail")
        assert (kind, text) == ("AttributeError", "'fail' is not a shared method of this Table")
        assert await context.run_sync(jobs.compute, shared, "hasattr(it, '__len__')") is False


async def test_errors_of_a_shared_object(context: WorkerContext) -> None:
    async with share(Table()) as shared:
        assert await context.run_sync(jobs.catch, shared, "fail") == ("ValueError", "no row")
        kind, _ = await context.run_sync(jobs.catch, shared, "nothing")
        assert kind == "AttributeError"
    kind, text = await context.run_sync(jobs.catch, shared, "fail")
    assert (kind, text) == ("ClosedResourceError", "the shared Table is closed: its block has ended")


async def test_mistakes_with_share() -> None:
    for wrong, message in (
        ("put", "methods must be an iterable of method names, got the single string 'put'"),
        (5, "methods must be an iterable of method names, got 5"),
        ([5], "methods must contain method names, got 5"),
    ):
        with pytest.raises(TypeError, match=message):
            async with share(Table(), methods=wrong):  # type: ignore[arg-type]
                pass
    with pytest.raises(AttributeError, match="Table has no method 'get'"):
        async with share(Table(), methods=["get"]):
            pass


async def test_shared_containers(context: WorkerContext) -> None:
    hosted: dict[str, int] = {}
    async with share(hosted) as shared:
        assert await context.run_sync(jobs.execute, shared, "it['a'] = 1; it |= {'b': 2}; del it['a']; it.update(c=len(it))")
    assert hosted == {"b": 2, "c": 1}
    row = [1]
    async with share(row) as shared:
        assert await context.run_sync(jobs.execute, shared, "it += [2]; it.append(it[0])")
    assert row == [1, 2, 1]
