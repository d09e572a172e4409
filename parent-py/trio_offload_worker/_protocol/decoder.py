"""The decoder: a stream of bytes to frames, without I/O.

Two rules keep it fast. It owns the memory that the caller reads into: a small frame is parsed in
place, and a large segment is received into separate memory. Only a body is general CBOR. Calls and
most results lack one, and the three items before it are decoded in place.
"""

from __future__ import annotations

from .cbor import FIGURES_HEAD, SINGLE_BYTES, encode_uint, figures_after, split_request
from .frames import (
    BYTES,
    LENGTH_OF_2,
    MAGIC,
    MAX_HEADER,
    MAX_HEADER_OF_WORKER,
    MAX_PAYLOAD,
    PREFIX,
    PREFIX_SIZE,
    SEGMENT_LENGTHS,
    SHORT_SEGMENT,
    Frame,
    Kind,
    WireError,
)
from .header import SHAPES, Head, parse_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

_BUFFER_SIZE: Final = 64 * 1024
_BORROW_LIMIT: Final = 32 * 1024
# The header of a frame of one segment: the array, the kind, the ID, the segment's length in an
# array, and at most a body with figures.
_MIN_PLAIN_HEADER: Final = 5
_MAX_PLAIN_HEADER: Final = 1 + 1 + 9 + 1 + 9 + 10 + 4 * 9
# Starts of headers of messages that may have only one segment. Their numbers are below 24, so each
# takes one byte.
_PLAIN_STARTS: Final = {
    b"\x83" + SINGLE_BYTES[kind]: kind
    for kind, (segments, fields) in SHAPES.items()
    if 1 in segments and not any(field.required for field in fields)
}
_MAX_KNOWN_SIZE: Final = 256  # bytes
_MAX_KNOWN: Final = 64
# The objects of segments without bytes, by their type.
_EMPTY: Final = (bytearray, bytes, bytearray)
# The first byte of a kind that takes two: all messages of running jobs have these.
_WIDE_KIND: Final = 24
# Headers of messages that have only figures, up to the first of them.
_REPORT_STARTS: Final = {
    kind: b"\x84" + encode_uint(kind) + b"\x00\x80" + FIGURES_HEAD for kind in (Kind.READY, Kind.REPORT)
}
# The only frequent frame with a body: a RESULT with its figures.
_PLAIN_STARTS[b"\x84" + SINGLE_BYTES[Kind.RESULT]] = Kind.RESULT


