"""Sending large buffers as pages, without a copy in this process."""

from __future__ import annotations

import os
from typing import Final

from trio_offload_worker._native import native

from .sockets import WriteFailed, let_others_run, wait_writable

# From this size on pages are sent and not copies. Below it that is no faster, and ctypes would be imported for it.
MIN_PAGES_SIZE: Final = 2**20
# The same where nothing is copied: less than a millisecond.
_TURN_OF_PAGES: Final = 16 * 2**20
# SPLICE_F_NONBLOCK and SPLICE_F_MORE, see splice(2).
_SPLICE_FLAGS: Final = 2 | 4
# How much a pipe between memory and socket holds, in bytes: as much as a program may ask for without privileges.
_PIPE: Final = 2**20


def can_splice() -> bool:
    """Return True if this system can send pages."""
    return native().can_splice()


async def send_pages(descriptor: int, view: memoryview, sent: bool, cancellable: bool) -> int:
    """Send large memory without a copy here; how much of it was sent, which is not all where the system refuses this.

    The kernel takes the very pages (vmsplice(2), splice(2)), and only the receiver copies. That is safe because a worker
    reads all of a call before it answers it, and until then the call's arguments are not to be changed. A socket takes
    pages from a pipe only, so there is one in between for the time of this.
    """
    try:
        read, write = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return 0
    done = inside = 0
    turn = _TURN_OF_PAGES
    try:
        _enlarge(write)
        address = native().address_of(view)
        while done < len(view):
            try:
                if not inside:
                    inside = native().vmsplice(write, address + done, len(view) - done)
                count = os.splice(read, descriptor, inside, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                await wait_writable(descriptor, cancellable)
                turn = _TURN_OF_PAGES
                continue
            except (BrokenPipeError, ConnectionResetError):
                raise WriteFailed(sent or done > 0) from None
            except OSError:
                return done
            inside -= count
            done += count
            turn -= count
            if turn <= 0:
                turn = _TURN_OF_PAGES
                await let_others_run(cancellable)
    finally:
        os.close(read)
        os.close(write)
    return done


def _enlarge(pipe: int) -> None:
    """Let a pipe hold more than its 64 KiB, so that fewer system calls are made."""
    import fcntl

    try:
        fcntl.fcntl(pipe, 1031, _PIPE)  # F_SETPIPE_SZ
    except OSError:
        pass  # Too much is in use by this user (pipe(7)); it is right without.
