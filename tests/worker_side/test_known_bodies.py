"""Contract: a body that is known by its bytes is the one that decoding gives, whatever its number and whatever was kept before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trio_offload_worker._protocol import cbor
from trio_offload_worker._protocol.cbor import dumps
from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import MAX_ID, PREFIX_SIZE, Kind, WireError, encode_head, encode_reply
from trio_offload_worker._protocol.header import parse_header

NUMBERS = (0, 1, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, MAX_ID)
KEPT = cbor._bodies


@pytest.fixture(autouse=True)
def none_known() -> Iterator[None]:
    KEPT.clear()
    yield
    KEPT.clear()


def parsed(kind: Kind, body: bytes, *, segments: int = 0, of_worker: bool = True) -> Any:
    """The body, or the code of the error."""
    lengths = bytes([0x80 + segments]) + bytes(segments)
    try:
        return parse_header(b"\x84\x18" + bytes([kind]) + b"\x07" + lengths + body, 0, of_worker).body
    except WireError as error:
        return error.code


def both_ways(kind: Kind, bodies: list[bytes], **options: Any) -> list[Any]:
    """Each body, as it is parsed with what was kept of those before."""
    with_known = [parsed(kind, body, **options) for body in bodies]
    alone = []
    for body in bodies:
        KEPT.clear()
        alone.append(parsed(kind, body, **options))
    assert with_known == alone
    return alone


def test_requests_that_differ_in_their_number() -> None:
    fields = {"op": "call", "thread": 4711, "handle": MAX_ID, "shield": True}
    found = both_ways(Kind.REQUEST, [dumps(fields | {"request": number}) for number in NUMBERS])
    assert found == [fields | {"request": number} for number in NUMBERS]
    for number in NUMBERS:
        parsed(Kind.REQUEST, dumps(fields | {"request": number}))
    assert len(KEPT) == 1


def test_a_body_belongs_to_its_kind_and_number_of_segments() -> None:
    body = dumps({"op": "send", "thread": 1, "types": b"\x01", "request": 3})
    assert parsed(Kind.REQUEST, body, segments=1)["request"] == 3
    assert parsed(Kind.REQUEST, body, segments=2) == "malformed_body"
    assert "request" not in parsed(Kind.POST, body, segments=1)
    assert "request" not in parsed(Kind.POST, dumps({"op": "send", "thread": 1, "types": b"\x01", "request": 4}), segments=1)


def test_a_known_body_is_not_shared() -> None:
    body = dumps({"op": "release", "thread": 1})
    for _ in range(2):
        found = parsed(Kind.POST, body)
        assert found == {"op": "release", "thread": 1}
        found["op"] = "changed"


@pytest.mark.parametrize(
    "end",
    [b"", b"\x05\x05", b"\x18", b"\x19\x01", b"\x20", b"\x45", b"\xf5", b"\x1c", b"\xff", b"\x18\x05", b"\x1b" + bytes(8)],
    ids=bytes.hex,
)
def test_what_follows_the_name_of_the_number(end: bytes) -> None:
    start = dumps({"op": "call", "thread": 1, "request": 0})[:-1]
    both_ways(Kind.REQUEST, [start + b"\x05", start + end, start + b"\x06"])


def test_fields_that_stand_twice_or_in_another_order() -> None:
    op, thread, request = b"\x62op\x64call", b"\x66thread\x01", b"\x67request"
    text = b"\x61x\x69" + request + b"\x05"
    for body in (
        b"\xa4" + request + b"\x01" + op + thread + request,
        b"\xa4" + op + thread + request + b"\x01" + text[:-1],
        b"\xa4" + op + thread + request + b"\x01" + b"\x62op\x69" + request,
        b"\xa3" + request + b"\x01" + thread + b"\x62op\x69" + request,
        b"\xbf" + op + thread + request,
        b"\xb8\x03" + op + thread + request,
    ):
        both_ways(Kind.REQUEST, [body + b"\x05", body + b"\x06", body + b"\x05\xff", body + b"\x18\xff"])


def test_few_are_kept() -> None:
    for thread in range(2 * cbor._MAX_KEPT):
        parsed(Kind.POST, dumps({"op": "release", "thread": thread}))
    assert 0 < len(KEPT) <= cbor._MAX_KEPT
    KEPT.clear()
    parsed(Kind.POST, dumps({"op": "x" * cbor._MAX_KEPT_SIZE, "thread": 1}))
    assert not KEPT


@pytest.mark.parametrize("lengths", [(), (0,), (255,), (256,), (70_000,)])
def test_short_replies_are_those_of_the_general_encoder(lengths: tuple[int, ...]) -> None:
    for number in NUMBERS:
        head = encode_head(Kind.REPLY, number, lengths, {"status": "value", "request": number})
        assert encode_reply(number, lengths, "value", number) == head
        found = parse_header(head[PREFIX_SIZE:], sum(lengths), of_worker=False)
        assert (found.kind, found.id, found.lengths) == (Kind.REPLY, number, list(lengths))
        assert found.body == {"status": "value", "request": number}


def frames_of(data: bytes, step: int) -> list[Any]:
    """All frames of a stream that comes in pieces."""
    decoder = Decoder(of_worker=True)
    found = []
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        while piece:
            target = decoder.writable()
            count = min(len(target), len(piece))
            target[:count] = piece[:count]
            frame = decoder.next_frame(count)
            piece = piece[count:]
            while frame is not None:
                found.append((frame.kind, frame.id, [bytes(part) for part in frame.segments], frame.body))
                frame = decoder.next_frame()
    return found


@pytest.mark.parametrize("step", [1, 7, 100, 65536])
def test_a_stream_of_messages(step: int) -> None:
    data = b""
    expected = []
    for call in (5, 300):
        for number in (*NUMBERS, *range(300, 340)):
            for kind, segments, fields in (
                (Kind.REQUEST, [], {"op": "acquire", "handle": 9, "thread": 1, "request": number}),
                (Kind.REQUEST, [b"x" * (number % 300)], {"op": "call", "handle": 7, "thread": 1, "request": number}),
                (Kind.REQUEST, [b"a", b"b"], {"op": "send", "handle": 7, "thread": 1, "request": number}),
                (Kind.POST, [b"item"], {"op": "send", "handle": 8, "thread": 1}),
                (Kind.POST, [], {"op": "release", "handle": 9, "thread": 2}),
                (Kind.WITHDRAW, [], {"request": number}),
                (Kind.RESULT, [b"result"], {}),
            ):
                data += encode_head(kind, call, list(map(len, segments)), fields) + b"".join(segments)
                expected.append((kind, call, segments, fields))
    assert frames_of(data, step) == expected


def test_the_parents_messages_are_refused_before_their_payload() -> None:
    def admit(kind: Kind) -> None:
        admitted.append(kind)
        if len(admitted) == 4:
            raise LookupError("refused")

    admitted: list[Kind] = []
    decoder = Decoder(admit=admit)
    data = b"".join(encode_reply(1, (1,), "value", number) + b"x" for number in range(5))
    decoder.writable()[: len(data)] = data
    frames = [decoder.next_frame(len(data)), decoder.next_frame(), decoder.next_frame()]
    assert [frame.body["request"] for frame in frames if frame is not None] == [0, 1, 2]
    with pytest.raises(LookupError, match="refused"):
        decoder.next_frame()
    assert admitted == [Kind.REPLY] * 4
