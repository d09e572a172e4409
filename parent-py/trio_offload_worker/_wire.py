"""The codec: bytes to frames and back, sans-IO. PROTOCOL.md defines every byte; ``tests/vectors`` holds it to that.

The parent uses it, and the worker that is written in Python (``_loop.py``). For the latter's sake it imports next to
nothing: ``enum``, ``typing``, ``attrs`` and the CBOR library would each take longer than all that is in here.

Two rules keep it fast. The decoder owns the memory that is read into, so that nothing is copied on the way: a small
frame is parsed where it lies, a large segment is received into memory of its own. And only a body, which a call and
its result do not have, is CBOR in general: the three items before it are read and written in place.
"""

from __future__ import annotations

import struct

from ._cbor import SINGLE_BYTES as _SMALL
from ._cbor import Excessive, Unusual, check, dumps, encode_uint, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, ClassVar, Final

PROTOCOL_VERSION: Final = 1

MAGIC: Final = b"tro\x01"
MAX_HEADER: Final = 16 * 2**20
MAX_PAYLOAD: Final = 2**40
MAX_SEGMENTS: Final = 65_536
MAX_ID: Final = 2**64 - 1
MAX_ITEMS: Final = 1024

# What a segment becomes in the receiver: memory that can be written to, a ``bytes``, a ``bytearray``.
MEMORY: Final = 0
BYTES: Final = 1
BYTEARRAY: Final = 2

Buffer = bytes | bytearray | memoryview


class Kind(int):
    """What a frame says: the number of a message, and its ``name``. There is one object of each, as in an enumeration."""

    HELLO: ClassVar[Kind]
    SETUP: ClassVar[Kind]
    CALL: ClassVar[Kind]
    RETIRE: ClassVar[Kind]
    SETTINGS: ClassVar[Kind]
    TEMPLATE: ClassVar[Kind]
    FORK: ClassVar[Kind]
    WELCOME: ClassVar[Kind]
    REFUSED: ClassVar[Kind]
    READY: ClassVar[Kind]
    SETUP_FAILED: ClassVar[Kind]
    RESULT: ClassVar[Kind]
    RAISED: ClassVar[Kind]
    RETIRED: ClassVar[Kind]
    ABORTED: ClassVar[Kind]
    REPORT: ClassVar[Kind]

    name: str

    def __new__(cls, number: int) -> Kind:  # noqa: PYI034
        try:
            return _KINDS[number]
        except KeyError:
            raise ValueError(f"no message has the number {number}") from None

    def __repr__(self) -> str:
        return f"Kind.{self.name}"


_KINDS: Final[dict[int, Kind]] = {}
for _name, _number in (
    ("HELLO", 1),
    ("SETUP", 2),
    ("CALL", 3),
    ("RETIRE", 4),
    ("SETTINGS", 6),
    ("TEMPLATE", 7),
    ("FORK", 8),
    ("WELCOME", 16),
    ("REFUSED", 17),
    ("READY", 18),
    ("SETUP_FAILED", 19),
    ("RESULT", 20),
    ("RAISED", 21),
    ("RETIRED", 22),
    ("ABORTED", 23),
    ("REPORT", 25),
):
    _kind = int.__new__(Kind, _number)
    _kind.name = _name
    _KINDS[_number] = _kind
    setattr(Kind, _name, _kind)


