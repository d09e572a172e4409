"""Peers for tests of connections: plain Python processes of each version, and sockets that misbehave."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_offload._connection.wire import head_of

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / "tests" / "programs" / "connection_peer.py"
KEY = b"a key that both sides know"
TIMEOUT = 30.0  # seconds: a test that hangs fails


@cache
def pythons() -> list[str]:
    """The usable interpreters, one of each minor version."""
    command = [sys.executable, ROOT / "ci" / "find_pythons.py"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@cache
def has_md5_only(python: str) -> bool:
    """True for Python up to 3.11."""
    command = [python, "-c", "import sys; print(sys.version_info < (3, 12))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"


def each_python() -> pytest.MarkDecorator:
    """The test runs with a peer of each version."""
    return pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).resolve().name)


class Peer:
    """A process of the program `connection_peer.py`."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._output = process.stdout
        self._text = b""

    async def line(self) -> str:
        """Return what it prints next."""
        while b"\n" not in self._text:
            more = await self._output.receive_some()
            assert more, "the peer has ended"
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    async def address(self) -> Any:
        """Return the address of a listener."""
        return ast.literal_eval(await self.line())


@asynccontextmanager
async def peer(
    python: str, role: str, address: Any, key: bytes | None = KEY, deadline: float = TIMEOUT
) -> AsyncIterator[Peer]:
    """Run a peer, with a deadline for all of it."""
    command = [python, "-I", str(PEER), role, repr(address), repr(key)]
    with trio.fail_after(deadline):
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        try:
            yield Peer(process)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


def message(data: bytes) -> bytes:
    """Return a message as it is on the wire."""
    return head_of(len(data)) + data


def stranger(address: Any) -> socket.socket:
    """Return a socket that is connected to a listener, and has said nothing."""
    sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(address)
    return sock
