"""``open_client``, ``pipe`` and ``adopt``: connections of this side's making."""

from __future__ import annotations

import os
import socket
from typing import Any

from .addresses import Address, connect
from .connection import Connection
from .digests import Security
from .endpoints import SocketEndpoint, endpoint_of
from .handshake import HANDSHAKE_TIMEOUT, shake_hands


async def open_client(
    address: Address,
    authkey: bytes | None = None,
    *,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    allow_md5: bool = False,
) -> Connection:
    """Connect to a listener, as ``multiprocessing.connection.Client`` does. A checkpoint.

    ::

        async with await connection.open_client(("localhost", 6000), authkey=key) as client:
            await client.send("you")
            print(await client.receive())

    Args:
        address: The listener's address, as for :func:`listen`.
        authkey: The key that the listener knows. It must be None if the listener has none.
        handshake_timeout: Seconds after which the handshake has failed, by the machine's clock.
        allow_md5: True accepts a listener with Python up to 3.11, which has HMAC-MD5 only.

    Raises:
        OSError: The listener cannot be reached.
        multiprocessing.AuthenticationError: The keys differ, or the listener speaks another
            protocol, or has closed the connection.
        trio.TooSlowError: The listener has sent too little in time.
    """
    security = Security(authkey, handshake_timeout, allow_md5)
    connection = Connection(SocketEndpoint(await connect(address)))
    if authkey is not None:
        await shake_hands(connection, security, "client")
    return connection


def pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Return both ends of a new connection, as ``multiprocessing.Pipe`` does.

    ::

        ours, theirs = connection.pipe()
        async with ours, trio.open_nursery() as nursery:
            nursery.start_soon(trio_offload.run_sync, work, theirs.move())
            await ours.send(3)

    Args:
        duplex: False means a pipe: the first end only receives, the second only sends.
    """
    if duplex:
        first, second = socket.socketpair()
        first.setblocking(True)
        second.setblocking(True)
        return Connection(SocketEndpoint(first)), Connection(SocketEndpoint(second))
    reader, writer = os.pipe()
    return Connection(endpoint_of(reader, True, False)), Connection(endpoint_of(writer, False, True))


def adopt(connection: Any) -> Connection:
    """Use a ``multiprocessing.connection.Connection`` of this process from Trio.

    ::

        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=work, args=(theirs,))
        process.start()
        theirs.close()
        async with connection.adopt(ours) as ours: ...

    The given object is closed: the new one takes its place. The flags of its descriptor do not
    change, because copies in other processes share them.

    Args:
        connection: A connection, or another object with ``fileno()`` and ``close()``: a stream
            socket, or one end of a pipe with the attributes ``readable`` and ``writable``.

    Raises:
        TypeError: Its descriptor is neither a stream socket nor a pipe. It stays open.
    """
    if not hasattr(connection, "fileno") or not hasattr(connection, "close"):
        raise TypeError(f"adopt takes a multiprocessing.connection.Connection or a stream socket, got {connection!r}")
    readable, writable = getattr(connection, "readable", True), getattr(connection, "writable", True)
    descriptor = os.dup(connection.fileno())
    try:
        endpoint = endpoint_of(descriptor, bool(readable), bool(writable))
    except BaseException:
        os.close(descriptor)
        raise
    connection.close()
    return Connection(endpoint)
