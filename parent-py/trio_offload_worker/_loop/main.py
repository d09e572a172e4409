"""A worker in Python, for interpreters that have no shared libpython for the worker executable to embed.

The user's own interpreter runs this. It speaks the same protocol and keeps the same rules as the worker executable; what
needs no GIL there is a process beside it here. It never imports trio, and hardly anything at all: each import is paid at
each start. What is here is the process: its descriptors, its signals, its end. (``launch.rs`` and ``main.rs``.)
"""

from __future__ import annotations

import atexit
import os
import sys

from .._jobs.guards import flush
from .._system.family import end_family, is_ending
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
    """Serve the parent at the other end of descriptor 3, and end Python with an exit code of PROTOCOL.md's table.

    ``trio_offload._interpreter.command_line`` has the line of Python that calls it. ``release`` is that of this package.
    """
    parent = os.getppid()
    if not _prepare_descriptors():
        print(
            f"trio-offload-worker: descriptors {SOCKET} and {RECORD} are not the parent's socket and record; this program is "
            "started by trio-offload, not by hand",
            file=sys.stderr,
        )
        raise SystemExit(_WRONG_ARGUMENTS)
    # While there is one thread, and nothing has been imported that the watcher does not need.
    guard = sentinel.start(SOCKET, RECORD, parent, _run_sentinel)
    sentinel.begin_life()
    # Registered before any other, it is called after all others.
    atexit.register(leave, os.getpid(), parent, guard)
    swallow_interrupts()
    namespace = sys.modules["__main__"].__dict__
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]

    from .session import Session

    session = Session(SOCKET, RECORD, guard, release)
    code = session.run()
    # With this variable Python would not end here, wherever it comes from by now.
    os.unsetenv("PYTHONINSPECT")
    raise SystemExit(code)


def _run_sentinel(*arguments: Any) -> NoReturn:
    # Imported in the sentinel process only: the worker does not need it.
    from .sentinel_process import run

    run(*arguments)


def fill_standard_streams() -> None:
    """Lest something of ours, or of a job's, gets the number of a standard stream."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def leave(worker: int, parent: int, guard: Sentinel) -> None:
    """The last exit handler."""
    if os.getpid() != worker:
        return  # A copy that a job has forked off.
    # While the watcher is still there: whoever reads it may have stopped reading.
    flush()
    # Python is about to take its handlers away.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGINT])
    if is_ending(parent):
        # Nobody else ends what the jobs have left.
        end_family(worker, lambda number: None, 0)
    guard.dismiss()


_WRONG_ARGUMENTS: Final = 2
_SOCKET_TYPE: Final = 0o140000  # S_IFSOCK


def _prepare_descriptors() -> bool:
    """Close what was inherited beside the socket and the record; whether they are there."""
    try:
        if os.fstat(SOCKET).st_mode & 0o170000 != _SOCKET_TYPE:
            return False
        os.set_inheritable(SOCKET, False)
        os.set_inheritable(RECORD, False)
    except OSError:
        return False
    for entry in os.listdir("/proc/self/fd"):
        descriptor = int(entry)
        try:
            # What Python has opened since its start, for a `sitecustomize` say, is close-on-exec (PEP 446); no inherited one is.
            if descriptor > RECORD and os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:
            pass  # It was the one for this list.
    fill_standard_streams()
    return True
