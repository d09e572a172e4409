"""Addresses: a path, a name in the abstract namespace, or a host and a port."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import trio

from .. import _clock

Address: TypeAlias = "str | bytes | os.PathLike[str] | tuple[str, int]"

# A Unix socket cannot wait for room in a listener's full backlog, so it tries again and again.
MIN_PAUSE, MAX_PAUSE = 0.001, 0.05  # seconds
_MAX_PORT: Final = 65535


def checked(address: Address) -> str | bytes | tuple[str, int]:
    """Return the address as the system takes it.

    Raises:
        TypeError: it has another type.
        ValueError: it is an empty path, or its port is none.
    """
    if isinstance(address, tuple):
        parts: tuple[Any, ...] = address
        host, port = parts if len(parts) == 2 else (None, None)
        if not isinstance(host, str) or not isinstance(port, int):
            raise _wrong(address)
        if not 0 <= port <= _MAX_PORT:
            raise ValueError(f"the port of an address must be from 0 to {_MAX_PORT}, got {port!r}")
        return address
    try:
        path = os.fspath(address)
    except TypeError:
        raise _wrong(address) from None
    if not path:
        raise ValueError("address must not be empty")
    return path


def _wrong(address: object) -> TypeError:
    return TypeError(f"address must be a path, or a tuple of host and port such as ('localhost', 6000), got {address!r}")


async def connect(address: Address) -> socket.socket:
    """Connect to a listener.

    Raises:
        OSError: it cannot be reached.
    """
    address = checked(address)
    if isinstance(address, tuple):
        stream = await trio.open_tcp_stream(*address)
        return blocking(socket.socket(fileno=stream.socket.detach()))
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        pause = MIN_PAUSE
        while True:
            try:
                sock.connect(address)
                return blocking(sock)
            except BlockingIOError:
                await _clock.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE)
    except BaseException as error:
        sock.close()
        _add(address, error)
        raise


def blocking(sock: socket.socket) -> socket.socket:
    """Return the socket, which blocks from now on, as others expect it of the descriptor."""
    sock.setblocking(True)
    if sock.family != socket.AF_UNIX:
        # Otherwise the second of two messages would wait for the acknowledgement of the first.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.contextmanager
def bound(address: Address | None, backlog: int) -> Iterator[socket.socket]:
    """Provide a listening socket. A path that it has made is removed afterwards.

    With None the path is in a new folder that only this user can enter.
    """
    if address is None:
        folder = tempfile.mkdtemp(prefix="listener-")
        try:
            with bound(os.path.join(folder, "socket"), backlog) as sock:
                yield sock
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    address = checked(address)
    with socket.socket(_family_of(address)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            _add(address, error)
            raise
        made = _identity_of(address)
        try:
            sock.listen(backlog)
            sock.setblocking(False)
            yield sock
        finally:
            # Somebody else may have put another socket there.
            if made is not None and made == _identity_of(address):
                os.unlink(address)  # type: ignore[arg-type]  # a path


def _add(address: str | bytes | tuple[str, int], error: BaseException) -> None:
    """Let an error of the system name the address."""
    if isinstance(error, OSError) and error.errno:
        error.filename = address


def _family_of(address: str | bytes | tuple[str, int]) -> socket.AddressFamily:
    if not isinstance(address, tuple):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _identity_of(address: str | bytes | tuple[str, int]) -> tuple[int, int] | None:
    if isinstance(address, tuple) or address[:1] in ("\0", b"\0"):
        return None
    try:
        status = os.stat(address)
    except OSError:
        return None
    return status.st_dev, status.st_ino
