"""Large objects beside their pickle: what of it becomes a segment of its own. Both sides send with this.

The C pickler hands a large ``bytes`` or ``bytearray`` to its file as it is (Modules/_pickle.c, ``_Pickler_write_bytes``),
right after the few bytes that announce it. Where it has done so, the announcement is replaced by «the next of the
out-of-band buffers» (PEP 574), and the object becomes a segment, which the receiver receives into a new ``bytes`` or
``bytearray``. The unpickler puts that into its place, so that neither side copies it, wherever in the value it is.
"""

from __future__ import annotations

from .frames import BYTEARRAY, BYTES, MAX_SEGMENTS, MEMORY
from .parts import OUT_OF_BAND, Parts, flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from .frames import Buffer


class Collector(Parts):
    """What a pickler writes to: ``write`` is the method that it calls, and ``take`` its ``buffer_callback``."""

    __slots__ = ("_buffers", "_places")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.write = self.parts.append
        self._buffers: list[memoryview] = []
        # How many parts had been written when each of the buffers was offered.
        self._places: list[int] = []

    @property
    def offered(self) -> bool:
        """Whether there are out-of-band buffers."""
        return bool(self._buffers)

    def take(self, buffer: Any) -> bool:
        """Out of band (False), unless the buffer is small or there are too many: then into the pickle (True)."""
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND or len(self._buffers) >= MAX_SEGMENTS - 1:
            return True
        self._buffers.append(view)
        self._places.append(len(self.parts))
        return False

    def segments(self) -> tuple[Sequence[Buffer], list[int], bytes]:
        """The parts in the order in which they are sent, the length of each segment and, if one is not memory, its type.

        Whatever can change its size (a ``bytearray``) is held as it is from now on.
        """
        parts = self.parts
        if len(parts) == 1 and not self._buffers:
            return parts, [len(parts[0])], b""
        pickle: list[Buffer] = []
        outside: list[Buffer] = []
        types = bytearray([MEMORY])
        buffers = self._buffers
        first = 0
        room = MAX_SEGMENTS - 1 - len(buffers)
        for index, part in enumerate(parts):
            data = flat(part)
            head, kind = _announced(parts[index - 1], len(data)) if index and room and len(data) >= OUT_OF_PICKLE else (0, 0)
            if not head:
                pickle.append(data)
                continue
            # The buffers that the pickler has offered before it wrote this are named before this in the pickle.
            while first < len(buffers) and self._places[first] <= index:
                outside.append(buffers[first])
                types.append(MEMORY)
                first += 1
            pickle[-1] = bytes(pickle[-1][:-head]) + _NEXT_BUFFER
            outside.append(data)
            types.append(kind)
            room -= 1
        outside += buffers[first:]
        types += bytes([MEMORY]) * (len(buffers) - first)
        lengths = [sum(map(len, pickle)), *(view.nbytes if type(view) is memoryview else len(view) for view in outside)]
        return pickle + outside, lengths, bytes(types) if any(types) else b""


OUT_OF_PICKLE: Final = 256 * 1024  # bytes; smaller ``bytes`` and ``bytearray`` stay in the pickle

# As the pickler writes them (Lib/pickletools.py).
_BINBYTES: Final = b"B"
_BINBYTES8: Final = b"\x8e"
_BYTEARRAY8: Final = b"\x96"
_NEXT_BUFFER: Final = b"\x97"


def _announced(before: Buffer, length: int) -> tuple[int, int]:
    """How long the announcement is with which ``before`` ends, and of what; (0, 0) if it is of text, or there is none."""
    end = bytes(before[-9:])
    if end[1:] == length.to_bytes(8, "little"):
        if end[:1] == _BINBYTES8:
            return 9, BYTES
        if end[:1] == _BYTEARRAY8:
            return 9, BYTEARRAY
    if length < 2**32 and end[-5:] == _BINBYTES + length.to_bytes(4, "little"):
        return 5, BYTES
    return 0, 0
