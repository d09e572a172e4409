"""A file object for the pickler. It keeps the written parts separate and imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

OUT_OF_BAND: Final = 16 * 1024  # bytes; smaller buffers are cheaper inside the pickle


class Parts:
    """A file for a pickler, which only needs ``write``."""

    __slots__ = ("parts", "write")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        # The pickler calls this for each small pickle, so it is a C function.
        self.write = self.parts.append

    def whole(self) -> bytes:
        """Return all parts joined."""
        return b"".join(map(flat, self.parts))


def flat(part: Any) -> bytes | memoryview:
    """Return a part as contiguous bytes.

    A large buffer inside the pickle is written as a ``PickleBuffer`` (Modules/_pickle.c,
    ``_Pickler_write_bytes``). It has no length, and its array may be in Fortran order.
    :meth:`bytes.join` and files reject both.
    """
    if type(part) is bytes:
        return part
    raw = getattr(part, "raw", None)
    view: memoryview = memoryview(part).cast("B") if raw is None else raw()
    return view
