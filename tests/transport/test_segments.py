"""Contract: what of a pickle becomes a segment of its own, the memory that segments are received into, and what is kept of it."""

from __future__ import annotations

import gc
import mmap
import pickle
import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_offload import _clock
from trio_offload._transport import buffer_pool
from trio_offload._transport.buffer_pool import BufferPool
from trio_offload_worker._protocol.frames import BYTEARRAY, BYTES, MAX_SEGMENTS, MEMORY
from trio_offload_worker._protocol.segments import OUT_OF_BAND, OUT_OF_PICKLE, Collector
from trio_offload_worker._system import memory, native

LARGE = OUT_OF_PICKLE
PICKLERS = [pickle.Pickler, pickle._Pickler]  # type: ignore[attr-defined]


def segments_of(value: Any, pickler: Any = pickle.Pickler) -> tuple[list[bytes], bytes, list[Any]]:
    """The segments as bytes, their types, and the parts themselves."""
    collector = Collector()
    pickler(collector, 5, buffer_callback=collector.take).dump(value)
    parts, lengths, types = collector.segments()
    data = b"".join(parts)
    assert len(data) == sum(lengths)
    segments = []
    for length in lengths:
        segments.append(data[:length])
        data = data[length:]
    return segments, types, list(parts)


def received(segments: list[bytes], types: bytes) -> Any:
    """What a receiver makes of them."""
    makers: dict[int, Any] = {MEMORY: bytearray, BYTES: bytes, BYTEARRAY: bytearray}
    buffers = [makers[kind](segment) for kind, segment in zip(types or bytes(len(segments)), segments, strict=True)][1:]
    value = pickle.loads(segments[0], buffers=buffers)
    for buffer in buffers:
        if type(value) is type(buffer):
            break
    return value


class Sub(bytes):
    pass


class Holder:
    def __init__(self, data: Any) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holder) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("pickler", PICKLERS, ids=["in C", "in Python"])
