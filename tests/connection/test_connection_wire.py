"""Contract: messages cut at every byte, damaged ones, and those whose sender or receiver gives up; without a peer."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Any

import pytest
import trio
from connection_support import message

from trio_offload._connection import wire
from trio_offload._connection.wire import Inbox, Outbox

MESSAGES = [b"", b"x", b"a message", bytes(1000)]


class Stream:
    """A stream whose bytes come in pieces. Before each piece there is nothing yet."""

    def __init__(self, pieces: Iterable[bytes], ended: bool = True) -> None:
        self._pieces = [b"", *pieces]
        self._ended = ended

    def read(self, size: int) -> bytes | None:
        if self._pieces and not self._pieces[0]:
            self._pieces.pop(0)
            return None
        if not self._pieces:
            return b"" if self._ended else None
        data, self._pieces[0] = self._pieces[0][:size], self._pieces[0][size:]
        return data


def taken(inbox: Inbox) -> bytes:
    while (data := inbox.take()) is None:
        pass
    return data


def taken_into(inbox: Inbox, view: memoryview) -> int | bytes:
    while (result := inbox.take_into(view)) is None:
        pass
    return result


def test_head_of_a_message() -> None:
    assert wire.head_of(0) == b"\0\0\0\0"
    assert wire.head_of(2**31 - 1) == b"\x7f\xff\xff\xff"
    assert wire.head_of(2**31) == b"\xff\xff\xff\xff" + struct.pack("!Q", 2**31)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100, 5000])
def test_messages_in_pieces(size: int) -> None:
    whole = b"".join(map(message, MESSAGES))
    inbox = Inbox(Stream(whole[i : i + size] for i in range(0, len(whole), size)).read)
    assert [taken(inbox) for _ in MESSAGES] == MESSAGES
    with pytest.raises(trio.EndOfChannel):
        taken(inbox)


@pytest.mark.parametrize("into", [False, True])
def test_a_stream_cut_after_each_byte(into: bool) -> None:
    whole = message(b"first") + b"\xff\xff\xff\xff" + struct.pack("!Q", 6) + b"second"
    for cut in range(len(whole)):
        inbox, data = Inbox(Stream([whole[:cut]]).read), []
        view = memoryview(bytearray(10))
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)) as caught:
            while True:
                data.append(bytes(view[: taken_into(inbox, view)]) if into else taken(inbox))  # type: ignore[misc]
        assert data == [b"first"][: cut >= 9]
        assert caught.type is (trio.EndOfChannel if cut in (0, 9) else trio.BrokenResourceError)
        # It stays so.
        with pytest.raises(caught.type):
            taken(inbox)


def test_reads_no_byte_beyond_the_message() -> None:
    stream = Stream([message(b"first") + b"a descriptor's next user"])
    assert taken(Inbox(stream.read)) == b"first"
    assert stream.read(100) == b"a descriptor's next user"


@pytest.mark.parametrize("size", [-2, -(2**31)])
def test_a_negative_size_is_another_protocol(size: int) -> None:
    inbox = Inbox(Stream([struct.pack("!i", size) + bytes(100)]).read)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="another protocol"):
            taken(inbox)


def test_a_claimed_size_takes_no_memory() -> None:
    inbox = Inbox(Stream([b"\xff\xff\xff\xff" + struct.pack("!Q", 2**63) + b"some"], ended=False).read)
    for _ in range(10):
        assert inbox.take() is None


def test_a_message_that_is_too_long_stays() -> None:
    inbox = Inbox(Stream([message(b"too long")]).read)
    assert inbox.take(7) is None
    for _ in range(2):
        with pytest.raises(OSError, match="8 bytes") as caught:
            inbox.take(7)
        assert caught.value.errno == errno.EMSGSIZE
    assert inbox.take(8) == b"too long"


def test_a_long_message_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "READ_SIZE", 10)
    monkeypatch.setattr(wire, "TURN_SIZE", 20)
    data = bytes(range(100))
    inbox, view = Inbox(Stream([message(data)], ended=False).read), memoryview(bytearray(100))
    turns = 0
    while (result := inbox.take()) is None:
        turns += 1
    assert (result, 3 < turns < 8) == (data, True)
    inbox, turns = Inbox(Stream([message(data)], ended=False).read), 0
    while (size := inbox.take_into(view)) is None:
        turns += 1
    assert (size, bytes(view), 3 < turns < 8) == (100, data, True)


@pytest.mark.parametrize("cut", range(14))
def test_another_receive_goes_on_where_one_gave_up(cut: int) -> None:
    whole = message(b"0123456789")
    for first, second in ((True, True), (True, False), (False, True)):
        inbox = Inbox(Stream([whole[:cut], whole[cut:]], ended=False).read)
        given_up, view = memoryview(bytearray(10)), memoryview(bytearray(12))
        for _ in range(2):
            assert (inbox.take_into(given_up) if first else inbox.take()) is None
        if first:
            inbox.keep(given_up)
            given_up[:] = bytes(10)
        result: Any = taken_into(inbox, view) if second else taken(inbox)
        assert (bytes(view[:result]) if second else result) == b"0123456789"


def test_a_buffer_that_is_too_short_gets_nothing() -> None:
    inbox, view = Inbox(Stream([message(b"0123456789")]).read), memoryview(bytearray(9))
    assert taken_into(inbox, view) == b"0123456789"
    assert bytes(view) == bytes(9)


class Sink:
    """A stream that takes so many bytes in each write."""

    def __init__(self, *room: int) -> None:
        self.room = list(room)
        self.data = b""

    def write(self, parts: list[memoryview]) -> int:
        room = self.room.pop(0) if self.room else 10**9
        data = b"".join(parts)[:room]
        self.data += data
        return len(data)


@pytest.mark.parametrize("size", [0, 10, wire.SMALL, wire.SMALL + 1])
@pytest.mark.parametrize("piece", [0, 1, 4, 5])
def test_a_message_is_written_in_pieces(size: int, piece: int) -> None:
    sink = Sink(piece, 0, piece)
    outbox = Outbox(sink.write)
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    outbox.put(data)
    while not outbox.write():
        pass
    assert (sink.data, outbox.is_empty) == (message(data), True)


@pytest.mark.parametrize("size", [10, wire.SMALL + 1])
@pytest.mark.parametrize("written", [0, 1, 4, 5])
def test_a_sender_that_gives_up(size: int, written: int) -> None:
    """Nothing of the message was sent, or all of it will be, whatever becomes of the sender's buffer."""
    sink, data = Sink(written), bytearray(b"x" * size)
    outbox = Outbox(sink.write)
    outbox.put(memoryview(data))
    assert not outbox.write()
    outbox.give_up()
    data[:] = bytes(size)
    if not outbox.is_empty:
        assert outbox.write()
    assert sink.data == (message(b"x" * size) if written else b"")
