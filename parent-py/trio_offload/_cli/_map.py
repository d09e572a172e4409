"""``trio-offload map``: items in, lines out.

    source ─ reader ─▶ queue ─▶ slots, one station each ─▶ ordered output ─ writer ─▶ stdout
                                (and one context for all)
               ▲                                                          │
               └─────────────────────────── window ◀──────────────────────┘

* The tasks meet in :class:`_Run` only. None of them lets an expected error escape: each says :meth:`_Run.stop` how the
  command ends, the first to say so is right, and the rest unwinds by cancellation.
* A stop prints what was finished, also behind an item that was not, and ends the workers; a signal gives all that less than
  a second. What cannot be cancelled (a worker in its exit handlers) is left behind by :func:`os._exit`: a worker whose
  parent is gone ends itself.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import warnings
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_offload
from trio_offload_worker._jobs import cli_items

from ._exit import CommandError, ExitStatus
from ._output import OrderedOutput, Window
from ._progress import open_bar
from ._station import FunctionProblem, Job, Station, one_line
from ._tally import Tally

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from ._progress import Bar
    from ._sources import Item, Source
    from ._station import Reply

_MAX_ITEMS_INSIDE: Final = 16_384
_MAX_BYTES_INSIDE: Final = 64 * 1024 * 1024
"""What may be between the source and the output. Large enough that one slow item does not soon stop the other workers."""

_STOP_WRITING: Final = 0.5
_STOP: Final = 0.8
"""Seconds after a signal when the last write is given up, and when the process ends whatever happens."""

_LOOK: Final = 0.25
"""Seconds between two looks at the workers, if anybody wants to see them."""

_MAX_START_FAILURES: Final = 5
"""So often in a row may a station fail to get a worker ready before that is the end of the run and not of an item."""


@attrs.frozen
class MapOptions:
    """What ``trio-offload map`` was told."""

    job: Job
    workers: int
    fail_fast: bool
    progress: bool
    path_entry: str | None
    """The directory that has to lead ``sys.path`` in a worker; ``None``: the path is as it should be."""
    summary: bool = False
    """Whether to sum up at the end, also where there is no bar."""
    memory_limit: int | None = None
    """Bytes that one item may take, with the processes that it starts."""
    retire_rss: int | None = None
    retire_jobs: int | None = None
    """A worker that holds more bytes after an item, or has run so many, is replaced."""
    trace: str | None = None
    """The file that gets a trace of the run."""


def run_map(options: MapOptions, source: Source) -> ExitStatus:
    """Write a line to standard output for each item of ``source``.

    Raises :class:`CommandError` if the work could not be begun, or not be finished for a reason that is no item's.
    """
    if sys.stdout is None:
        raise CommandError("cannot write to standard output: it is closed")
    bar, hint = open_bar(repr(options.job.function), wanted=options.progress)
    if hint is not None:
        _say(f"hint: {hint}")
    run = _Run(options, source, bar)
    try:
        with warnings.catch_warnings():
            # What this package warns of concerns the options, and a line of our source is not where they came from.
            warnings.showwarning = run.note_warning  # type: ignore[assignment]
            trio.run(run.main)
        run.sum_up()
    finally:
        run.call_off_exit()
    return run.result()


class _Run:
    def __init__(self, options: MapOptions, source: Source, bar: Bar) -> None:
        self._options = options
        self._source = source
        self._bar = bar
        self._window = Window(_MAX_ITEMS_INSIDE, _MAX_BYTES_INSIDE)
        self._output = OrderedOutput(1, self._window, bar.around_write, bar.write_distance)
        self._queue: deque[Item] = deque()
        self._queue_waiting = trio.lowlevel.ParkingLot()
        self._all_read = False
        self._function_found = trio.Event()
        self._slots_without_worker: list[str] = []  # why, of each
        self._warnings: list[str] = []
        self._tally = Tally(wanted=options.summary or bar.is_shown)
        self._any_failed = False
        self._ending: ExitStatus | CommandError | None = None
        self._exit_soon: threading.Timer | None = None
        self._written = trio.Event()
        self._work_scope = trio.CancelScope()
        self._everything_scope = trio.CancelScope()

    async def main(self) -> None:
        with self._everything_scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                nursery.start_soon(self._bar.run)
                nursery.start_soon(self._write)
                with self._work_scope:
                    await self._work()
                self._output.close()
                await self._written.wait()
                nursery.cancel_scope.cancel()

    def note_warning(self, message: Warning | str, *where: object) -> None:
        """Takes the place of :func:`warnings.showwarning`: what it says is told at the end, when the bar is out of the way."""
        self._warnings.append(" ".join(str(message).split()))

    def sum_up(self) -> None:
        """Say on standard error what the user should know, and how it went. To be called when :meth:`main` has returned."""
        lost = self._slots_without_worker
        if lost and self._function_found.is_set():
            self._warnings.append(f"{len(lost)} of {self._options.workers} workers could not be started: {lost[0]}")
        for warning in self._warnings:
            _say(f"warning: {warning}")
        if self._tally.wanted:
            for line in self._tally.lines():
                _say(line)

    def result(self) -> ExitStatus:
        """How the run ended. To be asked when :meth:`main` has returned."""
        if isinstance(self._ending, CommandError):
            raise self._ending
        if self._ending is not None:
            return self._ending
        return ExitStatus.FAILED if self._any_failed else ExitStatus.OK

    def stop(self, ending: ExitStatus | CommandError) -> None:
        """End the run: no further items, no further workers; what is finished is still printed."""
        if self._ending is None:
            self._ending = ending
        self._output.close()
        self._work_scope.cancel()

    def call_off_exit(self) -> None:
        """The unwinding was quick enough."""
        if self._exit_soon is not None:
            self._exit_soon.cancel()

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        endings = {
            signal.SIGINT: ExitStatus.INTERRUPTED,
            signal.SIGTERM: ExitStatus.TERMINATED,
        }
        # A signal that is ignored stays ignored: a shell's background job is not meant to get Ctrl+C.
        watched = [number for number in endings if signal.getsignal(number) != signal.SIG_IGN]
        if not watched:
            task_status.started()
            return
        try:
            with trio.open_signal_receiver(*watched) as signals:
                task_status.started()
                async for number in signals:
                    ending = endings[signal.Signals(number)]
                    self._bar.close()
                    if self._exit_soon is None:
                        self._exit_soon = _exit_soon(ending)
                    self._everything_scope.deadline = trio.current_time() + _STOP_WRITING
                    self.stop(ending)
        finally:
            if self._exit_soon is not None:
                # The process is as good as ended, with the status of the first one. Another would kill it on its last steps.
                for number in watched:
                    signal.signal(number, signal.SIG_IGN)

    async def _read(self) -> None:
        await self._function_found.wait()
        try:
            while items := await self._source.read():
                for item in items:
                    await self._window.admit(item.size)
                    self._queue.append(item)
                    self._queue_waiting.unpark()
        except CommandError as error:
            # What was read is still worked on; there is just no more of it.
            if self._ending is None:
                self._ending = error
        self._all_read = True
        self._queue_waiting.unpark_all()

    async def _count(self) -> None:
        total = await self._source.count()
        if total is not None:
            self._bar.set_total(total)

    async def _next(self) -> Item | None:
        while True:
            if not self._queue:
                if self._all_read:
                    return None
                await self._queue_waiting.park()
            elif not self._window.has_room and not self._output.awaits(self._queue[0]):
                # What is inside has grown since it was let in: by the lines of finished items, which may be large.
                await self._window.change()
            else:
                return self._queue.popleft()

    async def _work(self) -> None:
        options = self._options
        try:
            async with AsyncExitStack() as stack:
                try:
                    context = await stack.enter_async_context(_open_context(options))
                except ValueError as error:
                    # All else has been looked at before.
                    why = error.__cause__
                    self.stop(CommandError(f"cannot write {options.trace}: {getattr(why, 'strerror', None) or error}"))
                    return
                self._tally.watch(context.statistics)
                try:
                    async with trio.open_nursery() as onlookers:
                        if self._tally.wanted:
                            onlookers.start_soon(self._look_at_workers)
                        async with trio.open_nursery() as work:
                            work.start_soon(self._read)
                            if self._bar.is_shown:
                                work.start_soon(self._count)
                            for _ in range(options.workers):
                                work.start_soon(self._slot, context)
                        onlookers.cancel_scope.cancel()
                finally:
                    self._tally.look()
                    self._tally.watch(None)
        except trio_offload.BrokenWorkerError as error:
            # Every item has its line. That a worker was in trouble afterwards should be known, and changes none of them.
            self._warnings.append(one_line(error))

    async def _look_at_workers(self) -> None:
        while True:
            self._bar.set_workers(self._tally.look())
            await trio.sleep(_LOOK)

    async def _slot(self, context: trio_offload.WorkerContext) -> None:
        station = Station(context, self._options.job, self._tally)
        if not await self._begin(station):
            return
        while (item := await self._next()) is not None:
            self._finish(item, await station.run(item))
            if station.start_failures >= _MAX_START_FAILURES:
                self.stop(CommandError(f"cannot get a worker ready any more: {station.last_problem}"))

    async def _begin(self, station: Station) -> bool:
        """Bring up a worker for the slot. ``False``: this slot has to do without, so it is closed."""
        try:
            await station.make_ready()
        except FunctionProblem as problem:
            if self._function_found.is_set():
                return True  # it works in another worker; this one tries again with its first item
            self.stop(CommandError(str(problem)))
            return False
        except trio_offload.WorkerStartError as error:
            self._slots_without_worker.append(one_line(error))
            if len(self._slots_without_worker) == self._options.workers:
                self.stop(CommandError(f"cannot start a worker: {one_line(error)}"))
            return False
        self._function_found.set()
        return True

    def _finish(self, item: Item, reply: Reply) -> None:
        self._output.put(item, reply.line)
        self._tally.count(reply.failure)
        self._bar.advance(failed=reply.failure is not None)
        if reply.failure is not None:
            self._any_failed = True
            if self._options.fail_fast:
                self.stop(ExitStatus.FAILED)

    async def _write(self) -> None:
        try:
            await self._output.write()
        except BrokenPipeError:
            self.stop(ExitStatus.OUTPUT_CLOSED)
        except OSError as error:
            self.stop(CommandError(f"cannot write to standard output: {error.strerror or error}"))
        finally:
            self._written.set()


def _open_context(options: MapOptions) -> AbstractAsyncContextManager[trio_offload.WorkerContext]:
    retires = options.retire_rss is not None or options.retire_jobs is not None
    return trio_offload.open_worker_context(
        idle_timeout=math.inf,
        init=cli_items.Prepare(options.path_entry, options.job.function),
        retire=trio_offload.retire_when(rss=options.retire_rss, jobs=options.retire_jobs) if retires else bool,
        memory_limit=options.memory_limit,
        trace=options.trace,
    )


def _say(line: str) -> None:
    try:
        if sys.stderr is not None:
            print(f"trio-offload: {line}", file=sys.stderr, flush=True)
    except OSError:  # nobody listens; that is no reason to fail
        pass


def _exit_soon(status: ExitStatus) -> threading.Timer:
    """End the process in a moment, if it still runs then."""
    watchdog = threading.Timer(_STOP, os._exit, [int(status)])
    watchdog.daemon = True
    watchdog.start()
    return watchdog
