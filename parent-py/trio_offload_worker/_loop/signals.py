"""Signal handlers of jobs. They run in jobs and while the worker is idle, at no other time.

Python runs them in the main thread between any two instructions, and they may raise. In the middle
of a write, the worker would lose count of the bytes written. So their signals are blocked while the
worker itself runs. Signals without such a handler keep their usual effect.

After each job the handler of SIGINT, the signal mask, the interval timers and the wakeup descriptor
are restored. Handlers of other signals stay.
"""

from __future__ import annotations

import sys
from _thread import get_ident

from .._jobs.guards import report_unraisable
from .._system.linux import STACKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable
    from typing import Any, Final
else:
    import _signal


class Handlers:
    """Block and unblock the jobs' signal handlers. Almost free until a job installs one."""

    def __init__(self) -> None:
        self._thread = get_ident()
        self._mask: Iterable[int] | None = None
        # The mask and the running interval timers at the start of a job.
        self._mask_before: Iterable[int] | None = None
        self._timers_before: list[int] = []

    @property
    def are_held(self) -> bool:
        """True if handlers are blocked, so that :meth:`release` would let them run."""
        return self._mask is not None

    def begin_jobs(self) -> None:
        """Save the current state as the state at the start of a job."""
        self._mask_before = self._mask or _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._timers_before = _running_timers()

    def end_job(self) -> None:
        """Restore that state after a job, while its handlers are blocked."""
        if "signal" not in sys.modules or self._mask_before is None:
            return
        try:
            if self._mask is not None:
                self._mask = self._mask_before
            else:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask_before)
            for timer in _running_timers():
                if timer not in self._timers_before:
                    _signal.setitimer(timer, 0)
            if _signal.getsignal(_signal.SIGINT) is not _swallow:
                _signal.signal(_signal.SIGINT, _swallow)
            # A library's interrupted system call is restarted. Installing a handler anew undoes
            # that.
            _signal.siginterrupt(_signal.SIGINT, False)
            _signal.set_wakeup_fd(-1)
        except BaseException as error:
            report_unraisable(error)

    def hold(self) -> None:
        """Block the handlers. Print exceptions of pending ones, which have no receiver."""
        # Without this module a job can hardly have installed one. (Python looks for it there too.)
        if "signal" not in sys.modules:
            return
        handled = [
            number for number in _SIGNALS if callable(handler := _signal.getsignal(number)) and handler is not _swallow
        ]
        while handled:
            try:
                self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, handled)
                return
            except BaseException as error:
                report_unraisable(error)

    def mask_in_job(self) -> Iterable[int] | None:
        """Return this thread's signal mask, for :func:`block_all` and :func:`restore`.

        None means that handlers cannot run in this thread.
        """
        if "signal" not in sys.modules or get_ident() != self._thread:
            return None
        return _signal.pthread_sigmask(_signal.SIG_BLOCK, ())

    def release(self) -> None:
        """Unblock the handlers. Pending ones run at once, and their exceptions propagate."""
        if self._mask is not None:
            mask, self._mask = self._mask, None
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def block_all(mask: Iterable[int] | None) -> None:
    """Block the handlers of a job while it uses the socket. Pending ones may raise first.

    Their signals are blocked even then. Without a ``mask`` this does nothing.
    """
    if mask is not None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _DEFERRABLE)


def restore(mask: Iterable[int] | None) -> None:
    """Restore the mask. Pending handlers run at once, and their exceptions propagate."""
    if mask is not None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def swallow_interrupts() -> None:
    """Swallow Ctrl+C. It belongs to the parent, which cancels its jobs by Trio's rules.

    The signal is handled and not ignored. Programs that a job starts would inherit an ignored
    signal, while a handled one is reset for them (execve(2)).
    """
    _signal.signal(_signal.SIGINT, _swallow)
    # A library's interrupted system call is restarted.
    _signal.siginterrupt(_signal.SIGINT, False)
    # The parent starts the worker with SIGINT blocked, so that it survives until its handler is
    # installed.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGINT])


def _swallow(number: int, frame: Any) -> None:
    pass


def _running_timers() -> list[int]:
    return [timer for timer in _TIMERS if _signal.getitimer(timer)[0]]


_SIGNALS: Final = sorted(_signal.valid_signals())
# The others are faults of this thread, or the parent's request for its stacks.
_DEFERRABLE: Final = [
    number
    for number in _SIGNALS
    if number not in (_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGABRT, STACKS)
]
_TIMERS: Final = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
