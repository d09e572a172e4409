"""Runs of small frames: what is taken in one step is what the decoder gives frame by frame."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from trio_offload._transport.channel import Channel, EndOfStream
from trio_offload._transport.runs import Runs
from trio_offload._transport.sockets import socket_pair
from trio_offload._worker.item_stream import Follower
from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import Frame, Kind, encode_head

BODY = {"op": "send", "thread": 4711, "handle": 2**63}


def post(pickled: bytes, body: dict[str, object] = BODY, call: int = 7) -> bytes:
    return encode_head(Kind.POST, call, (len(pickled),), body) + pickled


def feed(decoder: Decoder, data: bytes) -> None:
    target = decoder.writable()
    target[: len(data)] = data
    decoder.wrote(len(data))


def taken(data: list[bytes]) -> list[tuple[int, int, bytes]]:
    """Decode frames in these pieces, with runs. Return the kind, the call and the segment of each."""
    decoder = Decoder(of_worker=True)
    runs = Runs(decoder)
    found: list[tuple[int, int, bytes]] = []
    for piece in data:
        feed(decoder, piece)
        while (frame := decoder.next_frame()) is not None:
            found.append((frame.kind, frame.id, b"".join(map(bytes, frame.segments))))
            if frame.kind is Kind.POST and len(frame.segments) == 1:
                found += [(frame.kind, frame.id, segment) for segment in runs.take(frame)]
    decoder.end_of_stream()
    return found


@pytest.mark.parametrize("lengths", [[5], [0, 1, 23, 24, 255, 256, 300], [*range(700)]])
def test_run_of_any_lengths(lengths: list[int]) -> None:
    pickles = [bytes([number % 256]) * lengths[number % len(lengths)] for number in range(100)]
    frames = [post(pickled) for pickled in pickles]
    assert taken([b"".join(frames)]) == [(Kind.POST, 7, pickled) for pickled in pickles]


def test_pieces_of_a_stream() -> None:
    choose = random.Random(5)
    for _ in range(100):
        pickles = [choose.randbytes(choose.choice((5, 5, 5, 6, 40, 300))) for _ in range(60)]
        stream = b"".join(post(pickled) for pickled in pickles)
        cuts = sorted(choose.choices(range(len(stream)), k=choose.randrange(8)))
        pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True) if begin < end]
        assert taken(pieces) == [(Kind.POST, 7, pickled) for pickled in pickles]


def test_other_frames_end_a_run() -> None:
    same = [post(b"%05d" % number) for number in range(5)]
    others = [
        post(b"other", {**BODY, "handle": 1}),
        post(b"other", {**BODY, "thread": 1}),
        post(b"other", {**BODY, "op": "call"}),
        post(b"other", {**BODY, "types": b"\x01"}),
        post(b"other", call=8),
        encode_head(Kind.REQUEST, 7, (5,), {**BODY, "request": 5}) + b"other",
        encode_head(Kind.WITHDRAW, 7, (), {"request": 5}),
    ]
    for other in others:
        decoder = Decoder(of_worker=True)
        runs = Runs(decoder)
        feed(decoder, b"".join([*same, other, *same]))
        frames = [decoder.next_frame() for _ in range(3)]
        last = frames[-1]
        assert last is not None
        assert runs.take(last) == [b"00003", b"00004"]
        following = decoder.next_frame()
        assert following is not None
        assert (following.kind, following.id, following.body) != (last.kind, last.id, last.body)
        rest: list[Frame] = []
        while (frame := decoder.next_frame()) is not None:
            rest.append(frame)
        assert [bytes(frame.segments[0]) for frame in rest] == [b"%05d" % number for number in range(5)]


def test_payload_that_looks_like_a_frame() -> None:
    inner = post(b"12345")
    frames = [post(inner + b"x") for _ in range(4)] + [post(inner) for _ in range(4)]
    assert [segment for _, _, segment in taken([b"".join(frames)])] == [inner + b"x"] * 4 + [inner] * 4


async def test_polls_of_a_channel() -> None:
    ours, theirs = socket_pair()
    channel = Channel(ours)
    with theirs:
        try:
            for _ in range(3):  # the third head is a known one
                theirs.sendall(post(b"first"))
                frame = await channel.receive(cancellable=True)
            assert channel.take_run(frame) == []
            assert channel.poll_run() == []
            theirs.sendall(post(b"a") + post(b"b" * 300))
            assert channel.poll_run() == [b"a", b"b" * 300]
            theirs.sendall(post(b"c") + post(b"d")[:20])
            assert channel.poll_run() == [b"c"]
            assert channel.poll_run() is None
            theirs.sendall(post(b"d")[20:] + encode_head(Kind.WITHDRAW, 7, (), {"request": 5}))
            frame = await channel.receive(cancellable=True)
            assert bytes(frame.segments[0]) == b"d"
            assert channel.take_run(frame) == []
            assert channel.poll_run() is None
            assert (await channel.receive(cancellable=True)).kind is Kind.WITHDRAW
            theirs.close()
            with pytest.raises(EndOfStream):
                channel.poll_run()
        finally:
            channel.close()


async def test_follower_stops_at_what_is_no_item() -> None:
    """It polls until nothing has come twice. Where nothing ever follows, it seldom tries."""
    arriving: list[list[bytes] | None] = []
    polls = 0

    class Polled:
        def take_run(self, frame: Frame) -> list[bytes]:
            return [b"0"] if arriving else []

        def poll_run(self) -> list[bytes] | None:
            nonlocal polls
            polls += 1
            return arriving.pop(0) if arriving else []

    taken: list[bytes] = []

    class Kept:
        def post_run(self, pickles: Sequence[bytes]) -> None:
            taken.extend(pickles)

    follower, frame = Follower(), Frame(Kind.POST, 7, [b"x"], BODY)
    channel: Any = Polled()
    arriving = [[b"1", b"2"], [], [b"3"], None, [b"too late"]]
    await follower.follow(channel, frame, Kept())
    assert (taken, polls) == ([b"0", b"1", b"2", b"3"], 4)
    arriving, polls = [], 0
    for _ in range(160):
        await follower.follow(channel, frame, Kept())
    assert polls <= 2 * (5 + 160 // 16)
    with trio.CancelScope() as scope:
        arriving = [[b"4"]] * 10
        scope.cancel()
        await follower.follow(channel, frame, Kept())
    assert scope.cancelled_caught
