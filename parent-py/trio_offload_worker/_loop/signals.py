"""The signal handlers that jobs have installed: they run in jobs and while the worker is idle, and at no other time.

Python runs them in the main thread between any two instructions, and they may raise: in the middle of a write nobody would
know any more how much had been written. So their signals are blocked while the worker itself is at work. Only theirs:
the others do what they do in any process.

What a job leaves of its own is put back after it: the handler of SIGINT, the mask, interval timers, the wakeup descriptor. A
handler for another signal stays.
"""

from __future__ import annotations

import sys

from .._jobs.guards import report_unraisable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable
    from typing import Any, Final
else:
    import _signal


class Handlers:
    """Holds them back and lets them run. Where no job has installed one, neither costs anything to speak of."""

    def __init__(self) -> None:
        self._mask: Iterable[int] | None = None
        # What jobs begin with: the mask, and the interval timers that run.
        self._mask_before: Iterable[int] | None = None
        self._timers_before: list[int] = []

    @property
    def are_held(self) -> bool:
        """Whether there are any that :meth:`release` would let run."""
        return self._mask is not None

    def begin_jobs(self) -> None:
        """What is there by now is what jobs begin with."""
        self._mask_before = self._mask or _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._timers_before = _running_timers()

    def end_job(self) -> None:
        """A job has come to its end, and its handlers are held."""
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
            # A library's system call that is in progress goes on; whoever installs a handler anew undoes that.
            _signal.siginterrupt(_signal.SIGINT, False)
            _signal.set_wakeup_fd(-1)
        except BaseException as error:
            report_unraisable(error)

    def hold(self) -> None:
        """From now on none runs. What those raise that were due is shown, as nobody awaits it."""
        # Without this module a job can hardly have installed one. (Python has its own reasons to look for it there.)
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

    def release(self) -> None:
        """Let them run again. Those that are due do so at once, and what they raise comes out of this."""
        if self._mask is not None:
            mask, self._mask = self._mask, None
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def swallow_interrupts() -> None:
    """Ctrl+C belongs to the parent, which cancels its jobs as Trio has it. It is swallowed by a handler and not ignored:
    an ignored signal stays ignored in the programs that a job starts (execve(2)), a handled one is reset for them.
    """
    _signal.signal(_signal.SIGINT, _swallow)
    # A library's system call that is in progress goes on.
    _signal.siginterrupt(_signal.SIGINT, False)
    # The parent starts the worker with it blocked, which keeps it from dying between its start and its handler.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGINT])


def _swallow(number: int, frame: Any) -> None:
    pass


def _running_timers() -> list[int]:
    return [timer for timer in _TIMERS if _signal.getitimer(timer)[0]]


_SIGNALS: Final = sorted(_signal.valid_signals())
_TIMERS: Final = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
