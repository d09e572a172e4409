"""The running job's line to its parent (``line.rs``): the module ``_trio_offload_line`` of a loop.

Threads of a job share the socket with the session. Two locks keep frames whole:

* The lock for writing also covers the number of the running call. So a thread that outlives its job
  cannot write after the job's answer.
* The lock for reading belongs to one thread of the job, or to the session. A thread that reads at
  the end of its job is woken, and leaves at a frame's end. The session waits for that.

A signal handler that raises must not come between received bytes and their place in the decoder. So
the main thread blocks signals except while it polls. Another thread of the job may still receive
one, and its handler then runs in the main thread at any point. If it raises there, the worker ends.
"""

from __future__ import annotations

import os
import select
import sys
import time
from _thread import RLock, allocate_lock, get_ident

from .._protocol.frames import FRONT_SIZE, JOBS_AT, RUNNING_AT, Kind
from .._system.linux import identity_of, map_for_life, unmap
from .signals import block_all, restore
from .transport import is_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Final, NoReturn

    from .._protocol.frames import Buffer, Frame
    from .sentinel import Sentinel
    from .signals import Handlers
    from .transport import Link


class Unexpected(Exception):
    """The worker's state does not expect a message of this kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind


class ReceivedDescriptor:
    """A descriptor that came with a reply (``line.rs``). It is closed unless the job takes it."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Return the number. -1 means that the descriptor is taken."""
        return self._number

    def take(self) -> int:
        """Return the number. The caller owns the descriptor from then on. -1 means it is taken."""
        number, self._number = self._number, -1
        return number

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)


