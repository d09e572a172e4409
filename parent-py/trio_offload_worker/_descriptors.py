"""What a file descriptor is open on."""

from __future__ import annotations

import os


def identity_of(descriptor: int) -> tuple[int, int] | None:
    """Return the identity of the open file or socket behind a descriptor; None if the descriptor is closed.

    Jobs and programs may close a descriptor that they did not open, and its number is then reused.
    The identity tells whether the number still names the same file.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
