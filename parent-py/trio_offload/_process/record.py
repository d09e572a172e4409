"""The record: a file that outlives its worker, and its parser.

The file is unnamed, so it vanishes when this process closes it or ends. PROTOCOL.md ("The record")
defines its contents and their writers.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import functools
import logging
import math
import os
import re
import struct
import sys
import tempfile
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from trio_offload_worker._protocol.frames import (
    ENTRY_AT,
    FLAGS_AT,
    FRONT_SIZE,
    FUNCTION_AT,
    HANDED_AT,
    HANDED_SLOTS,
    NOTE_SIZE,
    STEP_AT,
    TIMES_AT,
    TIMES_SIZE,
    TIMES_SLOTS,
)
from trio_offload_worker._system.linux import identity_of

if TYPE_CHECKING:
    from typing import Protocol

    class NamedCall(Protocol):
        """A call of a function."""

        @property
        def function(self) -> Callable[..., Any]:
            """The function."""

        @property
        def name(self) -> str:
            """Its name."""


logger: Final = logging.getLogger("trio_offload")

RECORD_NAME: Final = "trio-offload-record"
"""Name of the file, as ``/proc`` shows it."""

# Bytes. faulthandler writes a tenth of that at most: 100 threads, 100 frames each.
_MAX_SIZE: Final = 256 * 1024
# A line of JSON that only the worker's native thread writes.
_LIMIT: Final = r'\{"memory_limit": ?([0-9]{1,20}), ?"reached": ?([0-9]{1,20})\}'
_CANCELLED: Final = 24  # the place of the number of a call whose caller is cancelled
_PROGRESS: Final = struct.Struct("=QQQ")  # as in trio_offload_worker/_jobs/chunks.py
# As in trio_offload_worker/_requests/progress.py.
_STEP: Final = struct.Struct(f"=QQQddQQQ{NOTE_SIZE}s")
_ENDED_AT: Final = STEP_AT + 40
_TIMES: Final = struct.Struct("=QQQ")  # as in trio_offload_worker/_requests/traced_calls.py
_MAX_READS: Final = 50

OPT_OUT: Final = "TRIO_OFFLOAD_TOP"
"""Environment variable. With the value 0 ``trio-offload top`` does not show the workers."""
ENTRY_MARK: Final = b"tro-top"
HIDDEN: Final = 0
LAYOUT: Final = 1
_IDENTITY: Final = struct.Struct("=QQQd")
ENTRY: Final = struct.Struct("=7sBQQQdQQ")
_MAX_NAME: Final = TIMES_AT - FUNCTION_AT - 8
FUNCTION: Final = struct.Struct(f"=II{_MAX_NAME}s")


@attrs.frozen
class Progress:
    """Progress of a worker with a chunk of items."""

    chunk: int = 0
    """Number of the chunk."""
    index: int = 0
    """Index of the first unfinished item."""
    count: int = 0
    """Number of items from that one on that may have been started."""


# Records for few programs. All import this module, and attrs takes twice as long to make a class.
class Step(NamedTuple):
    """The progress of a job, as it has written it."""

    call: int
    """Number of its call."""
    item: int
    """Index of the running item, if the call is a chunk."""
    done: float
    total: float | None
    note: str | None


class JobTimes(NamedTuple):
    """The times of a traced call, as the worker has noted them."""

    begun: int = 0
    """Nanoseconds since the epoch. 0 means unknown."""
    ended: int = 0
    """The same; 0 until the function has ended."""
    span: int = 0
    """ID of the span that the worker records for the call. 0 means none."""

    @classmethod
    def of_call(cls, slots: bytes, number: int) -> JobTimes:
        """Return the times of the call with this number, out of :meth:`RecordFile.times`."""
        try:
            return cls(*_TIMES.unpack_from(slots, number % TIMES_SLOTS * TIMES_SIZE))
        except struct.error:
            # A job has truncated the file.
            return cls()


class RecordFile:
    """The file that a worker writes to before it dies. The worker inherits it."""

    def __init__(self) -> None:
        # Before anything may raise, for `close`.
        self._descriptor = -1
        self._identity = 0, 0
        self._is_hidden = os.environ.get(OPT_OUT) == "0"
        self._is_entered = False
        # The name in the file, and the function if it is not global.
        self._name = b""
        self._local: Callable[[], object] = _nothing
        self._descriptor = _new_file()
        status = os.fstat(self._descriptor)
        self._identity = status.st_dev, status.st_ino
        # Both sides share the position in the file, so text follows the front.
        missing = FRONT_SIZE - os.write(self._descriptor, bytes(FRONT_SIZE))
        # After a short write, the next one has the reason.
        if missing and os.write(self._descriptor, bytes(missing)) < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Both sides map the front. A job that truncated the file would kill them.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def identity(self) -> tuple[int, int]:
        """Return the file's identity, by which the worker finds it whatever its number."""
        return self._identity

    def pid_of_fork(self) -> int:
        """Return the process ID of a forked worker that has not sent it; 0 if none exists."""
        try:
            return int.from_bytes(os.pread(self._descriptor, 4, 0), sys.byteorder)
        except OSError:
            return 0

    def progress(self) -> Progress:
        """Return the progress of the latest chunk."""
        try:
            index, number, count = _PROGRESS.unpack(os.pread(self._descriptor, _PROGRESS.size, 0))
        except (OSError, struct.error):
            # A job has truncated the file.
            return Progress()
        return Progress(number, index, count)

    def step(self) -> Step | None:
        """Return the latest progress of a job, unless it is half written."""
        return read_step(self._descriptor)

    def handed(self) -> bytes:
        """Return the slots in which the worker counts items that reach the code of jobs."""
        try:
            return os.pread(self._descriptor, 8 * HANDED_SLOTS, HANDED_AT)
        except OSError:
            return b""

    def times(self) -> bytes:
        """Return the slots in which the worker notes the times of traced calls."""
        try:
            return os.pread(self._descriptor, TIMES_SIZE * TIMES_SLOTS, TIMES_AT)
        except OSError:
            return b""

    def write_cancelled(self, number: int) -> None:
        """Tell the worker that the caller of its call with this number is cancelled."""
        try:
            self._write(number.to_bytes(8, sys.byteorder), _CANCELLED)
        except OSError as error:
            logger.warning("a cancellation could not be sent to its job: %s", error)

    def write_flags(self, place: int, flags: int) -> None:
        """Write 64 flags that a job reads without a request. ``place`` counts in such words."""
        try:
            self._write(flags.to_bytes(8, sys.byteorder), FLAGS_AT + 8 * place)
        except OSError as error:
            logger.warning("a job may miss that an event was set: %s", error)

    def enter_worker(self, pid: int, context: int, started: float, call: NamedCall | None) -> object:
        """Write the entry for ``trio-offload top``, once. :meth:`show_worker` makes it valid.

        Args:
            pid: process ID of the worker.
            context: number of its context.
            started: its start, on the clock of time.monotonic().
            call: its running call.

        Returns:
            The same as :meth:`show_function`.
        """
        function = None if call is None else self.show_function(call)
        if not self._is_hidden and not self._is_entered:
            try:
                self._write(_IDENTITY.pack(pid, os.getpid(), context, started), ENTRY_AT + 8)
                self._is_entered = True
            except OSError:
                pass  # A worker that cannot be shown works all the same.
        return function

    def show_worker(self, pid: int, context: int, started: float, call: NamedCall | None) -> object:
        """Show the worker to ``trio-offload top``. As :meth:`enter_worker`."""
        function = self.enter_worker(pid, context, started, call)
        try:
            self._write(ENTRY_MARK + bytes([HIDDEN if self._is_hidden else LAYOUT]), ENTRY_AT)
        except OSError:
            pass  # as above
        return function

    def show_function(self, call: NamedCall) -> object:
        """Show the function that the worker runs next. A long name is cut.

        Returns:
            The function, if its module keeps it alive: further calls of it are shown already.
            Otherwise None, because an idle worker must not keep it alive.
        """
        function = call.function
        is_plain = type(function) in _PLAIN_TYPES
        name = _names.get(function) if is_plain else None
        is_global = name is not None
        if name is None:
            if function is self._local():
                return None
            name = _packed_name(call.name)
            is_global = is_plain and _is_global(function)
            if is_global:
                if len(_names) >= _MAX_NAMES:
                    _names.clear()
                _names[function] = name
        self._local = _nothing
        if not is_global:
            try:
                self._local = weakref.ref(function)
            except TypeError:
                pass  # its class has no room for one
        if name != self._name and not self._is_hidden:
            self._name = name
            try:
                self._write(name, FUNCTION_AT)
            except OSError:
                pass  # as above
        return function if is_global else None

    def _write(self, data: bytes, at: int) -> None:
        # The program may have closed it, and the number may name another file.
        if identity_of(self._descriptor) != self._identity:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.pwrite(self._descriptor, data, at)

    def read(self) -> str:
        """Return the text of the file, at most `_MAX_SIZE` bytes of it."""
        if self._descriptor == -1:
            return ""
        try:
            return os.pread(self._descriptor, _MAX_SIZE, FRONT_SIZE).decode(errors="replace")
        except OSError as error:
            logger.warning("a crash record could not be read: %s", error)
            return ""

    def size(self) -> int:
        """Return the size in bytes; 0 if it is unknown."""
        try:
            return os.fstat(self._descriptor).st_size
        except OSError:
            return 0

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            # The program may have closed it, and the number may name another file.
            if identity_of(descriptor) == self._identity:
                os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def read_step(descriptor: int) -> Step | None:
    """Return the latest progress in a record, unless it is half written."""
    data = b""
    for _ in range(_MAX_READS):
        try:
            # In the order opposite to the writer's: equal numbers enclose one step.
            ended = os.pread(descriptor, 8, _ENDED_AT)
            if not any(ended):
                return None
            data = os.pread(descriptor, _STEP.size, STEP_AT)
            begun = os.pread(descriptor, 8, STEP_AT)
        except OSError:
            return None
        if begun == ended:
            return _step_in(data)
    # Each step of this busy job has another total or note, or the job died within one.
    return _step_in(data) if data[:8] == data[_ENDED_AT - STEP_AT :][:8] else None