@pytest.mark.parametrize(
    ("value", "types"),
    [
        (b"x" * LARGE, [BYTES]),
        (bytearray(b"x") * LARGE, [BYTEARRAY]),
        (b"x" * (LARGE - 1), []),
        (bytearray(LARGE - 1), []),
        ("x" * LARGE, []),
        ("ä" * LARGE, []),
        (b"", []),
        ([1, {"a": b"x" * LARGE, "b": (bytearray(LARGE + 1), "x" * LARGE, b"y" * LARGE)}], [BYTES, BYTEARRAY, BYTES]),
        (Sub(b"x" * LARGE), [BYTES]),
        (Holder(b"x" * LARGE), [BYTES]),
        (pickle.PickleBuffer(bytearray(LARGE)), [MEMORY]),
        ([b"x" * LARGE, list(range(100_000)), bytearray(LARGE)], [BYTES, BYTEARRAY]),
        ([list(range(100_000)), b"x" * LARGE], [BYTES]),
        # What looks like an announcement, at the end of what is none.
        ([b"B" + LARGE.to_bytes(4, "little"), "x" * LARGE], []),
        ([b"x" * (LARGE - 5) + b"B" + LARGE.to_bytes(4, "little"), "x" * LARGE], [BYTES]),
        (["x" * LARGE + "B", b"x" * LARGE], [BYTES]),
    ],
)
def test_large_bytes_and_bytearrays_are_segments(pickler: Any, value: Any, types: list[int]) -> None:
    segments, found, _ = segments_of(value, pickler)
    assert list(found[1:]) == ([] if not any(types) else types)
    assert len(segments) == 1 + len(types)
    back = received(segments, found)
    if isinstance(value, pickle.PickleBuffer):
        value = bytearray(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("pickler", PICKLERS, ids=["in C", "in Python"])
def test_one_object_stays_one_object(pickler: Any) -> None:
    for data in (b"x" * LARGE, bytearray(LARGE)):
        segments, types, _ = segments_of([data, (data, {"again": data})], pickler)
        assert len(segments) == 2
        back = received(segments, types)
        assert back[0] is back[1][0] is back[1][1]["again"]


@pytest.mark.parametrize("pickler", PICKLERS, ids=["in C", "in Python"])
def test_buffers_and_objects_keep_their_order(pickler: Any) -> None:
    source = random.Random(5)
    for _ in range(60):
        value = []
        for number in range(source.randrange(1, 9)):
            data = bytes([number + 1]) * (LARGE + number)
            make: Any = source.choice(
                [bytes, bytearray, pickle.PickleBuffer, lambda data: pickle.PickleBuffer(bytearray(data)), list]
            )
            value.append(make(data[:70_000]) if make is list else make(data))
        segments, types, _ = segments_of(value, pickler)
        back = received(segments, types)
        assert [bytes(memoryview(one)) if not isinstance(one, list) else bytes(one) for one in back] == [
            bytes(memoryview(one)) if not isinstance(one, list) else bytes(one) for one in value
        ]


def test_nothing_large_is_copied() -> None:
    data, array = b"x" * LARGE, bytearray(LARGE)
    _, _, parts = segments_of([data, array])
    assert any(part is data for part in parts)
    with pytest.raises(BufferError):
        array.append(1)
    del parts
    gc.collect()
    array.append(1)


def test_more_objects_than_a_frame_has_segments_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_offload_worker._protocol.segments.MAX_SEGMENTS", 4)
    value = [bytes([number]) * LARGE for number in range(6)]
    segments, types, _ = segments_of(value)
    assert list(types) == [MEMORY, BYTES, BYTES, BYTES]
    assert received(segments, types) == value
    mixed = [pickle.PickleBuffer(bytearray(OUT_OF_BAND)), *value]
    segments, types, _ = segments_of(mixed)
    assert list(types) == [MEMORY, MEMORY, BYTES, BYTES]
    assert received(segments, types)[1:] == value
    assert MAX_SEGMENTS == 65_536


# --- memory --------------------------------------------------------------------------------------


def fill(target: Any) -> Any:
    view, take = target
    view[:] = b"z" * len(view)
    del view
    made = take()
    assert bytes(made) == b"z" * len(made)
    return made


@pytest.fixture(params=["ctypes", "no ctypes"])
def with_and_without_ctypes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no ctypes":
        monkeypatch.setitem(__import__("sys").modules, "ctypes", None)
        without = native.Native()
        assert not without.can_splice()
        monkeypatch.setattr(native, "native", lambda: without)


@pytest.mark.parametrize("size", [0, 1, 1000, 2**20, 5_000_000, 17_000_001])
@pytest.mark.usefixtures("with_and_without_ctypes")
def test_new_memory_is_of_its_type_and_size(size: int) -> None:
    for allocate in (memory.allocate, BufferPool().allocate):
        for kind, wanted in ((BYTES, bytes), (BYTEARRAY, bytearray)):
            made = fill(allocate(size, kind))
            assert type(made) is wanted
            assert len(made) == size
        view, take = allocate(size, MEMORY)
        assert len(view) == size
        assert not memoryview(take()).readonly


@pytest.mark.parametrize("kind", [MEMORY, BYTES, BYTEARRAY])
@pytest.mark.usefixtures("with_and_without_ctypes")
def test_memory_that_is_not_there(kind: int) -> None:
    for size in (2**47, 2**62):
        with pytest.raises(MemoryError, match=f"for {size} bytes of a job's result. Return less"):
            BufferPool().allocate(size, kind)


@pytest.mark.parametrize("allocate", [memory.allocate, BufferPool().allocate], ids=["plainly", "in a context"])
def test_bytes_are_filled_where_they_are(allocate: Any) -> None:
    view, take = allocate(5_000_000, BYTES)
    address = native.native().address_of(view)
    del view
    made = take()
    assert native.native().address_of(memoryview(made)) == address


@pytest.mark.parametrize("size", [1000, 2**20, 5_000_000])
@pytest.mark.parametrize("allocate", [memory.allocate, BufferPool().allocate], ids=["plainly", "in a context"])
@pytest.mark.usefixtures("with_and_without_ctypes")
def test_abandoned_buffer_may_be_in_a_cycle(allocate: Any, size: int) -> None:
    """As it is when a task ends with an exception whose traceback leads back to it. pytest reports what a collector ignores."""
    for kind in (MEMORY, BYTES, BYTEARRAY):
        cycle: list[Any] = [allocate(size, kind)]
        cycle.append(cycle[0][0][10:])
        cycle[1][:3] = b"abc"
        cycle.append(cycle)
        del cycle
    gc.collect()


def address_of(target: Any) -> int:
    return native.native().address_of(target[0])


SIZE = 4 * 2**20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(buffer_pool, "time", clock)
    return clock


def test_memory_that_was_let_go_of_is_used_again(clock: Clock) -> None:
    pool = BufferPool()
    pool.allocate(SIZE, MEMORY)
    first = pool.allocate(SIZE, MEMORY)
    address = address_of(first)
    other = pool.allocate(SIZE, MEMORY)
    assert address_of(other) != address
    del first
    clock.now += 1
    again = pool.allocate(SIZE - 5, MEMORY)
    assert address_of(again) == address
    assert len(again[0]) == SIZE - 5
    del again
    assert address_of(pool.allocate(SIZE // 2 - 5, MEMORY)) != address, "more than half of it would lie idle"


def test_memory_in_use_is_never_given_out_again(clock: Clock) -> None:
    pool = BufferPool()
    held = []
    for number in range(20):
        view, take = pool.allocate(SIZE, MEMORY)
        view[:] = bytes([number]) * SIZE
        held.append(pickle.PickleBuffer(take()))
        del view, take
    for number, one in enumerate(held):
        assert bytes(one.raw()[:10]) == bytes([number]) * 10


def test_no_more_is_kept_than_its_bound(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_pool, "_MAX_SIZE", 3 * SIZE)
    pool = BufferPool()
    for size in (SIZE, SIZE, 2 * SIZE, SIZE, 4 * SIZE, SIZE):
        pool.allocate(size, MEMORY)
        assert sum(map(len, pool.given)) <= 3 * SIZE
    assert pool.given


def test_one_alone_leaves_nothing_behind(clock: Clock) -> None:
    pool = BufferPool()
    for _ in range(2):
        pool.allocate(SIZE, MEMORY)
        assert not pool.given
        clock.now += 5.5


async def test_after_a_pause_nothing_is_kept(
    clock: Clock, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The machine's clock, which it goes by, is the test's as well.
    monkeypatch.setattr(_clock, "sleep", trio.sleep)
    pool = BufferPool()

    async def take(pause: float) -> int:
        clock.now += pause
        await trio.sleep(pause)
        pool.allocate(SIZE, MEMORY)
        if pool.given:
            pool.release_later()
        return len(pool.given)

    assert [await take(1), await take(1), await take(4), await take(4), await take(4.9)] == [0, 1, 1, 1, 1]
    await trio.sleep(10)
    assert not pool.given
    clock.now += 10
    # And the same once more.
    assert [await take(1), await take(1)] == [0, 1]
    await trio.sleep(10)
    assert not pool.given


def test_what_is_kept_is_gone_with_the_run(clock: Clock) -> None:
    pool = BufferPool()

    async def take() -> None:
        for _ in range(2):
            pool.allocate(SIZE, MEMORY)
        pool.release_later()
        assert pool.given

    for _ in range(2):
        trio.run(take)
        assert not pool.given
        clock.now += 10


def test_mapping_of_unknown_use_is_not_reused(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(mmap.mmap):
        def resize(self, newsize: int) -> None:
            raise SystemError("mmap: resizing not available--no mremap()")

    monkeypatch.setattr(memory.mmap, "mmap", Other)
    pool = BufferPool()
    for _ in range(4):
        fill(pool.allocate(SIZE, MEMORY))
    assert len(pool.given) == 3
