"""The idle workers of a context, those on their way out, and how they all end.

The last one to become idle is the first to be used again: its memory is the warmest, and those that are not needed
time out. Safe to use from several threads at once, and from a signal handler: each step is one operation on a deque or a
set, and an idle worker belongs to whoever has taken it out. One on its way out may be looked at by several at once.
"""

from __future__ import annotations

import collections
import math
import signal
import time
from typing import Final

import trio

from . import _clock
from ._exceptions import BrokenWorkerError
from ._process.process import WorkerProcess
from ._statistics import WorkerStatistics
from ._worker.endings import describe_ending
from ._worker.peer import logger
from ._worker.states import ENDED, IDLE, RUNNING
from ._worker.worker import Worker


class WorkerCache:
    """The workers of one context that are not running a job."""

    def __init__(self) -> None:
        self._idle: collections.deque[Worker] = collections.deque()
        # Begun for whoever comes next, and not yet heard of.
        self._spares: collections.deque[Worker] = collections.deque()
        self._leaving: set[Worker] = set()
        # Those that take jobs or run one.
        self._working: set[Worker] = set()

    def __len__(self) -> int:
        """How many workers are idle."""
        return len(self._idle)

    def forget(self) -> None:
        """In a fork of this process none of them is ours."""
        self.__init__()  # type: ignore[misc]

    def push(self, worker: Worker) -> None:
        """Take in a worker: an idle one to be used again, any other to be seen off."""
        if worker.state is IDLE:
            self._idle.append(worker)
            return
        self._working.discard(worker)
        if worker.state is not ENDED:
            self._leaving.add(worker)

    def push_spare(self, worker: Worker) -> None:
        """Take in a worker that has been begun."""
        self._spares.append(worker)

    def take_spares(self) -> list[Worker]:
        """All workers that have been begun; they are the caller's from now on."""
        spares = []
        while (spare := self._pop_spare()) is not None:
            spares.append(spare)
        return spares

    def note_started(self, worker: Worker) -> None:
        """A worker takes jobs now."""
        self._working.add(worker)

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """What is known of each worker that is idle or runs a job, the oldest first."""
        # A copy in one step, whatever other threads do meanwhile.
        workers = [worker for worker in self._working.copy() if worker.state in (IDLE, RUNNING)]
        return tuple(sorted((worker.statistics() for worker in workers), key=lambda record: -record.age))

    def pop(self) -> Worker | None:
        """An idle worker, else a begun one, which is the caller's from now on; None if there is none."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                # Here too: where each call has a spare, as after one-job workers, there never is an idle worker.
                if self._leaving:
                    self._see_off()
                return self._pop_spare()
            # In a fork of the process that started it, a worker has ended.
            if worker.state is IDLE and not worker.process.ended:
                break
        # After that: in a row of calls the one worker that runs them is not here in between, and there is nothing to do.
        if self._idle or self._leaving:
            self.prune()
        return worker

    def _pop_spare(self) -> Worker | None:
        try:
            return self._spares.pop()
        except IndexError:
            return None

    def prune(self) -> None:
        """See off workers that may have timed out. Nearly free while none has: it is done whenever one is taken."""
        now: float | None = None
        while self._idle:
            try:
                expires_at = self._idle[0].expires_at
                if expires_at == math.inf:
                    # Then none ever does: they all have the same time.
                    break
                if now is None:
                    now = time.monotonic()
                if expires_at > now:
                    # The oldest is at the left, so the others have not expired either.
                    break
                worker = self._idle.popleft()
            except IndexError:
                break
            if worker.hear():
                # About to time out: it is the worker that decides, and says so. Asked again at the next call.
                self._idle.appendleft(worker)
                break
            self.push(worker)
        if self._leaving:
            self._see_off()

    def settle(self) -> None:
        """As :meth:`prune`, but asks every worker, so that what is counted afterwards is true."""
        for _ in range(len(self._idle)):
            try:
                worker = self._idle.popleft()
            except IndexError:
                break
            if worker.hear():
                self._idle.append(worker)
            else:
                self.push(worker)
        self._see_off()

    async def shutdown(self, grace_period: float) -> None:
        """Ask all to leave and wait for it; after ``grace_period`` seconds kill who is still there. Not cancellable.

        Raises:
            BrokenWorkerError: some had to be killed, or did not end well.
        """
        self.dismiss()
        workers = list(self._leaving.copy())
        with trio.CancelScope(shield=True):
            with _clock.move_on_after(grace_period):
                async with trio.open_nursery() as nursery:
                    for worker in workers:
                        nursery.start_soon(worker.wait)
            killed = [worker for worker in workers if not worker.gone()]
            for worker in killed:
                worker.kill()
            for worker in killed:
                await worker.wait()
        self._leaving.difference_update(workers)
        _judge(workers, killed)

    def shutdown_sync(self, grace_period: float) -> None:
        """As :meth:`shutdown`, blocking, for the interpreter's exit."""
        self.dismiss()
        workers = list(self._leaving.copy())
        deadline = time.monotonic() + grace_period
        killed = [worker for worker in workers if not worker.wait_sync(deadline)]
        for worker in killed:
            worker.kill()
        for worker in killed:
            worker.wait_sync(math.inf)
        self._leaving.difference_update(workers)
        _judge(workers, killed)

    def dismiss(self) -> None:
        """Ask all idle workers to leave, without waiting for it."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                break
            if worker.state is IDLE and not worker.process.ended:
                worker.hear()
                worker.ask_to_retire()
                self._working.discard(worker)
                self._leaving.add(worker)
        for spare in self.take_spares():
            spare.give_up()
            self._leaving.add(spare)

    def take_over(self, other: WorkerCache) -> None:
        """See off those that are on their way out of a cache that nobody takes a worker from any more."""
        leaving = other._leaving.copy()
        self._leaving.update(leaving)
        other._leaving.difference_update(leaving)

    def _see_off(self) -> None:
        for worker in self._leaving.copy():
            if worker.gone():
                try:
                    self._leaving.remove(worker)
                except KeyError:
                    # Another thread was faster, and says what there is to say.
                    continue
                # Whoever has killed one says so.
                is_told = worker.given_up or worker.process.killed
                if not is_told and worker.process.exitcode not in (*_GOOD_ENDS, None):
                    logger.warning("idle worker %s %s", worker.process.pid, describe_ending(worker.process))


# What ends a worker well: by itself, or because a service manager told the whole group to stop. 120 is Python's own word for
# output that could not be written at its exit, where somebody reads no further (`program | head`): it is said on standard
# error, and the worker has done all else in order.
_GOOD_ENDS: Final = (0, 120, -signal.SIGTERM)


def _judge(workers: list[Worker], killed: list[Worker]) -> None:
    forced: list[WorkerProcess] = [worker.process for worker in killed]
    unclean = [
        worker.process
        for worker in workers
        if worker not in killed and not worker.given_up and worker.process.exitcode not in (*_GOOD_ENDS, None)
    ]
    if forced or unclean:
        raise BrokenWorkerError(
            f"not all workers left in good order: {len(unclean)} ended by themselves with "
            f"{', '.join(str(process.exitcode) for process in unclean) or 'nothing unusual'}, {len(forced)} had to be "
            "killed after the grace period",
            *unclean,
            *forced,
        )
