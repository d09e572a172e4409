"""The pipes that take the standard output and the standard error of a worker."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from typing import Final

from .._transport.sockets import notify_closing

NAMES: Final = {1: "stdout", 2: "stderr"}
_LAST_OF_WORKER: Final = 4  # its socket and its record are 3 and 4
_PIPE_SIZE: Final = 2**20  # bytes, the largest for users without privileges
_READ_SIZE: Final = 2**16
_MAX_READS: Final = 2 * _PIPE_SIZE // _READ_SIZE
_TAIL_SIZE: Final = 2**16


class OutputPipes:
    """Both pipes of one worker, for the whole of its life.

    All processes that the worker starts may write to them too, and keep them open.

    Raises:
        OSError: this process has used up its descriptors.
    """

    def __init__(self) -> None:
        # By the number of the worker's descriptor. A number leaves its dictionary before the
        # descriptor is closed.
        self._reads: dict[int, int] = {}
        self._writes: dict[int, int] = {}
        self.tail = bytearray()
        # Name of the function whose output is read. None means outside of jobs.
        self.job: str | None = None
        # Text behind the last newline, by the stream.
        self.begun = {name: bytearray() for name in NAMES.values()}
        # Held while output is handled. It is only tried: a signal handler may run in between.
        self.handling = threading.Lock()
        try:
            for number in NAMES:
                read, write = os.pipe2(os.O_CLOEXEC)
                self._reads[number], self._writes[number] = _moved(read), _moved(write)
                os.set_blocking(self._reads[number], False)
        except BaseException:
            self.close()
            raise
        for descriptor in self._writes.values():
            try:
                fcntl.fcntl(descriptor, 1031, _PIPE_SIZE)  # F_SETPIPE_SZ
            except OSError:
                pass  # The user's pipes take too much memory. A small one works too.
        _all.add(self)

    @property
    def writes(self) -> dict[int, int]:
        """The writing ends for the worker, by its descriptors. Empty once it is ready."""
        return dict(self._writes)

    @property
    def reads(self) -> dict[int, int]:
        """The reading ends, by the worker's descriptors."""
        return dict(self._reads)

    def read(self, number: int) -> bytes | None:
        """Read from the pipe of a descriptor. Return None if that would have to wait.

        Empty bytes are the end of the stream.
        """
        try:
            data = os.read(self._reads[number], _READ_SIZE)
        except BlockingIOError:
            return None
        except KeyError:
            return b""  # closed here
        self.tail += data
        if len(self.tail) > 2 * _TAIL_SIZE:
            del self.tail[:-_TAIL_SIZE]
        return data

    def read_all(self) -> list[tuple[int, bytes]]:
        """Read the data that is in the pipes now."""
        found = []
        for number in NAMES:
            for _ in range(_MAX_READS):
                data = self.read(number)
                if not data:
                    break
                found.append((number, data))
        return found

    def tail_text(self) -> str:
        """Return the end of the output since the start of the call."""
        return bytes(self.tail[-_TAIL_SIZE:]).decode(errors="replace")

    def close_writes(self) -> None:
        """Close the writing ends, which the worker has now."""
        while self._writes:
            os.close(self._writes.popitem()[1])

    def close(self) -> None:
        """Close everything."""
        self.close_writes()
        while self._reads:
            _, descriptor = self._reads.popitem()
            notify_closing(descriptor)
            os.close(descriptor)

    def close_reads(self) -> None:
        """Close the reading ends, for which no task waits."""
        while self._reads:
            os.close(self._reads.popitem()[1])


def close_in_copy() -> None:
    """Close the writing ends too, in a fork that is a worker and has its own in place."""
    for pipes in list(_all):
        pipes.close_writes()


def _moved(descriptor: int) -> int:
    """Return a descriptor whose number differs from all that a worker uses."""
    if descriptor > _LAST_OF_WORKER:
        return descriptor
    # A standard stream is closed, and its number was free.
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LAST_OF_WORKER + 1)
    finally:
        os.close(descriptor)


def _leave_in_copy() -> None:
    for pipes in list(_all):
        pipes.close_reads()


_all: Final[weakref.WeakSet[OutputPipes]] = weakref.WeakSet()
os.register_at_fork(after_in_child=_leave_in_copy)
