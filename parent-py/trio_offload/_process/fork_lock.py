"""Block :func:`os.fork` while a socket pair is handed to a new process, and clean up in a fork.

Otherwise the copy would hold the worker's end open, and the worker's death would not end the
stream.
"""

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


class ForkLock:
    """Keeps forks of this process away from its workers.

    Lock it while a descriptor of a worker is half handed over.
    """

    def __init__(self) -> None:
        # Re-entrant: a signal handler that forks may run while the lock is held.
        self._lock = threading.RLock()
        self._processes: weakref.WeakSet[_Abandonable] = weakref.WeakSet()
        self._files: weakref.WeakSet[_Closable] = weakref.WeakSet()
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._in_child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def leave_in_copy(self) -> None:
        """Release the lock in a fork that was made under it, so that the fork may start workers."""
        self._lock.release()

    def register(self, process: _Abandonable, *files: _Closable) -> None:
        """Abandon the process and close the files in every fork of this program."""
        self._processes.add(process)
        self._files.update(files)

    def _in_child(self) -> None:
        try:
            for process in self._processes:
                # A descriptor that the program has closed must not keep the others open.
                with contextlib.suppress(OSError):
                    process.abandon()
            for file in self._files:
                with contextlib.suppress(OSError):
                    file.close()
            self._processes.clear()
            self._files.clear()
        finally:
            self._lock.release()


fork_lock: Final = ForkLock()
