"""Start a worker's process: spawn a program, or fork this process."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeAlias

from trio_offload_worker._system.family import boot_time, is_marked
from trio_offload_worker._system.linux import has_proc, open_pidfd

from .._transport.sockets import socket_pair
from .fork_lock import fork_lock
from .process import WorkerProcess, unended
from .record import RecordFile

logger: Final = logging.getLogger("trio_offload")

WORKER_DESCRIPTOR: Final = 3
_RECORD_DESCRIPTOR: Final = 4

Started: TypeAlias = "tuple[WorkerProcess, socket.socket, RecordFile]"
"""The process, our end of its socket, and its record."""

NO_OUTPUT: Final[Mapping[int, int]] = {}

_has_warned = False


def spawn(
    executable: str,
    environment: Mapping[bytes, bytes],
    argv: list[str] | None = None,
    output: Mapping[int, int] = NO_OUTPUT,
) -> Started:
    """Spawn a worker's program.

    ``posix_spawn`` does not copy this process, so its size does not matter.

    Args:
        executable: path of the program.
        environment: its environment.
        argv: its command line. None means :func:`executable_command`.
        output: files that replace its descriptors 1 and 2. Their own numbers are above 4.

    Raises:
        OSError: the executable cannot be started.
    """

    def launch(_: object, socket: int, record: int) -> int:
        return os.posix_spawn(
            executable,
            executable_command(executable) if argv is None else argv,
            environment,
            file_actions=[
                # Copies with higher numbers: dup2() to the same number keeps close-on-exec, and the
                # first dup2() could overwrite the source of the second.
                (os.POSIX_SPAWN_DUP2, socket, WORKER_DESCRIPTOR),
                (os.POSIX_SPAWN_DUP2, record, _RECORD_DESCRIPTOR),
                *((os.POSIX_SPAWN_DUP2, file, number) for number, file in output.items()),
            ],
            # The worker must not inherit the thread's mask. SIGINT stays blocked until the worker
            # handles it; before that, Ctrl+C would kill the worker.
            setsigmask=[signal.SIGINT],
        )

    return _start(launch)


def executable_command(executable: str, *label: str) -> list[str]:
    """Return the command line of the worker executable. The label shows in a list of processes."""
    return [os.path.basename(executable), "serve", str(WORKER_DESCRIPTOR), str(_RECORD_DESCRIPTOR), *label]


def fork(child: Callable[[int, int], NoReturn]) -> Started:
    """Fork this process, and call ``child`` in the fork with its socket and its record.

    Runs the hooks of :func:`os.register_at_fork`. Afterwards the fork has no descriptor of another
    worker.

    Raises:
        OSError, RuntimeError: the system, or Python, does not allow a fork.
    """

    def launch(files: Sequence[socket.socket | RecordFile], theirs: int, record: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                fork_lock.leave_in_copy()
                for file in files:
                    file.close()
                child(theirs, record)
            finally:
                # The frames below on the stack belong to the parent.
                os._exit(1)
        return pid

    return _start(launch)


def _start(launch: Callable[[Sequence[socket.socket | RecordFile], int, int], int]) -> Started:
    """Start a process by calling ``launch``, and register it with the fork lock.

    Args:
        launch: gets the new files, and descriptors of the worker's socket and record. Returns the
            process ID. The descriptors are above the numbers that the worker uses, and above the
            standard streams, of which some may be closed.
    """
    since = boot_time()
    with fork_lock:
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
        process.socket = ours
        fork_lock.register(process, ours, record)
    return process, ours, record


def _copy_above(file: socket.socket | RecordFile) -> int:
    return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _RECORD_DESCRIPTOR + 1)


def warn_of_missing_guarantees(worker: int) -> None:
    """Log, at the first worker of this program, the guarantees that this system cannot give."""
    global _has_warned
    if _has_warned:
        return
    _has_warned = True
    if not has_proc():
        logger.warning(
            "/proc cannot be read here. So the memory use of workers is unknown, and memory_limit is refused. Descendants of a "
            "worker are ended with it only if their process IDs are close to its own"
        )
    if not is_marked(worker):
        logger.warning(
            "worker %s could not mark itself, because this system refuses to set RLIMIT_LOCKS. Orphaned processes of its jobs "
            "may survive it; they do if it crashes or another process kills it",
            worker,
        )
