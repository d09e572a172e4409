"""No fork of this process while a socket pair is being handed to a new process."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Final, Protocol


class _Abandonable(Protocol):
    def abandon(self) -> None: ...


class _Closable(Protocol):
    def close(self) -> None: ...


class _Handover:
    """Keeps forks of this process away from the workers; see the module's guarantees."""

    def __init__(self) -> None:
        # Re-entrant, because a signal handler that forks may run inside the critical section.
        self._lock = threading.RLock()
        self._processes: weakref.WeakSet[_Abandonable] = weakref.WeakSet()
        self._files: weakref.WeakSet[_Closable] = weakref.WeakSet()
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._in_child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def leave_in_copy(self) -> None:
        """In a fork that was made inside: whoever runs there may start workers of its own."""
        self._lock.release()

    def register(self, process: _Abandonable, *files: _Closable) -> None:
        self._processes.add(process)
        self._files.update(files)

    def _in_child(self) -> None:
        try:
            for process in self._processes:
                # What somebody has closed under us must not keep the others open.
                with contextlib.suppress(OSError):
                    process.abandon()
            for file in self._files:
                with contextlib.suppress(OSError):
                    file.close()
            self._processes.clear()
            self._files.clear()
        finally:
            self._lock.release()


no_forks: Final = _Handover()
