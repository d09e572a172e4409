"""What is known of a worker that died: the file that it wrote to before, and the record made of it.

The file has no name: it goes when this process closes it, or ends, in whatever way. PROTOCOL.md («The record») says who
writes what into it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import stat
import struct
import sys
import tempfile
import time
from typing import Any, Final

import attrs

from ._channel import identity_of
from ._sizes import readable_size

logger: Final = logging.getLogger("trio_offload")


@attrs.frozen
class CrashRecord:
    """What is known of a worker that ended before it had answered. May be pickled."""

    pid: int
    """The process id that it had."""
    exitcode: int | None
    """Its exit status, or the number of the signal made negative; None if it is not known."""
    signal: signal.Signals | None
    """The signal that ended it, if one did."""
    function: str | None
    """The function that it ran; None if it had not begun with one."""
    age: float
    """Seconds from the beginning of the call until the death was seen; of the worker, if it had not begun with a call."""
    stack: str
    """The Python stacks of all threads at the fault, as :mod:`faulthandler` writes them; a panic's message in front of them.

    Empty where nothing could be written: after SIGKILL, or :func:`os._exit`.
    """
    rss: int | None = None
    """Resident memory when it was told last, in bytes: at most a ``report_interval`` before the death."""
    peak_rss: int | None = None
    """The most that was ever resident by then, in bytes."""
    vms: int | None = None
    """The size of its address space then, in bytes."""
    cpu_time: float | None = None
    """Processor time until then, in seconds."""
    stderr: str | None = None
    """The end of what was written to standard error since the worker's start, by whomever, if that goes to a file.

    None where it goes to a terminal or a pipe: it belongs to the user, and nothing of it can be had twice.
    """
    time: float = attrs.field(factory=time.time)
    """When the death was seen, in seconds since the epoch."""

    def note(self) -> str:
        """The record as a traceback shows it."""
        lines = [f"The worker had run {self.function} for {self.age:.2f} s." if self.function else ""]
        if self.rss is not None and self.peak_rss is not None:
            lines.append(f"It held {readable_size(self.rss)} when it was told last, at most {readable_size(self.peak_rss)}.")
        if self.stack:
            lines.append("What it left behind:\n" + "\n".join(f"  {line}".rstrip() for line in self.stack.splitlines()))
        elif self.signal is not None:
            lines.append(f"There is no Python stack: {self.signal.name} leaves no time to write one.")
        return "\n".join(filter(None, lines))

    def as_dict(self) -> dict[str, Any]:
        """The record as what JSON can hold; the signal by its name."""
        return attrs.asdict(self) | {"signal": None if self.signal is None else self.signal.name}


@attrs.frozen
class Progress:
    """How far a worker has come with a chunk of items."""

    chunk: int = 0
    """The chunk's number."""
    index: int = 0
    """All items before this one have been run."""
    count: int = 0
    """So many from there on may have begun."""


class RecordFile:
    """The file that a worker writes to before it dies. This process keeps it, the worker inherits it."""

    def __init__(self) -> None:
        # Should there be none.
        self._descriptor = -1
        self._identity = 0, 0
        self._descriptor = _new_file()
        status = os.fstat(self._descriptor)
        self._identity = status.st_dev, status.st_ino
        # The place where a chunk counts its items. Both sides share the position in the file, so all text comes behind it.
        if os.write(self._descriptor, bytes(_PROGRESS.size)) < _PROGRESS.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        return self._descriptor

    def identity(self) -> tuple[int, int]:
        """What the worker knows the file by, whatever number it has there."""
        return self._identity

    def number_of_newborn(self) -> int:
        """The number of a forked worker that has not told it itself; 0: there is none."""
        try:
            return int.from_bytes(os.pread(self._descriptor, 4, 0), sys.byteorder)
        except OSError:
            return 0

    def progress(self) -> Progress:
        """How far a chunk has come."""
        try:
            index, number, count = _PROGRESS.unpack(os.pread(self._descriptor, _PROGRESS.size, 0))
        except (OSError, struct.error):
            # A job has made it shorter. Then nothing is known.
            return Progress()
        return Progress(number, index, count)

    def read(self) -> str:
        """What has been written; the front of it, should it be endless."""
        if self._descriptor == -1:
            return ""
        try:
            return os.pread(self._descriptor, _MOST, _PROGRESS.size).decode(errors="replace")
        except OSError as error:
            logger.warning("the record of a worker's death cannot be read: %s", error)
            return ""

    def close(self) -> None:
        """Let the file go. May be done again."""
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            # Somebody may have closed it already. What has the number then is another's.
            if identity_of(descriptor) == self._identity:
                os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _new_file() -> int:
    """Open a file that nobody else has.

    Raises:
        OSError: there is no place for one, or no descriptor.
    """
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("trio-offload-record", os.MFD_CLOEXEC)
        except OSError as error:
            # A kernel, or a sandbox, that does not have it; what else may be wrong is so for every file.
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL):
                raise
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@attrs.frozen
class MemoryLimit:
    """The line that a worker leaves which was ended for its memory; bytes."""

    limit: int
    reached: int


def take_apart(text: str) -> tuple[MemoryLimit | None, str]:
    """What :meth:`RecordFile.read` gave: why the worker was ended, if it was, and the rest."""
    line, _, rest = text.partition("\n")
    if line.startswith('{"memory_limit":'):
        try:
            told = json.loads(line)
            return MemoryLimit(int(told["memory_limit"]), int(told["reached"])), rest.strip()
        except (ValueError, TypeError, KeyError):
            # A job has written there. What it says is shown, and believed no further.
            pass
    return None, text.strip()


def keep(record: CrashRecord, directory: str) -> None:
    """Write the record into the directory as a JSON file of its own, whole or not at all. Failing is only logged."""
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(record.time))
    target = os.path.join(directory, f"trio-offload-crash-{moment}-{record.pid}.json")
    temporary = f"{target}.{os.getpid()}.part"
    try:
        os.makedirs(directory, exist_ok=True)
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                json.dump(record.as_dict(), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass
            raise
    except OSError as error:
        logger.warning("the record of a worker's death could not be kept in %s: %s", directory, error.strerror or error)


def stderr_size() -> int | None:
    """How long the file is that standard error goes to, in bytes; None if it goes to no file."""
    try:
        status = os.fstat(2)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def stderr_since(size: int | None) -> str | None:
    """The end of what was written there since it was so long; None if it is no file that can be read."""
    now = stderr_size()
    if size is None or now is None:
        return None
    try:
        # The descriptor itself is open for writing, and its place in the file is the user's.
        with open("/proc/self/fd/2", "rb") as file:
            # A file that has become shorter has been begun anew.
            file.seek(max(size if size <= now else 0, now - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError:
        return None


_MOST: Final = 256 * 1024  # bytes; faulthandler's own bounds (100 threads, 100 frames each) make it a tenth of that
_TAIL: Final = 4096
_PROGRESS: Final = struct.Struct("=QQQ")  # as in trio_offload_worker/_chunks.py
