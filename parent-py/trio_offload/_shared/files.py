"""Files without a name, in memory. The kernel frees them with their last descriptor and mapping.

Their size is sealed (fcntl(2), ``F_ADD_SEALS``). If a job could shrink a file, an access to its end
would end every process that has mapped it, by SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from trio_offload_worker._system.shared_memory import Mapping


class SharedFile:
    """The descriptor and the mapping of one file.

    Args:
        descriptor: the descriptor, which this object owns.
        size: the file's size in bytes.
        is_read_only: True if the descriptor is for reading only.
    """

    __slots__ = ("_descriptor", "is_read_only", "mapping", "size")

    def __init__(self, descriptor: int, size: int, is_read_only: bool) -> None:
        self._descriptor = descriptor
        self.size = size
        self.is_read_only = is_read_only
        try:
            self.mapping = Mapping(descriptor, size, is_read_only)
        except (OSError, OverflowError) as error:
            raise _too_large(error, size) from None

    @classmethod
    def create(cls, size: int) -> SharedFile:
        """Return a new file of zeros, whose size is fixed.

        Raises:
            MemoryError: the system refuses a file of this size.
        """
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "shared arrays and counters need Linux (memfd_create)")
        size = max(size, 1)  # an empty file cannot be mapped
        descriptor = os.memfd_create("trio-offload-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except (OSError, OverflowError) as error:
            os.close(descriptor)
            raise _too_large(error, size) from None
        return cls(descriptor, size, False)

    def seal(self) -> None:
        """Forbid further seals."""
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)

    def freeze(self) -> None:
        """Forbid every change of the contents, and further seals. Views must not exist."""
        self.mapping.close()
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        self.is_read_only = True
        self.mapping = Mapping(self._descriptor, self.size, True)

    def reopened(self) -> SharedFile:
        """Return the same file with a descriptor for reading only."""
        descriptor = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        return SharedFile(descriptor, self.size, True)

    def fileno(self) -> int:
        """Return the number of the descriptor. -1 means closed."""
        return self._descriptor

    def close(self) -> None:
        """Unmap the file here and close the descriptor. May be done again.

        Raises:
            BufferError: a view is in use. Nothing is closed then.
        """
        if self._descriptor >= 0:
            self.mapping.close()
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # A view that is still in use keeps the mapping.
        self._close_descriptor()


def _too_large(error: Exception, size: int) -> BaseException:
    if isinstance(error, OverflowError) or getattr(error, "errno", 0) in (errno.ENOMEM, errno.EFBIG, errno.EINVAL):
        return MemoryError(f"the system refuses shared memory of {size} bytes: {error}")
    return error
