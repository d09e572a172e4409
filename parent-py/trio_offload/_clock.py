"""Timeouts by the machine's clock, whatever clock a run of Trio has.

Processes run in real time, so waits for them use the machine's clock. The clock of a run may be a
:class:`trio.testing.MockClock`. It stands still, or jumps to the next deadline while all tasks
wait, although a process is busy. Only deadlines that the user sets use Trio's clock.

With Trio's ordinary clock, Trio's own deadlines are used. Otherwise one thread keeps the time for
all runs, without deadlines to which a clock could jump. It lives only while a task waits.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import attrs
import trio
from trio._core import _run as _run_of_trio

now: Final = time.perf_counter


def move_on_after(seconds: float) -> AbstractContextManager[trio.CancelScope]:
    """Work as :func:`trio.move_on_after`, in seconds of the machine's clock."""
    if type(trio.lowlevel.current_clock()) is _ORDINARY:
        return trio.move_on_after(max(0.0, seconds))
    return _moved_on_by_alarm(seconds)


async def sleep(seconds: float) -> None:
    """Work as :func:`trio.sleep`, in seconds of the machine's clock."""
    if type(trio.lowlevel.current_clock()) is _ORDINARY:
        await trio.sleep(seconds)
    else:
        with _moved_on_by_alarm(seconds):
            await trio.sleep_forever()


@contextmanager
def _moved_on_by_alarm(seconds: float) -> Iterator[trio.CancelScope]:
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()
        try:
            alarm = _alarms.set(now() + seconds, lambda: token.run_sync_soon(scope.cancel))
        except RuntimeError:
            # The system refused a thread. Fall back to a deadline on Trio's clock.
            scope.deadline = trio.current_time() + seconds
            yield scope
            return
        try:
            yield scope
        finally:
            _alarms.unset(alarm)


@attrs.frozen(order=True)
class _Alarm:
    deadline: float
    number: int
    ring: Callable[[], Any] = attrs.field(order=False)


class _Alarms:
    """Deadlines for all threads, kept by one thread that ends with the last of them."""

    def __init__(self) -> None:
        self._start_anew()
        # Another thread may hold the lock during a fork, and the timekeeping thread is not in the
        # copy.
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._changed = threading.Condition()
        self._set: list[_Alarm] = []
        self._count = 0
        self._is_kept = False

    def set(self, deadline: float, ring: Callable[[], Any]) -> _Alarm:
        """Call ``ring`` in the timekeeping thread when :func:`now` reaches the deadline.

        Raises:
            RuntimeError: the system refused a thread.
        """
        with self._changed:
            if not self._is_kept:
                # One of Trio's threads, which are cached.
                trio.lowlevel.start_thread_soon(self._keep, lambda _: None)
                self._is_kept = True
            self._count += 1
            alarm = _Alarm(deadline, self._count, ring)
            heapq.heappush(self._set, alarm)
            self._changed.notify()
        return alarm

    def unset(self, alarm: _Alarm) -> None:
        """Cancel an alarm."""
        with self._changed:
            if alarm in self._set:
                self._set.remove(alarm)
                heapq.heapify(self._set)
                self._changed.notify()

    def _keep(self) -> None:
        with self._changed:
            while self._set:
                left = self._set[0].deadline - now()
                if left > 0:
                    self._changed.wait(min(left, _MAX_WAIT))
                    continue
                alarm = heapq.heappop(self._set)
                try:
                    alarm.ring()
                except trio.RunFinishedError:
                    pass  # The waiting run has ended.
            self._is_kept = False


# If another release of Trio has it elsewhere, the thread is always used.
_ORDINARY: Final = getattr(_run_of_trio, "SystemClock", None)
_MAX_WAIT: Final = 3600.0  # seconds; a lock's timeout must be finite
_alarms: Final = _Alarms()
