"""A file for the pickler that keeps what is written, part by part, and imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

OUT_OF_BAND: Final = 16 * 1024  # bytes; smaller buffers are cheaper inside the pickle


class Parts:
    """What a pickler writes to: ``write`` is all that it asks of a file."""

    __slots__ = ("parts", "write")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        # The pickler calls this for each small pickle, so it is not a function of ours.
        self.write = self.parts.append

    def whole(self) -> bytes:
        """All of it in one piece."""
        return b"".join(map(flat, self.parts))


def flat(part: Any) -> bytes | memoryview:
    """A part as bytes one after the other.

    A large buffer that stays in the pickle is written as a ``PickleBuffer`` (Modules/_pickle.c, ``_Pickler_write_bytes``). That has
    no length, and the array behind it may be in Fortran's order, which neither :meth:`bytes.join` nor a file takes.
    """
    if type(part) is bytes:
        return part
    raw = getattr(part, "raw", None)
    view: memoryview = memoryview(part).cast("B") if raw is None else raw()
    return view
