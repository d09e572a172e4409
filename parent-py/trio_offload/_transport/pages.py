"""Send large buffers as pages, without copying them in this process."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

from trio_offload_worker._system.native import native

from .sockets import WriteFailed, let_others_run, wait_writable

if TYPE_CHECKING:
    from trio_offload_worker._protocol.frames import Buffer

# After this many bytes, less than a millisecond, the other tasks run.
_YIELD_EVERY: Final = 16 * 2**20
# SPLICE_F_NONBLOCK and SPLICE_F_MORE, see splice(2).
_SPLICE_FLAGS: Final = 2 | 4
# Capacity of the pipe between memory and socket: the maximum without privileges.
_PIPE_SIZE: Final = 2**20


def can_splice() -> bool:
    """Return True if this system can send pages."""
    return native().can_splice()


async def send_pages(descriptor: int, parts: list[Buffer], sent: bool, cancellable: bool) -> bool:
    """Send the first buffer of a list as pages. Return False if the system refuses.

    Sent data is removed from the list, also if this is cancelled.

    The kernel takes the pages themselves (vmsplice(2), splice(2)), and only the receiver copies. A
    worker reads all of a call before it answers, and arguments may not change until then, so this
    is safe. A socket takes pages from a pipe only, hence the temporary pipe.

    Raises:
        WriteFailed: the other side is gone.
    """
    view = memoryview(parts[0]).cast("B")
    try:
        read, write = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return False
    done = inside = 0
    left = _YIELD_EVERY
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
                left = _YIELD_EVERY
                continue
            except (BrokenPipeError, ConnectionResetError):
                raise WriteFailed(sent or done > 0) from None
            except OSError:
                return False
            inside -= count
            done += count
            left -= count
            if left <= 0:
                left = _YIELD_EVERY
                await let_others_run(cancellable)
    finally:
        # The bytes that are still in the pipe have not been sent.
        parts[:1] = [view[done:]] if done < len(view) else []
        os.close(read)
        os.close(write)
    return True


def _enlarge(pipe: int) -> None:
    """Raise a pipe's capacity from 64 KiB, to make fewer system calls."""
    try:
        fcntl.fcntl(pipe, 1031, _PIPE_SIZE)  # F_SETPIPE_SZ
    except OSError:
        pass  # This user's pipes hold too much already (pipe(7)). The pipe works without.
