"""Contract: when the parent looks for an answer, and when it waits for one."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_offload._transport.channel import Channel, EndOfStream
from trio_offload._transport.sockets import CarryingFrame, Descriptors, WriteFailed, socket_pair
from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, WireError, encode_call, encode_head

ANSWER = encode_head(Kind.RESULT, 1, (4,)) + b"\x80\x05N."
_, START = encode_call(1, b"")
FIGURES = {"figures": [1, 2, 3, 4]}


class Line:
    """A channel, the other end of its socket, and how often the channel has waited."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket_pair()
        self.channel = Channel(self.ours)
        self.waits = 0

    async def answer(self, *, at_once: bool) -> bool:
        """Receive an answer that comes at once, or when nobody looks any more. Whether it was waited for."""
        before = self.waits
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            if not at_once:
                await wait_all_tasks_blocked()
            self.theirs.send(ANSWER)
        return self.waits > before

    async def spin_then_receive(self, start: bytes) -> Frame | memoryview:
        """As a worker's call does it."""
        spun, segment = self.channel.spin_misses == 0, None
        if spun:
            await trio.lowlevel.cancel_shielded_checkpoint()
            segment = self.channel.poll_result(start)
        if segment is not None:
            return segment
        return await self.channel.spin_then_receive(start, spun, cancellable=True)

    async def _receive(self) -> None:
        answer = await self.spin_then_receive(START)
        assert bytes(answer.segments[0] if isinstance(answer, Frame) else answer) == ANSWER[-4:]

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    wait_readable = trio.lowlevel.wait_readable

    async def counted(descriptor: Any) -> None:
        line.waits += 1
        await wait_readable(descriptor)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    with closing(Line()) as line:
        yield line


async def test_an_answer_that_comes_soon_is_not_waited_for(line: Line) -> None:
    assert [await line.answer(at_once=True) for _ in range(5)] == [False] * 5


async def test_looks_in_vain_become_rare(line: Line) -> None:
    """And where one finds something, the next answer is spun for again."""
    # Counted by what comes at once: where it is spun for it is not waited for.
    assert await line.answer(at_once=False)
    assert [await line.answer(at_once=True) for _ in range(3)] == [True, False, False]
    spun = [await _looks(line) for _ in range(40)]
    # 0, 1, 3, 7, then always 15 are left out in between.
    assert [index for index, looks in enumerate(spun) if looks] == [0, 2, 6, 14, 30]


async def _looks(line: Line) -> bool:
    """Let an answer come late; whether it was spun for before it was waited for."""
    reads = 0

    class Counting:
        def recv_into(self, target: memoryview) -> int:
            nonlocal reads
            reads += 1
            return line.ours.recv_into(target)

    line.channel._socket = Counting()  # type: ignore[assignment]
    try:
        assert await line.answer(at_once=False)
    finally:
        line.channel._socket = line.ours
    return reads > 1


async def test_other_tasks_have_their_turn_between_two_looks(line: Line) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while line.waits == 0:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        nursery.start_soon(line._receive)
        while line.waits == 0:
            await trio.lowlevel.checkpoint()
        line.theirs.send(ANSWER)
    assert turns >= 2


async def test_cancel_after_failed_spin(line: Line) -> None:
    with trio.move_on_after(0) as scope:
        await line.spin_then_receive(START)
    assert scope.cancelled_caught


@pytest.mark.parametrize("start", [START, b""])
async def test_ready_answer_wins_over_cancellation(line: Line, start: bytes) -> None:
    line.theirs.send(ANSWER)
    with trio.move_on_after(0) as scope:
        answer = await line.spin_then_receive(start)
    assert not scope.cancelled_caught
    # Only what starts as it was said is no frame.
    assert isinstance(answer, Frame) == (start == b"")


async def test_what_has_been_read_in_part_comes_first(line: Line) -> None:
    """A result that came together with another frame, and one that came in two pieces."""
    report = encode_head(Kind.REPORT, 0, (), FIGURES)
    line.theirs.send(report + ANSWER + ANSWER[:20])
    frame = await line.spin_then_receive(START)
    assert isinstance(frame, Frame)
    assert frame.kind is Kind.REPORT
    assert await line.spin_then_receive(START) == ANSWER[-4:]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line._receive)
        await wait_all_tasks_blocked()
        line.theirs.send(ANSWER[20:])
    assert not line.channel.has_read
    assert not await line.answer(at_once=True)


