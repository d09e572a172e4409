"""What is known of a worker that died: the file that it wrote to before, and the record made of it.

The file has no name: it goes when this process closes it, or ends, in whatever way. PROTOCOL.md («The record») says who
writes what into it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
import sys
import tempfile
from typing import Final

import attrs

from trio_offload_worker._descriptors import identity_of

logger: Final = logging.getLogger("trio_offload")


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


_MOST: Final = 256 * 1024  # bytes; faulthandler's own bounds (100 threads, 100 frames each) make it a tenth of that
_PROGRESS: Final = struct.Struct("=QQQ")  # as in trio_offload_worker/_chunks.py
