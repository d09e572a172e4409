"""Items of channels and work queues as pickles, with the handles that lie in them.

An item is pickled by its sender, and unpickled by its receiver. From one job to another its bytes
pass unread. The exception is an item with handles, such as another channel: the receiving job needs
a grant of each, so its pickle is made anew.

A handle in an item is pinned by a grant, which ends when the item has left the channel.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs

from trio_offload_worker._protocol.frames import BYTEARRAY, BYTES
from trio_offload_worker._system.memory import HUGE, new_mapping

from .._pickling import calls as _calls
from .._pickling.by_reference import are_small
from .._pickling.payload import with_grants
from .._pickling.picklers import PROTOCOL
from .bounded_buffer import Item

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._worker.requests import Post, Request

# Stands in each pickle with a handle: the module of `attach`.
_MARK: Final = b"_requests.handles"
_MAX_JOINED: Final = 256 * 1024  # bytes; larger items are not worth a copy


@attrs.define(eq=False)
class PickledItem:
    """A pickle, its buffers, and grants of the handles in it."""

    segments: Sequence[Any]
    """The pickle and its buffers, as the unpickler takes them."""
    types: bytes = b""
    """Type of each segment. Empty if all are memory."""
    grants: Sequence[Grant] = ()
    """They keep the handles in the item usable."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(map(_size, self.segments))

    def load(self) -> Any:
        """Unpickle it. Raises any exception of the unpickler."""
        return _calls.load(self.segments)

    def release(self) -> None:
        """End the grants."""
        grants, self.grants = self.grants, ()
        for grant in grants:
            grant.end(None)


def dump(value: Any) -> Item:
    """Return an item with a pickle of the value.

    Raises:
        Exception: the pickler's error.
    """
    if are_small((value,)):
        pickled = pickle.dumps(value, PROTOCOL)
        return Item(PickledItem((pickled,)), len(pickled))
    payload = with_grants(_calls.dump_value, value)
    outside = len(payload.lengths) - 1
    pieces = len(payload.parts) - outside
    types = payload.types[1:] or bytes(outside)
    segments = [
        b"".join(payload.parts[:pieces]),
        *(_snapshot(part, kind) for part, kind in zip(payload.parts[pieces:], types, strict=True)),
    ]
    return Item(PickledItem(segments, payload.types, payload.grants), sum(payload.lengths))


def dump_all(values: Iterable[Any]) -> list[Item]:
    """Return an item for each value. Raises as :func:`dump`, with all or none."""
    items: list[Item] = []
    try:
        for value in values:
            items.append(dump(value))  # noqa: PERF401  # those made before an error are released
    except BaseException:
        release(items)
        raise
    return items


def take(item: Item) -> Any:
    """Unpickle an item for a task of this program. It leaves its channel."""
    pickled: PickledItem = item.payload
    if not pickled.grants:
        return pickled.load()
    try:
        return pickled.load()
    finally:
        pickled.release()


def load_plain(pickled: bytes) -> Any:
    """Unpickle a value without buffers and handles. Raises any exception of the unpickler."""
    return _calls.load((pickled,))


def items_from(message: Request | Post, *, several: bool) -> list[Item]:
    """Return the items that a job sends.

    If they are several, the first segment has the number of segments of each.

    Raises:
        Exception: an item has handles, and cannot be unpickled and pickled again.
    """
    segments, types = message.segments, message.types or bytes(len(message.segments))
    if not several:
        return [item_of(segments, types)]
    items = []
    first = 1
    for count in pickle.loads(segments[0]):
        items.append(item_of(segments[first : first + count], types[first : first + count]))
        first += count
    return items


def plain_items(pickles: Sequence[bytes]) -> list[Item] | None:
    """Return the items of these pickles, or None if there may be handles in one of them."""
    if b"".join(pickles).find(_MARK) >= 0:
        return None
    return [Item(PickledItem((pickled,)), len(pickled)) for pickled in pickles]


def reply(request: Request, items: Sequence[Item], *, several: bool, status: str = "value") -> None:
    """Reply to a job with items: with one, or as several in the form of :func:`items_from`.

    Small items without buffers travel in one segment, behind a tuple of their sizes. The status is
    for a single item.
    """
    joined = _joined(items) if len(items) > 1 else None
    if joined is not None:
        request.complete("value", joined)
        return
    segments: list[Any] = []
    types = b""
    grants: list[Grant] = []
    try:
        pickles = [_for_job(item.payload) for item in items]
    except Exception as error:
        request.fail(error)
        return
    if several:
        segments.append(pickle.dumps([len(pickled.segments) for pickled in pickles], PROTOCOL))
        types = bytes(1)
    for pickled in pickles:
        segments += pickled.segments
        types += pickled.types or bytes(len(pickled.segments))
        grants += pickled.grants
    request.complete(status, segments, types if any(types) else b"", grants=grants)


def _joined(items: Sequence[Item]) -> list[bytes] | None:
    sizes = tuple([item.size for item in items])
    if sum(sizes) > _MAX_JOINED:
        return None
    parts = [payload.segments[0] for item in items if not (payload := item.payload).grants and len(payload.segments) == 1]
    if len(parts) < len(items):
        return None
    return [pickle.dumps(sizes, PROTOCOL), b"".join(parts)]


def release(items: Iterable[Item]) -> None:
    """Release items that have left their channel."""
    for item in items:
        item.payload.release()


def item_of(segments: Sequence[Any], types: bytes = b"") -> Item:
    """Return the item of which a job has sent these segments. Raises as :func:`items_from`."""
    first, *others = segments
    # The first lies in a buffer that other messages share.
    pickled = PickledItem([bytes(first), *others], types if any(types) else b"")
    if not has_handles(pickled.segments[0]):
        return Item(pickled, pickled.size)
    # The handles are granted to the sending job only, and the item outlasts its call.
    with closing_temporary_ends():
        return dump(pickled.load())


def _for_job(pickled: PickledItem) -> PickledItem:
    """Return the item with grants for the call that gets it."""
    if not pickled.grants:
        return pickled
    with closing_temporary_ends():
        granted: PickledItem = dump(pickled.load()).payload
    return granted


def has_handles(pickled: bytes) -> bool:
    """Return True if there may be a handle in a pickle."""
    return pickled.find(_MARK) >= 0


class _Ends(threading.local):
    made: list[Any] | None = None


_ends: Final = _Ends()


@contextmanager
def closing_temporary_ends() -> Iterator[None]:
    """Close the ends of channels that are unpickled in the block."""
    outer, _ends.made = _ends.made, []
    try:
        yield
    finally:
        made, _ends.made = _ends.made, outer
        for end in made:
            end.close()


def note_end(end: Any) -> None:
    """Note an end of a channel that was made by unpickling."""
    if _ends.made is not None:
        _ends.made.append(end)


def _snapshot(part: Any, kind: int) -> Any:
    """Return the data of a buffer as it is now. The sender may change it after ``send``."""
    if kind == BYTES:
        return part.obj if type(part) is memoryview else part
    if kind == BYTEARRAY:
        return bytearray(part)
    if _is_constant(part):
        return part
    if len(part) < HUGE:
        return bytearray(part)
    memory = new_mapping(len(part))
    view = memoryview(memory)[: len(part)]
    view[:] = memoryview(part).cast("B")
    return view


def _is_constant(part: Any) -> bool:
    return type(part) is bytes or (type(part) is memoryview and type(part.obj) is bytes)


def _size(segment: Any) -> int:
    return segment.nbytes if type(segment) is memoryview else len(segment)
