"""What a forked worker takes over from this process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def surroundings() -> Iterator[tuple[list[int], int | None]]:
    """What a forked worker takes over from this process as it is now: the numbers of the standard streams that are open, and a
    descriptor of the working directory, which is closed afterwards.

    Raises:
        OSError: there are no more descriptors.
    """
    directory = _open_directory()
    try:
        yield [number for number in range(3) if _is_inherited(number)], directory
    finally:
        if directory is not None:
            os.close(directory)


def _is_inherited(descriptor: int) -> bool:
    """Where a program has closed a standard stream, its number may be that of anything."""
    try:
        return not fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def _open_directory() -> int | None:
    """The working directory itself: its name may lead nowhere by now, or be one that may not be entered.

    Raises:
        OSError: there are no more descriptors.
    """
    for path in (".", "/proc/self/cwd"):
        try:
            return os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # Else the worker would be somewhere else, without a word.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
    return None