class Line:
    """The line, and the frames that a job's threads have set aside for the session.

    Args:
        link: the socket.
        handlers: the jobs' signal handlers.
        sentinel: suspends its reports for long writes.
        record: the descriptor of the record.
        end: ends the worker, because of an exception of the link.
    """

    def __init__(
        self,
        link: Link,
        handlers: Handlers,
        sentinel: Sentinel,
        record: int,
        end: Callable[[BaseException], NoReturn],
    ) -> None:
        self._link = link
        self._handlers = handlers
        self._sentinel = sentinel
        self._record = record
        self._record_identity = identity_of(record)
        self._end = end
        self._process = os.getpid()
        self._main_thread = get_ident()
        self._call = 0
        self._front, self._copy_of_record = _map_front(record)
        self._aside: list[Frame] = []
        self._reading = allocate_lock()
        # Held while a thread of a job receives.
        self._receiving = allocate_lock()
        # Re-entrant: the garbage collector may run a `__del__` that logs, in the middle of a write.
        self._writing = RLock()
        self._is_writing = False
        self._deferred: list[Sequence[Buffer]] = []
        # Wakes a thread that reads at the end of its job. Made for the first one.
        self._waker = -1
        self._is_woken = False

    def install(self) -> None:
        """Make it the module that ``_requests/line.py`` looks for."""
        module: Any = type(sys)("_trio_offload_line")
        module.call = lambda: self._call
        module.pid = lambda: self._process
        module.record = self.record
        module.read = self.read
        module.open_carried = self.open_carried
        module.write = self.write
        sys.modules["_trio_offload_line"] = module

    # The session's side.

    def receive(self) -> Frame:
        """Return the next frame for the session, as :meth:`Link.receive` does."""
        with self._reading:
            if self._is_woken:
                self._is_woken = False
                os.eventfd_read(self._waker)
            return self._aside.pop(0) if self._aside else self._link.receive()

    def begin_job(self, call: int) -> None:
        """Let the threads of a job talk."""
        self._call = call
        self._front[_RUNNING] = call

    def end_job(self) -> None:
        """Refuse the threads of the job that has ended, and wake one that reads."""
        with self._writing:
            self._call = 0
        self._front[_RUNNING] = 0
        if self._waker >= 0 and self._reading.locked():
            self._is_woken = True
            os.eventfd_write(self._waker, 1)

    def count_job(self) -> None:
        """Count a job that has ended."""
        self._front[_JOBS] += 1

    def close_in_copy(self) -> None:
        """Close the waker in a fork of this process."""
        if self._waker >= 0:
            os.close(self._waker)
            self._waker = -1
        front, self._front = self._front, _no_front()
        # A job may have opened its own file with the number of the mapping's descriptor.
        if identity_of(self._copy_of_record) == self._record_identity:
            unmap(front)

    # The job's side.

    def record(self) -> int:
        """Return the record's descriptor, or -1 if a job has closed it."""
        return self._record if identity_of(self._record) == self._record_identity else -1

    def write(self, parts: Sequence[Buffer], call: int, sent: list[bool]) -> None:
        """Write the parts of one frame for a call, and append True to ``sent``."""
        mask = self._handlers.mask_in_job()
        problem: BaseException | None = None
        try:
            block_all(mask)
            with self._writing:
                if call == self._call and self._is_writing:
                    self._deferred.append(parts)
                    sent.append(True)
                elif call == self._call:
                    self._is_writing = True
                    try:
                        self._write(parts)
                        sent.append(True)
                        while self._deferred:
                            self._write(self._deferred.pop(0))
                    except BaseException as error:
                        problem = error
                    self._is_writing = False
            if problem is not None:
                self._end(problem)
        finally:
            restore(mask)

    def read(self, timeout: float, inbox: list[tuple[int, int, dict[str, Any], list[Any]]]) -> None:
        """Append the next REPLY or CREDIT of the running call to ``inbox``, within ``timeout``."""
        mask = self._handlers.mask_in_job()
        try:
            block_all(mask)
            if not self._reading.acquire(False):
                return  # The job has ended, and the session reads.
            try:
                if get_ident() != self._main_thread and self._waker < 0:
                    self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._read(time.monotonic() + timeout, inbox, mask)
            finally:
                self._reading.release()
        finally:
            restore(mask)

    def open_carried(self) -> None:
        """Receive the descriptors that come with replies from now on."""
        with self._receiving:  # a receive without room for them may be in progress
            self._link.open_carried()

    def _write(self, parts: Sequence[Buffer]) -> None:
        if is_small(map(len, parts)):
            self._link.write(parts, True)
            return
        self._sentinel.begin_writing()
        try:
            self._link.write(parts, False)
        finally:
            self._sentinel.end_writing()

    def _read(self, deadline: float, inbox: list[Any], mask: Iterable[int] | None) -> None:
        descriptor = self._link.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if self._waker >= 0:
            poller.register(self._waker, select.POLLIN)
        is_readable = False
        # Read `_call` last: the session changes it before it looks for a reader.
        while not self._take_frame(is_readable, inbox) and self._call:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                restore(mask)
                ready = poller.poll(min(left, _MAX_POLL) * 1000)
            finally:
                block_all(mask)
            if not ready and left <= _MAX_POLL:
                return
            is_readable = any(number == descriptor for number, _ in ready)

    def _take_frame(self, is_readable: bool, inbox: list[Any]) -> bool:
        """Receive if there is something. Return True if a frame for the job was complete."""
        try:
            self._link.require_socket()
            if is_readable:
                with self._receiving:
                    self._link.fill()
            while (frame := self._link.buffered_frame()) is not None:
                if self._sort(frame, inbox):
                    return True
            return False
        except BaseException as error:
            self._end(error)

    def _sort(self, frame: Frame, inbox: list[Any]) -> bool:
        if frame.borrowed:
            # The decoder needs that memory for the next frame.
            frame.segments[0] = bytes(frame.segments[0])
        if frame.kind not in (Kind.REPLY, Kind.CREDIT):
            self._aside.append(frame)
            return False
        body, count = frame.body, frame.body.get("descriptors", 0)
        if count:
            owned = [ReceivedDescriptor(number) for number in self._link.take_carried()]
            body = {**body, "descriptors": owned}
        call = self._call
        if call and frame.id > call:
            raise Unexpected(frame.kind)
        if frame.id != call:
            return False
        inbox.append((frame.kind, frame.id, body, frame.segments))
        return True


def _map_front(record: int) -> tuple[memoryview, int]:
    """Map the front of the record as integers of eight bytes, which other programs read.

    Returns:
        The integers, and the descriptor that belongs to the mapping.
    """
    try:
        # Another kind of file could shrink, and a write behind its end would end this process.
        if os.readlink(f"/proc/self/fd/{record}").startswith("/memfd:"):
            # The mapping duplicates the descriptor to the lowest free number.
            number = os.dup(record)
            os.close(number)
            return map_for_life(record, FRONT_SIZE), number
    except (OSError, ValueError):
        pass  # A system without /proc, or a process without a free descriptor.
    return _no_front(), -1


def _no_front() -> memoryview:
    return memoryview(bytearray(FRONT_SIZE)).cast("Q")


_RUNNING: Final = RUNNING_AT // 8
_JOBS: Final = JOBS_AT // 8
_MAX_POLL: Final = 86400.0  # seconds; poll(2) takes an int of milliseconds
