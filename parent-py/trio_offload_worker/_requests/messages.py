"""The contents of a request and of its reply."""

from __future__ import annotations

from time import monotonic

from .._protocol.cbor import dumps, encode_uint
from .._protocol.frames import MAGIC, PREFIX, Kind, encode_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, Protocol

    from .._protocol.frames import Buffer

    class ReceivedDescriptor(Protocol):
        """A descriptor that came with a reply. Each kind of worker has its own class.

        It is closed with this object, so a signal handler that raises cannot leave it open.
        """

        def fileno(self) -> int:
            """Return the number. -1 means that the descriptor is taken."""

        def take(self) -> int:
            """Return the number, or -1. The caller owns the descriptor from then on."""


class Segments:
    """A pickle and its buffers, ready to be sent.

    Attributes:
        parts: Their bytes, in order. Several parts may form one segment.
        lengths: Length of each segment in bytes.
        types: Type of each segment. Empty if all are memory.
    """

    __slots__ = ("lengths", "parts", "types")

    def __init__(self, parts: Sequence[Buffer] = (), lengths: Sequence[int] = (), types: bytes = b"") -> None:
        self.parts = parts
        self.lengths = lengths
        self.types = types


NONE: Final = Segments()


class Reply:
    """The reply to a request.

    Attributes:
        request: Number of the request.
        status: Status, as in PROTOCOL.md.
        segments: Objects for the unpickler: the pickle and its buffers.
        types: Type of each segment. Empty if all are memory.
        type, message, traceback: The parent's error in words. They may be empty.
        descriptors: The file descriptors that came with it.
    """

    __slots__ = ("descriptors", "message", "request", "segments", "status", "traceback", "type", "types")

    def __init__(self, body: dict[str, Any], segments: list[Any]) -> None:
        self.request: int = body["request"]
        self.status: str = body["status"]
        self.segments = segments
        self.types: bytes = body.get("types", b"")
        self.type: str = body.get("type", "")
        self.message: str = body.get("message", "")
        self.traceback: str = body.get("traceback", "")
        self.descriptors: Sequence[ReceivedDescriptor] = body.get("descriptors", ())


def encode_request(call: int, request: int, body: dict[str, Any], segments: Segments) -> bytes:
    """Return the head of a REQUEST, whose body lacks the request's number.

    The bodies of a job's requests are few. So their bytes are kept, which halves the time of a
    request.
    """
    lengths = segments.lengths
    if len(lengths) > 1:
        return encode_head(Kind.REQUEST, call, lengths, body | {"request": request})
    key = tuple(body.items())
    rest = _bodies.get(key)
    if rest is None:
        if len(_bodies) >= _MAX_BODIES:
            _bodies.clear()
        rest = _bodies[key] = dumps(body | {"request": 0})[:-1]
    payload = lengths[0] if lengths else 0
    array = b"\x81" + encode_uint(payload) if lengths else b"\x80"
    header = b"".join((_REQUEST, encode_uint(call), array, rest, encode_uint(request)))
    return PREFIX.pack(MAGIC, len(header), payload) + header


# A header of four items, up to and including its kind.
_REQUEST: Final = b"\x84" + encode_uint(Kind.REQUEST)
_MAX_BODIES: Final = 256
_bodies: Final[dict[tuple[tuple[str, Any], ...], bytes]] = {}


def deadline_after(timeout: float | None) -> float:
    """Return the time of the monotonic clock at which a timeout has passed. None means never.

    Raises:
        TypeError, ValueError: the timeout is no number.
    """
    if timeout is None:
        return float("inf")
    try:
        deadline = monotonic() + timeout
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds, got {timeout!r}") from None
    if deadline != deadline:
        raise ValueError(f"timeout must be None or a number of seconds, got {timeout!r}")
    return deadline
