"""Reports a stall: each job that runs waits for its parent, one for a lock, and no wait has ended.

A cycle of holders is a deadlock, which raises at once. A stall is less certain: a task may still
end it. So it is logged, once, with the waits and their holders.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any, Final, Protocol

import trio

from .. import _clock
from .._limiter import counted_tokens
from .._statistics import WaitingJob
from .peer import logger

_LOOKS: Final = 4  # within the time of a report
_ACQUIRING: Final = frozenset(("acquire", "reacquire"))


class Waiting(Protocol):
    """A conversation, as the watch sees it."""

    @property
    def limiter(self) -> Any:
        """The limiter of which the running call holds a token."""

    def waits(self) -> list[WaitingJob]:
        """Return a record for each request that has no reply yet."""


class StallWatch:
    """The jobs of one run of Trio that wait for their parent."""

    def __init__(self) -> None:
        # With the seconds that its context asks for. None: its waits are not reported.
        self._waiting: dict[Waiting, float | None] = {}
        self._moved = time.monotonic()
        self._is_told = False
        self._some = trio.Event()
        # Of the current sleep.
        self._seconds = math.inf
        self._sleep = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._look, name="the stall report of trio-offload")

    def add(self, conversation: Waiting, seconds: float | None) -> None:
        """A job has begun to wait. Its context wants a report after these seconds."""
        self._waiting[conversation] = seconds
        self._move()
        if seconds is not None:
            self._some.set()
            if seconds < self._seconds:
                self._sleep.cancel()

    def discard(self, conversation: Waiting) -> None:
        """A job has all its replies, or has ended."""
        if conversation in self._waiting:
            del self._waiting[conversation]
            self._move()

    def _move(self) -> None:
        self._moved = time.monotonic()
        self._is_told = False

    async def _look(self) -> None:
        while True:
            await self._some.wait()
            self._seconds = min((seconds for seconds in self._waiting.values() if seconds is not None), default=math.inf)
            if self._seconds == math.inf:
                self._some = trio.Event()
                continue
            with trio.CancelScope() as self._sleep:
                await _clock.sleep(self._seconds / _LOOKS)
            if not self._is_told and time.monotonic() - self._moved >= self._seconds:
                self._tell(self._seconds)

    def _tell(self, seconds: float) -> None:
        waits = [(wait, wanted) for conversation, wanted in self._waiting.items() for wait in conversation.waits()]
        shown = [wait for wait, wanted in waits if wanted is not None]
        is_for_lock = any(wait.operation in _ACQUIRING for wait in shown)
        if is_for_lock and not self._is_busy([wait for wait, _ in waits], seconds):
            self._is_told = True
            logger.warning(
                "all jobs that run have waited for this program for %.3g seconds:\n%s",
                seconds,
                "\n".join(sorted(map(_in_words, shown))),
            )

    def _is_busy(self, waits: list[WaitingJob], seconds: float) -> bool:
        """Return True if a thread has asked of late, or a token is held by a job that computes."""
        if min(wait.seconds for wait in waits) < seconds:
            return True
        held = Counter(id(conversation.limiter) for conversation in self._waiting)
        return any(
            counted_tokens(limiter) != math.inf and limiter.borrowed_tokens > held[id(limiter)]
            for limiter in (conversation.limiter for conversation in self._waiting)
        )


def _in_words(wait: WaitingJob) -> str:
    of = "" if wait.handle is None else f" of {wait.handle}"
    return f"  worker {wait.pid}, which runs {wait.function}, for {wait.seconds:.0f} s: {wait.operation}{of}"


_of_run: Final[trio.lowlevel.RunVar[StallWatch]] = trio.lowlevel.RunVar("stalls")


def watch_of_run() -> StallWatch:
    """Return the watch of this run of Trio. The first use begins it."""
    try:
        return _of_run.get()
    except LookupError:
        watch = StallWatch()
        _of_run.set(watch)
        return watch
