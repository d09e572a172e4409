"""Contract: ``SharedArray``, with each kind of worker, with and without NumPy."""

from __future__ import annotations

import array
import functools
import gc
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shared_jobs as jobs
import trio
from kinds import environment_of, type_of
from running import run_script

import trio_offload
from trio_offload import BrokenWorkerError, SharedArray, WorkerContext

TIMEOUT = 30.0  # seconds: a test that hangs fails


@pytest.fixture
async def context(of_any_kind: Any) -> AsyncIterator[WorkerContext]:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(TIMEOUT):
            yield context


@pytest.fixture
def no_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numpy", None)
        yield


# --- with jobs -----------------------------------------------------------------------------------


async def test_written_here_and_read_there(context: WorkerContext) -> None:
    with SharedArray.allocate((3, 4), "float32") as shared:
        shared.array[1] = 2
        assert await context.run_sync(jobs.total, shared) == 8
        await context.run_sync(jobs.fill, shared, 5)
        assert (shared.array == 5).all()


async def test_jobs_at_once(context: WorkerContext) -> None:
    shared = SharedArray.allocate(1, "int64")
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(context.run_sync, jobs.fill, shared, 9)
    assert list(shared.array) == [9]


@pytest.mark.parametrize(
    "source",
    [
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24)[::3],
        np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i2"), ("b", "f8")]),
        np.zeros(3, dtype=np.dtype([("a", "u1"), ("b", "f8")], align=True)),
        np.array(["abc", "de"]),
        np.array([b"abc"]),
        np.array(["2026-11-27"], dtype="datetime64[D]"),
        np.array([1, 2], dtype=">i4"),
        np.array(5 + 2j),
        np.zeros((0, 3)),
        np.zeros(0, dtype="U0"),
        np.zeros((2, 0), order="F"),
        np.zeros(2, dtype=("f4", (2, 2))),
    ],
    ids=lambda source: f"{source.dtype}-{source.shape}",
)
async def test_layouts(context: WorkerContext, source: Any) -> None:
    shared = SharedArray.copy_of(source)
    assert shared.shape == source.shape
    assert shared.array.dtype == source.dtype
    assert np.array_equal(shared.array, source)
    is_fortran = source.flags.f_contiguous and not source.flags.c_contiguous
    assert shared.array.flags.c_contiguous != is_fortran or source.size == 0
    expected = ("ndarray", source.shape, str(source.dtype), shared.array.flags.f_contiguous, True)
    assert await context.run_sync(jobs.describe, shared) == expected
    assert shared.nbytes == source.nbytes


async def test_the_very_object_comes_back(context: WorkerContext) -> None:
    shared = SharedArray.allocate(3)
    assert await context.run_sync(jobs.identity, shared) is shared
    assert await context.run_sync(jobs.identity, shared.read_only) is shared.read_only
    assert await context.run_sync(jobs.kind_of, shared) == "trio_offload_worker.handles.SharedArray"


async def test_through_channels(context: WorkerContext) -> None:
    arrays = [SharedArray.allocate(3) for _ in range(5)]
    send, receive = trio_offload.open_channel[Any](10)
    async with send:
        for shared in arrays:
            await send.send(shared)
    assert await context.run_sync(jobs.receive_and_fill, receive, 4) == 5
    assert [int(shared.array.sum()) for shared in arrays] == [12] * 5


async def test_in_a_map(context: WorkerContext) -> None:
    shared = SharedArray.copy_of(np.arange(10))
    async with context.map(jobs.total, [shared] * 10) as results:
        assert [value async for value in results] == [45.0] * 10


async def test_one_mapping_for_all_handles_of_a_process(context: WorkerContext) -> None:
    shared = SharedArray.allocate(4, "i8")
    before = (await context.run_sync(jobs.descriptors_and_mappings))[1]
    assert await context.run_sync(jobs.use_twice, shared, shared) == (before + 1, 12)


async def test_nothing_is_left_after_a_job(context: WorkerContext) -> None:
    await context.run_sync(jobs.fill, SharedArray.allocate(4, "i8"), 1)
    before = await context.run_sync(jobs.descriptors_and_mappings)
    for _ in range(50):
        await context.run_sync(jobs.fill, SharedArray.allocate(4, "i8"), 1)
    assert await context.run_sync(jobs.descriptors_and_mappings) <= before


async def test_view_outlives_its_call_and_the_array(context: WorkerContext) -> None:
    """The kernel keeps the memory for a job's view."""
    with SharedArray.copy_of(np.arange(4)) as shared:
        await context.run_sync(jobs.keep_view, shared)
    assert await context.run_sync(jobs.sum_of_kept) == 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_worker_dies(context: WorkerContext, number: int) -> None:
    shared = SharedArray.allocate(4)
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.die_with, shared, number)
    assert int(shared.array.sum()) == 28
    await context.run_sync(jobs.fill, shared, 1)
    assert int(shared.array.sum()) == 4


async def test_first_use_in_a_job_that_is_cancelled(context: WorkerContext) -> None:
    """Its cleanup may save something."""
    shared, began = SharedArray.allocate(4), trio_offload.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(context.run_sync, jobs.fill_when_cancelled, shared, began, 3, grace=TIMEOUT))
        await began.wait()
        nursery.cancel_scope.cancel()
    assert shared.array.tolist() == [3, 3, 3, 3]