class WireError(Exception):
    """The bytes are not a frame of the protocol. ``code`` is the error's name in PROTOCOL.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Frame:
    """One whole frame.

    Where ``borrowed`` is true, segment 0 lies in the decoder's own buffer and is gone with the next
    :meth:`Decoder.writable`. Every other segment has memory of its own.
    """

    __slots__ = ("body", "borrowed", "id", "kind", "segments")

    def __init__(self, kind: Kind, id: int, segments: list[Any], body: dict[str, Any], borrowed: bool = False) -> None:
        self.kind = kind
        self.id = id
        self.segments = segments
        self.body = body
        self.borrowed = borrowed


def encode_head(kind: Kind, id: int, lengths: Sequence[int], body: dict[str, Any] | None = None) -> bytes:
    """The prefix and the header of a frame; its segments follow it on the wire.

    Raises:
        ValueError: a value is out of the protocol's bounds.
    """
    if len(lengths) == 1 and body is None and kind < 24 and 0 <= id <= MAX_ID and 0 <= lengths[0] <= MAX_PAYLOAD:
        # Without buffers, as most are. Its kind is one byte.
        length = lengths[0]
        end = _ENDS[length] if length < _MANY_ENDS else b"\x81" + encode_uint(length)
        header = b"\x83" + _SMALL[kind] + encode_uint(id) + end
        return _PREFIX.pack(MAGIC, len(header), length) + header
    payload = sum(lengths)
    if not 0 <= id <= MAX_ID:
        raise ValueError(f"a call's id is between 0 and 2**64 - 1, not {id}")
    if len(lengths) > MAX_SEGMENTS:
        raise ValueError(f"a frame has at most {MAX_SEGMENTS} segments, not {len(lengths)}")
    if payload > MAX_PAYLOAD:
        raise ValueError(f"a frame carries at most {MAX_PAYLOAD} bytes (1 TiB), not {payload}")
    parts = [b"\x84" if body else b"\x83", encode_uint(kind), encode_uint(id), encode_uint(len(lengths), 0x80)]
    parts += map(encode_uint, lengths)
    if body:
        parts.append(dumps(body))
    header = b"".join(parts)
    if len(header) > MAX_HEADER:
        raise ValueError(f"a frame's header has at most {MAX_HEADER} bytes (16 MiB), not {len(header)}")
    return _PREFIX.pack(MAGIC, len(header), payload) + header


def encode_call(id: int, pickled: Buffer) -> tuple[bytes, bytes]:
    """The frame of a call that is one segment, and how the header of its result starts (see :meth:`Decoder.plain_result`).

    The same as :func:`encode_head` gives, in half the steps: most of all calls are such.
    """
    length = len(pickled)
    if 0x100 <= id < 0x10000:
        number = _UINT_2.pack(0x19, id)
        if length < _MANY_ENDS:
            start, end = _CALLS[length]
            return b"".join((start, number, end, pickled)), _RESULT + number
        if length < 0x10000:
            end = _END_OF_2.pack(0x8119, length)
            return b"".join((_PREFIX.pack(MAGIC, _CALL_OF_2, length), _CALL, number, end, pickled)), _RESULT + number
    number = encode_uint(id)
    header = _CALL + number + b"\x81" + encode_uint(length)
    return _PREFIX.pack(MAGIC, len(header), length) + header + pickled, _RESULT + number


class Decoder:
    """Turns a stream of bytes, split anywhere, into frames.

    Fill :meth:`writable`, say how much with :meth:`wrote`, and take frames from :meth:`next_frame` until it gives
    None. After an error it is of no further use.

    Args:
        allocate: makes the memory for a segment that does not fit the buffer; asked with its size in bytes and its type, it
            gives what is to be filled and what gives the object once that has been done.
        admit: is told the kind of each frame before memory is taken for its payload; what it raises comes out of
            :meth:`next_frame`.
        of_worker: the stream comes from a worker. The bodies of messages that only a parent sends are not read then, as they may
            have any number of items.
    """

    def __init__(
        self,
        allocate: Callable[[int, int], tuple[memoryview, Callable[[], Any]]] | None = None,
        admit: Callable[[Kind], object] | None = None,
        *,
        of_worker: bool = False,
    ) -> None:
        self._allocate = allocate or _allocate_plainly
        self._admit = admit
        self._of_worker = of_worker
        # To be written to by others while nothing is pending, which is when `start` is `end` and there is no `head`.
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))
        # What has been read and not given lies between the two. To be read by others, written here only; as the next.
        self.start = 0
        self.end = 0
        # Of a frame whose payload is yet to come.
        self.head: _Head | None = None
        self._filling: _Filling | None = None

    def writable(self) -> memoryview:
        """Where the next bytes go. Never empty; what earlier frames borrowed is overwritten."""
        if self._filling is not None:
            return self._filling.target
        if self.start == self.end:
            self.start = self.end = 0
            return self.buffer
        if self.end == len(self.buffer):
            self._make_room(len(self.buffer))
        return self.buffer[self.end :]

    def wrote(self, count: int) -> None:
        """``count`` bytes, at least one, have been put into :meth:`writable`."""
        if self._filling is not None:
            self._filling.advance(count)
        else:
            self.end += count

    def plain_result(self, start: bytes, count: int = 0) -> memoryview | None:
        """If what is pending begins with a whole frame whose header starts so, and goes on with one segment and nothing else: that
        segment; it lies in the buffer. With a ``count``: nothing was pending, and so many bytes have been put into :attr:`buffer`.

        None: it is something else, or not all of it is there; for :meth:`next_frame`.
        """
        if count:
            self.start = 0
            self.end = count
        at = self.start
        if self.head is not None or self.end - at <= _PREFIX_SIZE:
            return None
        buffer = self.buffer
        magic, length, payload = _PREFIX.unpack_from(buffer, at)
        at += _PREFIX_SIZE
        begin = at + length
        end = begin + payload
        if end <= self.end and magic == MAGIC:
            if payload < _MANY_ENDS:
                rest = _ENDS[payload]
            elif payload < 0x10000:
                rest = _END_OF_2.pack(0x8119, payload)
            else:
                rest = b"\x81" + encode_uint(payload)
            if buffer[at:begin] == start + rest:
                self.start = end
                return buffer[begin:end]
        return None

    def next_frame(self, count: int = 0) -> Frame | None:
        """The next whole frame, or None if more bytes are needed. With a ``count`` it is :meth:`wrote` and this in one.

        Raises:
            WireError: the bytes are not a frame.
        """
        if self._filling is not None:
            if count:
                self._filling.advance(count)
            return self._finish_filling(self._filling)
        self.end += count
        if self.head is not None or self.end - self.start <= _PREFIX.size:
            return self._any_frame()
        # By far the most frequent frames: one segment, no body but figures, and all of it is there. What is not exactly that is
        # judged in the ordinary way, which takes three times as long. No function is called here that can be done without: of
        # what a small call costs the parent, most is the number of Python's steps.
        buffer, start = self.buffer, self.start + _PREFIX.size
        magic, length, payload = _PREFIX.unpack_from(buffer, self.start)
        begin = start + length
        end = begin + payload
        if magic != MAGIC or not _SHORTEST_PLAIN <= length <= _LONGEST_PLAIN or end > self.end:
            return self._any_frame()
        header = bytes(buffer[start:begin])
        initial = header[2]
        try:
            kind = _PLAIN_STARTS[header[:2]]
        except KeyError:
            return self._any_frame()
        if initial > 27:
            return self._any_frame()
        at = 3 if initial < 24 else 3 + (1 << (initial - 24))
        if payload < _MANY_ENDS:
            rest = _ENDS[payload]
        elif payload < 0x10000:
            rest = _END_OF_2.pack(0x8119, payload)
        else:
            rest = b"\x81" + encode_uint(payload)
        body: dict[str, Any] = {}
        if header[0] == 0x84:
            figures = _figures_after(header, at, rest + _FIGURES_HEAD)
            if figures is None:
                return self._any_frame()
            body["figures"] = figures
        elif header[at:] != rest:
            return self._any_frame()
        if self._admit is not None:
            self._admit(kind)
        self.start = end
        return Frame(kind, initial if at == 3 else int.from_bytes(header[3:at], "big"), [buffer[begin:end]], body, True)

    def _any_frame(self) -> Frame | None:
        """The next frame, whatever it is, while none is being filled."""
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
        """The stream is over.

        Raises:
            WireError: it ended inside a frame.
        """
        if self.head is not None or self.start != self.end:
            raise WireError("torn_frame", "the stream ended inside a frame")

    def _parse_head(self) -> _Head | None:
        available = self.end - self.start
        if available < _PREFIX.size:
            _check_magic(bytes(self.buffer[self.start : self.end]))
            return None
        magic, length, payload = _PREFIX.unpack_from(self.buffer, self.start)
        if magic != MAGIC:
            _check_magic(magic)
        if not 0 < length <= MAX_HEADER:
            raise WireError("header_too_large", f"a header of {length} bytes; 1 to {MAX_HEADER} are allowed")
        if payload > MAX_PAYLOAD:
            raise WireError("payload_too_large", f"a payload of {payload} bytes; {MAX_PAYLOAD} are allowed")
        if available < _PREFIX.size + length:
            self._make_room(_PREFIX.size + length)
            return None
        start = self.start + _PREFIX.size
        head = _parse_header(bytes(self.buffer[start : start + length]), payload, self._of_worker)
        self.start = start + length
        return head

    def _make_room(self, wanted: int) -> None:
        """Move what is there to the front of a buffer that can hold ``wanted`` bytes from ``start`` on."""
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


_PREFIX: Final = struct.Struct(">4sIQ")
_PREFIX_SIZE: Final = _PREFIX.size
_UINT_2: Final = struct.Struct(">BH")
# A header of three items, and its kind.
_CALL: Final = b"\x83" + _SMALL[Kind.CALL]
_RESULT: Final = b"\x83" + _SMALL[Kind.RESULT]
_BUFFER_SIZE: Final = 64 * 1024
_BORROW_LIMIT: Final = 32 * 1024
# The header of a frame of one segment: the array, the kind, the id, the segment's length in an array, and at most a body with
# figures.
_SHORTEST_PLAIN: Final = 5
_LONGEST_PLAIN: Final = 1 + 1 + 9 + 1 + 9 + 10 + 4 * 9


class _Head:
    __slots__ = ("body", "id", "kind", "lengths", "payload")

    def __init__(self, kind: Kind, id: int, lengths: list[int], payload: int, body: dict[str, Any]) -> None:
        self.kind = kind
        self.id = id
        self.lengths = lengths
        self.payload = payload
        self.body = body


def _allocate_plainly(size: int, kind: int) -> tuple[memoryview, Callable[[], Any]]:
    memory = bytearray(size)
    return memoryview(memory), lambda: bytes(memory) if kind == BYTES else memory


class _Filling:
    """The segments of a large frame while they arrive."""

    def __init__(self, head: _Head, allocate: Callable[[int, int], tuple[memoryview, Callable[[], Any]]]) -> None:
        self.head = head
        types = head.body.get("types") or bytes(len(head.lengths))
        self._segments = zip(head.lengths, types, strict=True)
        self._allocate = allocate
        # One after the other: each takes memory when it is its turn, and there may be tens of thousands.
        self._takes: list[Callable[[], Any]] = []
        self._view: memoryview | None = None
        self._next()

    def _next(self) -> None:
        for length, kind in self._segments:
            view, take = self._allocate(length, kind)
            self._takes.append(take)
            if len(view):
                self._view = view
                return
        self._view = None

    def take(self) -> list[Any]:
        """The segments, which are complete."""
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
        """Take from the front of ``data`` what belongs to the segments; how many bytes that were."""
        taken = 0
        while self._view is not None and taken < len(data):
            part = data[taken : taken + len(self.target)]
            self.target[: len(part)] = part
            taken += len(part)
            self.advance(len(part))
        return taken


def _check_magic(start: bytes) -> None:
    if start[:3] != MAGIC[: min(len(start), 3)]:
        raise WireError("bad_magic", f"a frame starts with {MAGIC[:3]!r}, not with {start[:3]!r}")
    if len(start) > 3 and start[3] != MAGIC[3]:
        raise WireError("unsupported_framing", f"framing version {start[3]}; this side speaks {MAGIC[3]}")


def _parse_header(data: bytes, payload: int, of_worker: bool) -> _Head:
    try:
        items, at = _decode_uint(data, 0, 0x80)
        if items not in (3, 4):
            raise _malformed(f"an array of {items} items; 3 or 4 are allowed")
        kind, at = _decode_uint(data, at)
        id, at = _decode_uint(data, at)
        count, at = _decode_uint(data, at, 0x80)
        if count > MAX_SEGMENTS:
            raise _malformed(f"{count} segments; {MAX_SEGMENTS} are allowed")
        lengths, at = _decode_lengths(data, at, count)
    except (IndexError, struct.error):
        raise _malformed("it ends too early") from None
    body: dict[str, Any] = {}
    if items == 4:
        if not (of_worker and kind < _FIRST_OF_WORKER):
            body = _decode_body(data[at:], MAX_HEADER if kind in _OF_ANY_SIZE else MAX_ITEMS)
    elif at != len(data):
        raise _malformed(f"{len(data) - at} bytes after its end")
    known = _KINDS.get(kind)
    if known is None:
        raise WireError("unknown_kind", f"no message has the number {kind} in version {PROTOCOL_VERSION}")
    if sum(lengths) != payload:
        raise WireError("segment_mismatch", f"segments of {sum(lengths)} bytes in all, a payload of {payload}")
    if of_worker and kind < _FIRST_OF_WORKER:
        return _Head(known, id, lengths, payload, {})
    return _Head(known, id, lengths, payload, _checked_body(known, body, len(lengths)))


def _decode_lengths(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """So many unsigned integers. As :func:`_decode_uint`, without a function for each: there may be tens of thousands."""
    lengths: list[int] = []
    add = lengths.append
    for _ in range(count):
        initial = data[at]
        at += 1
        if initial < 24:
            add(initial)
            continue
        try:
            unpack, size = _WIDTHS[initial]
        except KeyError:
            raise _malformed(f"byte {at - 1} is not an unsigned integer") from None
        add(unpack(data, at)[0])
        at += size
    return lengths, at


# How an unsigned integer goes on after each first byte.
_WIDTHS: Final = {
    24 + place: (struct.Struct(code).unpack_from, 1 << place) for place, code in enumerate((">B", ">H", ">I", ">Q"))
}
_FIRST_OF_WORKER: Final = 16
# What the parent sends may name as many things as it has.
_OF_ANY_SIZE: Final = (Kind.HELLO, Kind.TEMPLATE)


def _decode_body(data: bytes, most: int) -> dict[str, Any]:
    try:
        try:
            body = loads(data, most)
        except Unusual:
            check(data, most)
            body = _decode_unusual(data)
    except Excessive as error:
        raise _malformed(f"its body: {error}") from None
    except IndexError:
        raise _malformed("its body ends too early") from None
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise _malformed("its body is not a map with text keys")
    return body


def _decode_unusual(data: bytes) -> Any:
    """What our own messages do not hold: a later version's, or an error."""
    import io

    try:
        import cbor2
    except ImportError:
        raise _malformed("its body is not CBOR, or of a kind that cannot be read without the package cbor2") from None
    stream = io.BytesIO(data)
    try:
        body = cbor2.CBORDecoder(stream).decode()
    # The library's errors have no common base that it promises for every way in which CBOR can be wrong.
    except Exception as error:
        raise _malformed(f"its body is not CBOR: {error}") from error
    if stream.tell() != len(data):
        raise _malformed(f"{len(data) - stream.tell()} bytes after its end")
    return body


