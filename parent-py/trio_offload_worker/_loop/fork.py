"""A worker that is a fork of its parent: what of the copy has to be as it is in a process that was started anew.

The parent imports this before it forks, and the copy calls :func:`serve`. From there on it is the loop in Python, with the
same session (``session.py``). What ``trio_offload`` itself leaves in a copy is cleared away by ``trio_offload._forked``, before.

Rules that the code below keeps:

* The copy never returns into the frames of the parent that it was forked in. They stay on its stack and keep what they hold.
* What is the parent's to end is not ended here: its exit handlers, its ``weakref.finalize`` and multiprocessing's finalizers are
  not called, and nothing that only they hold is let go of, because its ``__del__`` may do the same.
* Nothing that the parent has left to the garbage collector is collected here: it may have finalizers too, which the parent
  runs, and the collection would copy memory that is shared.
* Signal handlers of Python's are the parent's and not set here; those that it ignores are ignored, as execve(2) has it.
"""

from __future__ import annotations

import atexit
import contextvars
import gc
import os
import sys

from .._jobs import exceptions, multiprocessing, notes  # noqa: F401
from .._jobs.compat import disable_finalizers, join_threads, run_exit_handlers
from .._jobs.guards import flush_at_exit, report_unraisable

# What a session imports when it is needed: in the copy, another thread may have been importing it at the moment of the fork.
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
    """In a fork of the process ``parent``: serve it through the descriptor ``socket``, and end with an exit code of PROTOCOL.md.

    Args:
        record: the descriptor of the file that is written to before this process dies.
        inherited: the functions of the parent's that are called here.
        release: of this package.
        at_exit: what is called at the end of this process, before the exit handlers that jobs have registered before.
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
    """Let no handler of the parent's run in the copy; the signals that were blocked before. For the time of the fork."""
    handled = [number for number in _SIGNALS if callable(_signal.getsignal(number))]
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, handled))


def restore_signals(mask: set[int]) -> None:
    """In the parent, after the fork."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


class _Ending:
    """The last exit handler of the copy, and the only one that ends it.

    Exit handlers are called in the reverse of their order. So those of the jobs have been called before this one, and those
    that the parent had registered by the time of the fork would come after it.
    """

    def __init__(self) -> None:
        self.code = 1  # Python's own, for what nobody has caught.
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
    # From here on what Python does at its end (Py_FinalizeEx), as far as it concerns the user.
    try:
        join_threads()
    except BaseException as error:
        report_unraisable(error)
    try:
        run_exit_handlers()
    except BaseException as error:
        report_unraisable(error)
    # A job has cleared the list of the handlers.
    ending()


_FLUSH_FAILED: Final = 120
_SIGNALS: Final = sorted(_signal.valid_signals())


def _reset_signals() -> None:
    """As in a process that was started: no handlers, and only SIGINT blocked, until it is swallowed."""
    _signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [_signal.SIGINT])


def _reset_registries(at_exit: Iterable[Callable[[], object]]) -> list[Any]:
    """What would be done at the exit for the parent's sake is not done; the rest is. What must not be let go of is returned."""
    kept = disable_finalizers()
    if "multiprocessing.process" in sys.modules:
        kept += multiprocessing.begin_in_fork()
    if "coverage" in sys.modules:
        # What is measured here would go where the parent's is; if it is to be measured, SETUP says so.
        instances = getattr(getattr(sys.modules["coverage"], "Coverage", None), "_instances", [])
        kept += instances
        instances.clear()
    for function in at_exit:
        atexit.register(function)
    return kept
