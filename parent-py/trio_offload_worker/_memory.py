"""Memory for large segments, on both sides."""

from __future__ import annotations

import mmap

from ._protocol.frames import BYTEARRAY, BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._native import Native

    # What is to be filled, and what gives the object once that has been done.
    Target = tuple[memoryview, Callable[[], Any]]


def allocate(size: int, kind: int) -> Target:
    """Memory for a segment of this type and of so many bytes.

    Raises:
        MemoryError, OverflowError, OSError: there is not so much.
    """
    if kind == BYTES:
        target = _native().new_bytes(size) if size >= _FILLED_DIRECTLY else None
        return _bytes_by_a_copy(size) if target is None else target
    if kind == BYTEARRAY or size < HUGE:
        made = _native().new_bytearray(size) if size >= _FILLED_DIRECTLY else bytearray(size)
        return memoryview(made), lambda: made
    view = memoryview(new_mapping(size))[:size]
    return view, lambda: view


def new_mapping(size: int) -> mmap.mmap:
    """Memory of its own, advised for huge pages: the reading is then bound by the copy and not by a page fault each 4 KiB."""
    if size >= 8 * HUGE_PAGE:
        # Linux puts a mapping where its huge pages can begin if its length is a multiple of theirs (mm/huge_memory.c,
        # thp_get_unmapped_area). For small ones what that takes at the end would count.
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if MADV_HUGEPAGE is not None:
        try:
            memory.madvise(MADV_HUGEPAGE)
        except OSError:
            # A kernel without huge pages (EINVAL): the memory is as good, only slower.
            pass
    return memory


HUGE: Final = 2**20  # bytes; from this size on memory is asked for in huge pages
HUGE_PAGE: Final = 2 * 2**20
MADV_HUGEPAGE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)
# From this size on it pays to go by way of ctypes, whose import takes some milliseconds.
_FILLED_DIRECTLY: Final = 4 * 2**20


def _native() -> Native:
    from . import _native as module

    return module.native()


def _bytes_by_a_copy(size: int) -> Target:
    """A bytes object, which Python itself has no way to fill.

    ``BytesIO.getbuffer`` comes near to one, but the garbage collector stumbles over what is given up half filled: it closes
    the stream before the view (Modules/_io/iobase.c), and a BufferError comes up that belongs to nobody.
    """
    made = bytearray(size)
    return memoryview(made), lambda: bytes(made)
