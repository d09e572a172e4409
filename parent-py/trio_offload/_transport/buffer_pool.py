"""Memory for large results, and what is kept of it for the next.

The system fills every page with zeros before a program may write to it, which for a large array takes half as long again as
to receive it. So, while large results come one soon after the other, the memory of those that the program has let go of
is used again. What is kept is bounded (``_LIMIT``) and given back when there have been none for a while, and a result that comes
alone leaves nothing behind.
"""

from __future__ import annotations

import mmap
import threading
import time
from typing import TYPE_CHECKING, Final

import trio

from trio_offload_worker._memory import HUGE, allocate, new_mapping
from trio_offload_worker._protocol.frames import MEMORY

from .. import _clock

if TYPE_CHECKING:
    from trio_offload_worker._memory import Target


class Regions:
    """The memory of one context's results. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # To be read by others, written here only: those that were given out last, in use or not. What is in use is the
        # program's, and never given out again.
        self.given: list[mmap.mmap] = []
        self._last = -_STREAK
        self._is_watched = False

    def forget(self) -> None:
        """In a fork of this process: another thread may have held the lock, and the task that gives memory back is not there."""
        self.__init__()  # type: ignore[misc]

    def allocate(self, size: int, kind: int) -> Target:
        """Memory for a segment of this type and of so many bytes.

        Raises:
            MemoryError: there is not so much.
        """
        try:
            return self._allocate(size, kind)
        except (MemoryError, OverflowError, OSError):
            raise MemoryError(
                f"there is not enough memory for a part of a job's result that has {size} bytes; return less at once, or the "
                "name of a file"
            ) from None

    def _allocate(self, size: int, kind: int) -> Target:
        if kind != MEMORY or size < HUGE:
            return allocate(size, kind)
        view = memoryview(self._take(size))[:size]
        return view, lambda: view

    def release_later(self) -> None:
        """Have what is kept given back once no large result has come for a while. Inside of Trio; may be said again and again."""
        if not self._is_watched:
            self._is_watched = True
            trio.lowlevel.spawn_system_task(self._release)

    async def _release(self) -> None:
        try:
            last = None
            while last != self._last:
                last = self._last
                await _clock.sleep(_STREAK)
        finally:
            with self._lock:
                self.given.clear()
                self._is_watched = False

    def _take(self, size: int) -> mmap.mmap:
        now = time.monotonic()
        if not self._lock.acquire(blocking=False):
            # Another thread chooses just now, or the frame below a signal handler.
            return new_mapping(size)
        try:
            follows = now - self._last <= _STREAK
            self._last = now
            if not follows:
                self.given.clear()
                return new_mapping(size)
            for index, memory in enumerate(self.given):
                if size <= len(memory) <= 2 * size and _is_free(memory):
                    del self.given[index]
                    return self._remember(memory)
            return self._remember(new_mapping(size))
        finally:
            self._lock.release()

    def _remember(self, memory: mmap.mmap) -> mmap.mmap:
        given = self.given
        given.append(memory)
        while sum(map(len, given)) > _LIMIT:
            del given[0]
        return memory


_LIMIT: Final = 256 * 2**20  # bytes
_STREAK: Final = 5.0  # seconds between two large results, at most, for the second to use the memory of the first


def _is_free(memory: mmap.mmap) -> bool:
    """Whether nobody has a view of it: only then may it change its size, which here it does not."""
    try:
        memory.resize(len(memory))
    except (BufferError, OSError, SystemError, ValueError):
        # In use; or a system without mremap(2), where nothing is used again.
        return False
    return True
