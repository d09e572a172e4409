"""Send large objects beside their pickle, as segments. Both sides use this module.

The C pickler passes a large ``bytes`` or ``bytearray`` to its file unchanged (Modules/_pickle.c,
``_Pickler_write_bytes``), after an opcode with its length. The collector replaces that opcode by
NEXT_BUFFER (PEP 574), and the object becomes a segment. The peer receives the segment into a new
``bytes`` or ``bytearray``, which the unpickler puts into its place. So both sides avoid a copy,
wherever in the value the object is.
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
    """A file for a pickler: ``write`` is its method, ``take`` the pickler's ``buffer_callback``."""

    __slots__ = ("_buffers", "_places")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.write = self.parts.append
        self._buffers: list[memoryview] = []
        # The number of parts written when each of the buffers was offered.
        self._places: list[int] = []

    @property
    def offered(self) -> bool:
        """True if the pickler has offered out-of-band buffers."""
        return bool(self._buffers)

    def take(self, buffer: Any) -> bool:
        """Keep a buffer out of band (False). If it is small, or one too many, pickle it (True)."""
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND or len(self._buffers) >= MAX_SEGMENTS - 1:
            return True
        self._buffers.append(view)
        self._places.append(len(self.parts))
        return False

    def segments(self) -> tuple[Sequence[Buffer], list[int], bytes]:
        """Return the parts in sending order, the length of each segment, and the segments' types.

        The types are empty if all segments are memory. A ``bytearray`` cannot be resized from now
        on.
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
            # The pickle refers to buffers that were offered before this part was written first.
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

# Opcodes of the pickler (Lib/pickletools.py).
_BINBYTES: Final = b"B"
_BINBYTES8: Final = b"\x8e"
_BYTEARRAY8: Final = b"\x96"
_NEXT_BUFFER: Final = b"\x97"


def _announced(before: Buffer, length: int) -> tuple[int, int]:
    """Return the length of the opcode at the end of ``before``, and the object's type.

    (0, 0) means that it is text, or not such an opcode.
    """
    end = bytes(before[-9:])
    if end[1:] == length.to_bytes(8, "little"):
        if end[:1] == _BINBYTES8:
            return 9, BYTES
        if end[:1] == _BYTEARRAY8:
            return 9, BYTEARRAY
    if length < 2**32 and end[-5:] == _BINBYTES + length.to_bytes(4, "little"):
        return 5, BYTES
    return 0, 0
