"""Frames and their encoding, without I/O. PROTOCOL.md defines them; ``tests/vectors`` has samples.

The parent and the Python worker share this code. It imports almost nothing, because the Python
worker pays for each import at each start: ``enum``, ``typing``, ``attrs`` and the CBOR library
would each take longer than this module.
"""

from __future__ import annotations

import struct

from .cbor import SINGLE_BYTES, dumps, encode_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar, Final

PROTOCOL_VERSION: Final = 2

MAGIC: Final = b"tro\x01"
MAX_HEADER: Final = 16 * 2**20
# A worker's largest header has four texts of 1 MiB, and the lengths and types of its segments.
MAX_HEADER_OF_WORKER: Final = 5 * 2**20
MAX_PAYLOAD: Final = 2**40
MAX_SEGMENTS: Final = 65_536
# Lengths in an array. More of them are a byte string, because Python takes 0.1 µs for each item.
MAX_ARRAY: Final = 1024
MAX_ID: Final = 2**64 - 1
MAX_ITEMS: Final = 1024
MAX_DESCRIPTORS: Final = 16  # in one frame

# The front of the record, in bytes: the progress of a chunk, the cancelled call, the flags of
# events, the slots of handed items, the job's own progress with its note, the entry for other
# programs, and the times of traced calls. Text follows it.
FRONT_SIZE: Final = 1536
CANCEL_AT: Final = 24
FLAGS_AT: Final = 32
FLAGS: Final = 192
TAKEN_AT: Final = 56
HANDED_AT: Final = 64
HANDED_SLOTS: Final = 64
HANDED_ALL: Final = 255  # a count in a slot
STEP_AT: Final = 576
NOTE_AT: Final = 624
NOTE_SIZE: Final = 240
ENTRY_AT: Final = 880
RUNNING_AT: Final = 920
JOBS_AT: Final = 928
FUNCTION_AT: Final = 936
TIMES_AT: Final = 1152
TIMES_SLOTS: Final = 16  # as many as calls may be in flight
TIMES_SIZE: Final = 24  # of a slot: begun, ended, span

# The type that a segment has in the receiver: writable memory, ``bytes`` or ``bytearray``.
MEMORY: Final = 0
BYTES: Final = 1
BYTEARRAY: Final = 2

Buffer = bytes | bytearray | memoryview


class Kind(int):
    """The kind of a message: its number, with a ``name``. Singletons, as in an enumeration."""

    HELLO: ClassVar[Kind]
    SETUP: ClassVar[Kind]
    CALL: ClassVar[Kind]
    RETIRE: ClassVar[Kind]
    REPLY: ClassVar[Kind]
    SETTINGS: ClassVar[Kind]
    TEMPLATE: ClassVar[Kind]
    FORK: ClassVar[Kind]
    CREDIT: ClassVar[Kind]
    WELCOME: ClassVar[Kind]
    REFUSED: ClassVar[Kind]
    READY: ClassVar[Kind]
    SETUP_FAILED: ClassVar[Kind]
    RESULT: ClassVar[Kind]
    RAISED: ClassVar[Kind]
    RETIRED: ClassVar[Kind]
    ABORTED: ClassVar[Kind]
    REQUEST: ClassVar[Kind]
    REPORT: ClassVar[Kind]
    POST: ClassVar[Kind]
    WITHDRAW: ClassVar[Kind]

    name: str

    def __new__(cls, number: int) -> Kind:  # noqa: PYI034
        try:
            return KINDS[number]
        except KeyError:
            raise ValueError(f"no message has the number {number}") from None

    def __repr__(self) -> str:
        return f"Kind.{self.name}"


KINDS: Final[dict[int, Kind]] = {}
for _name, _number in (
    ("HELLO", 1),
    ("SETUP", 2),
    ("CALL", 3),
    ("RETIRE", 4),
    ("REPLY", 5),
    ("SETTINGS", 6),
    ("TEMPLATE", 7),
    ("FORK", 8),
    ("CREDIT", 9),
    ("WELCOME", 16),
    ("REFUSED", 17),
    ("READY", 18),
    ("SETUP_FAILED", 19),
    ("RESULT", 20),
    ("RAISED", 21),
    ("RETIRED", 22),
    ("ABORTED", 23),
    ("REQUEST", 24),
    ("REPORT", 25),
    ("POST", 26),
    ("WITHDRAW", 27),
):
    _kind = int.__new__(Kind, _number)
    _kind.name = _name
    KINDS[_number] = _kind
    setattr(Kind, _name, _kind)
FIRST_OF_WORKER: Final = Kind.WELCOME
# Messages of which a job may have many.
REPEATED: Final = (Kind.REQUEST, Kind.REPLY, Kind.POST)


# The magic number, the size of the header, the size of all segments.
PREFIX: Final = struct.Struct(">4sIQ")
PREFIX_SIZE: Final = PREFIX.size
_UINT_2: Final = struct.Struct(">BH")
# A header of three items, up to and including its kind.
_CALL: Final = b"\x83" + SINGLE_BYTES[Kind.CALL]
_RESULT: Final = b"\x83" + SINGLE_BYTES[Kind.RESULT]
# The same of four items.
_REPLY: Final = b"\x84" + SINGLE_BYTES[Kind.REPLY]
_reply_bodies: Final[dict[str, bytes]] = {}

