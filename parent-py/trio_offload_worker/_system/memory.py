"""Memory for large segments, in the parent and in the Python worker."""

from __future__ import annotations

import mmap

from .._protocol.frames import BYTEARRAY, BYTES
from . import native
from .native import MADV_HUGEPAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from .native import Target

HUGE: Final = 2**20  # bytes; larger segments get huge pages
HUGE_PAGE: Final = 2 * 2**20
# From this size the gain exceeds the import of ctypes, which takes some milliseconds.
_FILLED_DIRECTLY: Final = 4 * 2**20


def allocate(size: int, kind: int) -> Target:
    """Allocate memory for a segment of a type.

    Raises:
        MemoryError, OverflowError, OSError: too little memory is left.
    """
    if kind == BYTES:
        target = native.native().new_bytes(size) if size >= _FILLED_DIRECTLY else None
        return _bytes_by_a_copy(size) if target is None else target
    if kind == BYTEARRAY or size < HUGE:
        made = native.native().new_bytearray(size) if size >= _FILLED_DIRECTLY else bytearray(size)
        return memoryview(made), lambda: made
    view = memoryview(new_mapping(size))[:size]
    return view, lambda: view


def new_mapping(size: int) -> mmap.mmap:
    """Map memory in huge pages. Receiving then costs a copy instead of a page fault per 4 KiB."""
    if size >= 8 * HUGE_PAGE:
        # Linux aligns a mapping for huge pages if its length is a multiple of their size
        # (mm/huge_memory.c, thp_get_unmapped_area). In a small mapping the rounding would waste too
        # much.
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if MADV_HUGEPAGE is not None:
        try:
            memory.madvise(MADV_HUGEPAGE)
        except OSError:
            pass  # A kernel without huge pages (EINVAL): only slower.
    return memory


def _bytes_by_a_copy(size: int) -> Target:
    """Return a target that copies into ``bytes`` at the end, because Python cannot fill one.

    ``BytesIO.getbuffer`` would save the copy. But if the target is dropped half filled, the garbage
    collector closes the stream before its view (Modules/_io/iobase.c), which raises BufferError.
    """

    made = bytearray(size)
    return memoryview(made), lambda: bytes(made)
