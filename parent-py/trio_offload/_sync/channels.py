"""The ends of channels between tasks and jobs, with the meaning of Trio's memory channels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

import trio
from trio.lowlevel import enable_ki_protection

from .._documented import PublicABCType
from .._pickling.payload import refuse_if_repeated
from . import pickled_items
from .bounded_buffer import Item, Refusal
from .channel_grants import ReceiveGrant, SendGrant
from .channel_state import ChannelState, ReceiveEnd, SendEnd
from .channel_statistics import ChannelStatistics, statistics_of
from .handles import Handle
from .task_puts import error_of, put_now, put_or_wait
from .turns import Turn
from .waiters import TaskWaiter

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant

SendType = TypeVar("SendType", contravariant=True)
ReceiveType = TypeVar("ReceiveType", covariant=True)


class _End(Handle):
    """What both ends have in common."""

    def __init__(self, state: ChannelState, end: Any) -> None:
        super().__init__()
        self._state = state
        self._end = end
        self._turn = Turn()

    def bind(self) -> int:
        """As :meth:`Handle.bind`, for all ends of the channel at once. They have no number."""
        token = trio.lowlevel.current_trio_token()
        if self._state.run is not token:
            if self._state.run is not None:
                raise RuntimeError(
                    f"this {type(self).__name__} belongs to another trio.run, in which its channel was used first"
                )
            self._state.run = token
        return 0

    def __repr__(self) -> str:
        closed = ", closed" if self._end.closed else ""
        return f"<{type(self).__name__} at {id(self):#x} of the channel at {id(self._state):#x}{closed}>"

    def statistics(self) -> ChannelStatistics:
        """Return statistics of the channel."""
        return statistics_of(self._state)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close it, as ``close``. A checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()


@final
class SendChannel(_End, trio.abc.SendChannel[SendType], metaclass=PublicABCType):
    """The sending end of a channel, made by :func:`open_channel`.

    ::

        async with trio.open_nursery() as nursery, send:
            nursery.start_soon(trio_offload.run_sync, store, receive.move())
            for day in days:
                await send.send_many(await fetch(day))

    Items are pickled by ``send``. So an item may change after it has been sent, and the receiver
    gets a copy, as in a job.

    A send that need not wait lets other tasks run only if they have not for a millisecond, or for
    64 items.

    Pass it to a job as an argument. The job gets a clone, which blocks where this one is awaited.
    It is closed when the job's call has ended.
    """

    _is_constructible = False

    kind: ClassVar[str] = "send_channel"
    _end: SendEnd

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.SendChannel[SendType]:
            """As ``Handle.handle``."""

    @enable_ki_protection
    async def send(self, value: SendType) -> None:
        """Send an item, and wait while the buffer is full. A cancellation point.

        If it is cancelled, the item was not sent.

        Raises:
            Exception: The item cannot be pickled.
            trio.BrokenResourceError: All receive channels are closed.
            trio.ClosedResourceError: This channel is closed, perhaps during the wait.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        item = pickled_items.dump(value)
        if self._turn.lasts(self._state.run) and self._state.send_one(self._end, item):
            return
        await self._send([item])
        self._turn.begin()

    @enable_ki_protection
    def send_nowait(self, value: SendType) -> None:
        """Send an item without waiting.

        Raises:
            trio.WouldBlock: The buffer is full.
            Exception: As :meth:`send`.
        """
        self.bind()
        put_now(partial(self._state.send, self._end), [pickled_items.dump(value)])

    @enable_ki_protection
    async def send_many(self, values: Sequence[SendType]) -> None:
        """Send several items, one after the other. A checkpoint.

        If it is cancelled or raises, the first of them may have been sent.

        Raises:
            Exception: As :meth:`send`. All items are pickled before the first is sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        items = pickled_items.dump_all(values)
        if items:
            await self._send(items)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send(self, items: list[Item]) -> None:
        self.bind()
        await put_or_wait(partial(self._state.send, self._end), self._state.withdraw, items)

    @enable_ki_protection
    def clone(self) -> SendChannel[SendType]:
        """Return a further sending end. The stream ends when all are closed.

        Raises:
            trio.ClosedResourceError: This channel is closed.
        """
        try:
            return SendChannel(self._state, self._state.clone_sender(self._end))
        except Refusal as refusal:
            raise error_of(refusal) from None

    @enable_ki_protection
    def close(self) -> None:
        """Close this end. After the last one, receivers get what is left, and then the end."""
        self._state.close_sender(self._end)

    def __enter__(self) -> SendChannel[SendType]:
        return self

    def move(self) -> MovedEnd:
        """Return an argument for a job that hands this end over: it closes here.

        ::

            await run_sync(produce, send.move())

        It closes when the call is pickled, or when the argument is dropped, because the call was
        cancelled before. So the stream ends when the call has ended, also if it never begins.
        """
        return MovedEnd(self)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`: a clone for one call."""
        self.bind()
        return SendGrant(self._state, self.clone()._end, SendChannel)

    def grant_of_copy(self) -> Grant:
        """As :meth:`Handle.grant_of_copy`. An end that is closed here is closed in the job too."""
        return SendGrant(self._state, SendEnd(closed=True), SendChannel) if self._end.closed else self.grant()


