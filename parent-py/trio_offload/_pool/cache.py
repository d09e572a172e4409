"""The idle and exiting workers of a context, and their shutdown.

Last in, first out: the worker that became idle last has the warmest memory, and unneeded workers
reach their idle timeout.

Thread-safe, also for signal handlers: each step is one operation on a deque or a set. A thread that
takes an idle worker out owns it. Several threads may reap an exiting one.
"""

from __future__ import annotations

import collections
import math
import signal
import time
from collections.abc import Callable
from typing import Final

import trio

from .. import _clock
from .._exceptions import BrokenWorkerError
from .._process.process import WorkerProcess
from .._statistics import WaitingJob, WorkerContextCounters, WorkerStatistics
from .._worker.endings import describe_ending
from .._worker.peer import Peer, logger
from .._worker.states import ENDED, IDLE, RUNNING
from .._worker.worker import Worker
from .tracker import Counters

# Exit codes that are not reported: 0, SIGTERM (a service manager stops the whole group) and 120
# (Python could not flush stdout at exit, as in `program | head`).
_EXPECTED_EXITS: Final = (0, 120, -signal.SIGTERM)
_STARTED: Final = WorkerContextCounters(workers_started=1)


class WorkerCache:
    """The workers of one context that are not running a job."""

    on_use: Callable[[], None] | None = None
    """Called after workers have been taken, or have left."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._idle: collections.deque[Worker] = collections.deque()
        # Requested for later calls, and not ready yet.
        self._spares: collections.deque[Worker] = collections.deque()
        # Starting workers that a task awaits, not a call.
        self.rising: set[Worker] = set()
        self._leaving: set[Peer] = set()
        # Workers that are idle or run a job.
        self._working: set[Worker] = set()

    def __len__(self) -> int:
        """Return the number of idle workers."""
        return len(self._idle)

    def forget(self) -> None:
        """Drop the parent's workers, in a fork of this process."""
        self._counters.forget()
        self.__init__(self._counters)  # type: ignore[misc]

    def push(self, worker: Worker) -> None:
        """Store a worker: an idle one for reuse, any other to be reaped."""
        if worker.state is IDLE:
            self._idle.append(worker)
            return
        self._count_out(worker)
        self.push_leaving(worker)
        if self.on_use is not None:
            self.on_use()

    def push_leaving(self, peer: Peer) -> None:
        """Store a process that is about to exit, to be reaped."""
        if peer.state is not ENDED:
            self._leaving.add(peer)

    def push_spare(self, worker: Worker) -> None:
        """Store a worker whose start has begun."""
        self._spares.append(worker)

    @property
    def spares(self) -> int:
        """Number of workers whose start has begun for later calls."""
        return len(self._spares)

    def take_oldest_spare(self) -> Worker | None:
        """Return the spare that began first, now among those that rise, or None."""
        try:
            worker = self._spares.popleft()
        except IndexError:
            return None
        self.rising.add(worker)
        return worker

    def take_spares(self) -> list[Worker]:
        """Remove and return all workers whose start has begun."""
        spares = []
        while (spare := self._pop_spare()) is not None:
            spares.append(spare)
        return spares

    def note_started(self, worker: Worker) -> None:
        """Record that a worker takes jobs now."""
        self._working.add(worker)
        self._counters.add(_STARTED)

    def counters(self) -> WorkerContextCounters:
        """Return the numbers that only grow."""
        return self._counters.read(lambda: [worker.counters() for worker in self._working.copy()])

    def _count_out(self, worker: Worker) -> None:
        """Add the numbers of a worker that takes no further calls."""
        try:
            self._working.remove(worker)
        except KeyError:
            return  # its start failed, or another thread has counted it
        self._counters.add(worker.counters())

    def statistics(self) -> tuple[WorkerStatistics, ...]:
        """Return a record for each worker that is idle or runs a job, the oldest first."""
        # Copying is one step, so concurrent changes by other threads are safe.
        workers = [worker for worker in self._working.copy() if worker.state in (IDLE, RUNNING)]
        return tuple(sorted((worker.statistics() for worker in workers), key=lambda record: -record.age))

    def waiting(self) -> tuple[WaitingJob, ...]:
        """Return a record for each request of a job that waits for its reply, the oldest first."""
        conversations = [worker.conversation for worker in self._working.copy()]
        waits = [wait for conversation in conversations if conversation is not None for wait in conversation.waits()]
        return tuple(sorted(waits, key=lambda wait: -wait.seconds))

    def pop(self) -> Worker | None:
        """Remove and return an idle worker, else one whose start has begun, else None."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                # Reap here too: with one-job workers each call takes a spare, and this is the
                # only path.
                if self._leaving:
                    self._reap_exited()
                spare = self._pop_spare()
                if self.on_use is not None:
                    self.on_use()
                return spare
            # In a fork of this process, the parent's workers count as ended.
            if worker.state is IDLE and not worker.process.ended:
                break
        # After the removal: for consecutive calls the cache is empty now, and pruning is skipped.
        if self._idle or self._leaving:
            self.prune()
        if self.on_use is not None:
            self.on_use()
        return worker

    def take(self, worker: Worker) -> bool:
        """Remove this worker, if it is idle. Return False otherwise."""
        try:
            self._idle.remove(worker)
        except (ValueError, IndexError):
            # Another call has it, or another thread has changed the queue.
            return False
        if worker.state is IDLE and not worker.process.ended:
            return True
        self.push(worker)
        return False

    def _pop_spare(self) -> Worker | None:
        try:
            return self._spares.pop()
        except IndexError:
            return None

    def prune(self) -> None:
        """Reap workers that may have reached their idle timeout.

        Called whenever a worker is taken, so it is nearly free until one has.
        """
        now: float | None = None
        # With min_idle the keeper decides which workers exit.
        while self._idle and self.on_use is None:
            try:
                expires_at = self._idle[0].expires_at
                if expires_at == math.inf:
                    # All workers of a context have the same timeout.
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
                # Its timeout is due, but the worker itself decides and announces its exit. Poll it
                # again at the next call.
                self._idle.appendleft(worker)
                break
            self.push(worker)
        if self._leaving:
            self._reap_exited()

    def dismiss_expired(self, kept: int) -> None:
        """Ask idle workers to exit whose time is over, but leave this many.

        For one task at a time.
        """
        now = time.monotonic()
        while len(self._idle) > kept:
            try:
                worker = self._idle.popleft()
            except IndexError:
                break
            if worker.expires_at > now:
                # Those on the right have worked later.
                self._idle.appendleft(worker)
                break
            worker.ask_to_retire()
            self.push(worker)

    def settle(self) -> None:
        """As :meth:`prune`, but poll every worker, so that a count afterwards is exact."""
        for _ in range(len(self._idle)):
            try:
                worker = self._idle.popleft()
            except IndexError:
                break
            if worker.hear():
                self._idle.append(worker)
            else:
                self.push(worker)
        self._reap_exited()

    async def shutdown(self, grace_period: float) -> None:
        """Ask all workers to exit, and wait until they have. Not cancellable.

        Workers that still run after ``grace_period`` seconds are killed.

        Raises:
            BrokenWorkerError: a worker was killed, or its exit code is not an expected one.
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
        _check_exits(workers, killed)

    def shutdown_sync(self, grace_period: float) -> None:
        """Block until :meth:`shutdown` is done, for the interpreter's exit."""
        self.dismiss()
        workers = list(self._leaving.copy())
        deadline = time.monotonic() + grace_period
        killed = [worker for worker in workers if not worker.wait_sync(deadline)]
        for worker in killed:
            worker.kill()
        for worker in killed:
            worker.wait_sync(math.inf)
        self._leaving.difference_update(workers)
        _check_exits(workers, killed)

    def dismiss(self) -> None:
        """Ask all idle workers to exit, without waiting for them."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                break
            if worker.state is IDLE and not worker.process.ended:
                worker.hear()
                worker.ask_to_retire()
                self._count_out(worker)
                self._leaving.add(worker)
        for spare in self.take_spares():
            spare.give_up()
            self._leaving.add(spare)

    def take_over(self, other: WorkerCache) -> None:
        """Take over the exiting workers of a cache that is no longer used."""
        leaving = other._leaving.copy()
        self._leaving.update(leaving)
        other._leaving.difference_update(leaving)

    def _reap_exited(self) -> None:
        """Remove exited workers. Log an unexpected exit code."""
        for worker in self._leaving.copy():
            if worker.gone():
                try:
                    self._leaving.remove(worker)
                except KeyError:
                    # Another thread has removed it and reports it.
                    continue
                # A kill is reported by its caller.
                is_reported = worker.given_up or worker.process.killed
                if not is_reported and worker.process.exitcode not in (*_EXPECTED_EXITS, None):
                    ending = describe_ending(worker.process)
                    if worker.last_words:
                        ending += f": {worker.last_words}"
                    logger.warning("idle worker %s %s", worker.process.pid, ending)


def _check_exits(workers: list[Peer], killed: list[Peer]) -> None:
    """Raise BrokenWorkerError if workers were killed, or have unexpected exit codes."""
    forced: list[WorkerProcess] = [worker.process for worker in killed]
    unclean = [
        worker
        for worker in workers
        if worker not in killed and not worker.given_up and worker.process.exitcode not in (*_EXPECTED_EXITS, None)
    ]
    if forced or unclean:
        parts = []
        if unclean:
            parts.append(
                f"{len(unclean)} ended with exit code {', '.join(str(worker.process.exitcode) for worker in unclean)}"
            )
        if forced:
            parts.append(f"{len(forced)} had to be killed after the grace period")
        reasons = dict.fromkeys(worker.last_words for worker in unclean if worker.last_words)
        told = "\n".join([f"not all workers exited cleanly: {', '.join(parts)}", *reasons])
        raise BrokenWorkerError(told, *[worker.process for worker in unclean], *forced)
