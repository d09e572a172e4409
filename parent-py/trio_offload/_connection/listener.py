"""``listen`` and ``serve``: accept connections, each handshake in a separate task."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing import AuthenticationError
from typing import Any, Final, final

import trio

from trio_offload_worker import PublicType

from .. import _clock
from .._sizes import check_count
from .addresses import Address, blocking, bound
from .connection import Connection
from .digests import Security
from .endpoints import SocketEndpoint
from .handshake import HANDSHAKE_TIMEOUT, shake_hands

logger: Final = logging.getLogger("trio_offload")

# A further client pushes the oldest handshake out, so silent clients cannot keep others away.
MAX_HANDSHAKES: Final = 64
BACKLOG: Final = 64
# The system is out of descriptors or memory: others may release some.
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE: Final = 0.1  # seconds
# A client that is gone already, or a network that fails, concerns one connection.
_OF_ONE_CLIENT: Final = (
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP),
)


@final
class Listener(metaclass=PublicType):
    """A socket that accepts connections, made by :func:`listen`.

    ::

        async with connection.listen() as listener:
            nursery.start_soon(trio_offload.run_sync, report, listener.address)
            async with await listener.accept() as client:
                print(await client.receive())

    Iterate it for :class:`Connection` objects whose other end has proved that it knows the key.

    Attributes:
        address: The address, with the port that the system has chosen.
    """

    _is_constructible = False

    def __init__(self, sock: socket.socket, security: Security, backlog: int) -> None:
        # That of IPv6 has two parts more, which `open_client` does not take.
        self.address: Any = sock.getsockname()[:2] if sock.family == socket.AF_INET6 else sock.getsockname()
        self._socket = sock
        self._security = security
        self._backlog = backlog
        self._ready, self._accepted = trio.open_memory_channel[Connection](math.inf)
        self._handshakes: dict[trio.CancelScope, None] = {}
        self._has_room = trio.Event()
        self._failure: OSError | None = None

    def __repr__(self) -> str:
        return f"<trio_offload.connection.Listener at {id(self):#x}, address {self.address!r}>"

    async def accept(self) -> Connection:
        """Wait for the next connection. A checkpoint.

        A client whose handshake fails is logged, and otherwise ignored.

        Raises:
            trio.ClosedResourceError: The listener's block has ended.
            OSError: The socket cannot accept any more.
        """
        try:
            connection: Connection = await self._accepted.receive()
        except trio.EndOfChannel:
            raise self._failure or trio.ClosedResourceError("this listener is closed") from None
        self._has_room.set()
        return connection

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Connection:
        try:
            return await self.accept()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None

    async def _accept_all(self, nursery: trio.Nursery) -> None:
        try:
            while True:
                while self._ready.statistics().current_buffer_used >= self._backlog:
                    self._has_room = trio.Event()
                    await self._has_room.wait()
                await trio.lowlevel.wait_readable(self._socket)
                await self._accept_one(nursery)
        except OSError as error:
            self._failure = error
            self._ready.close()

    async def _accept_one(self, nursery: trio.Nursery) -> None:
        try:
            sock, address = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                logger.warning("%r cannot accept a connection, and retries: %s", self, error)
                await _clock.sleep(_PAUSE)
            elif error.errno not in _OF_ONE_CLIENT:
                raise
            return
        connection = Connection(SocketEndpoint(blocking(sock)), address)
        if self._security.authkey is None:
            self._deliver(connection)
        else:
            if len(self._handshakes) >= MAX_HANDSHAKES:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            scope = trio.CancelScope()
            self._handshakes[scope] = None
            nursery.start_soon(self._shake_hands, connection, scope)

    def _deliver(self, connection: Connection) -> None:
        try:
            self._ready.send_nowait(connection)
        except trio.ClosedResourceError:
            connection.close()

    async def _shake_hands(self, connection: Connection, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await shake_hands(connection, self._security, "listener")
                self._deliver(connection)
            except (AuthenticationError, trio.TooSlowError) as error:
                logger.warning("%r refused a client at %r: %s", self, connection.remote_address, error)
            finally:
                self._handshakes.pop(scope, None)
        if scope.cancelled_caught:
            logger.warning("%r refused a client at %r: newer clients need its place", self, connection.remote_address)

    def _close(self) -> None:
        self._ready.close()
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self._accepted.receive_nowait().close()


@contextlib.asynccontextmanager
async def listen(
    address: Address | None = None,
    authkey: bytes | None = None,
    *,
    backlog: int = BACKLOG,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    allow_md5: bool = False,
) -> AsyncIterator[Listener]:
    """Listen for connections, as ``multiprocessing.connection.Listener`` does.

    ::

        async with connection.listen(("", 6000), authkey=key) as listener:
            async for client in listener:
                nursery.start_soon(handle, client)

    Each handshake has a separate task with a deadline, so other clients do not wait for one that is
    silent or sends nonsense. At the end of the block the socket is closed. Connections that
    have been accepted stay open.

    Args:
        address: A path of a Unix socket, a name in the abstract namespace that begins with
            ``"\\0"``, or a tuple of host and port. Port 0 lets the system choose. None means a
            path in a private folder. ``listener.address`` is the result.
        authkey: The key that clients must know. None accepts everybody who can connect, and
            whose pickles can run any code here.
        backlog: Number of connections that may wait until they are accepted.
        handshake_timeout: Seconds after which a handshake has failed, by the machine's clock.
        allow_md5: True accepts clients with Python up to 3.11, which has HMAC-MD5 only.

    Raises:
        OSError: The address cannot be used.
    """
    security = Security(authkey, handshake_timeout, allow_md5)
    check_count("backlog", backlog)
    error: BaseException | None = None
    with bound(address, backlog) as sock:
        listener = Listener(sock, security, backlog)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener._accept_all, nursery)
            try:
                yield listener
            except BaseException as raised:
                # The nursery would wrap it in a group.
                error = raised
            finally:
                nursery.cancel_scope.cancel()
        listener._close()
    if error is not None:
        try:
            raise error
        finally:
            del error


async def serve(
    handler: Callable[[Connection], Awaitable[object]],
    address: Address | None = None,
    authkey: bytes | None = None,
    *,
    backlog: int = BACKLOG,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    allow_md5: bool = False,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen for connections, and run ``handler(connection)`` in a task for each, for ever.

    ::

        async def greet(client):
            async for name in client:
                await client.send(f"hello, {name}")

        await connection.serve(greet, ("", 6000), authkey=key)

    The connection is closed when its handler has returned. An exception of a handler ends all, as
    with :func:`trio.serve_tcp`. ``await nursery.start(serve, …)`` returns the :class:`Listener`.

    Args:
        handler: Async function that gets each :class:`Connection`.
        address: As for :func:`listen`, like the rest.
    """
    if not callable(handler):
        raise TypeError(f"handler must be an async function that takes a connection, got {handler!r}")
    block = listen(address, authkey, backlog=backlog, handshake_timeout=handshake_timeout, allow_md5=allow_md5)
    async with block as listener, trio.open_nursery() as nursery:
        task_status.started(listener)
        async for connection in listener:
            nursery.start_soon(_handle, handler, connection)


async def _handle(handler: Callable[[Connection], Awaitable[object]], connection: Connection) -> None:
    async with connection:
        await handler(connection)
