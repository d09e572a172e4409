"""The Python worker, for interpreters without a shared libpython for the executable to embed.

The user's own interpreter runs it, with the protocol and the rules of the worker executable. A
separate process does the work of the executable's native thread, which runs without the GIL. The
worker imports few modules, and never trio: each start pays for each import. This module handles the
process: its descriptors, its signals and its exit (``launch.rs`` and ``main.rs``).
"""

from __future__ import annotations

import atexit
import os
import sys

from .._jobs.guards import flush
from .._system.family import end_family, is_ending
from .._system.linux import candidate_descriptors
from . import sentinel
from .sentinel import Sentinel
from .signals import swallow_interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, Final, NoReturn
else:
    import _signal

SOCKET: Final = 3
RECORD: Final = 4


def main(release: str) -> NoReturn:
    """Serve the parent through descriptor 3, and exit with a code of PROTOCOL.md's table.

    Called by the Python code in ``trio_offload._interpreter.command_line``.

    Args:
        release: the release of this package.
    """
    parent = os.getppid()
    if not _prepare_descriptors():
        print(
            f"trio-offload-worker: descriptors {SOCKET} and {RECORD} are not the parent's socket and record. Only trio-offload "
            "starts this program",
            file=sys.stderr,
        )
        raise SystemExit(_WRONG_ARGUMENTS)
    # Start it while this process has one thread, before importing modules that the sentinel does
    # not need.
    guard = sentinel.start(SOCKET, RECORD, parent, _run_sentinel)
    sentinel.begin_life()
    # The first handler registered is the last one called.
    atexit.register(leave, os.getpid(), parent, guard)
    swallow_interrupts()
    namespace = sys.modules["__main__"].__dict__
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]

    from .session import Session

    session = Session(SOCKET, RECORD, guard, release)
    code = session.run()
    # With this variable set, by the user or by a job, Python would not exit here.
    os.unsetenv("PYTHONINSPECT")
    raise SystemExit(code)


def _run_sentinel(*arguments: Any) -> NoReturn:
    # Imported in the sentinel process only: the worker does not need it.
    from .sentinel_process import run

    run(*arguments)


def fill_standard_streams() -> None:
    """Open missing standard streams, so that other files do not get their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def leave(worker: int, parent: int, guard: Sentinel) -> None:
    """End the worker: the last exit handler."""
    if os.getpid() != worker:
        return  # A copy that a job has forked.
    # Flush while the sentinel still exists, because the reader of the stream may have stopped
    # reading.
    flush()
    # Python is about to remove its signal handlers.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGINT])
    if is_ending(parent):
        # The parent cannot end the jobs' leftover processes any more.
        end_family(worker, lambda number: None, 0)
    guard.dismiss()


_WRONG_ARGUMENTS: Final = 2
_SOCKET_TYPE: Final = 0o140000  # S_IFSOCK


def _prepare_descriptors() -> bool:
    """Close the other inherited descriptors. Return False without the socket and the record."""
    try:
        if os.fstat(SOCKET).st_mode & 0o170000 != _SOCKET_TYPE:
            return False
        os.set_inheritable(SOCKET, False)
        os.set_inheritable(RECORD, False)
    except OSError:
        return False
    for descriptor in candidate_descriptors():
        try:
            # Descriptors opened by Python, for a `sitecustomize` say, are close-on-exec (PEP 446).
            # Inherited ones are not.
            if descriptor > RECORD and os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:
            pass  # Not open, or the descriptor of this list.
    fill_standard_streams()
    return True