def _checked_body(kind: Kind, body: dict[str, Any], segments: int) -> dict[str, Any]:
    """The fields that the message has; what a later version may have added is left out."""
    allowed, fields = _SHAPES[kind]
    if segments not in allowed:
        raise WireError("malformed_body", f"a {kind.name} with {segments} segments")
    if not fields:
        return {}
    for field in fields:
        if field.name not in body:
            if field.required:
                raise WireError("malformed_body", f"a {kind.name} without {field.name!r}")
        elif not field.fits(body[field.name]):
            raise WireError("malformed_body", f"the {field.name!r} of a {kind.name} is not {field.what}")
    # Of another message `types` is a key that is not known, and may be anything.
    if _TYPES in fields and "types" in body and len(body["types"]) != segments:
        raise WireError("malformed_body", f"a {kind.name} with {segments} segments and the types of {len(body['types'])}")
    return {field.name: body[field.name] for field in fields if field.name in body}


def _malformed(message: str) -> WireError:
    return WireError("malformed_header", message)


def _decode_uint(data: bytes, at: int, major: int = 0) -> tuple[int, int]:
    """The unsigned integer (or, by ``major``, the length of the array) at ``at``, and where what follows begins."""
    initial = data[at] ^ major
    if initial < 24:
        return initial, at + 1
    if initial > 27:
        raise _malformed(f"byte {at} is not {'an array of definite length' if major else 'an unsigned integer'}")
    end = at + 1 + (1 << (initial - 24))
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at + 1 : end], "big"), end


