"""Contract: ``Connection``: cancellation, sharing by tasks, closing, buffers, its own pickles."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from connection_support import TIMEOUT, message
from trio.testing import Sequencer, wait_all_tasks_blocked

from trio_offload import connection
from trio_offload.connection import Connection

LARGE = 5_000_000  # bytes, which no buffer of a socket holds


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Connection, Connection]]:
    with trio.fail_after(TIMEOUT):
        async with trio.open_nursery():
            first, second = connection.pipe()
            async with first, second:
                yield first, second


@pytest.fixture
async def raw() -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection, and the socket that is its other end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT)
    with theirs, trio.fail_after(TIMEOUT):
        async with connection.adopt(ours) as ours:
            yield ours, theirs


def received(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


async def test_objects_and_bytes(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    for value in (None, 5, "text", [b"x" * 100_000], {"a": {1, 2}}):
        await first.send(value)
        assert await second.receive() == value
    for data in (b"", b"x", bytearray(b"xy"), memoryview(b"abcd")[1:3], memoryview(b"abcdefgh").cast("I")):
        await second.send_bytes(data)
        assert await first.receive_bytes() == bytes(data)


@pytest.mark.parametrize("duplex", [True, False])
async def test_an_end_of_the_stream(duplex: bool) -> None:
    first, second = connection.pipe(duplex)
    async with second:
        await second.send(1)
        await second.send(2)
    async with first:
        assert [value async for value in first] == [1, 2]
        with pytest.raises(trio.EndOfChannel):
            await first.receive()


@pytest.mark.parametrize("duplex", [True, False])
async def test_no_receiver_is_left(duplex: bool) -> None:
    first, second = connection.pipe(duplex)
    await first.aclose()
    async with second:
        with pytest.raises(trio.BrokenResourceError):
            await second.send(1)


async def test_ends_of_a_pipe_have_a_direction() -> None:
    reader, writer = connection.pipe(duplex=False)
    async with reader, writer:
        assert (reader.readable, reader.writable, writer.readable, writer.writable) == (True, False, False, True)
        for operation in (reader.send, reader.send_bytes):
            with pytest.raises(io.UnsupportedOperation, match="only receives"):
                await operation(b"")
        for receive in (writer.receive, writer.receive_bytes, writer.receivable):
            with pytest.raises(io.UnsupportedOperation, match="only sends"):
                await receive()
        with pytest.raises(io.UnsupportedOperation):
            writer.poll()


async def test_a_cancelled_send_that_has_not_begun(raw: tuple[Connection, socket.socket]) -> None:
    ours, theirs = raw
    with trio.CancelScope() as scope:
        scope.cancel()
        await ours.send("never sent")
    assert scope.cancelled_caught
    await ours.send_bytes(b"sent")
    assert received(theirs, 8) == message(b"sent")


@pytest.mark.parametrize("how", ["send", "flush"])
async def test_a_cancelled_send_that_has_begun(raw: tuple[Connection, socket.socket], how: str) -> None:
    """All of it is sent, before the next one, although its buffer has changed."""
    ours, theirs = raw
    data = bytearray(b"x" * LARGE)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_bytes, data)
            await wait_all_tasks_blocked()
            scope.cancel()
    data[:] = bytes(LARGE)
    expected = message(b"x" * LARGE) + (message(b"next") if how == "send" else b"")
    async with trio.open_nursery() as nursery:
        if how == "send":
            nursery.start_soon(ours.send_bytes, b"next")
        else:
            nursery.start_soon(ours.flush)
        assert await trio.to_thread.run_sync(received, theirs, len(expected)) == expected


async def test_a_cancelled_send_that_waits_its_turn(raw: tuple[Connection, socket.socket]) -> None:
    ours, theirs = raw
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_bytes, b"x" * LARGE)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiters:
                waiters.start_soon(ours.send_bytes, b"never sent")
                await wait_all_tasks_blocked()
                scope.cancel()
        nursery.start_soon(ours.send_bytes, b"next")
        expected = message(b"x" * LARGE) + message(b"next")
        assert await trio.to_thread.run_sync(received, theirs, len(expected)) == expected


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("into", [False, True])
async def test_a_cancelled_receive_keeps_its_part(raw: tuple[Connection, socket.socket], cut: int, into: bool) -> None:
    ours, theirs = raw
    whole = message(b"0123456789")
    theirs.sendall(whole[:cut])
    for _ in range(2):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if into:
                    nursery.start_soon(ours.receive_bytes_into, bytearray(10))
                else:
                    nursery.start_soon(ours.receive)
                await wait_all_tasks_blocked()
                scope.cancel()
    theirs.sendall(whole[cut:])
    assert await ours.receive_bytes() == b"0123456789"


async def test_tasks_share_a_connection(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await second.receive_bytes())

    values = [bytes([number]) * size for number, size in enumerate([300_000, 0, 300_000, 5, 400_000])]
    async with trio.open_nursery() as nursery:
        for value in values:
            nursery.start_soon(receive)
            nursery.start_soon(first.send_bytes, value)
    assert sorted(got) == sorted(values)


async def test_senders_get_their_turn_in_order(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    turns = Sequencer()

    async def send(number: int) -> None:
        async with turns(number):
            pass
        await first.send_bytes(bytes([number]) * 300_000)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(send, number)
        await wait_all_tasks_blocked()
        assert [(await second.receive_bytes())[0] for _ in range(4)] == list(range(4))


@pytest.mark.parametrize("blocked", ["send", "receive", "receivable", "turn"])
async def test_close_wakes_those_who_wait(blocked: str) -> None:
    first, second = connection.pipe()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            if blocked in ("send", "turn"):
                await first.send_bytes(bytes(LARGE))
            elif blocked == "receive":
                await first.receive()
            else:
                await first.receivable()

    async with second, trio.open_nursery() as nursery:
        for _ in range(2 if blocked == "turn" else 1):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        first.close()
    with pytest.raises(trio.ClosedResourceError):
        await first.send(1)
    with pytest.raises(trio.ClosedResourceError):
        await first.receive()
    with pytest.raises(trio.ClosedResourceError):
        first.fileno()
    assert first.closed
    assert repr(first).endswith("closed>")
    await first.aclose()


def test_it_may_be_made_and_closed_outside_of_a_run() -> None:
    first, second = connection.pipe()
    for end in (first, second):
        assert not end.closed
        end.close()
    assert first.closed


@pytest.mark.parametrize("operation", ["send", "receive", "receive_bytes_into", "receivable", "aclose", "flush"])
async def test_each_is_a_checkpoint(ends: tuple[Connection, Connection], operation: str) -> None:
    first, second = ends
    await second.send_bytes(pickle.dumps(None))
    arguments = {"send": [1], "receive_bytes_into": [bytearray(100)]}
    with trio.testing.assert_checkpoints():
        await getattr(first, operation)(*arguments.get(operation, []))


async def test_half_a_message(raw: tuple[Connection, socket.socket]) -> None:
    ours, theirs = raw
    theirs.sendall(message(b"whole") + message(b"0123456789")[:-1])
    theirs.close()
    assert await ours.receive_bytes() == b"whole"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="after 9 of 10 bytes"):
            await ours.receive()


async def test_a_reset_of_the_other_end() -> None:
    async with connection.listen(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.address)
        async with await listener.accept() as ours:
            # Closing it with such a linger resets the connection.
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            theirs.close()
            with pytest.raises(trio.BrokenResourceError, match="broken the connection"):
                await ours.receive()


async def test_a_message_longer_than_asked_for(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    await first.send_bytes(b"0123456789")
    with pytest.raises(OSError, match="10 bytes, and max_length is 9") as caught:
        await second.receive_bytes(9)
    assert caught.value.errno == errno.EMSGSIZE
    assert await second.receive_bytes(10) == b"0123456789"
    with pytest.raises(ValueError, match="max_length must be 0 or more, got -1"):
        await second.receive_bytes(-1)
    with pytest.raises(TypeError, match="max_length must be an integer, got '9'"):
        await second.receive_bytes("9")  # type: ignore[arg-type]


async def test_a_buffer_and_an_offset(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    buffer = bytearray(b"-" * 12)
    await first.send_bytes(b"0123456789")
    assert await second.receive_bytes_into(buffer, 2) == 10
    assert buffer == b"--0123456789"
    await first.send_bytes(b"0123456789")
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        await second.receive_bytes_into(buffer, 3)
    assert caught.value.args == (b"0123456789",)
    with pytest.raises(ValueError, match="offset"):
        await second.receive_bytes_into(buffer, 13)
    with pytest.raises(TypeError, match="writable"):
        await second.receive_bytes_into(b"fixed")


async def test_receivable_and_poll(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    assert not second.poll()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.receivable)
        await wait_all_tasks_blocked()
        await first.send(1)
    await second.receivable()
    assert second.poll()
    assert await second.receive() == 1
    first.close()
    await second.receivable()
    assert second.poll()


async def test_other_formats(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    first.dumps, second.loads = lambda value: json.dumps(value).encode(), json.loads
    await first.send({"a": 1})
    assert await second.receive() == {"a": 1}
    # A pickle is refused, and the stream goes on.
    first.dumps = pickle.dumps
    await first.send({"a": 1})
    with pytest.raises(ValueError):  # noqa: PT011
        await second.receive()
    await first.send_bytes(b"1")
    assert await second.receive() == 1


async def test_an_object_that_cannot_be_pickled(ends: tuple[Connection, Connection]) -> None:
    first, second = ends
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        await first.send(lambda: None)
    with pytest.raises(TypeError, match="cannot be pickled"):
        await first.send(second)
    await first.send(1)
    assert await second.receive() == 1


@contextmanager
def default_timeout(seconds: float) -> Any:
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(None)


async def test_a_default_timeout_of_sockets_changes_nothing() -> None:
    with default_timeout(TIMEOUT):
        async with connection.listen(None, b"key") as listener, trio.open_nursery() as nursery:

            async def connect() -> None:
                async with await connection.open_client(listener.address, b"key") as client:
                    await trio.testing.wait_all_tasks_blocked()
                    await client.send(1)

            nursery.start_soon(connect)
            async with await listener.accept() as ours:
                assert await ours.receive() == 1


def test_the_public_module() -> None:
    names = ["Connection", "Listener", "adopt", "authenticate", "listen", "open_client", "pipe", "serve"]
    assert connection.__all__ == names
    assert {getattr(connection, name).__module__ for name in names} == {"trio_offload.connection"}


def test_it_is_imported_when_it_is_used() -> None:
    program = "import sys, trio_offload; print([name for name in sys.modules if 'connection' in name and 'trio' in name])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
