"""Contract: ``listen``, ``serve``, ``authenticate``: clients that misbehave keep nobody out, and nothing is left behind."""

from __future__ import annotations

import errno
import logging
import multiprocessing.connection as theirs
import os
import pickle
import secrets
import socket
import stat
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

import pytest
import trio
from connection_support import KEY, TIMEOUT, message, stranger
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_offload import connection
from trio_offload._connection import addresses
from trio_offload._connection import listener as listeners
from trio_offload._connection.digests import CHALLENGE, WELCOME, Security, new_challenge
from trio_offload.connection import Connection, Listener

NEVER = 3600.0  # seconds
SOON = 0.05


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "s")


async def greets(listener: Listener, key: bytes | None = KEY) -> bool:
    """A client that behaves is accepted."""
    with trio.fail_after(TIMEOUT):
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                async with await connection.open_client(listener.address, key) as client:
                    await client.send("hello")

            nursery.start_soon(connect)
            async with await listener.accept() as ours:
                return bool(await ours.receive() == "hello")


class Bomb:
    """Unpickling it leaves a trace."""

    exploded = 0

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    Bomb.exploded += 1


NONSENSE = {
    "silence": b"",
    "half a length": b"\0\0",
    "half an answer": message(b"{sha256}" + bytes(32))[:20],
    "http": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "a huge answer": b"\xff\xff\xff\xff" + b"\x7f" * 8,
    "a long answer": message(bytes(257)),
    "a negative length": b"\xff\xff\xff\xfe",
    "a wrong answer": message(b"{sha256}" + bytes(32)),
    "an empty answer": message(b""),
    "a pickle": message(pickle.dumps(Bomb())),
    "a challenge": message(CHALLENGE + b"{sha256}" + bytes(40)),
    "a welcome": message(WELCOME),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("closes", [False, True])
async def test_a_client_that_misbehaves(nonsense: bytes, closes: bool, address: str) -> None:
    """It keeps nobody out, neither while it is there nor afterwards, and nothing of it is unpickled."""
    async with connection.listen(address, KEY, handshake_timeout=NEVER) as listener:
        with stranger(address) as sock:
            sock.sendall(nonsense)
            if closes:
                sock.close()
            await wait_all_tasks_blocked()
            assert await greets(listener)
        assert await greets(listener)
    assert Bomb.exploded == 0


async def test_a_client_that_knows_half_of_the_handshake(address: str) -> None:
    """It has the key, and closes instead of asking for a proof."""
    async with connection.listen(address, KEY) as listener:
        sock = stranger(address)

        def answer() -> None:
            with sock, sock.makefile("rwb") as stream:
                challenge = stream.read(4 + len(CHALLENGE) + 48)[4:]
                stream.write(message(Security(KEY, 1.0, False).answer_to(challenge)))
                stream.flush()
                assert stream.read(4 + len(WELCOME))[4:] == WELCOME

        await trio.to_thread.run_sync(answer)
        assert await greets(listener)


async def test_a_silent_client_has_a_deadline(address: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connection.listen(address, KEY, handshake_timeout=SOON):
        with stranger(address) as sock:
            # It is sent a challenge, and then the end.
            data = await trio.to_thread.run_sync(lambda: b"".join(iter(lambda: sock.recv(100), b"")))
        assert data[4:].startswith(CHALLENGE + b"{sha256}")
        assert "no handshake within 0.05 seconds" in caplog.text
        assert "refused a client" in caplog.text


async def test_many_silent_clients(address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(listeners, "MAX_HANDSHAKES", 3)
    async with connection.listen(address, KEY, handshake_timeout=NEVER) as listener:
        socks = [stranger(address) for _ in range(8)]
        assert await greets(listener)
        await wait_all_tasks_blocked()
        assert len(listener._handshakes) <= 3
        for sock in socks:
            sock.close()
    assert "newer clients need its place" in caplog.text


async def test_a_silent_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(trio.TooSlowError, match="does the other side use an authkey"):
            await connection.open_client(sock.getsockname(), KEY, handshake_timeout=SOON)


def test_deadlines_by_the_clock_of_the_machine(address: str) -> None:
    """A clock that jumps when all tasks wait does not end a handshake with another process."""

    async def main() -> None:
        async with connection.listen(address, KEY, allow_md5=True) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: theirs.Client(address, authkey=KEY).close())
            async with await listener.accept() as ours:
                with pytest.raises(trio.EndOfChannel):
                    await ours.receive()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "says", [b"", b"#CHALLENGE", message(CHALLENGE + bytes(20)), message(b"hello"), b"SSH-2.0-OpenSSH\r\n"]
)
async def test_a_listener_that_misbehaves(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, trio.fail_after(TIMEOUT):
        async with trio.open_nursery() as nursery:

            def answer() -> None:
                theirs, _ = sock.accept()
                with theirs:
                    theirs.sendall(says)

            nursery.start_soon(trio.to_thread.run_sync, answer)
            with pytest.raises(AuthenticationError):
                await connection.open_client(sock.getsockname(), KEY)


@pytest.mark.parametrize("key", [None, KEY])
async def test_connections_wait_until_they_are_accepted(address: str, key: bytes | None) -> None:
    """Accepted or not, each is closed with its block; further clients wait in the system's queue."""
    async with connection.listen(address, key, backlog=2) as listener, trio.open_nursery() as nursery:
        clients: list[Connection] = []

        async def connect() -> None:
            clients.append(await connection.open_client(address, key))

        for _ in range(5):
            nursery.start_soon(connect)
        with trio.fail_after(TIMEOUT):
            accepted = [await listener.accept() for _ in range(5)]
        nursery.start_soon(connect)
        await wait_all_tasks_blocked()
        for one in accepted:
            one.close()
    for client in clients:
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        client.close()


async def test_a_full_queue_of_the_system(address: str) -> None:
    """The listener of multiprocessing has a queue of one."""
    listener = theirs.Listener(address)
    clients: list[Connection] = []

    async def connect() -> None:
        clients.append(await connection.open_client(address))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(connect)
        await wait_all_tasks_blocked(0.01)
        assert len(clients) < 5
        for _ in range(5):
            (await trio.to_thread.run_sync(listener.accept)).close()
    assert len(clients) == 5
    for client in clients:
        client.close()
    listener.close()


async def test_addresses(tmp_path: Path) -> None:
    name = f"trio-offload-{secrets.token_hex(8)}"
    for address in (tmp_path / "a", str(tmp_path / "b"), os.fsencode(tmp_path / "c"), f"\0{name}", b"\0" + name.encode()):
        async with connection.listen(address) as listener:
            assert await greets(listener, None)
    for host in ("127.0.0.1", "localhost", "", "::1"):
        async with connection.listen((host, 0)) as listener:
            assert listener.address[1] > 0
            assert await greets(listener, None)
            async with await connection.open_client(("localhost" if host != "::1" else host, listener.address[1])) as client:
                async with await listener.accept() as ours:
                    assert ours.remote_address[1] == client._endpoint._socket.getsockname()[1]  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == []


async def test_no_address_is_a_private_one() -> None:
    async with connection.listen() as listener:
        folder = os.path.dirname(listener.address)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        assert await greets(listener, None)
    with pytest.raises(FileNotFoundError):
        os.stat(folder)


@pytest.mark.parametrize("wrong", [5, None, 5.0, object(), ("localhost",), ("localhost", "80"), (5, 80), ("::1", 80, 0, 0)])
async def test_an_address_of_another_type(wrong: Any) -> None:
    with pytest.raises(TypeError, match="address must be"):
        await connection.open_client(wrong)


async def test_wrong_arguments(address: str) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        await connection.open_client("")
    with pytest.raises(FileNotFoundError, match=address):
        await connection.open_client(address)
    with pytest.raises(FileNotFoundError, match=address + "/s"):
        async with connection.listen(address + "/s"):
            pass
    with pytest.raises(ValueError, match="port of an address must be from 0 to 65535, got 65536"):
        await connection.open_client(("localhost", 65536))
    with pytest.raises(ValueError, match="backlog must be 1 or more, got 0"):
        async with connection.listen(address, backlog=0):
            pass
    with pytest.raises(TypeError, match="handler must be an async function that takes a connection, got 5"):
        await connection.serve(5, address)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="authkey"):
        async with connection.listen(address, "text"):  # type: ignore[arg-type]
            pass
    first, second = connection.pipe()
    with pytest.raises(ValueError, match="side must be"):
        await connection.authenticate(first, KEY, side="server")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="authkey must be bytes"):
        await connection.authenticate(first, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a Connection, got 5"):
        await connection.authenticate(5, KEY)  # type: ignore[arg-type]
    first.close()
    second.close()


async def test_a_path_in_use(address: str) -> None:
    async with connection.listen(address):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            async with connection.listen(address):
                pass
        assert caught.value.errno == errno.EADDRINUSE
        os.stat(address)
        # Another listener has taken the place: its socket stays.
        os.unlink(address)
        other = socket.socket(socket.AF_UNIX)
        other.bind(address)
    # It raises if the path is gone.
    os.stat(address)
    other.close()


async def test_an_error_of_the_block_is_raised_as_it_is(address: str) -> None:
    with pytest.raises(KeyError, match="ours"):
        async with connection.listen(address, KEY):
            raise KeyError("ours")
    with trio.CancelScope() as scope:
        async with connection.listen(address, KEY) as listener:
            scope.cancel()
            await listener.accept()
    assert scope.cancelled_caught


async def test_the_end_of_the_block(address: str) -> None:
    async with trio.open_nursery() as nursery:
        async with connection.listen(address, KEY) as listener:

            async def iterate() -> None:
                async for _ in listener:
                    raise AssertionError("there is no client")

            nursery.start_soon(iterate)
            await wait_all_tasks_blocked()
        assert address in repr(listener)
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.EBADF])
async def test_errors_of_accept(address: str, number: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with connection.listen(address) as listener:
        sock, errors = listener._socket, [OSError(number, os.strerror(number))]

        class Failing:
            def accept(self) -> Any:
                if errors:
                    raise errors.pop()
                return sock.accept()

            def fileno(self) -> int:
                return sock.fileno()

        listener._socket = Failing()  # type: ignore[assignment]
        client = stranger(address)
        if number == errno.EBADF:
            with pytest.raises(OSError, match=os.strerror(number)):
                await listener.accept()
        else:
            (await listener.accept()).close()
            assert ("retries" in caplog.text) == (number == errno.EMFILE)
        client.close()


async def test_serve(address: str) -> None:
    async def echo(one: Connection) -> None:
        async for value in one:
            await one.send(value)

    async with trio.open_nursery() as nursery:
        listener: Listener = await nursery.start(connection.serve, echo, address, KEY)
        assert listener.address == address
        clients = [await connection.open_client(address, KEY) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(number)
        assert [await client.receive() for client in clients] == [0, 1, 2]
        nursery.cancel_scope.cancel()
    for client in clients:
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        client.close()


async def test_serve_ends_with_an_error_of_its_handler(address: str) -> None:
    async def fail(_: Connection) -> None:
        raise KeyError("handler")

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Listener]) -> None:
            with pytest.raises(BaseException) as caught:  # noqa: PT011
                await connection.serve(fail, address, task_status=task_status)
            assert "KeyError('handler')" in repr(caught.value)

        await nursery.start(serve)
        (await connection.open_client(address)).close()