@pytest.mark.parametrize(("count", "size", "turns"), [(300, 1000, 1), (60_000, 4, 200)], ids=["few", "many"])
async def test_segments_that_have_arrived_are_read_without_a_wait(line: Line, count: int, size: int, turns: int) -> None:
    """Other tasks have their turns between the reads of very many."""
    data = bytes(range(250)) * (count * size // 250)
    line.theirs.sendall(encode_head(Kind.RESULT, 1, [size] * count) + data)
    ended = False
    taken = 0

    async def take_turns() -> None:
        nonlocal taken
        while not ended:
            taken += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        frame = await line.channel.receive(cancellable=True)
        ended = True
    assert b"".join(frame.segments) == data
    assert line.waits == 1
    assert taken >= turns


async def test_an_end_in_the_middle_of_a_frame_is_an_error(line: Line) -> None:
    line.theirs.send(ANSWER[:20])
    line.theirs.close()
    with pytest.raises(WireError, match="torn"):
        await line.spin_then_receive(START)


async def test_an_end_of_the_stream_is_found_by_looking(line: Line) -> None:
    line.theirs.close()
    with pytest.raises(EndOfStream):
        await line.spin_then_receive(START)
    assert line.waits == 0


@pytest.mark.parametrize("left", [0, 1, 300], ids=["all of it", "all but a byte", "nothing"])
def test_a_small_frame_goes_as_far_as_there_is_room(line: Line, left: int) -> None:
    frame = encode_head(Kind.CALL, 1, (300,)) + bytes(range(256)) + bytes(44)
    taken = len(frame) - left

    class Full:
        """A socket that takes so much and no more."""

        def send(self, data: bytes) -> int:
            if not taken:
                raise BlockingIOError
            return line.ours.send(data[:taken])

    taken = 0 if left == 300 else taken
    line.channel._socket = Full()  # type: ignore[assignment]
    try:
        assert line.channel.send_small(frame) == frame[taken:]
        parts: list[Buffer] = [frame[:20], frame[20:]]
        rest = line.channel.send_at_once(parts)
        assert b"".join(rest) == frame[taken:]
        assert (rest is parts) == (taken == 0)
    finally:
        line.channel._socket = line.ours
    line.ours.send(b".")
    assert line.theirs.recv(2000) == 2 * frame[:taken] + b"."


def test_a_small_frame_to_nobody(line: Line) -> None:
    line.theirs.close()
    with pytest.raises(WriteFailed) as caught:
        line.channel.send_small(b"frame")
    assert not caught.value.sent


def receive_with_descriptors(line: Line, size: int) -> tuple[bytes, list[bytes]]:
    """What comes, and the contents of the files whose descriptors come with it."""
    data, messages, _, _ = line.theirs.recvmsg(size, socket.CMSG_SPACE(64))
    contents = []
    for _, _, numbers in messages:
        for number in struct.unpack(f"{len(numbers) // 4}i", numbers):
            contents.append(os.pread(number, 10, 0))
            os.close(number)
    return data, contents


def carrying(frame: bytes, *contents: bytes) -> CarryingFrame:
    numbers = []
    for content in contents:
        numbers.append(os.memfd_create("of-the-test"))
        os.write(numbers[-1], content)
    descriptors = Descriptors(numbers)
    for number in numbers:
        os.close(number)
    return CarryingFrame.of(frame, descriptors)


async def test_descriptors_come_with_the_first_byte_of_their_frame(line: Line) -> None:
    line.channel.send_small(b"before")
    assert line.channel.send_carrying(carrying(b"frame", b"one", b"two")) == []
    line.channel.send_small(b"behind")
    line.theirs.setblocking(False)
    assert receive_with_descriptors(line, 6) == (b"before", [])
    assert receive_with_descriptors(line, 1) == (b"f", [b"one", b"two"])
    assert receive_with_descriptors(line, 100) == (b"ramebehind", [])


async def test_descriptors_between_copies_and_pages(line: Line) -> None:
    """Each begins a message, whatever is written before it."""
    parts: list[Buffer] = [
        bytes(100),
        carrying(b"1" * 9, b"one"),
        carrying(b"2", b"two"),
        bytes(2**21),
        carrying(b"3", b"three"),
    ]
    parts += [bytes(2**20), b"last"]
    size = sum(map(len, parts))
    found: list[bytes] = []
    ahead = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: line.channel.send_rest(parts, False, cancellable=True))
        line.theirs.setblocking(False)
        while size:
            await trio.lowlevel.wait_readable(line.theirs)
            data, contents = receive_with_descriptors(line, 2**16)
            ahead += [len(data)] if contents else []
            found += contents
            size -= len(data)
    assert found == [b"one", b"two", b"three"]
    assert parts == []


async def test_descriptors_wait_for_room(line: Line) -> None:
    filling = 0
    while not (rest := line.channel.send_small(bytes(2**20))):
        filling += 2**20
    filling += 2**20 - len(rest)
    frame = carrying(b"frame", b"contents")
    assert line.channel.send_carrying(frame) == [frame]
    parts: list[Buffer] = [frame, b"behind"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: line.channel.send_rest(parts, False, cancellable=True))
        await wait_all_tasks_blocked()
        assert frame.descriptors.numbers
        while filling:
            filling -= len(line.theirs.recv(min(filling, 2**16)))
    assert frame.descriptors.numbers == []
    assert receive_with_descriptors(line, 5) == (b"frame", [b"contents"])
    assert line.theirs.recv(100) == b"behind"


async def test_descriptors_wait_while_too_many_are_in_flight(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is of the user, and does not count for root."""
    attempts: list[Any] = []
    real = line.channel.send_with_descriptors

    def refuse_twice(self: Any, parts: Any, descriptors: Any) -> Any:
        attempts.append(parts)
        return None if len(attempts) < 3 else real(parts, descriptors)

    monkeypatch.setattr(Channel, "send_with_descriptors", refuse_twice)
    await line.channel.send_rest([carrying(b"frame", b"contents")], False, cancellable=True)
    assert len(attempts) == 3
    assert receive_with_descriptors(line, 5) == (b"frame", [b"contents"])


def test_descriptors_that_cannot_be_duplicated() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        Descriptors([0, 10**6])


async def test_descriptors_to_a_reader_that_is_gone(line: Line) -> None:
    line.theirs.close()
    frame = carrying(b"frame", b"contents")
    with pytest.raises(WriteFailed):
        line.channel.send_carrying(frame)
    frame.descriptors.close()
    frame.descriptors.close()
    assert frame.descriptors.numbers == []
