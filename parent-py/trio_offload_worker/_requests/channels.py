"""Channels as a job has them: with the methods of the parent's, which block."""

from __future__ import annotations

import _pickle
from _thread import allocate_lock

from .. import publish
from .._protocol.frames import HANDED_ALL
from .credit import check_call, outlet_of, post_on_credit, take_credit
from .errors import ClosedResourceError, EndOfChannel, JobEndedError
from .handles import JobHandle
from .pickles import dumps, dumps_plain, loads, result
from .requests import Segments, conversation, hand_over, post, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Final, Generic, TypeVar

    from .line import Line
    from .requests import Reply

    ItemType = TypeVar("ItemType")
    SendType = TypeVar("SendType", contravariant=True)
    ReceiveType = TypeVar("ReceiveType", covariant=True)

    class _OfSent(Generic[SendType]):
        pass

    class _OfReceived(Generic[ReceiveType]):
        pass

else:

    class _OfSent:
        """Lets subclasses be subscripted with types, without an import of ``typing``."""

        __slots__ = ()

        def __class_getitem__(cls, _types):
            return cls

    _OfReceived = _OfSent


class _End(JobHandle):
    """What both ends have in common."""

    __slots__ = ("_is_closed",)

    def __init__(self, kind: str, id: int, *details: Any) -> None:
        super().__init__(kind, id, *details)
        self._is_closed = False

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedResourceError("this channel is closed")

    def _clone(self) -> Any:
        self._check_open()
        return type(self)(self._kind, result(request("clone", self._id, shield=True)))

    def close(self) -> None:
        """Close this end. The end of the job's call closes it too."""
        if not self._is_closed:
            self._is_closed = True
            try:
                post("close", self._id)
            except JobEndedError:
                pass  # Then it is closed.

    def statistics(self) -> Any:
        """Return the statistics of the channel, with the parent's attributes."""
        from types import SimpleNamespace

        return SimpleNamespace(**result(request("statistics", self._id, shield=True)))

    def __exit__(self, *error: object) -> None:
        self.close()


class SendChannel(_End, _OfSent["SendType"]):
    """The sending end of a channel, in a job.

    ::

        def list_files(folder, send: handles.SendChannel[str]):
            for entry in os.scandir(folder):
                send.send(entry.name)

    Items are pickled by ``send``. A send is done when the item has its place in the buffer: it
    arrives also if the worker dies at once.
    """

    __slots__ = ()

    def send(self, value: SendType, *, timeout: float | None = None) -> None:
        """Send an item, and wait while the buffer is full.

        Args:
            value: The item.
            timeout: Seconds to wait at most. None means no limit.

        Raises:
            Exception: The item cannot be pickled.
            BrokenResourceError: All receive channels are closed.
            ClosedResourceError: This channel is closed.
            TimeoutError: The timeout has passed. The item was not sent.
            Cancelled: The job's call is cancelled. The item was not sent.
        """
        self._check_open()
        pickled = dumps_plain(value)
        if pickled is None:
            segments = dumps(value)
        else:
            length = len(pickled)
            outlet = outlet_of("send", self._id)
            if outlet is not None and length <= _CREDIT_SIZE and outlet.post(length, (pickled,)):
                return
            segments = Segments((pickled,), (length,))
        if sum(segments.lengths) > _CREDIT_SIZE:
            result(request("send", self._id, segments, count=take_credit(self._id, 1), timeout=timeout))
        elif not post_on_credit("send", self._id, segments):
            result(request("send", self._id, segments, timeout=timeout))

    def send_nowait(self, value: SendType) -> None:
        """Send an item without waiting for a place. It works in a cancelled job too.

        Raises:
            WouldBlock: The buffer is full.
            Exception: As :meth:`send`.
        """
        self._check_open()
        segments = dumps(value)
        result(request("send_nowait", self._id, segments, count=take_credit(self._id, 1), shield=True))

    def send_many(self, values: Iterable[SendType]) -> None:
        """Send several items in one message, or in several if they are large.

        If it raises, the first of them may have been sent.

        Raises:
            Exception: As :meth:`send`.
        """
        self._check_open()
        batch: list[Segments] = []
        size = 0
        for value in values:
            segments = dumps(value)
            batch.append(segments)
            size += sum(segments.lengths)
            if size >= _MAX_BATCH or len(batch) == _MAX_ITEMS:
                self._send_batch(batch)
                batch, size = [], 0
        if batch:
            self._send_batch(batch)

    def _send_batch(self, batch: list[Segments]) -> None:
        counts = _pickle.dumps([len(segments.lengths) for segments in batch], 5)
        parts: list[Any] = [counts]
        lengths = [len(counts)]
        types = bytearray(1)
        for segments in batch:
            parts += segments.parts
            lengths += segments.lengths
            types += segments.types or bytes(len(segments.lengths))
        segments = Segments(parts, lengths, bytes(types) if any(types) else b"")
        result(request("send_many", self._id, segments, count=take_credit(self._id, len(batch))))

    def clone(self) -> SendChannel[SendType]:
        """Return a further sending end.

        Raises:
            ClosedResourceError: This channel is closed.
        """
        clone: SendChannel[SendType] = self._clone()
        return clone

    def __enter__(self) -> SendChannel[SendType]:
        return self


