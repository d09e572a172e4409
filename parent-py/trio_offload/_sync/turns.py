"""Turns: how long a task may send and receive without a wait, before the other tasks run."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import trio

_MAX_LENGTH: Final = 0.001  # seconds
_MAX_OPERATIONS: Final = 64


class Turn:
    """A turn of the tasks that use one end of a channel.

    An operation that need not wait takes a microsecond, and letting the other tasks run takes
    several. So these run once in a turn. A task whose operations are far apart, because it does
    something else in between, lets them run each time.
    """

    __slots__ = ("_end", "_left")

    def __init__(self) -> None:
        self._end = 0.0
        self._left = 0

    def begin(self) -> None:
        """Begin a turn: the other tasks have run."""
        self._end = perf_counter() + _MAX_LENGTH
        self._left = _MAX_OPERATIONS

    def lasts(self, run: object) -> bool:
        """Count an operation in this run of Trio. Return False if the other tasks must run."""
        self._left -= 1
        return self._left > 0 and perf_counter() < self._end and trio.lowlevel.current_trio_token() is run
