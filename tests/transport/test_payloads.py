"""End to end: large arguments and results, arrays, and the memory that all of it takes, and gives back."""

from __future__ import annotations

import errno
import functools
import gc
import hashlib
import os
import pickle
import signal
import sys
import time
import weakref
from typing import Any

import jobs
import lifeline
import map_jobs
import pytest
import trio
import trio.testing

from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, open_worker_context
from trio_offload._transport import pages
from trio_offload._transport.channel import Channel
from trio_offload._transport.sockets import YIELD_EVERY, socket_pair
from trio_offload_worker._protocol import segments
from trio_offload_worker._protocol.frames import Kind, encode_head
from trio_offload_worker._system import native

numpy = pytest.importorskip("numpy")

MANY = 100_000_000


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
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [2**31 + 5, 2**32 + 5], ids=["2 GiB", "4 GiB"])
async def test_gibibytes_of_bytes_each_way(context: WorkerContext, kind: Any, size: int) -> None:
    if available_memory() < 2.5 * size:
        pytest.skip("there is not enough memory free")
    assert await context.run_sync(jobs.length_and_end, [kind(size - 1) + b"z"]) == (size, 122)
    back = await context.run_sync(kind, size)
    assert (type(back), len(back), back[-1]) == (kind, size, 0)


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
    monkeypatch.setattr(segments, "OUT_OF_BAND", 1)
    arrays = jobs.make_many(70_000, 8)
    assert await context.run_sync(jobs.check_many, arrays) == (70_000, True)


@pytest.mark.parametrize("count", [1_100, pytest.param(70_000, marks=pytest.mark.slow)])
async def test_many_buffers_each_way(context: WorkerContext, count: int) -> None:
    arrays = jobs.make_many(count, 16_384)
    assert await context.run_sync(jobs.check_many, arrays) == (count, True)
    back = await context.run_sync(jobs.make_many, count, 16_384)
    assert jobs.check_many(back) == (count, True)


# --- bytes, bytearray and text inside other objects ----------------------------------------------


@pytest.mark.parametrize("size", [1000, 70_000, 300_000, 2_000_000])
async def test_large_objects_inside_others(context: WorkerContext, size: int) -> None:
    data, text = os.urandom(size), "ä" * size
    value = {
        "bytes": data,
        "again": data,
        "bytearray": bytearray(data),
        "text": text,
        "list": [data[::-1], (bytearray(data), jobs.make_array(size)), {text}],
        "buffer": pickle.PickleBuffer(data),
    }
    back = await context.run_sync(jobs.echo, value)
    assert back["again"] is back["bytes"]
    assert back["list"][1][1].tolist() == value["list"][1][1].tolist()  # type: ignore[index]
    assert bytes(back.pop("buffer")) == bytes(value.pop("buffer"))  # type: ignore[arg-type]
    for one in (back, value):
        one["list"][1] = one["list"][1][0]  # type: ignore[index]
    assert back == value
    assert [type(one) for one in back.values()] == [type(one) for one in value.values()]
    back["bytearray"].append(1)


@pytest.mark.parametrize("chunk_size", [1, 3, "auto"])
@pytest.mark.parametrize("worker_type", [WorkerType.SPAWN, WorkerType.FORK])
async def test_large_items_of_a_map(chunk_size: Any, worker_type: WorkerType) -> None:
    """What one call sends and what a chunk of items is sent as, with a call ahead: the types too."""
    small, large = os.urandom(300_000), os.urandom(2_000_000)
    items: list[Any] = [small, bytearray(small), b"small", [large, {"a": bytearray(large)}], large, "ä" * 300_000]
    items += [bytearray(large), jobs.make_array(3_000_000)] * 3
    async with open_worker_context(worker_type=worker_type) as context:
        async with context.map(jobs.echo_with_types, items, chunk_size=chunk_size) as results:
            backs = [back async for back in results]
    assert len(backs) == len(items)
    for item, (there, back) in zip(items, backs, strict=True):
        assert there == jobs.echo_with_types(item)[0]
        assert type(back) is type(item)
        assert numpy.array_equal(back, item) if type(item) is numpy.ndarray else back == item


async def test_a_bytearray_keeps_its_size_until_the_call_has_returned(context: WorkerContext) -> None:
    data = bytearray(1_000_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.echo, [data])
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BufferError):
            data.append(1)
    gc.collect()
    data.append(1)


# --- the ways that a system may close -------------------------------------------------------------