def _figures_after(data: bytes, at: int, head: bytes) -> list[int] | None:
    """The four unsigned integers that ``data`` ends with if ``head`` is at ``at``; None if that is not what it does."""
    if data[at : -_FOUR.size] == head:
        first, rss, second, peak, third, size, fourth, time = _FOUR.unpack_from(data, -_FOUR.size)
        # Of a worker that has run for a while, and holds less than 4 GiB, these are four bytes each.
        if first == second == third == fourth == 0x1A:
            return [rss, peak, size, time]
    if not data.startswith(head, at):
        return None
    at += len(head)
    figures = []
    while at < len(data):
        initial = data[at]
        at += 1
        if initial < 24:
            figures.append(initial)
        elif initial > 27:
            return None
        else:
            end = at + (1 << (initial - 24))
            figures.append(int.from_bytes(data[at:end], "big"))
            at = end
    return figures if at == len(data) and len(figures) == 4 else None


_FOUR: Final = struct.Struct(">" + 4 * "BI")
# A body with figures and nothing else, up to the first of them.
_FIGURES_HEAD: Final = b"\xa1\x67figures\x84"


class _Field:
    __slots__ = ("fits", "name", "required", "what")

    def __init__(self, name: str, what: str, fits: Callable[[Any], bool], required: bool = True) -> None:
        self.name = name
        self.what = what
        self.fits = fits
        self.required = required


