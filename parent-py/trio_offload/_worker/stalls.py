"""Reports a stall: each job that runs waits for its parent, one for a lock, and no wait has ended.

A cycle of holders is a deadlock, which raises at once. A stall is less certain: a task may still
end it. So it is logged, once, with the waits and their holders.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final, Protocol

import trio

from .. import _clock
from .._statistics import WaitingJob
from .peer import logger

STALL_REPORT: Final = 60.0  # seconds
_LOOKS: Final = 4  # within that time
_ACQUIRING: Final = frozenset(("acquire", "reacquire"))


class Waiting(Protocol):
    """A conversation, as the watch sees it."""

    @property
    def limiter(self) -> object:
        """The limiter of which the running call holds a token."""

    def waits(self) -> list[WaitingJob]:
        """Return a record for each request that has no reply yet."""


class StallWatch:
    """The jobs of one run of Trio that wait for their parent."""

    def __init__(self) -> None:
        self._waiting: set[Waiting] = set()
        self._moved = time.monotonic()
        self._is_told = False
        self._some = trio.Event()
        trio.lowlevel.spawn_system_task(self._look, name="the stall report of trio-offload")

    def add(self, conversation: Waiting) -> None:
        """A job has begun to wait."""
        self._waiting.add(conversation)
        self._move()
        self._some.set()

    def discard(self, conversation: Waiting) -> None:
        """A job has all its replies, or has ended."""
        if conversation in self._waiting:
            self._waiting.discard(conversation)
            self._move()

    def _move(self) -> None:
        self._moved = time.monotonic()
        self._is_told = False

    async def _look(self) -> None:
        while True:
            await self._some.wait()
            await _clock.sleep(STALL_REPORT / _LOOKS)
            if not self._waiting:
                self._some = trio.Event()
            elif not self._is_told and time.monotonic() - self._moved >= STALL_REPORT:
                self._tell()

    def _tell(self) -> None:
        waits = [wait for conversation in self._waiting for wait in conversation.waits()]
        if any(wait.operation in _ACQUIRING for wait in waits) and not self._is_busy(waits):
            self._is_told = True
            logger.warning(
                "all jobs that run have waited for this program for %.0f seconds:\n%s",
                STALL_REPORT,
                "\n".join(sorted(map(_in_words, waits))),
            )

    def _is_busy(self, waits: list[WaitingJob]) -> bool:
        """Return True if a thread has asked of late, or a token is held by a job that computes."""
        if min(wait.seconds for wait in waits) < STALL_REPORT:
            return True
        held = Counter(id(conversation.limiter) for conversation in self._waiting)
        return any(
            isinstance(limiter, trio.CapacityLimiter) and limiter.borrowed_tokens > held[id(limiter)]
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
