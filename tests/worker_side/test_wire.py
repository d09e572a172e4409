"""Contract: the parent's codec against the vectors that the worker's codec passes too, and against what they cannot show."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import cbor2
import pytest
from wire_support import Outcome, decode, observed

from trio_offload_worker._jobs.guards import clip
from trio_offload_worker._protocol import cbor
from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import (
    BYTEARRAY,
    BYTES,
    MAGIC,
    MAX_HEADER,
    MAX_HEADER_OF_WORKER,
    MAX_ID,
    MAX_ITEMS,
    MAX_PAYLOAD,
    MAX_SEGMENTS,
    MEMORY,
    PREFIX_SIZE,
    Frame,
    Kind,
    WireError,
    encode_call,
    encode_head,
)
from trio_offload_worker._protocol.header import parse_header
from trio_offload_worker._system.memory import allocate

VECTORS = sorted((Path(__file__).resolve().parents[1] / "vectors").glob("*.json"))


def plain(value: Any) -> Any:
    """A JSON value of a vector as the codec gives it."""
    if isinstance(value, dict):
        if set(value) == {"$bytes"}:
            return bytes.fromhex(value["$bytes"])
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def expected(vector: dict[str, Any]) -> Outcome:
    frames = [
        (frame["kind"], frame["id"], [bytes.fromhex(segment) for segment in frame["segments"]], plain(frame["body"]))
        for frame in vector.get("frames", [])
    ]
    return Outcome(frames, vector.get("error"))


# One test for all vectors and not one for each: the proof that nothing is left behind costs more than most vectors do.


def test_there_are_vectors() -> None:
    assert len(VECTORS) > 100


def test_vectors_whole_and_split_everywhere() -> None:
    for path in VECTORS:
        vector = json.loads(path.read_text())
        data = bytes.fromhex(vector["bytes"])
        end = vector.get("end", False)
        assert decode([data], end) == expected(vector), path.stem
        assert decode([data[i : i + 1] for i in range(len(data))], end) == expected(vector), path.stem
        positions = range(len(data)) if len(data) < 300 else random.Random(1).sample(range(len(data)), 60)
        for position in positions:
            assert decode([data[:position], data[position:]], end) == expected(vector), f"{path.stem} split at {position}"


def test_vectors_with_trailing_data() -> None:
    ready = encode_head(Kind.READY, 0, ())
    tried = 0
    for path in VECTORS:
        vector = json.loads(path.read_text())
        if vector.get("end") or "error" in vector:
            continue
        want = expected(vector)
        got = decode([bytes.fromhex(vector["bytes"]) + ready], True)
        assert got == Outcome([*want.frames, (Kind.READY, 0, [], {})], None), path.stem
        tried += 1
    assert tried > 20


def test_vectors_encode_to_the_same_bytes() -> None:
    tried = 0
    for path in VECTORS:
        vector = json.loads(path.read_text())
        if not vector.get("canonical"):
            continue
        data = b""
        for kind, id, segments, body in expected(vector).frames:
            data += encode_head(Kind(kind), id, [len(segment) for segment in segments], body) + b"".join(segments)
        assert data.hex() == vector["bytes"], path.stem
        tried += 1
    assert tried > 20


@pytest.mark.parametrize(
    "sizes", [[0], [1], [32 * 1024], [64 * 1024], [200_000], [3, 70_000, 0, 5, 100_000], [0, 0], [10] * 300]
)
def test_frames_of_every_size_after_one_another(sizes: list[int]) -> None:
    """Small frames are parsed in the buffer, large ones in memory of their own; the seams must not show."""
    source = random.Random(str(sizes))
    segments = [source.randbytes(size) for size in sizes]
    one = encode_head(Kind.CALL, 7, sizes) + b"".join(segments)
    data = one * 5
    want = Outcome([(Kind.CALL, 7, segments, {})] * 5, None)
    assert decode([data], True) == want
    for step in (1000, 4099, 65_536, 65_537):
        assert decode([data[i : i + step] for i in range(0, len(data), step)], True) == want


def test_only_the_first_segment_is_borrowed() -> None:
    """What is unpickled in place must not lie in the buffer that the next frame overwrites."""
    decoder = Decoder()
    data = encode_head(Kind.CALL, 1, [2, 3]) + b"abcde"
    decoder.writable()[: len(data)] = data
    decoder.wrote(len(data))
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.borrowed
    decoder.writable()[:] = bytes(len(decoder.writable()))
    assert frame.segments[1] == bytearray(b"cde")


def test_memory_for_a_large_segment_comes_from_the_allocator() -> None:
    asked: list[tuple[int, int]] = []
    memory = [bytearray(100_000), bytearray(5)]

    def allocate(size: int, kind: int) -> Any:
        asked.append((size, kind))
        return memoryview(memory[len(asked) - 1]), lambda: ("taken", size)

    decoder = Decoder(allocate)
    data = encode_head(Kind.RESULT, 1, [100_000, 5], {"types": bytes([MEMORY, BYTES])}) + b"a" * 100_000 + b"b" * 5
    frame = None
    while data:
        assert frame is None
        target = decoder.writable()
        count = min(len(target), len(data), 50_000)
        target[:count] = data[:count]
        decoder.wrote(count)
        data = data[count:]
        frame = decoder.next_frame()
    assert asked == [(100_000, MEMORY), (5, BYTES)]
    assert memory == [b"a" * 100_000, b"b" * 5]
    assert frame is not None
    assert frame.segments == [("taken", 100_000), ("taken", 5)]


@pytest.mark.parametrize("size", [10, 50_000], ids=["where it lies", "in memory of its own"])
def test_segments_become_what_their_types_say(size: int) -> None:
    segments = [b"p" * size, b"m" * size, b"b" * size, b"a" * size, b"", b""]
    types = bytes([MEMORY, MEMORY, BYTES, BYTEARRAY, BYTES, BYTEARRAY])
    frames = []
    for codec in (Decoder(), Decoder(allocate)):
        data = encode_head(Kind.CALL, 1, [len(segment) for segment in segments], {"types": types}) + b"".join(segments)
        while data:
            target = codec.writable()
            count = min(len(target), len(data))
            target[:count] = data[:count]
            codec.wrote(count)
            data = data[count:]
            if (frame := codec.next_frame()) is not None:
                frames.append(frame)
    for frame in frames:
        assert [bytes(segment) for segment in frame.segments] == segments
        assert [type(segment) for segment in frame.segments[2:]] == [bytes, bytearray, bytes, bytearray]
        assert not memoryview(frame.segments[1]).readonly
    assert len(frames) == 2


def test_no_memory_is_taken_for_a_length_that_is_too_large() -> None:
    def refuse(size: int, kind: int) -> Any:
        raise AssertionError(f"asked for {size} bytes")

    decoder = Decoder(refuse)
    data = b"tro\x01" + (3).to_bytes(4, "big") + (MAX_PAYLOAD + 1).to_bytes(8, "big")
    decoder.writable()[: len(data)] = data
    decoder.wrote(len(data))
    with pytest.raises(WireError, match="payload_too_large"):
        decoder.next_frame()


def test_random_bytes_give_frames_or_a_named_error() -> None:
    source = random.Random(20)
    heads = [encode_head(Kind.CALL, 3, [5]), encode_head(Kind.RETIRED, 0, (), {"reason": "idle"})]
    for _ in range(3000):
        data = bytearray(source.choice(heads) + source.randbytes(source.randrange(40)))
        for _ in range(source.randrange(4)):
            data[source.randrange(len(data))] = source.randrange(256)
        decode([bytes(data)], True)


def test_the_short_way_to_a_head_gives_what_the_long_one_gives() -> None:
    """The ways part at these numbers; a body takes the long one."""
    edges = [0, 1, 23, 24, 25, 255, 256, 257, 65_535, 65_536, 2**32 - 1, 2**32, MAX_ID]
    for id in edges:
        for length in [edge for edge in edges if edge <= MAX_PAYLOAD]:
            # The number of the second takes two bytes.
            for kind in (Kind.CALL, Kind.REPORT):
                header = cbor2.dumps([int(kind), id, [length]])
                prefix = MAGIC + len(header).to_bytes(4, "big") + length.to_bytes(8, "big")
                assert encode_head(kind, id, (length,)) == prefix + header


def test_the_short_way_to_a_call_gives_what_the_long_one_gives() -> None:
    for id in (1, 23, 24, 255, 256, 65_535, 65_536, 2**32, MAX_ID):
        for length in (1, 23, 24, 255, 256, 4096):
            data, start = encode_call(id, bytes(length))
            assert data == encode_head(Kind.CALL, id, (length,)) + bytes(length)
            result = encode_head(Kind.RESULT, id, (length,)) + b"r" * length
            decoder = Decoder()
            decoder.buffer[: len(result)] = result
            segment = decoder.plain_result(start, len(result))
            assert segment is not None
            assert segment == result[-length:]
            assert decoder.start == decoder.end


FIGURES = {"figures": [11_000_000, 12_345_678, 250_000_000, 70_000]}


def test_plain_results_of_a_row() -> None:
    """What follows one is pending, be it whole or not."""
    starts = [encode_call(id, b"pickled")[1] for id in (300, 301, 302)]
    results = [encode_head(Kind.RESULT, id, [4]) + b"%04d" % id for id in (300, 301, 302)]
    report = encode_head(Kind.REPORT, 0, (), FIGURES)
    data = results[0] + results[1] + report + results[2][:-1]
    decoder = Decoder()
    decoder.buffer[: len(data)] = data
    assert decoder.plain_result(starts[1], len(data)) is None, "it is not the first"
    assert decoder.plain_result(starts[0]) == b"0300"
    assert decoder.plain_result(starts[1]) == b"0301"
    assert decoder.plain_result(starts[2]) is None
    frame = decoder.next_frame()
    assert frame is not None
    assert observed(frame) == observed(Frame(Kind.REPORT, 0, [], FIGURES))
    assert decoder.plain_result(starts[2]) is None
    decoder.writable()[:1] = results[2][-1:]
    decoder.wrote(1)
    assert decoder.plain_result(starts[2]) == b"0302"
    assert decoder.next_frame() is None


@pytest.mark.parametrize(
    "data",
    [
        encode_head(Kind.RESULT, 301, [4]) + b"abcd",
        encode_head(Kind.RAISED, 300, [4], {"stage": "call", "type": "t", "message": "m", "traceback": ""}) + b"abcd",
        encode_head(Kind.RESULT, 300, [4], FIGURES) + b"abcd",
        encode_head(Kind.RESULT, 300, [2, 2]) + b"abcd",
        encode_head(Kind.RESULT, 300, [4]) + b"abc",
        encode_head(Kind.RESULT, 300, [4])[:10],
        b"t",
        b"no frame at all, and long enough for one",
        b"tro\x02" + encode_head(Kind.RESULT, 300, [4])[4:] + b"abcd",
    ],
)
def test_almost_plain_result_takes_ordinary_path(data: bytes) -> None:
    _, start = encode_call(300, b"pickled")
    decoder = Decoder()
    # What an earlier, longer frame has left.
    decoder.buffer[:100] = b"\xff" * 100
    decoder.buffer[: len(data)] = data
    assert decoder.plain_result(start, len(data)) is None
    frames = []
    error = None
    try:
        while (frame := decoder.next_frame()) is not None:
            frames.append(observed(frame))
    except WireError as wrong:
        error = wrong.code
    assert Outcome(frames, error) == decode([data], False)


@pytest.mark.parametrize(
    "frame",
    [
        encode_head(Kind.RESULT, 70_000, [4], FIGURES) + b"abcd",
        encode_head(Kind.RESULT, 7, [300], FIGURES) + bytes(300),
        encode_head(Kind.RESULT, 70_000, [4], {"figures": [*FIGURES["figures"][:3], 23]}) + b"abcd",
        encode_head(Kind.RESULT, 70_000, [4], {"figures": [*FIGURES["figures"][:3], 300]}) + b"abcd",
        encode_head(Kind.RESULT, 70_000, [4], {"figures": [*FIGURES["figures"][:3], 2**33]}) + b"abcd",
        encode_head(Kind.RESULT, 70_000, [4]) + b"abcd",
        encode_head(Kind.CALL, 300, [30]) + bytes(30),
    ],
    ids=["figures", "figures and a longer segment", "no time", "little time", "much time", "a result", "a call"],
)
def test_frequent_frame_with_wrong_byte(frame: bytes) -> None:
    """There is a short way for such frames if they come whole: byte by byte they go the long one, and both must agree."""
    header = 16 + int.from_bytes(frame[4:8], "big")
    right = 0
    for position in range(16, header):
        for value in (*range(32), 0x80, 0x81, 0x83, 0x84, 0xA1, 0xFF):
            data = frame[:position] + bytes([value]) + frame[position + 1 :] + encode_head(Kind.READY, 0, ())
            whole = decode([data], True)
            assert whole == decode([data[i : i + 1] for i in range(len(data))], True), (position, value)
            right += whole.error is None
    assert right > 32


def test_what_was_written_may_be_said_when_a_frame_is_asked_for() -> None:
    plain = encode_head(Kind.RESULT, 1, [4], FIGURES) + b"abcd"
    large = encode_head(Kind.RESULT, 2, [70_000, 3]) + bytes(70_000) + b"xyz"
    data = memoryview(plain + large + plain)
    for step in (7, len(plain), 40_000):
        decoder = Decoder()
        ids = []
        for at in range(0, len(data), step):
            rest = data[at : at + step]
            while rest:
                target = decoder.writable()
                count = min(len(target), len(rest))
                target[:count] = rest[:count]
                rest = rest[count:]
                frame = decoder.next_frame(count)
                while frame is not None:
                    ids.append(frame.id)
                    frame = decoder.next_frame()
        assert ids == [1, 2, 1]
        assert decoder.start == decoder.end


@pytest.mark.parametrize(
    ("kind", "id", "lengths", "body", "words"),
    [
        (Kind.CALL, -1, [], None, "between 0 and"),
        (Kind.CALL, MAX_ID + 1, [], None, "between 0 and"),
        (Kind.CALL, 0, [0] * (MAX_SEGMENTS + 1), None, "segments"),
        (Kind.CALL, 0, [MAX_PAYLOAD, 1], None, "1 TiB"),
        (Kind.TEMPLATE, 0, [], {"modules": ["x" * MAX_HEADER]}, f"TEMPLATE must have at most {MAX_HEADER} bytes"),
        (Kind.ABORTED, 0, [], {"message": "x" * MAX_HEADER_OF_WORKER}, f"at most {MAX_HEADER_OF_WORKER} bytes"),
    ],
)
def test_what_is_out_of_bounds_is_not_encoded(kind: Kind, id: int, lengths: list[int], body: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode_head(kind, id, lengths, body)


@pytest.mark.parametrize("count", [MAX_SEGMENTS, MAX_SEGMENTS + 1])
def test_most_segments(count: int) -> None:
    header = b"\x83\x14\x01\x5a" + struct.pack(f">I{count}Q", 8 * count, *range(count))
    payload = sum(range(count))
    if count > MAX_SEGMENTS:
        with pytest.raises(WireError, match="malformed_header"):
            parse_header(header, payload, True)
        return
    assert parse_header(header, payload, True).lengths == list(range(count))
    assert encode_head(Kind.RESULT, 1, range(count))[PREFIX_SIZE:] == header


def test_largest_header_of_a_worker_fits() -> None:
    texts = {name: clip("ä" * 2**20) for name in ("type", "message", "traceback", "module")}
    body = {"stage": "preload"} | texts
    lengths = [MAX_PAYLOAD // MAX_SEGMENTS] * MAX_SEGMENTS
    head = encode_head(Kind.SETUP_FAILED, MAX_ID, lengths, body)
    assert MAX_HEADER_OF_WORKER * 0.9 < len(head) < MAX_HEADER_OF_WORKER
    parsed = parse_header(head[PREFIX_SIZE:], sum(lengths), True)
    assert (parsed.lengths, parsed.body) == (lengths, body)


@pytest.mark.parametrize(("of_worker", "limit"), [(True, MAX_HEADER_OF_WORKER), (False, MAX_HEADER)])
def test_bound_of_headers_from_each_side(of_worker: bool, limit: int) -> None:
    for length, accepted in ((limit, True), (limit + 1, False)):
        decoder = Decoder(of_worker=of_worker)
        prefix = MAGIC + length.to_bytes(4, "big") + bytes(8)
        decoder.writable()[: len(prefix)] = prefix
        decoder.wrote(len(prefix))
        with contextlib.nullcontext() if accepted else pytest.raises(WireError, match="header_too_large"):
            assert decoder.next_frame() is None


# --- the bodies ----------------------------------------------------------------------------------

BODIES: list[Any] = [
    {},
    {"a": 0, "b": 23, "c": 24, "d": 255, "e": 256, "f": 65_535, "g": 65_536, "h": 2**32 - 1, "i": 2**32, "j": 2**64 - 1},
    {"a": -1, "b": -24, "c": -25, "d": -256, "e": -257, "f": -(2**31), "g": -(2**63)},
    {"text": "", "long": "ä" * 300, "bytes": b"", "more": bytes(70_000)},
    {"yes": True, "no": False, "null": None, "list": [[b"A", None], [b"B", b"c"]], "map": {"verbose": 1, "quiet": 0}},
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_our_cbor_is_the_librarys(body: Any) -> None:
    assert cbor.dumps(body) == cbor2.dumps(body)
    assert cbor.loads(cbor2.dumps(body), MAX_ITEMS) == body


@pytest.mark.parametrize(
    "body",
    [{"a": 1.5}, {"a": 2**64}, {1.5: "a"}, {"a": frozenset()}, {"a": [[[[[[[[[[1]]]]]]]]]]}],
    ids=["a fraction", "a bignum", "a fraction as a key", "a tag", "deep"],
)
def test_what_is_not_ours_is_left_to_the_library(body: Any) -> None:
    with pytest.raises(cbor.Unusual):
        cbor.loads(cbor2.dumps(body), MAX_ITEMS)


def test_random_bytes_are_read_as_by_library() -> None:
    source = random.Random(21)
    seeds = [cbor2.dumps(body) for body in BODIES[:3]] + [cbor2.dumps({"a": [1, b"x", "y", None, {"b": -5}]})]
    agreed = 0
    for _ in range(3000):
        data = bytearray(source.choice(seeds))
        for _ in range(source.randrange(3)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            read = cbor.loads(bytes(data), MAX_ITEMS)
        except (cbor.Unusual, cbor.Excessive):
            continue
        assert read == cbor2.loads(bytes(data))
        agreed += 1
    assert agreed > 500


BIG = MAX_HEADER_OF_WORKER - 64
LARGE_HEADERS = {
    "lengths": b"\x83\x14\x01\x9a" + BIG.to_bytes(4, "big") + bytes(BIG),
    "bytes of lengths": b"\x83\x14\x01\x5a" + BIG.to_bytes(4, "big") + bytes(BIG),
    "most lengths": b"\x83\x14\x01\x5a" + (8 * MAX_SEGMENTS).to_bytes(4, "big") + bytes(8 * MAX_SEGMENTS),
    "items": b"\x84\x14\x01\x81\x00\xa1\x61a\x9a" + BIG.to_bytes(4, "big") + bytes(BIG),
    "items without an end": b"\x84\x14\x01\x81\x00\xa1\x61a\x9f" + bytes(BIG) + b"\xff",
    "pairs": b"\x84\x14\x01\x81\x00\xba" + (BIG // 4).to_bytes(4, "big") + b"\x62aa\x00" * (BIG // 4),
    "arrays in one another": b"\x84\x14\x01\x81\x00" + b"\x81" * BIG + b"\x00",
    "maps in one another": b"\x84\x14\x01\x81\x00" + b"\xa1\x61a" * (BIG // 3) + b"\x00",
    "tags in one another": b"\x84\x14\x01\x81\x00\xa1\x61a" + b"\xc6" * BIG + b"\x00",
    "pieces of a text": b"\x84\x14\x01\x81\x00\xa1\x61a\x7f" + b"\x61a" * (BIG // 2) + b"\xff",
    "a number": b"\x84\x14\x01\x81\x00\xa1\x61a\xc2\x5a" + BIG.to_bytes(4, "big") + b"\xff" * BIG,
    "a decimal number": b"\x84\x14\x01\x81\x00\xa1\x61a\xc4\x82\x01\xc2\x5a" + BIG.to_bytes(4, "big") + b"\xff" * BIG,
    "a pattern": b"\x84\x14\x01\x81\x00\xa1\x61a\xd8\x23\x7a" + BIG.to_bytes(4, "big") + b"(" * BIG,
    "an array that is not there": b"\x84\x14\x01\x81\x00\xa1\x61a\xfb" + bytes(8) + b"\x9b" + (2**33).to_bytes(8, "big"),
    "another message": b"\x84\x07\x00\x81\x00\xa1\x61a\x9a" + BIG.to_bytes(4, "big") + bytes(BIG),
}


@pytest.mark.parametrize("header", LARGE_HEADERS.values(), ids=LARGE_HEADERS)
def test_no_header_takes_a_parent_long(header: bytes) -> None:
    """The whole of it, 5 MiB, is taken in and judged in milliseconds; the bound is for slow machines."""
    decoder = Decoder(of_worker=True)
    data = MAGIC + len(header).to_bytes(4, "big") + bytes(8) + header
    before = time.process_time()
    with contextlib.suppress(WireError):
        at = 0
        while at < len(data):
            target = decoder.writable()
            count = min(len(target), len(data) - at)
            target[:count] = data[at : at + count]
            at += count
            decoder.wrote(count)
            decoder.next_frame()
    assert time.process_time() - before < 1


def test_the_parent_does_not_read_what_no_worker_says() -> None:
    head = encode_head(Kind.TEMPLATE, 0, [0], {"eager": True, "modules": ["a"] * 5000})
    for of_worker in (False, True):
        decoder = Decoder(of_worker=of_worker)
        decoder.writable()[: len(head)] = head
        decoder.wrote(len(head))
        frame = decoder.next_frame()
        assert frame is not None
        assert frame.kind is Kind.TEMPLATE
        assert bool(frame.body) is not of_worker


def test_a_frame_may_be_turned_away_before_memory_is_taken() -> None:
    def refuse(kind: Kind) -> None:
        raise KeyError(kind.name)

    decoder = Decoder(lambda size, kind: pytest.fail("memory was taken"), refuse)
    head = encode_head(Kind.CALL, 1, [MAX_PAYLOAD])
    decoder.writable()[: len(head)] = head
    decoder.wrote(len(head))
    with pytest.raises(KeyError, match="CALL"):
        decoder.next_frame()


def test_kinds_are_one_object_each() -> None:
    assert Kind(3) is Kind.CALL
    assert (Kind.CALL, repr(Kind.CALL), Kind.CALL.name) == (3, "Kind.CALL", "CALL")
    with pytest.raises(ValueError, match="no message has the number 10"):
        Kind(10)