def _is_unsigned(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_array_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_streams(value: Any) -> bool:
    """Numbers below three, each larger than the one before it."""
    return isinstance(value, list) and all(map(_is_unsigned, value)) and value == [n for n in range(3) if n in value]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def _is_bytes_or_null(value: Any) -> bool:
    return value is None or isinstance(value, bytes)


def _is_array_of_bytes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, bytes) for item in value)


def _is_environment(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], bytes) and _is_bytes_or_null(pair[1])
        for pair in value
    )


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_unsigned, value))


def _are_types(value: Any) -> bool:
    # By what they are not, in C: there may be tens of thousands.
    return isinstance(value, bytes) and not value.translate(None, bytes(range(BYTEARRAY + 1)))


def _is_flags(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(flag, int) and not isinstance(flag, bool) and -(2**31) <= flag < 2**31
        for name, flag in value.items()
    )


def _is_bundle(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("folder"), bytes)
        and "pyz" in value
        and _is_bytes_or_null(value["pyz"])
        and _is_array_of(value.get("modules"), lambda item: len(item) == 2 and _is_code(item))
        and _is_array_of(
            value.get("scripts"),
            lambda item: len(item) == 3 and _is_code(item) and (item[2] is None or isinstance(item[2], str)),
        )
    )


def _is_array_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(isinstance(item, list) and fits(item) for item in value)


