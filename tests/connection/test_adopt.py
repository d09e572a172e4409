"""Contract: connections of multiprocessing are adopted, and the flags of their descriptors do not change."""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from connection_support import TIMEOUT, each_python
from trio.testing import wait_all_tasks_blocked

from trio_offload import connection
from trio_offload._connection import endpoints

LARGE = 1_000_000  # bytes, which no buffer holds


@pytest.fixture(params=["reopened", "shared"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pipes are opened again; or that is impossible, as without /proc."""
    if request.param == "shared":

        def refuse(*_: Any) -> int:
            raise FileNotFoundError

        monkeypatch.setattr(endpoints.os, "open", refuse)
    return str(request.param)


@pytest.mark.parametrize("duplex", [True, False])
async def test_adopt_both_directions(duplex: bool, how: str) -> None:
    theirs, other = multiprocessing.Pipe(duplex)
    copies = [os.dup(theirs.fileno()), os.dup(other.fileno())]
    try:
        async with connection.adopt(theirs) as reader, connection.adopt(other) as writer:
            assert theirs.closed
            assert other.closed
            with trio.fail_after(TIMEOUT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(writer.send_bytes, bytes(LARGE))
                    await wait_all_tasks_blocked()
                    assert await reader.receive_bytes() == bytes(LARGE)
                    nursery.start_soon(writer.send, "an object")
                    assert await reader.receive() == "an object"
            # Copies in other processes would see the same flags.
            assert [os.get_blocking(copy) for copy in copies] == [True, True]
            assert not os.get_inheritable(reader.fileno())
    finally:
        for copy in copies:
            os.close(copy)


@pytest.mark.parametrize("duplex", [True, False])
async def test_a_full_pipe_does_not_block_the_loop(duplex: bool, how: str) -> None:
    theirs, other = multiprocessing.Pipe(duplex)
    async with connection.adopt(other) as writer:
        with trio.move_on_after(0.01) as scope:
            await writer.send_bytes(bytes(LARGE))
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.send_bytes, b"next")
            assert await trio.to_thread.run_sync(theirs.recv_bytes) == bytes(LARGE)
            assert await trio.to_thread.run_sync(theirs.recv_bytes) == b"next"
    theirs.close()


async def test_another_reader_of_the_pipe_takes_the_bytes(how: str) -> None:
    """The descriptor was ready, and is so no more: the read does not block."""
    reader, writer = os.pipe()
    copy = os.dup(reader)
    try:
        endpoint = endpoints.endpoint_of(reader, True, False)
        assert endpoint.read(4) is None
        os.write(writer, b"data")
        assert select.select([endpoint.fileno()], [], [], 0)[0]
        assert os.read(copy, 4) == b"data"
        assert endpoint.read(4) is None
        endpoint.close()
    finally:
        os.close(copy)
        os.close(writer)


async def test_sockets_and_sockets_without_blocking() -> None:
    first, second = socket.socketpair()
    first.setblocking(False)
    async with connection.adopt(first) as ours, connection.adopt(second) as theirs:
        assert (os.get_blocking(ours.fileno()), os.get_blocking(theirs.fileno())) == (False, True)
        await ours.send(1)
        assert await theirs.receive() == 1
        await theirs.send(2)
        assert await ours.receive() == 2


def test_what_cannot_be_adopted(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file, pytest.raises(TypeError, match="stream socket"):
        connection.adopt(file)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(TypeError, match="stream socket"):
            connection.adopt(sock)
        assert sock.fileno() >= 0
    with pytest.raises(TypeError, match="or a stream socket, got 5"):
        connection.adopt(5)
    reader, writer = os.pipe()
    with open(reader, "rb") as both, open(writer, "wb"), pytest.raises(TypeError, match="one end of a pipe"):
        connection.adopt(both)


ECHO = """
import sys
from multiprocessing.connection import Connection
theirs = Connection(int(sys.argv[1]))
try:
    while True:
        theirs.send(theirs.recv())
except EOFError:
    pass
"""


@each_python()
async def test_a_process_that_has_inherited_an_end(python: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    descriptor = theirs.fileno()
    command = [python, "-I", "-c", ECHO, str(descriptor)]
    with trio.fail_after(TIMEOUT):
        process = await trio.lowlevel.open_process(command, pass_fds=[descriptor])
        theirs.close()
        async with connection.adopt(ours) as channel:
            for value in ("x", list(range(1000))):
                await channel.send(value)
                assert await channel.receive() == value
        assert await process.wait() == 0


async def test_pipes_are_adopted_after_their_reader_has_gone(how: str) -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    reader.close()
    async with connection.adopt(writer) as ours:
        with pytest.raises(trio.BrokenResourceError):
            await ours.send(1)


def test_a_forgotten_end_is_told() -> None:
    reader, writer = connection.pipe(duplex=False)
    writer.close()
    with pytest.warns(ResourceWarning, match="unclosed end of a pipe"):
        del reader
