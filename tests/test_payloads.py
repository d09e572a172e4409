"""End to end: large arguments and results, arrays, and the memory that all of it takes, and gives back."""

from __future__ import annotations

import gc
import hashlib
import os
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import jobs
import pytest
import trio

from trio_offload import WorkerContext, _channel, _payload, open_worker_context
from trio_offload_worker._wire import Kind, encode_head

numpy = pytest.importorskip("numpy")

MANY = 100_000_000


@pytest.fixture
async def context() -> AsyncIterator[WorkerContext]:
    async with open_worker_context() as context:
        yield context


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def available_memory() -> int:
    """The bytes that programs can have without swapping (proc(5))."""
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


# --- large ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, "array"], ids=["bytes", "bytearray", "array"])
async def test_a_hundred_megabytes_each_way(context: WorkerContext, kind: Any) -> None:
    data = os.urandom(1_000_000) * 100
    value = numpy.frombuffer(data, "u1").copy() if kind == "array" else kind(data)
    back = await context.run_sync(jobs.echo, value)
    assert type(back) is type(value)
    assert digest(back) == digest(data)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**31 + 5, 2**32 + 5], ids=["2 GiB", "4 GiB"])
async def test_more_than_a_32_bit_length_each_way(context: WorkerContext, size: int) -> None:
    """The memory of what is sent is never touched but at its ends, so that the test needs it once."""
    if available_memory() < 2 * size:
        pytest.skip("there is not enough memory free")
    value = jobs.make_zeros(size)
    assert await context.run_sync(jobs.ends_of, value) == (size, 1, 2)
    del value
    back = await context.run_sync(jobs.make_zeros, size)
    assert jobs.ends_of(back) == (size, 1, 2)


@pytest.mark.slow
async def test_two_gibibytes_of_bytes_each_way(context: WorkerContext) -> None:
    """Inside the pickle, where the array's data is beside it."""
    size = 2**31 + 5
    assert await context.run_sync(len, bytes(size)) == size
    back = await context.run_sync(bytes, size)
    assert len(back) == size


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 16_383, 16_384, 40_000, 3_000_000])
async def test_an_array_can_be_written_to_on_either_side(context: WorkerContext, size: int) -> None:
    array = jobs.make_array(size)
    before = array.copy()
    back = await context.run_sync(jobs.add_one, array)
    assert (array == before).all(), "the worker has written to its own copy"
    assert (back == before + 1).all()
    assert back.flags.writeable
    back += 1


@pytest.mark.parametrize("size", [1000, 40_000, 3_000_000])
async def test_odd_arrays(context: WorkerContext, size: int) -> None:
    plain = jobs.make_array(size * 2, "f8").reshape(2, -1)
    read_only = plain.copy()
    read_only.flags.writeable = False
    structured = numpy.zeros(size, [("name", "S5"), ("value", ">i4")])
    structured["value"] = 7
    odd = {
        "every second": plain[:, ::2],
        "transposed": plain.T,
        "reversed": plain[::-1],
        "in Fortran's order": numpy.asfortranarray(plain),
        "read-only": read_only,
        "broadcast": numpy.broadcast_to(plain[0], (3, plain.shape[1])),
        "structured": structured,
        "objects": numpy.array([1, "two", None] * 10, object),
        "a scalar": numpy.float32(1.5),
        "no dimension": numpy.array(5),
        "no element": plain[:, :0],
    }
    for name, array in odd.items():
        back = await context.run_sync(jobs.echo, array)
        assert numpy.array_equal(back, array), name
        assert back.dtype == array.dtype, name
        assert back.shape == array.shape, name
    assert (await context.run_sync(jobs.flags_of, odd["in Fortran's order"]))["F_CONTIGUOUS"]


@pytest.mark.parametrize("size", [1000, 16_384, 20_000, 40_000, 3_000_000])
async def test_no_memory_is_shared_with_the_next_job(context: WorkerContext, size: int) -> None:
    """What a job keeps, and what it returned, stays as it was whatever comes after it."""
    values = [numpy.frombuffer(os.urandom(size), "u1").copy() for _ in range(4)]
    backs = []
    for value in values:
        await context.run_sync(jobs.keep, value)
        backs.append(await context.run_sync(jobs.echo, value))
    assert await context.run_sync(jobs.kept_digests) == [digest(value) for value in values]
    assert [digest(back) for back in backs] == [digest(value) for value in values]


