"""The machine's time, whatever clock a run of Trio has.

A process takes the time that it takes, so what waits for one goes by the machine's clock. That of a run may be a
:class:`trio.testing.MockClock`, which stands still, or jumps to the next deadline as soon as no task of the run has anything to
do; it does not know that a process has. Only a deadline that the user sets is by Trio's clock: it is his.

Where a run has Trio's ordinary clock its deadlines are by the machine's, and are used. Elsewhere one thread keeps the time for
all runs. It sets no deadline of Trio's, to which a clock could jump, and is there only while somebody waits.
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
    """As :func:`trio.move_on_after`, in seconds of the machine's clock."""
    if type(trio.lowlevel.current_clock()) is _ORDINARY:
        return trio.move_on_after(max(0.0, seconds))
    return _moved_on_by_alarm(seconds)


async def sleep(seconds: float) -> None:
    """As :func:`trio.sleep`, in seconds of the machine's clock."""
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
            # No thread is to be had. What Trio's clock makes of the time is better than no end.
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
    """Deadlines, in any thread. They are kept by one thread that ends with the last of them."""

    def __init__(self) -> None:
        self._start_anew()
        # Another thread may hold the lock at that moment, and the one that keeps the time is not in the copy.
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._changed = threading.Condition()
        self._set: list[_Alarm] = []
        self._count = 0
        self._is_kept = False

    def set(self, deadline: float, ring: Callable[[], Any]) -> _Alarm:
        """Have something called, in the thread that keeps the time, when :func:`now` has come to the deadline.

        Raises:
            RuntimeError: there are no more threads.
        """
        with self._changed:
            if not self._is_kept:
                # One of Trio's, which are kept for a while when they have nothing to do.
                trio.lowlevel.start_thread_soon(self._keep, lambda _: None)
                self._is_kept = True
            self._count += 1
            alarm = _Alarm(deadline, self._count, ring)
            heapq.heappush(self._set, alarm)
            self._changed.notify()
        return alarm

    def unset(self, alarm: _Alarm) -> None:
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
                    self._changed.wait(min(left, _LONGEST_WAIT))
                    continue
                alarm = heapq.heappop(self._set)
                try:
                    alarm.ring()
                except trio.RunFinishedError:
                    pass  # Nobody waits any more.
            self._is_kept = False


# Another release of Trio may have it elsewhere. Then the thread keeps all time.
_ORDINARY: Final = getattr(_run_of_trio, "SystemClock", None)
_LONGEST_WAIT: Final = 3600.0  # seconds; a lock takes no infinity
_alarms: Final = _Alarms()
