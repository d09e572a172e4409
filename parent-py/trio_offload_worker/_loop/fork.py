"""A worker that is a fork of its parent: make the copy behave like a newly started process.

The parent imports this module before it forks, and the copy calls :func:`serve`. From then on it
runs the same session as the Python worker (``session.py``). Before that,
``trio_offload._launch.fork`` removes the traces of ``trio_offload`` itself.

Invariants:

* The copy does not return into the parent's frames. They stay on its stack and keep their objects
  alive.
* Objects that the parent will finalize are not finalized here. The parent's exit handlers, its
  ``weakref.finalize`` objects and multiprocessing's finalizers do not run. The objects that they
  hold stay alive, because their ``__del__`` may do the same.
* The parent's garbage is not collected here. It may have finalizers, which the parent runs, and the
  collection would copy shared memory.
* The parent's signal handlers of Python and of ``faulthandler.register`` are reset. Ignored signals
  stay ignored, as after execve(2).
"""

from __future__ import annotations

import atexit
import contextvars
import faulthandler
import gc
import os
import sys

from .._jobs import exceptions, multiprocessing, notes  # noqa: F401
from .._jobs.compat import disable_finalizers, join_threads, run_exit_handlers
from .._jobs.guards import flush_at_exit, report_unraisable

# Modules that a session imports on demand. During the fork, another thread of the parent may hold
# their import locks.
from . import sentinel, sentinel_process
from .executor import Inherited
from .main import fill_standard_streams, leave
from .sentinel import Sentinel
from .session import Session
from .signals import swallow_interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterable
    from typing import Any, Final, NoReturn
else:
    import _signal


def serve(
    socket: int,
    record: int,
    parent: int,
    inherited: Inherited,
    release: str,
    at_exit: Iterable[Callable[[], object]],
) -> NoReturn:
    """Serve the parent from its fork, and end with an exit code of PROTOCOL.md.

    Args:
        socket: the descriptor of the worker's end of the socket.
        record: the descriptor of the record, which is written before this process dies.
        parent: the parent's process ID.
        inherited: the parent's functions that are called here.
        release: the release of this package.
        at_exit: functions to call at exit, after the exit handlers that jobs register.
    """
    ending = _Ending()
    try:
        _reset_signals()
        gc.freeze()
        fill_standard_streams()
        guard = sentinel.start(socket, record, parent, sentinel_process.run)
        sentinel.begin_life()
        ending.begin(parent, guard)
        ending.kept = _reset_registries(at_exit)
        sys.set_asyncgen_hooks(None, None)
        swallow_interrupts()
        contextvars.Context().run(_run, ending, parent, Session(socket, record, guard, release, inherited))
    except BaseException as error:
        report_unraisable(error)
    finally:
        os._exit(ending.code)


def block_handled_signals() -> set[int]:
    """Block the signals that the parent handles, for the time of the fork. Return the old mask."""
    handled = [number for number in _SIGNALS if callable(_signal.getsignal(number))]
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, handled))


def restore_signals(mask: set[int]) -> None:
    """Restore the signal mask in the parent, after the fork."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


class _Ending:
    """The copy's last exit handler, which also ends the process.

    Exit handlers run in reverse order. The jobs' handlers run before this one. The parent's,
    registered before the fork, would run after it.
    """

    def __init__(self) -> None:
        self.code = 1  # Python's own code for an uncaught exception.
        self.kept: list[Any] = []
        self._process = os.getpid()
        self._leave: Callable[[], None] | None = None

    def begin(self, parent: int, guard: Sentinel) -> None:
        self._leave = lambda: leave(self._process, parent, guard)
        atexit.register(self)

    def __call__(self) -> NoReturn:
        try:
            if os.getpid() == self._process and self._leave is not None:
                self._leave()
                if not flush_at_exit():
                    self.code = _FLUSH_FAILED
        finally:
            os._exit(self.code)


def _run(ending: _Ending, parent: int, session: Session) -> NoReturn:
    code = session.run()
    ending.code = code
    # From here on, do the visible part of Py_FinalizeEx.
    try:
        join_threads()
    except BaseException as error:
        report_unraisable(error)
    try:
        run_exit_handlers()
    except BaseException as error:
        report_unraisable(error)
    # Reached if a job has cleared the list of handlers.
    ending()


_FLUSH_FAILED: Final = 120
_SIGNALS: Final = sorted(_signal.valid_signals())
# `faulthandler` takes these by its function `enable` only.
_FATAL: Final = (_signal.SIGSEGV, _signal.SIGFPE, _signal.SIGABRT, _signal.SIGBUS, _signal.SIGILL)


def _reset_signals() -> None:
    """Reset the handlers, and block only SIGINT until it is swallowed, as in a started process."""
    _signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)
        if number not in _FATAL:
            # Its file is the program's. Here another file may have that descriptor.
            faulthandler.unregister(number)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [_signal.SIGINT])


def _reset_registries(at_exit: Iterable[Callable[[], object]]) -> list[Any]:
    """Disable the parent's finalizers, and keep the rest. Return the objects to keep alive."""
    kept = disable_finalizers()
    if "multiprocessing.process" in sys.modules:
        kept += multiprocessing.begin_in_fork()
    if "coverage" in sys.modules:
        # This measurement would be written to the parent's file. SETUP starts another if needed.
        instances = getattr(getattr(sys.modules["coverage"], "Coverage", None), "_instances", [])
        kept += instances
        instances.clear()
    for function in at_exit:
        atexit.register(function)
    return kept
