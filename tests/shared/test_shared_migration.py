"""docs/migration.md, shared memory: each row is tried, in a task and in a job."""

from __future__ import annotations

import array
from collections.abc import AsyncIterator

import pytest
import shared_jobs as jobs
import trio
from migration_support import Ported

import trio_offload
from trio_offload import SharedArray, SharedCounter, WorkerContext, WorkerType

TIMEOUT = 20.0  # seconds: a test that hangs fails
PORTED = Ported("Shared memory")
ports = PORTED.ports


def test_each_row_of_shared_memory_has_a_test() -> None:
    assert sorted(PORTED.tried) == sorted(PORTED.rows())


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


@ports('Value("q", x)', "with v.get_lock(): v.value += n", "value")
async def test_counting_value(context: WorkerContext) -> None:
    counter = SharedCounter(5)
    counter.add(2)
    assert await context.run_sync(jobs.add, counter, 10, 3) == 37
    assert counter.value == 37


@ports("Value(code, x), RawValue", "value = y")
async def test_value(context: WorkerContext) -> None:
    value = SharedArray.allocate(1, "d")
    value.array[0] = 1.5
    assert await context.run_sync(jobs.set_item, value, 0, 2.5) == 1.5
    assert value.array[0] == 2.5


@ports("Array(code, n), RawArray")
@ports("Array(code, items)", "a[i], a[i:j], len(a)")
async def test_array(context: WorkerContext) -> None:
    items = SharedArray.allocate(10, "i")
    items.array[2] = 7
    assert len(items.array) == 10
    assert await context.run_sync(jobs.read_items, items, 2, 1, 4) == (7, [0, 7, 0], 10)


@ports("Array(code, items)", "get_obj()")
async def test_array_with_items(context: WorkerContext) -> None:
    items = SharedArray.copy_of(array.array("d", [1.5, 2.5]))
    assert await context.run_sync(jobs.set_item, items, 1, 3.5) == 2.5
    assert items.array.tolist() == [1.5, 3.5]


@ports("Array(code, items)", "get_lock(), acquire(), release()")
async def test_array_with_a_lock(context: WorkerContext) -> None:
    items, lock = SharedArray.allocate(1, "q"), trio_offload.Lock()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(context.run_sync, jobs.add_with_lock, items, lock, 20)
        for _ in range(20):
            async with lock:
                items.array[0] += 1
    assert items.array[0] == 80


@ports("SharedMemory(create=True, size=n)")
@ports("SharedMemory(name=s.name)", "buf, size")
async def test_shared_memory(context: WorkerContext) -> None:
    memory = SharedArray.allocate(100)
    assert memory.nbytes == 100
    assert await context.run_sync(jobs.set_item, memory, 5, 200) == 0
    assert bytes(memory.array[4:7]) == b"\x00\xc8\x00"


@ports("SharedMemory(name=s.name)", "close(), unlink()")
async def test_shared_memory_of_another_process(context: WorkerContext) -> None:
    with SharedArray.allocate(100) as memory:
        assert await context.run_sync(jobs.set_item, memory, 5, 200) == 0
        assert await context.run_sync(jobs.set_item, memory, 5, 201) == 200