# The last item of a header with one segment: an array with the segment's length.
SHORT_SEGMENT: Final = 256
SEGMENT_LENGTHS: Final = tuple(b"\x81" + encode_uint(length) for length in range(SHORT_SEGMENT))
# The same for a length of two bytes, after 0x8119.
LENGTH_OF_2: Final = struct.Struct(">HH")
# The size of a call's header if its number and its segment's length have two bytes each.
_CALL_OF_2: Final = len(_CALL) + _UINT_2.size + LENGTH_OF_2.size
# The bytes before and after a call's number, if the number has two bytes, by the segment's length.
_CALLS: Final = tuple(
    (PREFIX.pack(MAGIC, len(_CALL) + _UINT_2.size + len(end), length) + _CALL, end)
    for length, end in enumerate(SEGMENT_LENGTHS)
)


class WireError(Exception):
    """The bytes are not a frame of the protocol. ``code`` is the error's name in PROTOCOL.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Frame:
    """One complete frame.

    If ``borrowed`` is true, segment 0 lies in the decoder's buffer until the next call of
    :meth:`Decoder.writable`. Every other segment has separate memory.
    """

    __slots__ = ("body", "borrowed", "id", "kind", "segments")

    def __init__(self, kind: Kind, id: int, segments: list[Any], body: dict[str, Any], borrowed: bool = False) -> None:
        self.kind = kind
        self.id = id
        self.segments = segments
        self.body = body
        self.borrowed = borrowed


def encode_head(kind: Kind, id: int, lengths: Sequence[int], body: dict[str, Any] | None = None) -> bytes:
    """Return the prefix and the header of a frame. Its segments follow on the wire.

    Raises:
        ValueError: a value exceeds the protocol's bounds.
    """
    if len(lengths) == 1 and body is None and kind < 24 and 0 <= id <= MAX_ID and 0 <= lengths[0] <= MAX_PAYLOAD:
        # The common case, without out-of-band buffers. The kind takes one byte.
        length = lengths[0]
        end = SEGMENT_LENGTHS[length] if length < SHORT_SEGMENT else b"\x81" + encode_uint(length)
        header = b"\x83" + SINGLE_BYTES[kind] + encode_uint(id) + end
        return PREFIX.pack(MAGIC, len(header), length) + header
    payload = sum(lengths)
    if not 0 <= id <= MAX_ID:
        raise ValueError(f"a call's id must be between 0 and 2**64 - 1, got {id}")
    if len(lengths) > MAX_SEGMENTS:
        raise ValueError(f"a frame must have at most {MAX_SEGMENTS} segments, got {len(lengths)}")
    if payload > MAX_PAYLOAD:
        raise ValueError(f"a frame's payload must have at most {MAX_PAYLOAD} bytes (1 TiB), got {payload}")
    parts = [b"\x84" if body else b"\x83", encode_uint(kind), encode_uint(id)]
    count = len(lengths)
    if count > MAX_ARRAY:
        parts += (encode_uint(8 * count, 0x40), struct.pack(f">{count}Q", *lengths))
    else:
        parts += (encode_uint(count, 0x80), *map(encode_uint, lengths))
    if body:
        parts.append(dumps(body))
    header = b"".join(parts)
    limit = MAX_HEADER if kind < FIRST_OF_WORKER else MAX_HEADER_OF_WORKER
    if len(header) > limit:
        raise ValueError(f"the header of a {kind.name} must have at most {limit} bytes, got {len(header)}")
    return PREFIX.pack(MAGIC, len(header), payload) + header


def encode_reply(id: int, lengths: Sequence[int], status: str, request: int) -> bytes:
    """Return the prefix and the header of a REPLY that has no other fields.

    The result is the same as from :func:`encode_head`, in a third of the steps. ``lengths`` has at
    most one item.
    """
    body = _reply_bodies.get(status)
    if body is None:
        # Up to the request, which is 0 here.
        body = _reply_bodies[status] = dumps({"status": status, "request": 0})[:-1]
    payload = lengths[0] if lengths else 0
    array = (
        b"\x80" if not lengths else SEGMENT_LENGTHS[payload] if payload < SHORT_SEGMENT else b"\x81" + encode_uint(payload)
    )
    header = b"".join((_REPLY, encode_uint(id), array, body, encode_uint(request)))
    return PREFIX.pack(MAGIC, len(header), payload) + header


def encode_call(id: int, pickled: Buffer) -> tuple[bytes, bytes]:
    """Return the frame of a call with one segment, and the start of its result's header.

    :meth:`Decoder.plain_result` takes the latter. The frame is the same as from
    :func:`encode_head`, in half the steps, because nearly all calls have this form.
    """
    length = len(pickled)
    if 0x100 <= id < 0x10000:
        number = _UINT_2.pack(0x19, id)
        if length < SHORT_SEGMENT:
            start, end = _CALLS[length]
            return b"".join((start, number, end, pickled)), _RESULT + number
        if length < 0x10000:
            end = LENGTH_OF_2.pack(0x8119, length)
            return b"".join((PREFIX.pack(MAGIC, _CALL_OF_2, length), _CALL, number, end, pickled)), _RESULT + number
    number = encode_uint(id)
    header = _CALL + number + b"\x81" + encode_uint(length)
    return PREFIX.pack(MAGIC, len(header), length) + header + pickled, _RESULT + number
