"""``Connection``: messages between a task and the other end, as ``multiprocessing`` sends them."""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
from collections.abc import Callable
from multiprocessing import AuthenticationError, BufferTooShort
from multiprocessing.reduction import ForkingPickler
from typing import Any, final

import trio
from trio.lowlevel import enable_ki_protection

from .._documented import PublicABCType
from .._sizes import check_count
from .digests import CHALLENGE
from .endpoints import Endpoint, has_input
from .passing import Passable
from .wire import Inbox, Outbox


@final
class Connection(Passable, trio.abc.Channel[Any], metaclass=PublicABCType):
    """One end of a connection, whose other end may be a ``multiprocessing.connection.Connection``.

    ::

        ours, theirs = connection.pipe()
        async with ours, theirs:
            await theirs.send_bytes(b'{"id": 7}')
            ours.loads = json.loads
            print(await ours.receive())  # {'id': 7}

    Made by :func:`open_client`, :func:`listen`, :func:`serve`, :func:`pipe` and :func:`adopt`. It
    is an async context manager, which closes it, and ``async for`` receives until the end.

    Tasks may share it. Messages stay whole, and tasks get their turn in order.

    It can be passed to a job, which gets a ``multiprocessing.connection.Connection`` with a
    duplicate of the descriptor. This end stays open, unless it is passed by :meth:`move`.

    Attributes:
        dumps: Makes the bytes of :meth:`send`. It pickles as ``multiprocessing`` does.
        loads: Makes the object of :meth:`receive` from bytes. Replace it, perhaps by
            ``json.loads``, if the other side is not trusted: unpickling runs its code.
        remote_address: Address of the other end, if a listener has accepted this one.
    """

    _is_constructible = False

    def __init__(self, endpoint: Endpoint, remote_address: Any = None) -> None:
        super().__init__(endpoint)
        self.dumps: Callable[[Any], bytes | memoryview] = ForkingPickler.dumps
        self.loads: Callable[[bytes], Any] = pickle.loads
        self.remote_address = remote_address
        self._descriptor = endpoint.fileno()
        self._closed = False
        self._inbox = Inbox(endpoint.read)
        self._outbox = Outbox(endpoint.write)
        self._receiving = trio.Lock()
        self._sending = trio.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"descriptor {self._descriptor}"
        return f"<trio_offload.connection.Connection at {id(self):#x}, {state}>"

    # --- sending -----------------------------------------------------------------------------

    @enable_ki_protection
    async def send(self, value: Any) -> None:
        """Pickle an object, and send it. A checkpoint.

        If it is cancelled, the message is sent whole or not at all. The rest of a message that has
        begun goes out before the next one, or with :meth:`flush`.

        Raises:
            Exception: The object cannot be pickled.
            trio.BrokenResourceError: The other end is closed.
            trio.ClosedResourceError: This end is closed, perhaps during the wait.
            io.UnsupportedOperation: This is the receiving end of a pipe.
        """
        await self._send(self.dumps(value))

    @enable_ki_protection
    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send the bytes of a buffer as one message. A checkpoint.

        The buffer must not change until it returns.

        Raises:
            Exception: As :meth:`send`.
        """
        view = memoryview(data)
        await self._send(view if view.ndim == view.itemsize == 1 and view.format == "B" else view.cast("B"))

    @enable_ki_protection
    async def flush(self) -> None:
        """Send the rest of a message whose :meth:`send` was cancelled. A checkpoint.

        Raises:
            Exception: As :meth:`send`.
        """
        await self._send(None)

    async def _send(self, message: bytes | memoryview | None) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._endpoint.is_writable, "receives")
        has_waited = await _acquire(self._sending)
        try:
            self._check(self._endpoint.is_writable, "receives")
            outbox = self._outbox
            for part in (None, message):
                if part is not None:
                    outbox.put(part)
                while not outbox.is_empty and not outbox.write():
                    has_waited = True
                    await trio.lowlevel.wait_writable(self._descriptor)
                    self._check(self._endpoint.is_writable, "receives")
        except OSError as error:
            self._outbox.clear()
            raise trio.BrokenResourceError(f"the other end is closed: {error}") from error
        except BaseException:
            self._outbox.give_up()
            raise
        finally:
            self._sending.release()
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    # --- receiving ---------------------------------------------------------------------------

    @enable_ki_protection
    async def receive(self) -> Any:
        """Receive a message, and unpickle it. A checkpoint.

        If it is cancelled, the part of the message that has come is kept for the next receive.

        Raises:
            trio.EndOfChannel: The other end is closed.
            trio.BrokenResourceError: It was closed, or its process died, within a message.
            trio.ClosedResourceError: This end is closed, perhaps during the wait.
            multiprocessing.AuthenticationError: The message is the challenge of a listener that
                expects an authkey.
            io.UnsupportedOperation: This is the sending end of a pipe.
            Exception: The message cannot be unpickled. It is lost.
        """
        message = await self._receive(None)
        try:
            return self.loads(message)
        except Exception:
            if message.startswith(CHALLENGE):
                raise AuthenticationError("the listener expects an authkey: pass it to open_client") from None
            raise

    @enable_ki_protection
    async def receive_bytes(self, max_length: int | None = None) -> bytes:
        """Receive a message as bytes. A checkpoint.

        Raises:
            OSError: The message is longer than ``max_length``, and ``errno`` is ``EMSGSIZE``. It
                stays: the next receive gets it.
            Exception: As :meth:`receive`.
        """
        if max_length is not None:
            check_count("max_length", max_length, at_least=0)
        message: bytes = await self._receive(max_length)
        return message

    @enable_ki_protection
    async def receive_bytes_into(self, buffer: Any, offset: int = 0) -> int:
        """Receive a message into a writable buffer. Return its number of bytes. A checkpoint.

        The bytes are written from ``offset``. If the receive is cancelled, the buffer's content
        is undefined, and the message is kept.

        Raises:
            multiprocessing.BufferTooShort: The message is longer. ``args[0]`` has it.
            Exception: As :meth:`receive`.
        """
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if view.readonly:
                raise TypeError("receive_bytes_into needs a writable buffer")
            if not 0 <= offset <= view.nbytes:
                raise ValueError(f"offset must be from 0 to {view.nbytes}, got {offset!r}")
            with view[offset:] as target:
                result: int | bytes = await self._receive(None, target)
        if isinstance(result, bytes):
            raise BufferTooShort(result)
        return result

    async def _receive(self, max_length: int | None, target: memoryview | None = None) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._endpoint.is_readable, "sends")
        has_waited = await _acquire(self._receiving)
        try:
            self._check(self._endpoint.is_readable, "sends")
            inbox = self._inbox
            message: Any
            while (message := inbox.take(max_length) if target is None else inbox.take_into(target)) is None:
                has_waited = True
                await trio.lowlevel.wait_readable(self._descriptor)
                self._check(self._endpoint.is_readable, "sends")
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise
            raise trio.BrokenResourceError(f"the other end has broken the connection: {error}") from error
        finally:
            if target is not None:
                self._inbox.keep(target)
            self._receiving.release()
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    # --- the rest ----------------------------------------------------------------------------

    @enable_ki_protection
    async def receivable(self) -> None:
        """Wait until something has come from the other end: a message, a part of it, or the end.

        A checkpoint.

        Raises:
            trio.BusyResourceError: A receive is waiting.
            trio.ClosedResourceError: This end is closed, perhaps during the wait.
        """
        self._check(self._endpoint.is_readable, "sends")
        await trio.lowlevel.wait_readable(self._descriptor)

    def poll(self) -> bool:
        """Return True if :meth:`receivable` would return at once."""
        self._check(self._endpoint.is_readable, "sends")
        return has_input(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor. If it is a socket, its flags are those that it came with.

        Raises:
            trio.ClosedResourceError: This end is closed.
        """
        self._check(True, "")
        return self._descriptor

    @property
    def closed(self) -> bool:
        """True if this end is closed."""
        return self._closed

    @property
    def readable(self) -> bool:
        """True if it can receive, as all but the sending end of a pipe."""
        return self._endpoint.is_readable

    @property
    def writable(self) -> bool:
        """True if it can send, as all but the receiving end of a pipe."""
        return self._endpoint.is_writable

    @enable_ki_protection
    def close(self) -> None:
        """Close this end. Tasks that wait for it get :exc:`trio.ClosedResourceError`.

        The rest of a cancelled :meth:`send` is dropped, so the other end sees a torn message.
        """
        if not self._closed:
            self._closed = True
            # Tasks that wait exist in `trio.run` only.
            with contextlib.suppress(RuntimeError):
                trio.lowlevel.notify_closing(self._descriptor)
            self._endpoint.close()

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close this end, as :meth:`close`. A checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _check_passable(self) -> None:
        self._check(True, "")
        if not (self._inbox.is_empty and self._outbox.is_empty):
            raise RuntimeError("this connection cannot be passed on: a part of a message has been received or sent")

    def _check(self, is_able: bool, verb: str) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        if not is_able:
            raise io.UnsupportedOperation(f"this is the end of a pipe that only {verb}")


async def _acquire(lock: trio.Lock) -> bool:
    """Acquire a lock. Return True if that was a checkpoint."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
        return True
    return False