@pytest.mark.parametrize("side", ["client", "listener"])
async def test_authenticate(side: Any) -> None:
    first, second = connection.pipe()
    other: Any = {"client": "listener", "listener": "client"}[side]
    async with first, second, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: connection.authenticate(first, KEY, side=side))
        await connection.authenticate(second, KEY, side=other)
        await first.send(1)
        assert await second.receive() == 1


async def test_authenticate_with_functions_of_theirs() -> None:
    ours, other = theirs.Pipe()

    def challenge() -> None:
        theirs.deliver_challenge(other, KEY)  # type: ignore[attr-defined]
        theirs.answer_challenge(other, KEY)  # type: ignore[attr-defined]

    async with connection.adopt(ours) as one, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, challenge)
        await connection.authenticate(one, KEY, allow_md5=True)
    other.close()


async def test_a_failed_handshake_closes_the_connection() -> None:
    first, second = connection.pipe()
    second.close()
    with pytest.raises(AuthenticationError):
        await connection.authenticate(first, KEY)
    assert first.closed


async def test_a_cancelled_handshake_closes_the_connection() -> None:
    first, second = connection.pipe()
    with trio.move_on_after(0.01):
        await connection.authenticate(first, KEY)
    assert first.closed
    second.close()


async def test_a_cancelled_connect(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MIN_PAUSE", NEVER)
    monkeypatch.setattr(addresses, "MAX_PAUSE", NEVER)
    listener = theirs.Listener(address)
    with trio.move_on_after(SOON) as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(connect_and_close, address)
    assert scope.cancelled_caught
    listener.close()


async def connect_and_close(address: str) -> None:
    (await connection.open_client(address)).close()


class Half(trio.abc.AsyncResource):
    """The other side of a handshake: plays its part, and ends after so many bytes."""

    def __init__(self, sock: socket.socket, cut: int) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._left = cut

    async def send(self, data: bytes) -> None:
        whole = message(data)
        sent, self._left = whole[: self._left], max(self._left - len(whole), 0)
        await self._stream.send_all(sent)
        if sent != whole:
            raise trio.EndOfChannel

    async def receive(self) -> bytes:
        size = int.from_bytes(await self._exactly(4), "big")
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self._stream.receive_some(size - len(data))
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


async def play(half: Half, side: str) -> None:
    security = Security(KEY, NEVER, False)

    async def answer() -> None:
        await half.send(security.answer_to(await half.receive()))
        assert await half.receive() == WELCOME

    async def deliver() -> None:
        challenge = new_challenge()
        await half.send(CHALLENGE + challenge)
        security.check_answer(challenge, await half.receive())
        await half.send(WELCOME)

    steps = [answer, deliver] if side == "client" else [deliver, answer]
    try:
        for step in steps:
            await step()
    except trio.EndOfChannel:
        pass
    finally:
        await half.aclose()


@pytest.mark.parametrize("side", ["client", "listener"])
async def test_a_handshake_cut_after_each_byte(side: Any) -> None:
    """The sum of all messages of a side: it is one handshake that succeeds, and each shorter one fails at once."""
    whole = sum(4 + size for size in (len(CHALLENGE) + 48, 8 + 32, len(WELCOME)))
    other: Any = {"client": "listener", "listener": "client"}[side]
    for cut in range(1, whole + 1):
        first, second = socket.socketpair()
        ours = connection.adopt(first)
        second.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, Half(second, cut), other)
            if cut == whole:
                await connection.authenticate(ours, KEY, side=side, handshake_timeout=NEVER)
                assert not ours.closed
            else:
                with pytest.raises(AuthenticationError):
                    await connection.authenticate(ours, KEY, side=side, handshake_timeout=NEVER)
                assert ours.closed
        ours.close()
