"""Contract: plain Python processes of each version that is here speak with us, as clients and as listeners."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import secrets
import sys
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

import pytest
import trio
from connection_support import KEY, each_python, has_md5_only, peer

from trio_offload import connection
from trio_offload.connection import Connection

ADDRESSES = ["path", "abstract", "tcp"]
SMALL_MESSAGES = [b"", b"x", bytes(16384), bytes(16385)]
HUGE = 2**31 + 5


def address_of(kind: str, tmp_path: Path) -> Any:
    if kind == "tcp":
        return ("127.0.0.1", 0)
    return str(tmp_path / "s") if kind == "path" else f"\0trio-offload-{secrets.token_hex(8)}"


async def converse(ours: Connection) -> None:
    """Objects and bytes there and back."""
    for value in ({"key": [1, 2.5, None]}, b"bytes", "x" * 300_000):
        await ours.send(value)
        assert await ours.receive() == value
    for data in [*SMALL_MESSAGES, os.urandom(3_000_000)]:
        await ours.send("bytes")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_bytes, data)
            assert await ours.receive_bytes() == data
    await ours.send("bye")


@each_python()
@pytest.mark.parametrize("kind", ADDRESSES)
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no-key"])
async def test_a_client_of_theirs(python: str, kind: str, key: bytes | None, tmp_path: Path) -> None:
    md5 = has_md5_only(python)
    async with connection.listen(address_of(kind, tmp_path), key, allow_md5=md5) as listener:
        async with peer(python, "client", listener.address, key) as theirs:
            async with await listener.accept() as ours:
                await converse(ours)
                with pytest.raises(trio.EndOfChannel):
                    await ours.receive()
            assert await theirs.line() == "bye"


@each_python()
@pytest.mark.parametrize("kind", ADDRESSES)
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no-key"])
async def test_a_listener_of_theirs(python: str, kind: str, key: bytes | None, tmp_path: Path) -> None:
    md5 = has_md5_only(python)
    async with peer(python, "listener", address_of(kind, tmp_path), key) as theirs:
        async with await connection.open_client(await theirs.address(), key, allow_md5=md5) as ours:
            await converse(ours)
        assert await theirs.line() == "bye"


@each_python()
async def test_a_client_with_another_key(python: str, tmp_path: Path) -> None:
    md5 = has_md5_only(python)
    async with connection.listen(tmp_path / "s", KEY, allow_md5=md5) as listener:
        async with peer(python, "client", listener.address, b"another key") as theirs:
            assert await theirs.line() == "AuthenticationError"
        # The next one is welcome.
        async with peer(python, "client", listener.address) as theirs, await listener.accept() as ours:
            await ours.send("bye")


@each_python()
async def test_a_listener_with_another_key(python: str, tmp_path: Path) -> None:
    md5 = has_md5_only(python)
    async with peer(python, "listener", str(tmp_path / "s"), b"another key") as theirs:
        with pytest.raises(AuthenticationError, match="another authkey"):
            await connection.open_client(await theirs.address(), KEY, allow_md5=md5)
        assert await theirs.line() == "AuthenticationError"


@each_python()
async def test_md5_is_refused_unless_allowed(python: str, tmp_path: Path) -> None:
    if not has_md5_only(python):
        # Nothing is refused: they use SHA-256 both ways.
        async with connection.listen(tmp_path / "s", KEY) as listener:
            async with peer(python, "client", listener.address), await listener.accept() as ours:
                await ours.send("bye")
        return
    async with connection.listen(tmp_path / "s", KEY) as listener:
        async with peer(python, "client", listener.address) as theirs:
            assert await theirs.line() == "AuthenticationError"
    async with peer(python, "listener", str(tmp_path / "t")) as theirs:
        with pytest.raises(AuthenticationError, match="allow_md5"):
            await connection.open_client(await theirs.address(), KEY)
        assert await theirs.line() == "EOFError"


@each_python()
async def test_a_listener_that_expects_a_key(python: str, tmp_path: Path) -> None:
    async with peer(python, "listener", str(tmp_path / "s")) as theirs:
        async with await connection.open_client(await theirs.address()) as ours:
            with pytest.raises(AuthenticationError, match="expects an authkey"):
                await ours.receive()
        assert await theirs.line() == "EOFError"


@contextlib.contextmanager
def small_memory_of_size(size: int) -> Iterator[mmap.mmap | Any]:
    """Provide a buffer of that size. All its pages are the same 16 MiB of memory."""
    piece = 1 << 24
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    whole = (size + piece - 1) // piece * piece
    start = libc.mmap(None, whole, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    memory = os.memfd_create("small")
    try:
        os.ftruncate(memory, piece)
        fixed = 0x10  # MAP_FIXED
        for place in range(start, start + whole, piece):
            mapped = libc.mmap(place, piece, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, memory, 0)
            assert mapped == place
        yield (ctypes.c_char * size).from_address(start)
    finally:
        os.close(memory)
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(whole))


@pytest.mark.slow
async def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """The length has eight bytes. Nothing here needs the memory; their process does, once. The suite runs on each Python."""
    python = sys.executable
    async with connection.listen(tmp_path / "s", KEY, allow_md5=has_md5_only(python)) as listener:
        async with peer(python, "client", listener.address, deadline=600), await listener.accept() as ours:
            await ours.send(f"large {HUGE}")
            with small_memory_of_size(HUGE) as buffer:
                buffer[HUGE - 1 : HUGE] = b"x"
                assert await ours.receive_bytes_into(buffer) == HUGE
                assert bytes(buffer[HUGE - 5 :]) == bytes(5)
            await ours.send("count")
            with mmap.mmap(-1, HUGE) as zeros:
                await ours.send_bytes(zeros)
            assert await ours.receive() == HUGE
            await ours.send("bye")