class Decoder:
    """Decode a stream of bytes, split anywhere, into frames.

    Fill :meth:`writable`, pass the number of bytes to :meth:`wrote`, and take frames from
    :meth:`next_frame` until it returns None. After an error the decoder must not be used any more.

    Args:
        allocate: called with the size in bytes and the type of a segment that does not fit the
            buffer. It returns the memory to fill, and a function that returns the object once it is
            filled.
        admit: called with the kind of each frame before memory is allocated for its payload. Its
            exceptions propagate from :meth:`next_frame`.
        of_worker: True if the stream comes from a worker. Its headers have a lower bound. Bodies of
            messages that only a parent sends are skipped, as their number of items is unlimited.
    """

    def __init__(
        self,
        allocate: Callable[[int, int], tuple[memoryview, Callable[[], Any]]] | None = None,
        admit: Callable[[Kind], object] | None = None,
        *,
        of_worker: bool = False,
    ) -> None:
        self._allocate = allocate or _allocate_default
        self._admit = admit
        self._of_worker = of_worker
        # The caller may write to it while it is empty: `start` equals `end` and `head` is None.
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))
        # The range of bytes that are received but not decoded. Only the decoder writes these and
        # the next attribute; while it is empty also the caller, which takes frames of a run itself.
        self.start = 0
        self.end = 0
        # The header of a frame whose payload is incomplete.
        self.head: Head | None = None
        self._filling: _Filling | None = None
        # Heads of frames with at most one segment, by their bytes up to the request's number.
        self._known: dict[tuple[bytes, bool], Head] = {}
        # Where the last frame began, if its head was a known one; else -1.
        self.known_at = -1

    def writable(self) -> memoryview:
        """Return the memory for the next bytes, at least one. Overwrites borrowed segments."""
        if self._filling is not None:
            return self._filling.target
        if self.start == self.end:
            self.start = self.end = 0
            return self.buffer
        if self.end == len(self.buffer):
            self._make_room(len(self.buffer))
        return self.buffer[self.end :]

    def wrote(self, count: int) -> None:
        """Accept ``count`` bytes, at least one, that were put into :meth:`writable`."""
        if self._filling is not None:
            self._filling.advance(count)
        else:
            self.end += count

    def plain_result(self, start: bytes, count: int = 0) -> memoryview | None:
        """Return the segment of a result with this header start, or None. The segment is borrowed.

        The pending data must begin with a complete frame of one segment without a body. With a
        ``count``, the buffer was empty, and that many bytes have been put into :attr:`buffer`.

        None means that the frame is different or incomplete, and is left to :meth:`next_frame`.
        """
        if count:
            self.start = at = 0
            self.end = received = count
        elif self.head is None:
            at, received = self.start, self.end
        else:
            return None
        if received - at <= PREFIX_SIZE:
            return None
        buffer = self.buffer
        magic, length, payload = PREFIX.unpack_from(buffer, at)
        at += PREFIX_SIZE
        begin = at + length
        end = begin + payload
        if end <= received and magic == MAGIC:
            if payload < SHORT_SEGMENT:
                rest = SEGMENT_LENGTHS[payload]
            elif payload < 0x10000:
                rest = LENGTH_OF_2.pack(0x8119, payload)
            else:
                rest = b"\x81" + encode_uint(payload)
            if buffer[at:begin] == start + rest:
                self.start = end
                return buffer[begin:end]
        return None

    def next_frame(self, count: int = 0) -> Frame | None:
        """Return the next complete frame, or None if it needs more bytes.

        A ``count`` is passed to :meth:`wrote` first.

        Raises:
            WireError: the bytes are not a frame.
        """
        if self._filling is not None:
            if count:
                self._filling.advance(count)
            return self._finish_filling(self._filling)
        self.end += count
        if self.head is not None or self.end - self.start <= PREFIX_SIZE:
            return self._any_frame()
        # The fast path for the most frequent frames: complete, with one segment and at most figures
        # as a body. Other frames take the general path, which takes three times as long. Function
        # calls are inlined here, because the number of Python steps dominates the parent's cost of
        # a small call.
        buffer, start = self.buffer, self.start + PREFIX_SIZE
        magic, length, payload = PREFIX.unpack_from(buffer, self.start)
        begin = start + length
        end = begin + payload
        if magic != MAGIC or not _MIN_PLAIN_HEADER <= length <= _MAX_PLAIN_HEADER or end > self.end:
            return self._known_frame(begin, end) if self._known else self._any_frame()
        header = bytes(buffer[start:begin])
        initial = header[2]
        if header[1] == _WIDE_KIND:
            return self._known_frame(begin, end) if self._known else self._any_frame()
        try:
            kind = _PLAIN_STARTS[header[:2]]
        except KeyError:
            return self._known_frame(begin, end) if self._known else self._any_frame()
        if initial > 27:
            return self._any_frame()
        at = 3 if initial < 24 else 3 + (1 << (initial - 24))
        if payload < SHORT_SEGMENT:
            rest = SEGMENT_LENGTHS[payload]
        elif payload < 0x10000:
            rest = LENGTH_OF_2.pack(0x8119, payload)
        else:
            rest = b"\x81" + encode_uint(payload)
        body: dict[str, Any] = {}
        if header[0] == 0x84:
            figures = figures_after(header, at, rest + FIGURES_HEAD)
            if figures is None:
                return self._any_frame()
            body["figures"] = figures
        elif header[at:] != rest:
            return self._any_frame()
        if self._admit is not None:
            self._admit(kind)
        self.start = end
        return Frame(kind, initial if at == 3 else int.from_bytes(header[3:at], "big"), [buffer[begin:end]], body, True)

    def _known_frame(self, begin: int, end: int) -> Frame | None:
        """Return the next frame. Its payload lies from ``begin`` to ``end``."""
        if end <= self.end and begin <= self.start + _MAX_KNOWN_SIZE:
            start, request = split_request(bytes(self.buffer[self.start : begin]))
            head = self._known.get((start, request is None))
            if head is not None:
                if self._admit is not None:
                    self._admit(head.kind)
                body = head.body if request is None else {**head.body, "request": request}
                self.known_at = self.start
                self.start = end
                segments = [self.buffer[begin:end]] if head.lengths else []
                return Frame(head.kind, head.id, segments, body, bool(segments))
        return self._any_frame()

    def _any_frame(self) -> Frame | None:
        """Return the next frame by the general path, while none is being filled."""
        self.known_at = -1
        head = self.head
        if head is None:
            if self.start == self.end:
                return None
            self.head = head = self._parse_head()
            if head is None:
                return None
            if self._admit is not None:
                self._admit(head.kind)
        available = self.end - self.start
        if head.payload > _BORROW_LIMIT and head.payload > available:
            filling = _Filling(head, self._allocate)
            self.start += filling.absorb(self.buffer[self.start : self.end])
            self._filling = filling
            return self._finish_filling(filling)
        if available < head.payload:
            self._make_room(head.payload)
            return None
        segments: list[Any] = []
        at = self.start
        types = head.body.get("types")
        for length in head.lengths:
            segment: Any = self.buffer[at : at + length]
            at += length
            if segments:
                segment = bytes(segment) if types and types[len(segments)] == BYTES else bytearray(segment)
            segments.append(segment)
        self.start = at
        self.head = None
        return Frame(head.kind, head.id, segments, head.body, bool(segments))

    def end_of_stream(self) -> None:
        """Accept the end of the stream.

        Raises:
            WireError: it ended inside a frame.
        """
        if self.head is not None or self.start != self.end:
            raise WireError("torn_frame", "the stream ended inside a frame")

    def _parse_head(self) -> Head | None:
        available = self.end - self.start
        if available < PREFIX_SIZE:
            _check_magic(bytes(self.buffer[self.start : self.end]))
            return None
        magic, length, payload = PREFIX.unpack_from(self.buffer, self.start)
        if magic != MAGIC:
            _check_magic(magic)
        limit = MAX_HEADER_OF_WORKER if self._of_worker else MAX_HEADER
        if not 0 < length <= limit:
            raise WireError("header_too_large", f"a header of {length} bytes; 1 to {limit} are allowed")
        if payload > MAX_PAYLOAD:
            raise WireError("payload_too_large", f"a payload of {payload} bytes; {MAX_PAYLOAD} are allowed")
        if available < PREFIX_SIZE + length:
            self._make_room(PREFIX_SIZE + length)
            return None
        start = self.start + PREFIX_SIZE
        header = bytes(self.buffer[start : start + length])
        head = None if payload else _parse_report(header)
        if head is None:
            head = parse_header(header, payload, self._of_worker)
        if head.is_known and len(head.lengths) <= 1:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known, request = split_request(bytes(self.buffer[self.start : start + length]))
            self._known[known, request is None] = head
        self.start = start + length
        return head

    def _make_room(self, wanted: int) -> None:
        """Make room for ``wanted`` bytes from ``start`` on: compact the buffer, or replace it."""
        if self.start + wanted <= len(self.buffer) and self.end < len(self.buffer):
            return
        rest = bytes(self.buffer[self.start : self.end])
        if wanted > len(self.buffer):
            self.buffer = memoryview(bytearray(wanted))
        self.buffer[: len(rest)] = rest
        self.start, self.end = 0, len(rest)

    def _finish_filling(self, filling: _Filling) -> Frame | None:
        if not filling.complete:
            return None
        head = filling.head
        segments = filling.take()
        self._filling = self.head = None
        if len(self.buffer) > _BUFFER_SIZE and self.start == self.end:
            self.buffer = memoryview(bytearray(_BUFFER_SIZE))
            self.start = self.end = 0
        return Frame(head.kind, head.id, segments, head.body)