PROGRAM = """
import os, signal
import shared_jobs, trio, trio_offload

async def main():
    shared = trio_offload.SharedArray.allocate(1000)
    counter = trio_offload.SharedCounter()
    began = trio_offload.Event()
    async with trio_offload.open_worker_context({options}) as context, trio.open_nursery() as nursery:
        await context.run_sync(shared_jobs.keep_view, shared)
        nursery.start_soon(context.run_sync, shared_jobs.fill_when_cancelled, shared, began, 1)
        await context.run_sync(shared_jobs.add, counter, 10)
        await began.wait()
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    trio.run(main)
"""


def test_program_is_killed(tmp_path: Path, kind: str) -> None:
    """No process is left, and no name."""
    names = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    options = f"worker_type=trio_offload.WorkerType.{type_of(kind).name}"
    environment = environment_of(kind, Path(__file__).parent)
    run_script(tmp_path, PROGRAM.format(options=options), environment=environment, expect=-signal.SIGKILL)
    assert (set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()) <= names


async def test_closed_array_cannot_be_passed_on(context: WorkerContext) -> None:
    shared = SharedArray.allocate(4)
    shared.close()
    shared.close()
    with pytest.raises(trio.ClosedResourceError, match="this shared array is closed"):
        _ = shared.array
    with pytest.raises(trio.ClosedResourceError, match="this shared array is closed"):
        _ = shared.read_only
    with pytest.raises(Exception, match="this shared array is closed"):
        await context.run_sync(jobs.total, shared)


async def test_size_is_fixed(context: WorkerContext) -> None:
    shared = SharedArray.allocate(100)
    assert await context.run_sync(jobs.resize, shared) == ["PermissionError"] * 2
    with pytest.raises(PermissionError):
        os.ftruncate(shared.fileno(), 0)


async def test_copy_in_a_fork() -> None:
    """A closure's array is the program's."""
    shared = SharedArray.allocate(4, "i8")
    async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType.FORK) as context:
        await context.run_sync(lambda: shared.array.__setitem__(0, 5))
        assert list(shared.array) == [5, 0, 0, 0]


# --- for reading only ----------------------------------------------------------------------------


async def test_read_only(context: WorkerContext) -> None:
    shared = SharedArray.copy_of(np.arange(4))
    readable = shared.read_only
    assert readable.is_read_only
    assert not shared.is_read_only
    assert shared.read_only is readable
    assert readable.read_only is readable
    refused = ["ValueError", "ValueError", "PermissionError", "OSError", "OSError"]
    assert await context.run_sync(jobs.write_to_read_only, readable) == refused
    with pytest.raises(ValueError, match="read-only"):
        readable.array[0] = 1
    shared.array[0] = 10
    assert await context.run_sync(jobs.total, readable) == 16


async def test_read_only_handle_lives_on(context: WorkerContext) -> None:
    with SharedArray.copy_of(np.arange(4)) as shared:
        readable = shared.read_only
    assert await context.run_sync(jobs.total, readable) == 6


async def test_copy_that_nobody_can_change(context: WorkerContext) -> None:
    """Not even a job that opens the file again, as it can with a read-only handle of a writable array."""
    frozen = SharedArray.copy_of(np.arange(4), read_only=True)
    assert frozen.is_read_only
    assert frozen.read_only is frozen
    assert await context.run_sync(jobs.write_by_reopening, frozen) == "PermissionError"
    assert await context.run_sync(jobs.total, frozen) == 6
    with pytest.raises(ValueError, match="read-only"):
        frozen.array[0] = 1
    assert await context.run_sync(jobs.write_by_reopening, SharedArray.allocate(4).read_only) == "written"


# --- here ----------------------------------------------------------------------------------------


def test_close_while_a_view_is_in_use() -> None:
    shared = SharedArray.copy_of(np.arange(4))
    view = shared.array[1:]
    with pytest.raises(BufferError, match="a view of this shared array is still in use"):
        shared.close()
    assert list(view) == [1, 2, 3]
    assert list(shared.array) == [0, 1, 2, 3]
    del view
    shared.close()


def test_end_of_a_block_while_a_view_is_in_use() -> None:
    views = []
    with pytest.raises(BufferError), SharedArray.allocate(4) as shared:
        views.append(shared.array)
    with pytest.raises(LookupError), SharedArray.allocate(4) as shared:
        views.append(shared.array)
        raise LookupError("the block's")
    assert [view.sum() for view in views] == [0, 0]


def test_view_outlives_the_object() -> None:
    view = SharedArray.copy_of(np.arange(4)).array
    gc.collect()
    assert list(view) == [0, 1, 2, 3]


def test_no_name_and_nothing_inherited() -> None:
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    shared = SharedArray.allocate(4)
    assert not os.get_inheritable(shared.fileno())
    assert os.readlink(f"/proc/self/fd/{shared.fileno()}").endswith("(deleted)")
    after = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    assert after <= before


