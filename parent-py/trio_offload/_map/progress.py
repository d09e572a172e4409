"""The progress of a map: its finished items, and the parts of the running ones that are done.

A part is known if the job tells it (``from_worker.progress``), or if the items of a chunk are
counted in the record. Nothing here costs a map that nobody asks for its progress.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Protocol

import trio

from .. import _clock
from .._statistics import JobProgress
from .._worker.callbacks import call_now
from .._worker.watch import INTERVAL, ShowProgress

if TYPE_CHECKING:
    from .._process.record import Step
    from .._worker.worker import Worker
    from .source import Chunk, Source


class Lane(Protocol):
    """A lane, as the progress sees it."""

    worker: Worker | None
    in_flight: collections.deque[Chunk]


class Work(Protocol):
    """The map, as its progress sees it."""

    source: Source

    @property
    def lanes(self) -> Collection[Lane]:
        """The lanes."""

    def fail(self, error: BaseException) -> None:
        """End the map with an error."""

    def stop(self) -> None:
        """Kill all running items, and drop the others."""


class Reporter:
    """Adds up the progress of a map's lanes, and tells it to a function if there is one."""

    def __init__(self, work: Work, finished: Callable[[], int], show: ShowProgress | None) -> None:
        self._work = work
        self._finished = finished
        self._show = show
        self._note: str | None = None
        self._shown: JobProgress | None = None
        self._scope = trio.CancelScope()

    def progress(self) -> JobProgress:
        """Return the progress. The unit is an item."""
        done: float = self._finished()
        for lane in self._work.lanes:
            if lane.worker is not None:
                done += self._part(lane.worker, lane.in_flight)
        return JobProgress(done, self._work.source.total, self._note)

    def look(self) -> BaseException | None:
        """Call the function if there is something new. Return its exception, if any."""
        if self._show is not None and (news := self.progress()) != self._shown:
            self._shown = news
            try:
                call_now(self._show, (news.done, news.total, news.note), {})
            except BaseException as error:
                self._show = None
                return error
        return None

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Look until it is stopped, or the function fails."""
        with self._scope:
            while self._show is not None:
                await _clock.sleep(INTERVAL)
                error = self.look()
                if error is not None:
                    self._work.fail(error)
                    self._work.stop()

    def stop(self) -> None:
        """End :meth:`run`."""
        self._scope.cancel()

    def _part(self, worker: Worker, in_flight: Iterable[Chunk]) -> float:
        """Return the number of items that a worker has run and not answered, with their parts."""
        step, counted = worker.step, worker.chunk_progress
        before = 0
        for number, chunk in enumerate(in_flight, worker.running_number):
            is_running = step is not None and step.call == number
            if step is not None and is_running:
                self._note = step.note or self._note
            if len(chunk.items) > 1 and counted.chunk == chunk.number:
                part = _part_of(step) if step is not None and is_running and step.item == counted.index else 0
                return before + min(counted.index + part, len(chunk.items))
            if len(chunk.items) == 1 and is_running:
                return before + _part_of(step)
            before += len(chunk.items)
        return 0


def _part_of(step: Step | None) -> float:
    """Return the part of an item that is done, from 0 to 1."""
    return 0 if step is None else JobProgress(step.done, step.total, None).fraction or 0
