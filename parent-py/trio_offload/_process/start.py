"""Start a worker's process: spawn a program, or fork this process."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeAlias

from trio_offload_worker._family import boot_time, is_marked, is_told, open_pidfd

from .._transport.sockets import socket_pair
from .fork_lock import no_forks
from .process import WorkerProcess, unended
from .record import RecordFile

logger: Final = logging.getLogger("trio_offload")

WORKER_DESCRIPTOR: Final = 3
_RECORD_DESCRIPTOR: Final = 4

Started: TypeAlias = "tuple[WorkerProcess, socket.socket, RecordFile]"
"""The process, our end of its socket, and the file that it writes to before it dies."""

_has_looked = False


def start(executable: str, environment: Mapping[bytes, bytes], argv: list[str] | None = None) -> Started:
    """Start a worker's program; the process, our end of its socket, and the file that it writes to before it dies.

    ``argv`` is by default that of the worker executable.

    Takes about as long as the kernel needs to start a process: ``posix_spawn`` copies nothing of this one, however
    large it is.

    Raises:
        OSError: the executable cannot be started.
    """

    def spawn(_: object, socket: int, record: int) -> int:
        return os.posix_spawn(
            executable,
            executable_command(executable) if argv is None else argv,
            environment,
            file_actions=[
                # dup2() of a descriptor to itself would leave it close-on-exec, and the first would overwrite the second's
                # source if that had its number: so both are taken from above.
                (os.POSIX_SPAWN_DUP2, socket, WORKER_DESCRIPTOR),
                (os.POSIX_SPAWN_DUP2, record, _RECORD_DESCRIPTOR),
            ],
            # Whatever the starting thread has blocked, the worker can be told to stop. Only SIGINT has to wait until
            # the worker swallows it: before that, Ctrl+C would kill it.
            setsigmask=[signal.SIGINT],
        )

    return _start(spawn)


def executable_command(executable: str, *label: str) -> list[str]:
    """The command line of the worker executable. The label is for those who look at a list of processes."""
    return [os.path.basename(executable), "serve", str(WORKER_DESCRIPTOR), str(_RECORD_DESCRIPTOR), *label]


def fork(child: Callable[[int, int], NoReturn]) -> Started:
    """Fork this process, and call ``child`` in the copy with the descriptors of its socket and its record; as :func:`start` here.

    The hooks of :func:`os.register_at_fork` are called. By then none of the copy's descriptors leads to another worker.

    Raises:
        OSError, RuntimeError: the system, or Python, does not allow a fork.
    """

    def fork(files: Sequence[socket.socket | RecordFile], copied_socket: int, copied_record: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                no_forks.leave_in_copy()
                for file in files:
                    file.close()
                child(copied_socket, copied_record)
            finally:
                # Whatever has happened: what is on the stack below is the parent's.
                os._exit(1)
        return pid

    return _start(fork)


def _start(launch: Callable[[Sequence[socket.socket | RecordFile], int, int], int]) -> Started:
    """Start a process by ``launch``, which gets the files made for it, and copies of its socket and record, and returns its number.

    The numbers of the copies are above those that a new program finds its own at, and above the standard streams, which this
    program may have closed.
    """
    since = boot_time()
    with no_forks:
        unended.reap()
        ours, theirs = socket_pair()
        record = None
        copies: list[int] = []
        try:
            record = RecordFile()
            copies.append(_copy_above(theirs))
            copies.append(_copy_above(record))
            pid = launch((ours, theirs, record), *copies)
        except BaseException:
            ours.close()
            if record is not None:
                record.close()
            raise
        finally:
            theirs.close()
            for descriptor in copies:
                os.close(descriptor)
        process = WorkerProcess(pid, open_pidfd(pid), since)
        process.line = ours
        no_forks.register(process, ours, record)
    return process, ours, record


def _copy_above(file: socket.socket | RecordFile) -> int:
    return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _RECORD_DESCRIPTOR + 1)


def tell_what_does_not_hold(worker: int) -> None:
    """Say in the log, at the first worker of this program, what cannot be guaranteed on this system."""
    global _has_looked
    if _has_looked:
        return
    _has_looked = True
    if not is_told():
        logger.warning(
            "/proc cannot be read here: the memory of workers is not known, memory_limit is refused, and of what a job has started "
            "only processes whose numbers are near the worker's are ended with it"
        )
    if not is_marked(worker):
        logger.warning(
            "worker %s could not mark itself, because this system does not let it set RLIMIT_LOCKS: a process that a job has started "
            "and that has lost its parent may outlive the worker, and does if the worker is killed by somebody else or crashes",
            worker,
        )
