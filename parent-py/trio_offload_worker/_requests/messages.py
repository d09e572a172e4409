"""The contents of a request and of its reply."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from .._protocol.frames import Buffer


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
    """

    __slots__ = ("message", "request", "segments", "status", "traceback", "type", "types")

    def __init__(self, body: dict[str, Any], segments: list[Any]) -> None:
        self.request: int = body["request"]
        self.status: str = body["status"]
        self.segments = segments
        self.types: bytes = body.get("types", b"")
        self.type: str = body.get("type", "")
        self.message: str = body.get("message", "")
        self.traceback: str = body.get("traceback", "")
