"""The standard streams and the working directory that a forked worker gets from this process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def inherited() -> Iterator[tuple[list[int], int | None]]:
    """Provide the open standard streams and the working directory of this moment.

    Yields:
        The numbers of the open standard streams; a descriptor of the working directory, closed
        afterwards, or None.

    Raises:
        OSError: the process has run out of descriptors.
    """
    directory = _open_directory()
    try:
        yield [number for number in range(3) if _is_inherited(number)], directory
    finally:
        if directory is not None:
            os.close(directory)


def _is_inherited(descriptor: int) -> bool:
    """Return True if the descriptor is a standard stream.

    Another file that has its number is close-on-exec.
    """
    try:
        return not fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def _open_directory() -> int | None:
    """Open the working directory itself: its path may be gone, or not permitted.

    Raises:
        OSError: the process has run out of descriptors.
    """
    for path in (".", "/proc/self/cwd"):
        try:
            return os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # Without this the worker would silently run in another directory.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
    return None