@pytest.mark.parametrize("dtype", [object, [("a", object)], np.dtype(("O", 2))])
def test_objects_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="they refer to memory of one process"):
        SharedArray.allocate(3, dtype)


def test_object_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="they refer to memory of one process"):
        SharedArray.copy_of(np.array([None]))


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="negative dimensions"):
        SharedArray.allocate((2, -1))
    with pytest.raises(ValueError, match="at most"):
        SharedArray.allocate(2**62, "f8")
    with pytest.raises(MemoryError, match="the system refuses"):
        SharedArray.allocate(2**62)
    for wrong in (1.5, "10", (2, 1.5)):
        with pytest.raises(TypeError, match="shape must be an integer or a tuple of integers, got "):
            SharedArray.allocate(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order must be"):
        SharedArray.allocate(2, order="K")


def test_large_array_takes_memory_as_it_is_written() -> None:
    with SharedArray.allocate(2**38) as shared:  # 256 GiB
        view = shared.array
        view[2**37] = 1
        assert os.fstat(shared.fileno()).st_blocks < 2**13
        del view


def test_cannot_be_pickled_elsewhere() -> None:
    with pytest.raises(TypeError, match="pass it as an argument of a job"):
        pickle.dumps(SharedArray.allocate(3))


def test_repr() -> None:
    shared = SharedArray.allocate((2, 3), "f8")
    assert repr(shared) == "<trio_offload.SharedArray of (2, 3), <f8, writable>"
    assert repr(shared.read_only) == "<trio_offload.SharedArray of (2, 3), <f8, read-only>"
    shared.close()
    assert repr(shared) == "<trio_offload.SharedArray of (2, 3), <f8, closed>"
    assert "structured items" in repr(SharedArray.allocate(1, [("a", "i1")]))


# --- without NumPy -------------------------------------------------------------------------------


async def test_memoryviews_without_numpy(context: WorkerContext, no_numpy: None) -> None:
    with SharedArray.allocate((2, 3), "float64") as shared:
        view = shared.array
        assert (type(view), view.shape, view.format) == (memoryview, (2, 3), "d")
        view[1, 2] = 2.5
        del view
    with SharedArray.copy_of(b"abc") as shared:
        assert bytes(shared.array) == b"abc"
        assert await context.run_sync(jobs.plain, shared, 1, 66) == ("memoryview", (3,), 98)
        assert bytes(shared.array) == b"aBc"


async def test_worker_without_numpy(context: WorkerContext) -> None:
    shared = SharedArray.copy_of(np.arange(5))
    assert await context.run_sync(jobs.plain, shared, 2, 20) == ("memoryview", (5,), 2)
    assert list(shared.array) == [0, 1, 20, 3, 4]
    structured = SharedArray.allocate(2, [("a", "i1")])
    with pytest.raises(TypeError, match="needs NumPy"):
        await context.run_sync(jobs.plain, structured, 0, 0)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        ("f8", "d"),
        ("float32", "f"),
        ("q", "q"),
        (int, "q"),
        (float, "d"),
        (bool, "?"),
        ("bool", "?"),
        ("l", "q"),
        ("<u2", "H"),
    ],
)
def test_types_without_numpy(no_numpy: None, dtype: Any, code: str) -> None:
    assert SharedArray.allocate(3, dtype).array.format == code


def test_what_needs_numpy(no_numpy: None) -> None:
    with pytest.raises(TypeError, match="because NumPy is not installed"):
        SharedArray.allocate(3, "datetime64[ns]")
    with pytest.raises(TypeError, match=r"array must be an object with a buffer .* got \[1, 2\]"):
        SharedArray.copy_of([1, 2])
    with pytest.raises(ValueError, match="needs NumPy"):
        SharedArray.allocate((3, 3), "f8", order="F")


def test_copies_without_numpy(no_numpy: None) -> None:
    assert SharedArray.copy_of(array.array("d", [1.5, 2.5])).array.tolist() == [1.5, 2.5]
    assert SharedArray.copy_of(memoryview(b"abcdef")[::2]).array.tobytes() == b"ace"
    assert SharedArray.copy_of(b"").array.tobytes() == b""
    frozen = SharedArray.copy_of(b"abc", read_only=True)
    assert frozen.array.readonly
    assert SharedArray.allocate((), "d").array.shape == ()
    assert SharedArray.allocate((0, 3), "d").array.nbytes == 0


def test_bytes_are_a_buffer_with_numpy_too() -> None:
    shared = SharedArray.copy_of(b"abc")
    assert (shared.shape, shared.array.dtype, shared.array.tobytes()) == ((3,), np.uint8, b"abc")


def test_the_class_says_how_to_make_one() -> None:
    for arguments in ((), (5,), ((2, 3), "f8")):
        with pytest.raises(TypeError, match=r"make one by SharedArray\.allocate"):
            SharedArray(*arguments)  # type: ignore[arg-type]


async def test_neither_side_imports_numpy_for_others(context: WorkerContext) -> None:
    if context.worker_type is not trio_offload.WorkerType.FORK:  # a fork has what this process has
        assert not await context.run_sync(jobs.is_numpy_loaded, SharedArray.allocate(3))