async def test_many_segments_in_one_frame(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """More buffers than a frame has segments for: the rest goes into the pickle."""
    monkeypatch.setattr(_payload, "_OUT_OF_BAND", 1)
    arrays = jobs.make_many(70_000, 8)
    assert await context.run_sync(jobs.check_many, arrays) == (70_000, True)


@pytest.mark.slow
async def test_many_buffers_each_way(context: WorkerContext) -> None:
    arrays = jobs.make_many(70_000, 16_384)
    assert await context.run_sync(jobs.check_many, arrays) == (70_000, True)
    back = await context.run_sync(jobs.make_many, 70_000, 16_384)
    assert jobs.check_many(back) == (70_000, True)


# --- memory --------------------------------------------------------------------------------------


async def test_an_idle_worker_keeps_neither_arguments_nor_results(context: WorkerContext) -> None:
    for size in (10, 100_000):
        await context.run_sync(len, [jobs.Remembered(size)])
        assert await context.run_sync(jobs.count_remembered) == 0, "an argument"
        await context.run_sync(jobs.make_remembered, size)
        gc.collect()
        assert await context.run_sync(jobs.count_remembered) == 0, "a result"
        await context.run_sync(jobs.echo, jobs.Remembered(size))
        assert await context.run_sync(jobs.count_remembered) == 0, "both"
        with pytest.raises(AttributeError):
            await context.run_sync(getattr, jobs.Remembered(size), "missing")
        assert await context.run_sync(jobs.count_remembered) == 0, "an argument of a call that raised"
    gc.collect()


async def test_large_payloads_leave_an_idle_worker_small(context: WorkerContext) -> None:
    before = await context.run_sync(jobs.resident_bytes)
    for value in (bytes(MANY), bytearray(MANY), numpy.ones(MANY, "u1")):
        await context.run_sync(jobs.echo, value)
        grown = await context.run_sync(jobs.resident_bytes) - before
        print(f"{type(value).__name__}: {grown / 1e6:.1f} MB more")
        assert grown < MANY / 2


@pytest.mark.parametrize("size", [1000, 40_000, 3_000_000])
async def test_the_parent_keeps_neither_arguments_nor_results(context: WorkerContext, size: int) -> None:
    argument = jobs.make_array(size)
    result = await context.run_sync(jobs.echo, argument)
    references = weakref.ref(argument), weakref.ref(result)
    del argument, result
    assert [reference() for reference in references] == [None, None]


async def test_a_failed_call_keeps_its_arguments_no_longer_than_its_exception(context: WorkerContext) -> None:
    argument = jobs.make_array(40_000)
    reference = weakref.ref(argument)
    with pytest.raises(AttributeError):
        await context.run_sync(getattr, argument, "missing")
    del argument
    gc.collect()
    assert reference() is None


# --- the event loop ------------------------------------------------------------------------------


async def test_the_event_loop_goes_on_under_large_transfers(context: WorkerContext) -> None:
    """Arrays are sent and received as they are; what stops the loop is each piece of them that is copied at once."""
    limiter = trio.CapacityLimiter(4)
    array = numpy.ones(MANY, "u1")
    ticks = 0
    longest = longest_of_ours = 0.0
    sent: list[int] = []

    async def send() -> None:
        sent.append(await context.run_sync(len, array, limiter=limiter))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(send)
        last, last_of_ours = time.perf_counter(), time.thread_time()
        while len(sent) < 4:
            await trio.lowlevel.checkpoint()
            now, now_of_ours = time.perf_counter(), time.thread_time()
            longest, longest_of_ours = max(longest, now - last), max(longest_of_ours, now_of_ours - last_of_ours)
            last, last_of_ours, ticks = now, now_of_ours, ticks + 1
    print(f"{ticks} turns of the loop, the longest {longest * 1000:.1f} ms, of them at work {longest_of_ours * 1000:.1f} ms")
    # The machine may be busy, and other programs count for the first of the two figures. A transfer that was not cut into
    # pieces would stop the loop for all of its time.
    assert longest < 5
    assert longest_of_ours < 1
    assert ticks > 50


async def test_transfers_overtake_each_other(context: WorkerContext) -> None:
    """A small call ends while large ones are on their way."""
    limiter = trio.CapacityLimiter(4)
    ended: list[str] = []
    array = numpy.ones(3 * MANY, "u1")

    async def call(name: str, value: Any) -> None:
        await context.run_sync(len, value, limiter=limiter)
        ended.append(name)

    await context.run_sync(len, b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "large", array)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(call, "large", array)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(call, "small", b"")
    assert ended[0] == "small"


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_however_fast_the_other_side_is_a_transfer_is_cut_into_turns(direction: str) -> None:
    """A socket gives and takes without end as long as the other side keeps pace; the other tasks want their turns."""
    ours, theirs = _channel.socket_pair()
    channel = _channel.Channel(ours)
    data = bytes(MANY)
    head = encode_head(Kind.RESULT, 1, [MANY])

    def other_side() -> None:
        if direction == "received":
            theirs.sendall(head + data)
        else:
            while theirs.recv(4 * 2**20):
                pass

    async def transfer() -> None:
        if direction == "received":
            assert (await channel.receive(cancellable=True)).segments[0][:] == data
        else:
            await channel.send([head, data], cancellable=True)
        channel.close()
        ended.append(True)

    ended: list[bool] = []
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, other_side)
        nursery.start_soon(transfer)
        while not ended:
            await trio.lowlevel.checkpoint()
            turns += 1
    theirs.close()
    assert turns >= MANY // _channel._TURN
