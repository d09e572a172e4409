"""The handshake of a connection, with a deadline."""

from __future__ import annotations

import errno
from multiprocessing import AuthenticationError
from typing import Final, Literal

import trio

from .. import _clock
from .connection import Connection
from .digests import CHALLENGE, FAILURE, MAX_LENGTH, WELCOME, Security, new_challenge

Side = Literal["client", "listener"]
SIDES: Final = ("client", "listener")
HANDSHAKE_TIMEOUT: Final = 10.0


async def authenticate(
    connection: Connection,
    authkey: bytes,
    *,
    side: Side = "client",
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    allow_md5: bool = False,
) -> None:
    """Prove to the other end that this one knows the key, and have it proved. A checkpoint.

    ::

        async with connection.adopt(tunnel) as client:  # a socket that another library made
            await connection.authenticate(client, key)
            await client.send("hello")

    :func:`open_client` and :func:`listen` do it. Call it for an adopted connection whose other end
    calls ``deliver_challenge`` and then ``answer_challenge`` of ``multiprocessing.connection``; or
    the other way round, with ``side="listener"``. If it fails, the connection is closed.

    Args:
        connection: A connection on which nothing has been sent or received.
        authkey: The key that both sides know.
        side: The side that this end takes. A client answers first.
        handshake_timeout: Seconds after which it has failed, by the machine's clock.
        allow_md5: True accepts Python up to 3.11, which has HMAC-MD5 only.

    Raises:
        multiprocessing.AuthenticationError: The keys differ, or the other side speaks another
            protocol, or has closed the connection.
        trio.TooSlowError: The other side has sent too little in time.
    """
    if side not in SIDES:
        raise ValueError(f"side must be 'client' or 'listener', got {side!r}")
    if not isinstance(connection, Connection):
        raise TypeError(f"authenticate takes a Connection, got {connection!r}. adopt() makes one of a socket or a pipe")
    if authkey is None:
        raise TypeError("authkey must be bytes, got None")
    await shake_hands(connection, Security(authkey, handshake_timeout, allow_md5), side)


async def shake_hands(connection: Connection, security: Security, side: Side) -> None:
    """As :func:`authenticate`."""
    try:
        with _clock.move_on_after(security.handshake_timeout) as scope:
            try:
                await _exchange(connection, security, side)
            except trio.EndOfChannel:
                raise AuthenticationError("the other side closed the connection during the handshake") from None
            except trio.BrokenResourceError as error:
                raise AuthenticationError(f"the connection broke during the handshake: {error}") from error
        if scope.cancelled_caught:
            message = f"no handshake within {security.handshake_timeout:g} seconds: does the other side use an authkey?"
            raise trio.TooSlowError(message)
    except BaseException:
        connection.close()
        raise


async def _exchange(connection: Connection, security: Security, side: Side) -> None:
    if side == "client":
        await _answer_challenge(connection, security)
        await _deliver_challenge(connection, security)
    else:
        await _deliver_challenge(connection, security)
        await _answer_challenge(connection, security)


async def _deliver_challenge(connection: Connection, security: Security) -> None:
    challenge = new_challenge()
    await connection.send_bytes(CHALLENGE + challenge)
    answer = await _receive(connection)
    try:
        security.check_answer(challenge, answer)
    except AuthenticationError:
        await connection.send_bytes(FAILURE)
        raise
    await connection.send_bytes(WELCOME)


async def _answer_challenge(connection: Connection, security: Security) -> None:
    await connection.send_bytes(security.answer_to(await _receive(connection)))
    if await _receive(connection) != WELCOME:
        raise AuthenticationError("the other side rejected the answer to its challenge: it has another authkey")


async def _receive(connection: Connection) -> bytes:
    try:
        return await connection.receive_bytes(MAX_LENGTH)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        raise AuthenticationError("the other side speaks another protocol: its message is too long") from None