@pytest.mark.parametrize("closed", ["vmsplice", "splice", "splice at the second time", "pipe", "ctypes"])
async def test_what_the_system_refuses_is_done_by_copying(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    calls = 0
    splice = os.splice

    def refused(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if closed == "splice at the second time" and calls == 1:
            return splice(*arguments, **options)
        raise OSError(errno.EINVAL, "refused")

    if closed == "vmsplice":
        monkeypatch.setattr(native.Native, "vmsplice", refused)
    elif closed == "pipe":
        monkeypatch.setattr(os, "pipe2", refused)
    elif closed == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
        without = native.Native()
        monkeypatch.setattr(pages, "native", lambda: without)
    else:
        monkeypatch.setattr(os, "splice", refused)
    values = [os.urandom(1_000_000) * 20, jobs.make_array(3_000_000)]
    for _ in range(2):
        back = await context.run_sync(jobs.echo, [*values, "small", *values])
        assert back[0] == back[3] == values[0]
        assert (back[1] == values[1]).all()
    if closed != "ctypes":
        assert calls == (2 if closed == "splice at the second time" else 1), "a worker's socket is tried once"


async def test_map_sends_pages_and_keeps_them_until_the_answer(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    splice = os.splice

    def counting(*arguments: Any, **options: Any) -> int:
        counts.append(splice(*arguments, **options))
        return counts[-1]

    monkeypatch.setattr(os, "splice", counting)
    size = 6_000_000
    items = [map_jobs.MadeAtPickling(number, size) for number in range(12)]
    async with context.map(jobs.echo, items, workers=2) as results:
        assert [(back[0], set(back) == {back[0]}, len(back)) async for back in results] == [
            (number, True, size) for number in range(12)
        ]
    assert sum(counts) > size


async def test_a_worker_without_a_free_descriptor_sends_copies(context: WorkerContext) -> None:
    back = await context.run_sync(jobs.make_array_without_descriptors, 40_000_000)
    assert (back == jobs.make_array(40_000_000)).all()


# --- broken off in the middle ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "array"])
@pytest.mark.parametrize("what", ["cancelled", "killed"])
async def test_broken_off_while_it_is_sent(context: WorkerContext, what: str, kind: str) -> None:
    """The worker is stopped, so that a part of the call is in the socket and the rest waits."""
    value = bytes(MANY) if kind == "bytes" else numpy.ones(MANY, "u1")
    pid = await context.run_sync(os.getpid)
    os.kill(pid, signal.SIGSTOP)
    await lifeline.until_stopped(pid)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            if what == "cancelled":
                nursery.start_soon(functools.partial(context.run_sync, len, value, kill_on_cancel=True))
            else:
                nursery.start_soon(expect_broken, context, value)
            await trio.testing.wait_all_tasks_blocked()
            if what == "cancelled":
                scope.cancel()
            else:
                os.kill(pid, signal.SIGKILL)
    assert lifeline.process_state(pid) is None
    assert await context.run_sync(len, value) == MANY


async def expect_broken(context: WorkerContext, value: Any) -> None:
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(len, value)


@pytest.mark.parametrize("kind", ["bytes", "array"])
@pytest.mark.parametrize("what", ["cancelled", "killed"])
async def test_broken_off_while_it_is_received(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, what: str, kind: str
) -> None:
    pid = await context.run_sync(os.getpid)
    make = functools.partial(context.run_sync, bytes if kind == "bytes" else jobs.make_array, MANY, kill_on_cancel=True)
    read = Channel._read
    reads = 0
    with trio.CancelScope() as scope:

        def break_off(channel: Channel) -> bool:
            nonlocal reads
            reads += 1
            if reads == 5:
                if what == "cancelled":
                    scope.cancel()
                else:
                    os.kill(pid, signal.SIGKILL)
            return read(channel)

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_read", break_off)
            if what == "cancelled":
                await make()
            else:
                with pytest.raises(BrokenWorkerError):
                    await make()
    assert scope.cancelled_caught == (what == "cancelled")
    assert lifeline.process_state(pid) is None
    assert len(await make()) == MANY


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


async def test_memory_of_results_is_bounded_and_used_again(context: WorkerContext) -> None:
    """One result after the other, each let go of: the memory of all of them together is that of a few."""
    before = jobs.resident_bytes()
    most = 0
    for _ in range(12):
        array = await context.run_sync(jobs.make_array, MANY)
        most = max(most, jobs.resident_bytes() - before)
        del array
    print(f"at most {most / 1e6:.0f} MB more")
    assert most < 4 * MANY


async def test_results_that_are_kept_stay_as_they_are(context: WorkerContext) -> None:
    """Memory is used again once its array is gone, and not before."""
    kept = []
    for number in range(6):
        kept.append(await context.run_sync(jobs.filled, 5_000_000, number))
        await context.run_sync(jobs.filled, 5_000_000, 99)
    assert [numpy.unique(array).tolist() for array in kept] == [[number] for number in range(6)]


async def test_what_a_worker_keeps_for_the_next_call_is_not_counted(context: WorkerContext) -> None:
    await context.run_sync(len, numpy.ones(1000, "u1"))
    before = context.statistics().workers[0].rss
    await context.run_sync(len, numpy.ones(MANY, "u1"))
    after = context.statistics().workers[0].rss
    assert before is not None
    assert after is not None
    assert after - before < MANY / 2


@pytest.mark.parametrize("size", [1000, 40_000, 3_000_000])
async def test_the_parent_keeps_neither_arguments_nor_results(context: WorkerContext, size: int) -> None:
    argument = jobs.make_array(size)
    result = await context.run_sync(jobs.echo, argument)
    references = weakref.ref(argument), weakref.ref(result)
    del argument, result
    assert [reference() for reference in references] == [None, None]


async def test_failed_call_releases_arguments(context: WorkerContext) -> None:
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
async def test_transfer_yields_whatever_the_speed(direction: str) -> None:
    """A socket gives and takes without end as long as the other side keeps pace; the other tasks want their turns."""
    ours, theirs = socket_pair()
    channel = Channel(ours)
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
    # What is sent goes as pages, of which a turn takes more, because they are not copied.
    assert turns >= MANY // (pages._YIELD_EVERY if direction == "sent" else YIELD_EVERY)
