"""docs/migration.md, connections: each row is tried, beside the objects of multiprocessing that it replaces."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection as theirs
from collections.abc import Awaitable, Callable
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

import pytest
import trio
from connection_support import KEY, TIMEOUT
from migration_support import Ported

from trio_offload import connection
from trio_offload.connection import Connection

SOON = 0.01  # seconds until a wait is given up
PORTED = Ported("Connections")
ports = PORTED.ports
in_thread: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync


def test_each_row_of_connections_has_a_test() -> None:
    assert sorted(PORTED.tried) == sorted(PORTED.rows())


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Any:
    """An end of ours, and one of multiprocessing's. They are of one pipe."""
    first, second = multiprocessing.Pipe()
    ours = connection.adopt(first)
    request.addfinalizer(ours.close)
    request.addfinalizer(second.close)  # noqa: PT021
    return ours, second


@ports("Pipe(duplex)")
@pytest.mark.parametrize("duplex", [True, False])
async def test_pipe(duplex: bool) -> None:
    first, second = connection.pipe(duplex)
    async with first, second:
        await second.send(1)
        assert await first.receive() == 1
        assert (first.writable, second.readable) == (duplex, duplex)


@ports("Connection", "send(x)")
async def test_send(pair: Any) -> None:
    ours, other = pair
    await ours.send({"x": 1})
    assert other.recv() == {"x": 1}
    assert isinstance(ours, Connection)


@ports("Connection", "recv(): EOFError")
async def test_recv(pair: Any) -> None:
    ours, other = pair
    other.send({"x": 1})
    assert await ours.receive() == {"x": 1}
    other.send(2)
    other.close()
    assert [value async for value in ours] == [2]
    with pytest.raises(trio.EndOfChannel):
        await ours.receive()


@ports("Connection", "poll()", "poll(t)")
async def test_poll(pair: Any) -> None:
    ours, other = pair
    assert not ours.poll()
    with trio.move_on_after(SOON) as scope:
        await ours.receivable()
    assert scope.cancelled_caught
    other.send(1)
    assert ours.poll()
    with trio.move_on_after(TIMEOUT) as scope:
        await ours.receivable()
    assert not scope.cancelled_caught


@ports("Connection", "send_bytes(b, offset, size)")
async def test_send_bytes(pair: Any) -> None:
    ours, other = pair
    await ours.send_bytes(memoryview(b"0123456789")[2 : 2 + 3])
    assert other.recv_bytes() == b"234"


@ports("Connection", "recv_bytes(n): OSError")
async def test_recv_bytes(pair: Any) -> None:
    ours, other = pair
    other.send_bytes(b"0123456789")
    with pytest.raises(OSError, match="too long"):
        await ours.receive_bytes(5)
    assert await ours.receive_bytes(10) == b"0123456789"


@ports("Connection", "recv_bytes_into(b, offset): BufferTooShort")
async def test_recv_bytes_into(pair: Any) -> None:
    ours, other = pair
    buffer = bytearray(5)
    other.send_bytes(b"012")
    assert await ours.receive_bytes_into(buffer, 2) == 3
    assert buffer == bytes(2) + b"012"
    other.send_bytes(b"0123")
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        await ours.receive_bytes_into(buffer, 2)
    assert caught.value.args == (b"0123",)


@ports("Connection", "fileno(), close(), closed, readable, writable")
async def test_attributes(pair: Any) -> None:
    ours, other = pair
    assert (ours.fileno() >= 0, ours.closed, ours.readable, ours.writable) == (True, False, True, True)
    ours.close()
    assert ours.closed
    with pytest.raises(EOFError):
        other.recv()


@ports("Connection", "wait(list, t)")
async def test_wait() -> None:
    pairs = [connection.pipe() for _ in range(3)]
    await pairs[1][1].send("something")
    ready = []

    async def wait(one: Connection, scope: trio.CancelScope) -> None:
        await one.receivable()
        ready.append(one)
        scope.cancel()

    with trio.move_on_after(TIMEOUT):
        async with trio.open_nursery() as nursery:
            for one, _ in pairs:
                nursery.start_soon(wait, one, nursery.cancel_scope)
    assert ready == [pairs[1][0]]
    for pair in pairs:
        for end in pair:
            end.close()


@ports("Listener(address, backlog=n, authkey=k)", "accept()", "address, last_accepted", "close()")
async def test_listener() -> None:
    def connect(address: Any) -> Any:
        with theirs.Client(address, authkey=KEY) as client:
            return client.recv()

    async with connection.listen(("127.0.0.1", 0), authkey=KEY, backlog=5, allow_md5=True) as listener:
        with trio.fail_after(TIMEOUT):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(in_thread, connect, listener.address)
                async with await listener.accept() as first:
                    assert first.remote_address[0] == "127.0.0.1"
                    await first.send(1)
                async for second in listener:
                    async with second:
                        await second.send(2)
                    break
    with pytest.raises(ConnectionRefusedError):
        theirs.Client(listener.address)


@ports("Client(address, authkey=k)")
async def test_client(tmp_path: Path) -> None:
    with theirs.Listener(str(tmp_path / "s"), authkey=KEY) as listener:

        def accept() -> None:
            with listener.accept() as one:
                one.send("hello")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, accept)
            async with await connection.open_client(listener.address, authkey=KEY, allow_md5=True) as ours:
                assert await ours.receive() == "hello"


@ports("Client(address, authkey=k)", "deliver_challenge(c, k), answer_challenge(c, k)")
@pytest.mark.parametrize("side", ["client", "listener"])
async def test_challenges(pair: Any, side: Any) -> None:
    ours, other = pair
    functions: Any = theirs
    steps = [functions.deliver_challenge, functions.answer_challenge]

    def challenge() -> None:
        for step in steps if side == "client" else reversed(steps):
            step(other, KEY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, challenge)
        await connection.authenticate(ours, KEY, side=side, allow_md5=True)

    def refuse() -> None:
        with pytest.raises((AuthenticationError, EOFError)):
            challenge()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, refuse)
        with pytest.raises(AuthenticationError):
            await connection.authenticate(ours, b"another key", side=side, allow_md5=True)
        assert ours.closed