def _allocate_default(size: int, kind: int) -> tuple[memoryview, Callable[[], Any]]:
    memory = bytearray(size)
    return memoryview(memory), lambda: bytes(memory) if kind == BYTES else memory


class _Filling:
    """The segments of a large frame while they arrive."""

    def __init__(self, head: Head, allocate: Callable[[int, int], tuple[memoryview, Callable[[], Any]]]) -> None:
        self.head = head
        types = head.body.get("types") or bytes(len(head.lengths))
        self._segments = zip(head.lengths, types, strict=True)
        self._allocate = allocate
        # Segments are allocated one by one, because there may be tens of thousands.
        self._takes: list[Callable[[], Any]] = []
        self._view: memoryview | None = None
        self._next()

    def _next(self) -> None:
        for length, kind in self._segments:
            if length:
                self._view, take = self._allocate(length, kind)
                self._takes.append(take)
                return
            self._takes.append(_EMPTY[kind])
        self._view = None

    def take(self) -> list[Any]:
        """Return the segments, which are complete."""
        return [take() for take in self._takes]

    @property
    def complete(self) -> bool:
        return self._view is None

    @property
    def target(self) -> memoryview:
        if self._view is None:
            raise RuntimeError("there is nothing left to fill")
        return self._view

    def advance(self, count: int) -> None:
        rest = self.target
        if count < len(rest):
            self._view = rest[count:]
        else:
            self._next()

    def absorb(self, data: memoryview) -> int:
        """Move the segments' bytes from the front of ``data``. Return their number."""
        taken = 0
        while self._view is not None and taken < len(data):
            part = data[taken : taken + len(self.target)]
            self.target[: len(part)] = part
            taken += len(part)
            self.advance(len(part))
        return taken


def _parse_report(header: bytes) -> Head | None:
    """Parse the header of a message that has only figures. A caller may wait for a READY."""
    for kind, start in _REPORT_STARTS.items():
        if header.startswith(start):
            figures = figures_after(header, 0, start)
            return None if figures is None else Head(kind, 0, [], 0, {"figures": figures})
    return None


def _check_magic(start: bytes) -> None:
    if start[:3] != MAGIC[: min(len(start), 3)]:
        raise WireError("bad_magic", f"a frame starts with {MAGIC[:3]!r}, not with {start[:3]!r}")
    if len(start) > 3 and start[3] != MAGIC[3]:
        raise WireError("unsupported_framing", f"framing version {start[3]}; this side speaks {MAGIC[3]}")
