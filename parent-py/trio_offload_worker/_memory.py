"""Memory for large segments, on both sides."""

from __future__ import annotations

import mmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


def allocate(size: int) -> Any:
    """Memory for a large segment: writable, and owned by whatever is unpickled into it.

    From 1 MiB on it is a mapping of its own, advised for huge pages: the reading is then bound by the copy and not by
    25,000 page faults for 100 MB.
    """
    if size < _HUGE:
        return bytearray(size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _MADV_HUGEPAGE is not None:
        try:
            memory.madvise(_MADV_HUGEPAGE)
        except OSError:
            # A kernel without huge pages (EINVAL): the memory is as good, only slower.
            pass
    return memory


_HUGE: Final = 2**20
_MADV_HUGEPAGE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)