def _nothing() -> None:
    return None


def _is_global(function: Any) -> bool:
    """Return True if a module keeps the function alive."""
    module = sys.modules.get(function.__module__)
    return module is not None and vars(module).get(function.__qualname__) is function


@functools.lru_cache(256)
def _packed_name(name: str) -> bytes:
    text = name.encode(errors="replace")[:_MAX_NAME]
    # A reader that meets the write half done sees a wrong checksum.
    return FUNCTION.pack(binascii.crc32(text), len(text), text)


# The names of global functions, as records have them. Programs whose functions take turns would
# compose one for each call.
_names: Final[dict[object, bytes]] = {}
_MAX_NAMES: Final = 256
_PLAIN_TYPES: Final = (types.FunctionType, types.BuiltinFunctionType, type)


def _step_in(data: bytes) -> Step | None:
    try:
        _, call, item, done, total, _, call_of_note, length, text = _STEP.unpack(data)
    except struct.error:
        # A job has truncated the file.
        return None
    note = text[:length].decode(errors="replace") if call_of_note == call else None
    return Step(call, item, _plain(done), None if math.isnan(total) else _plain(total), note)


def _plain(number: float) -> float:
    """Return a whole number as an integer."""
    return int(number) if number.is_integer() else number


def _new_file() -> int:
    """Open a new unnamed file.

    Raises:
        OSError: the system has run out of space or descriptors.
    """
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(RECORD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            # A kernel or a sandbox without memfd_create. Other errors would occur with every file.
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL):
                raise
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class MemoryLimit(NamedTuple):
    """The line in the record of a worker that exceeded its memory limit. In bytes."""

    limit: int
    reached: int


def parse_record(text: str) -> tuple[MemoryLimit | None, str]:
    """Split the text of :meth:`RecordFile.read` into the memory limit, or None, and the stacks."""
    line, _, rest = text.partition("\n")
    if limit := re.fullmatch(_LIMIT, line):
        return MemoryLimit(int(limit[1]), int(limit[2])), rest.strip()
    # A job may have written something similar. Its text is shown and otherwise ignored.
    return None, text.strip()