@final
class ReceiveChannel(_End, trio.abc.ReceiveChannel[ReceiveType], metaclass=PublicABCType):
    """The receiving end of a channel, made by :func:`open_channel`.

    ::

        with contextlib.suppress(trio.EndOfChannel):
            while True:
                rows = await receive.receive_many(500)  # waits until there is one
                print(f"insert {len(rows)} rows")

    A receive that need not wait lets other tasks run as a send does.

    Pass it to a job as an argument. The job gets a clone, which blocks where this one is awaited.
    It is closed when the job's call has ended. If the job's worker dies, the items that did not
    reach its code go back to the front of the channel. Those that reached it are listed in
    :attr:`BrokenWorkerError.in_hand`, and are not received again.
    """

    _is_constructible = False

    kind: ClassVar[str] = "receive_channel"
    _end: ReceiveEnd

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.ReceiveChannel[ReceiveType]:
            """As ``Handle.handle``."""

    @enable_ki_protection
    async def receive(self) -> ReceiveType:
        """Receive an item, and wait while the channel is empty. A cancellation point.

        If it is cancelled, nothing was received.

        Raises:
            trio.EndOfChannel: All send channels are closed, and the channel is empty.
            trio.BrokenResourceError: The same, but a worker with a send channel has died. So the
                stream may be incomplete.
            trio.ClosedResourceError: This channel is closed, perhaps during the wait.
            Exception: The item cannot be unpickled. It is lost.
        """
        item = None
        if self._turn.lasts(self._state.run):
            await trio.lowlevel.checkpoint_if_cancelled()
            item = self._state.receive_one(self._end)
        if item is None:
            (item,) = await self._receive(1)
            self._turn.begin()
        value: ReceiveType = pickled_items.take(item)
        return value

    @enable_ki_protection
    def receive_nowait(self) -> ReceiveType:
        """Receive an item without waiting.

        Raises:
            trio.WouldBlock: The channel is empty.
            Exception: As :meth:`receive`.
        """
        self.bind()
        try:
            items = self._state.receive(self._end, None)
        except Refusal as refusal:
            raise error_of(refusal) from None
        value: ReceiveType = pickled_items.take((items or [])[0])
        return value

    @enable_ki_protection
    async def receive_many(self, max_items: int) -> list[ReceiveType]:
        """Wait for an item, and receive all that are there, up to ``max_items``. A checkpoint.

        Raises:
            Exception: As :meth:`receive`.
        """
        if max_items < 1:
            raise ValueError(f"max_items must be positive, got {max_items!r}")
        return [pickled_items.take(item) for item in await self._receive(max_items)]

    async def _receive(self, limit: int) -> list[Item]:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        waiter: TaskWaiter[list[Item]] = TaskWaiter()
        try:
            items = self._state.receive(self._end, waiter, limit)
            if items is None:
                return await waiter.wait(lambda: self._state.withdraw(waiter))
        except Refusal as refusal:
            raise error_of(refusal) from None
        await trio.lowlevel.cancel_shielded_checkpoint()
        return items

    @enable_ki_protection
    def clone(self) -> ReceiveChannel[ReceiveType]:
        """Return a further receiving end. Each item goes to one of them.

        Raises:
            trio.ClosedResourceError: This channel is closed.
        """
        try:
            return ReceiveChannel(self._state, self._state.clone_receiver(self._end))
        except Refusal as refusal:
            raise error_of(refusal) from None

    @enable_ki_protection
    def close(self) -> None:
        """Close this end. After the last one the buffer is dropped, and senders get an error."""
        self._state.close_receiver(self._end)

    def __enter__(self) -> ReceiveChannel[ReceiveType]:
        return self

    def move(self) -> MovedEnd:
        """Return an argument for a job that hands this end over, as :meth:`SendChannel.move`.

        A job that is the only receiver gets up to 64 small items at once, which is several times as
        fast. It gets up to 250 if it uses them up within 5 ms. Items that it has not received at
        its end go back to the channel.
        """
        return MovedEnd(self)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`: a clone for one call."""
        self.bind()
        return ReceiveGrant(self._state, self.clone()._end, ReceiveChannel)

    def grant_of_copy(self) -> Grant:
        """As :meth:`Handle.grant_of_copy`. An end that is closed here is closed in the job too."""
        return ReceiveGrant(self._state, ReceiveEnd(closed=True), ReceiveChannel) if self._end.closed else self.grant()


class MovedEnd(Handle):
    """An end that closes when it is passed to a job, made by ``move()``."""

    kind: str  # type: ignore[misc]  # the end's kind

    def __init__(self, end: SendChannel[Any] | ReceiveChannel[Any]) -> None:
        super().__init__()
        self.kind = end.kind
        self._moved: SendChannel[Any] | ReceiveChannel[Any] = end
        try:
            self._run: trio.lowlevel.TrioToken | None = trio.lowlevel.current_trio_token()
        except RuntimeError:  # this is outside of a run
            self._run = None

    def __del__(self) -> None:
        # Its call was cancelled before it was pickled, so nobody else will close the end. Garbage
        # is collected at any moment, also between two steps of the channel's state.
        if self._run is not None and not self._moved._end.closed:
            with suppress(trio.RunFinishedError):
                self._run.run_sync_soon(self._moved.close)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`: the end itself for one call.

        Raises:
            TypeError: Several workers or calls get it.
        """
        refuse_if_repeated()
        grant = self._moved.grant()
        self._moved.close()
        return grant