class ReceiveChannel(_End, _OfReceived["ReceiveType"]):
    """The receiving end of a channel, in a job.

    ::

        def save(path, lines: handles.ReceiveChannel[str]):
            with open(path, "w") as file:
                file.writelines(lines)

    An item that did not reach the job's code, because the worker died, is received by another.

    The only receiver of a channel gets several small items at once. Items that it has not received
    when the job ends go back to the channel.
    """

    __slots__ = ("_ahead", "_lock", "_waiting")

    def __init__(self, kind: str, id: int, *details: Any) -> None:
        super().__init__(kind, id, *details)
        # Items that have come with earlier replies: the reply, the item's number, its segments.
        self._ahead: list[tuple[Reply, int, list[Any]]] = []
        self._waiting = 0  # threads that ask the parent for items
        # Items are counted in their order, by all threads.
        self._lock = allocate_lock()

    def receive(self, *, timeout: float | None = None) -> ReceiveType:
        """Receive an item, and wait while the channel is empty.

        Args:
            timeout: Seconds to wait at most. None means no limit.

        Raises:
            EndOfChannel: All send channels are closed, and the channel is empty.
            BrokenResourceError: The same, but a worker with a send channel has died.
            ClosedResourceError: This channel is closed.
            TimeoutError: The timeout has passed. Nothing was received.
            Cancelled: The job's call is cancelled. Nothing was received.
            Exception: The item cannot be unpickled. It is lost.
        """
        self._check_open()
        line = check_call().line
        segments = self._pop(line, waits=True) or self._request("receive", timeout=timeout)
        value: ReceiveType = loads(segments)
        return value

    def receive_nowait(self) -> ReceiveType:
        """Receive an item without waiting for one. It works in a cancelled job too.

        Raises:
            WouldBlock: The channel is empty.
            Exception: As :meth:`receive`.
        """
        self._check_open()
        segments = self._pop(conversation().line, waits=True) or self._request("receive_nowait", shield=True)
        value: ReceiveType = loads(segments)
        return value

    def receive_many(self, max_items: int, *, timeout: float | None = None) -> list[ReceiveType]:
        """Wait for an item, and receive all that are there, up to ``max_items``.

        Args:
            max_items: Maximum number of items, at least 1.
            timeout: Seconds to wait at most. None means no limit.

        Raises:
            ValueError: ``max_items`` is less than 1.
            Exception: As :meth:`receive`.
        """
        self._check_open()
        if max_items < 1:
            raise ValueError(f"max_items must be positive, got {max_items!r}")
        line = check_call().line
        received: list[list[Any]] = []
        while len(received) < max_items and (segments := self._pop(line)) is not None:
            received.append(segments)
        if not received:
            reply = request("receive_many", self._id, count=max_items, timeout=timeout, give_back="return")
            received = _items_of(reply)
            hand_over(reply)
        return [loads(segments) for segments in received]

    def _request(self, op: str, **options: Any) -> list[Any]:
        """Return the first item of a reply, and keep the others. :meth:`_pop` came before."""
        try:
            reply = request(op, self._id, give_back="return", **options)
            items = _items_of(reply)
        except BaseException:
            with self._lock:
                self._waiting -= 1
            raise
        with self._lock:
            self._waiting -= 1
            is_wanted = self._waiting > 0
            if not is_wanted:
                self._ahead += [(reply, number, segments) for number, segments in enumerate(items, 1)][1:]
            hand_over(reply, 1)
        if is_wanted and len(items) > 1:
            # Another thread asks the parent, so it would not see them here.
            post("return_rest", self._id, count=reply.request * (HANDED_ALL + 1) + 1)
        return items[0]

    def _pop(self, line: Line, *, waits: bool = False) -> list[Any] | None:
        """Return the next item that has come already. From now on it counts as received.

        Also if it cannot be unpickled: an item that kills its receiver must not go to the next one.
        """
        with self._lock:
            if not self._ahead:
                self._waiting += waits
                return None
            reply, number, segments = self._ahead.pop(0)
            line.hand_over(reply.request, number)
        return segments

    def close(self) -> None:
        """Close this end. The end of the job's call closes it too."""
        with self._lock:
            ahead, self._ahead = self._ahead, []
        if not self._is_closed:
            try:
                for request in {reply.request for reply, _, _ in ahead}:
                    handed = min(number for reply, number, _ in ahead if reply.request == request) - 1
                    post("return_rest", self._id, count=request * (HANDED_ALL + 1) + handed)
            except JobEndedError:
                pass  # Then they have been returned.
        super().close()

    def clone(self) -> ReceiveChannel[ReceiveType]:
        """Return a further receiving end. Each item goes to one of them.

        Raises:
            ClosedResourceError: This channel is closed.
        """
        clone: ReceiveChannel[ReceiveType] = self._clone()
        return clone

    def __enter__(self) -> ReceiveChannel[ReceiveType]:
        return self

    def __iter__(self) -> Iterator[ReceiveType]:
        return self

    def __next__(self) -> ReceiveType:
        try:
            return self.receive()
        except EndOfChannel:
            raise StopIteration from None


def _items_of(reply: Reply) -> list[list[Any]]:
    """Return the segments of each item. Raises the exception of another reply."""
    if reply.status != "value":
        result(reply)
    first, items = 1, []
    counts = _pickle.loads(reply.segments[0])
    if type(counts) is tuple:
        # The sizes of items that have come in one segment.
        joined = memoryview(reply.segments[1])
        first = 0
        for size in counts:
            items.append([joined[first : first + size]])
            first += size
        return items
    for count in counts:
        items.append(reply.segments[first : first + count])
        first += count
    return items


_CREDIT_SIZE: Final = 4096  # bytes, as in the parent's channel_state.py
_MAX_BATCH: Final = 1 << 20  # bytes
_MAX_ITEMS: Final = 256


publish("trio_offload_worker.handles", ReceiveChannel, SendChannel)
