"""Reuse memory between large results.

The kernel zeroes fresh pages, which adds about 50 % to the time needed to receive a large array.
Buffers of released results are reused while large results keep arriving. The pool keeps at most
``_MAX_SIZE`` bytes, and frees them ``_STREAK`` seconds after the last large result. A single large
result leaves the pool empty.
"""

from __future__ import annotations

import mmap
import threading
import time
from typing import TYPE_CHECKING, Final

import trio

from trio_offload_worker._protocol.frames import MEMORY
from trio_offload_worker._system.memory import HUGE, allocate, new_mapping

from .. import _clock

if TYPE_CHECKING:
    from trio_offload_worker._system.native import Target


_MAX_SIZE: Final = 256 * 2**20  # bytes
# Seconds. Only a large result that follows the last one within this time reuses memory.
_STREAK: Final = 5.0


class BufferPool:
    """The memory of one context's large results. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The latest buffers. A buffer in use belongs to the program and is not reused. Read-only
        # for others.
        self.given: list[mmap.mmap] = []
        self._last = -_STREAK
        self._is_watched = False

    def forget(self) -> None:
        """Start anew in a fork of this process.

        It lacks the releasing task, and another thread may have held the lock.
        """
        self.__init__()  # type: ignore[misc]

    def allocate(self, size: int, kind: int) -> Target:
        """Return memory for a segment of ``size`` bytes and of this type.

        Raises:
            MemoryError: the system has not enough.
        """
        try:
            return self._allocate(size, kind)
        except (MemoryError, OverflowError, OSError):
            raise MemoryError(
                f"not enough memory for {size} bytes of a job's result. Return less at once, or write a file and return its name"
            ) from None

    def _allocate(self, size: int, kind: int) -> Target:
        if kind != MEMORY or size < HUGE:
            return allocate(size, kind)
        view = memoryview(self._take(size))[:size]
        return view, lambda: view

    def release_later(self) -> None:
        """Free the pool ``_STREAK`` seconds after the last large result.

        Call inside of Trio. May be called again.
        """
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
            # Another thread is choosing, or the frame below a signal handler.
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
        while sum(map(len, given)) > _MAX_SIZE:
            del given[0]
        return memory


def _is_free(memory: mmap.mmap) -> bool:
    """Return True if the mapping has no views.

    A mapping with views cannot be resized, not even to its own size.
    """
    try:
        memory.resize(len(memory))
    except (BufferError, OSError, SystemError, ValueError):
        # In use; or a system without mremap(2), where memory is not reused.
        return False
    return True