def _is_code(item: Any) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], bytes)


def _unsigned(name: str, *, required: bool = True) -> _Field:
    return _Field(name, "an unsigned integer", _is_unsigned, required)


def _texts(*names: str) -> tuple[_Field, ...]:
    return tuple(_Field(name, "text", _is_text) for name in names)


def _byte_strings(*names: str) -> tuple[_Field, ...]:
    return tuple(_Field(name, "a byte string", _is_bytes) for name in names)


_NONE: Final = range(1)
_ANY: Final = range(MAX_SEGMENTS + 1)
_SOME: Final = range(1, MAX_SEGMENTS + 1)
_EAGER: Final = _Field("eager", "a boolean", _is_boolean)
_FIGURES: Final = _Field("figures", "an array of four unsigned integers", _are_figures, required=False)
_TYPES: Final = _Field("types", "a byte string of the numbers 0, 1 and 2", _are_types, required=False)
_FREE_THREADED: Final = _Field("free_threaded", "a boolean", _is_boolean, required=False)
_ERROR: Final = _texts("stage", "type", "message", "traceback")

# How many segments each message has, and the fields of its body.
_SHAPES: Final[dict[Kind, tuple[range, tuple[_Field, ...]]]] = {
    Kind.HELLO: (
        _NONE,
        (
            _unsigned("protocol"),
            _unsigned("parent_pid"),
            *_texts("version"),
            *_byte_strings("libpython", "program_name"),
            _Field("environment", "an array of [name, value or null]", _is_environment),
            *(
                _Field(name, "an array of byte strings", _is_array_of_bytes)
                for name in ("argv", "orig_argv", "path", "warnoptions", "xoptions")
            ),
            _Field("pycache_prefix", "a byte string or null", _is_bytes_or_null),
            _Field("flags", "a map from text to integers of 32 bits", _is_flags),
            _Field("home", "a byte string", _is_bytes, required=False),
            _Field("search_path", "an array of byte strings", _is_array_of_bytes, required=False),
            _Field("bundle", "a bundle", _is_bundle, required=False),
            _Field("template", "a boolean", _is_boolean, required=False),
            _Field("streams", "some of 0, 1 and 2 in their order", _are_streams, required=False),
            _Field("directory", "a boolean", _is_boolean, required=False),
            _FREE_THREADED,
        ),
    ),
    Kind.SETUP: (
        range(3, 4),
        (
            _unsigned("idle_timeout_ms", required=False),
            _EAGER,
            _unsigned("report_interval_ms", required=False),
            _unsigned("memory_limit", required=False),
        ),
    ),
    Kind.CALL: (_SOME, (_TYPES, _Field("prepares", "a boolean", _is_boolean, required=False))),
    Kind.RETIRE: (_NONE, ()),
    Kind.SETTINGS: (range(1, 2), (_EAGER,)),
    Kind.TEMPLATE: (
        range(1, 2),
        (
            _EAGER,
            _Field("modules", "an array of text", _is_array_of_text),
            _Field("threads", "an array of text", _is_array_of_text, required=False),
        ),
    ),
    Kind.FORK: (_NONE, ()),
    Kind.WELCOME: (
        _NONE,
        (
            _unsigned("protocol"),
            _unsigned("pid"),
            *_texts("worker", "version"),
            *_byte_strings("libpython", "prefix", "exec_prefix"),
            _FREE_THREADED,
        ),
    ),
    Kind.REFUSED: (_NONE, _texts("code", "message")),
    Kind.READY: (_NONE, (_FIGURES,)),
    Kind.SETUP_FAILED: (_ANY, (*_ERROR, _Field("module", "text", _is_text, required=False))),
    Kind.RESULT: (_SOME, (_TYPES, _FIGURES)),
    Kind.RAISED: (_ANY, (*_ERROR, _FIGURES)),
    Kind.RETIRED: (_NONE, _texts("reason")),
    Kind.ABORTED: (_NONE, _texts("code", "message")),
    Kind.REPORT: (_NONE, (_Field(_FIGURES.name, _FIGURES.what, _FIGURES.fits),)),
}

# How the header of a message starts that may be one segment and nothing else; their numbers are below 24, so each is one byte.
_PLAIN_STARTS: Final = {
    b"\x83" + _SMALL[kind]: kind
    for kind, (segments, fields) in _SHAPES.items()
    if 1 in segments and not any(field.required for field in fields)
}
# Of those with a body only this one is frequent, and only if it is its figures.
_PLAIN_STARTS[b"\x84" + _SMALL[Kind.RESULT]] = Kind.RESULT
# What comes behind the id: the lengths of one short segment.
_MANY_ENDS: Final = 256
_ENDS: Final = tuple(b"\x81" + encode_uint(length) for length in range(_MANY_ENDS))
# The same of a segment whose length has two bytes, after 0x8119.
_END_OF_2: Final = struct.Struct(">HH")
# How long the header of a call is whose number and whose segment's length have two bytes.
_CALL_OF_2: Final = len(_CALL) + _UINT_2.size + _END_OF_2.size
# What is around the number of a call, if that has two bytes, in the frame of one segment so long.
_CALLS: Final = tuple(
    (_PREFIX.pack(MAGIC, len(_CALL) + _UINT_2.size + len(end), length) + _CALL, end) for length, end in enumerate(_ENDS)
)
