"""``trio-offload map``: items in, lines out.

    source ─ reader ─▶ queue ─▶ slots ─▶ output ─────── writer ─▶ stdout
                                (and one context for all)
               ▲                                                          │
               └─────────────────────────── window ◀──────────────────────┘

* The tasks share only :class:`_Run`. A task handles the expected errors and passes the command's
  outcome to :meth:`_Run.stop`. The first outcome counts, and cancellation ends the other tasks.
* A stop prints all finished lines, also behind an unfinished item, and ends the workers. After a
  signal this takes less than a second. :func:`os._exit` then abandons everything that cannot be
  cancelled (a worker in its exit handlers), and a worker without a parent ends itself.
"""

from __future__ import annotations

import math
import signal
import sys
import warnings
from collections import deque
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_offload
from trio_offload_worker._jobs import cli_items

from .ending import Intake, interruption_lines, print_message, start_forced_exit
from .exit_status import CommandError, ExitStatus
from .logs import shown_logs
from .output import Output, Window
from .progress import open_bar
from .resume import ResumedSource
from .slot import FunctionProblem, Job, Slot, one_line
from .summary import Summary

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import FrameType

    from .._trace import TraceWriter
    from .progress import Bar
    from .resume import EarlierOutput
    from .slot import Reply
    from .sources import Item, Source

_MAX_ITEMS_INSIDE: Final = 16_384
_MAX_BYTES_INSIDE: Final = 64 * 1024 * 1024
"""Bounds between the source and the output. A slow item rarely stops the other workers."""

_STOP_WRITING: Final = 0.5
"""Seconds after a signal until the last write is abandoned."""

_INTERRUPTIONS: Final = {signal.SIGINT: ExitStatus.INTERRUPTED, signal.SIGTERM: ExitStatus.TERMINATED}
"""The signals that end a run, and its exit status then."""

_STATISTICS_INTERVAL: Final = 0.25
"""Seconds between two reads of the workers' statistics."""


@attrs.frozen
class MapOptions:
    """The options of ``trio-offload map``."""

    job: Job
    workers: int
    fail_fast: bool
    progress: bool
    path_entry: str | None
    """The folder to put first on ``sys.path`` in workers. None leaves it unchanged."""
    summary: bool = False
    """True if the summary is printed without a bar, too."""
    memory_limit: int | None = None
    """Bytes that one item may use, including the processes that it starts."""
    retire_rss: int | None = None
    retire_jobs: int | None = None
    """Bytes and items after which a worker is replaced."""
    trace: str | None = None
    """The path of the trace file."""
    ordered: bool = True
    """True if lines are written in the order of the items."""
    log_level: int | None = None
    """The level from which log records are shown, if they are."""


def run_map(options: MapOptions, source: Source, earlier: Sequence[EarlierOutput] = ()) -> ExitStatus:
    """Write a line to standard output for each item of ``source``.

    Args:
        options: the options.
        source: the items.
        earlier: the output of earlier runs. Items with a line of ``ok`` there are left out.

    Raises:
        CommandError: the run could not start, or was ended by something other than an item.
    """
    if sys.stdout is None:
        raise CommandError("cannot write to standard output: it is closed")
    for file in earlier:
        if not file.exists:
            print_message(f"{file.path} does not exist, so no item is left out")
    bar, hint = open_bar(repr(options.job.function), wanted=options.progress)
    if hint is not None:
        print_message(f"hint: {hint}")
    run = _Run(options, source, bar, earlier)
    try:
        with warnings.catch_warnings(), shown_logs(options.log_level, bar):
            # The package's warnings are about options. Python would show a source line of the
            # package with them.
            warnings.showwarning = run.note_warning  # type: ignore[assignment]
            trio.run(run.main)
        run.report()
    finally:
        run.cancel_forced_exit()
    return run.result()


class _Run:
    def __init__(self, options: MapOptions, source: Source, bar: Bar, earlier: Sequence[EarlierOutput]) -> None:
        self._options = options
        self._warnings: list[str] = []
        self._earlier = earlier
        self._resumed = ResumedSource(source, earlier, self._warnings.append) if earlier else None
        self._source = self._resumed or source
        self._bar = bar
        self._window = Window(_MAX_ITEMS_INSIDE, _MAX_BYTES_INSIDE)
        self._output = Output(1, self._window, bar.around_write, bar.write_distance, ordered=options.ordered)
        self._queue: deque[Item] = deque()
        self._queue_waiting = trio.lowlevel.ParkingLot()
        self._all_read = False
        self._trace: TraceWriter | None = None
        self._intake = Intake()
        self._function_found = trio.Event()
        self._slots_without_worker: list[str] = []  # the reason of each
        self._summary = Summary(wanted=options.summary or bar.is_shown)
        self._any_failed = False
        self._ending: ExitStatus | CommandError | None = None
        self._signal: signal.Signals | None = None
        self._is_interruption_reported = False
        self._forced_exit: threading.Timer | None = None
        self._written = trio.Event()
        self._work_scope = trio.CancelScope()
        self._everything_scope = trio.CancelScope()

    async def main(self) -> None:
        with self._watch_signals(), self._everything_scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bar.run)
                nursery.start_soon(self._write)
                with self._work_scope:
                    await self._work()
                self._output.close()
                await self._written.wait()
                if self._signal is not None and not self._intake.is_complete:
                    await self._count()
                nursery.cancel_scope.cancel()

    def note_warning(self, message: Warning | str, *where: object) -> None:
        """Replace :func:`warnings.showwarning`: keep the message until the bar is closed."""
        self._warnings.append(" ".join(str(message).split()))

    def report(self) -> None:
        """Print warnings and the summary on standard error, after :meth:`main` has returned."""
        lost = self._slots_without_worker
        if lost and self._function_found.is_set():
            self._warnings.append(f"{len(lost)} of {self._options.workers} workers could not be started: {lost[0]}")
        for warning in self._warnings:
            print_message(f"warning: {warning}")
        if self._summary.wanted:
            for line in self._summary.lines():
                print_message(line)
        if self._resumed is not None and not isinstance(self._ending, CommandError):
            left_out = self._resumed.report()
            if left_out:
                print_message(left_out)
        if self._signal is not None:
            self._report_interruption()
        elif self._ending is ExitStatus.FAILED and self._summary.wanted:
            self._report_end("stopped at the first failure")

    def _report_interruption(self) -> None:
        if self._signal is not None and not self._is_interruption_reported:
            self._is_interruption_reported = True
            self._report_end(f"interrupted by {self._signal.name}")

    def _report_end(self, reason: str) -> None:
        balance = self._intake.balance(self._output.written, resumed=self._resumed is not None)
        for line in interruption_lines(reason, balance, self._earlier):
            print_message(line)

    def result(self) -> ExitStatus:
        """Return the exit status, after :meth:`main` has returned.

        Raises:
            CommandError: the run was ended by it.
        """
        if isinstance(self._ending, CommandError):
            raise self._ending
        if self._ending is not None:
            return self._ending
        return ExitStatus.FAILED if self._any_failed else ExitStatus.OK

    def stop(self, ending: ExitStatus | CommandError) -> None:
        """End the run. Finished lines are still printed."""
        if self._ending is None:
            self._ending = ending
        if not self._options.job.grace:  # else running items may still finish
            self._output.close()
        self._work_scope.cancel()

    def cancel_forced_exit(self) -> None:
        """Cancel the forced exit, because the run has ended in time."""
        if self._forced_exit is not None:
            self._forced_exit.cancel()

    @contextmanager
    def _watch_signals(self) -> Iterator[None]:
        """End the run at the first SIGINT or SIGTERM; the later ones change nothing.

        :func:`trio.open_signal_receiver` does not serve here. At its end it puts the earlier
        handlers back and sends itself the signals that nobody has read: a second Ctrl+C could
        still kill the process without a message.
        """
        token = trio.lowlevel.current_trio_token()

        def note(number: int, _frame: FrameType | None) -> None:
            if self._signal is None:
                self._signal = signal.Signals(number)
                token.run_sync_soon(self._interrupt)

        # An ignored signal stays ignored: a shell's background job should not get Ctrl+C.
        watched = [number for number in _INTERRUPTIONS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, note) for number in watched}
        try:
            yield
        finally:
            if self._signal is None:
                for number, handler in previous.items():
                    signal.signal(number, handler)
            else:
                self._interrupt()
                # The process is about to exit with the first signal's status. Another signal must
                # not kill it before that, also when Python has put its own handlers away.
                for number in watched:
                    signal.signal(number, signal.SIG_IGN)

    def _interrupt(self) -> None:
        if self._signal is not None and self._forced_exit is None:
            ending = _INTERRUPTIONS[self._signal]
            grace = self._options.job.grace or 0.0
            self._forced_exit = start_forced_exit(ending, self._report_interruption, grace)
            self._bar.close()
            self._everything_scope.deadline = trio.current_time() + _STOP_WRITING + grace
            self.stop(ending)

    async def _read(self) -> None:
        await self._function_found.wait()
        try:
            while items := await self._source.read():
                self._intake.items += len(items)
                self._show_total()
                for item in items:
                    await self._window.admit(item.size)
                    self._queue.append(item)
                    if self._trace is not None:
                        self._trace.begin_wait()
                    self._queue_waiting.unpark()
            self._intake.is_complete = True
            self._show_total()
        except CommandError as error:
            # The items read so far are still run.
            if self._ending is None:
                self._ending = error
        self._all_read = True
        self._queue_waiting.unpark_all()

    async def _count(self) -> None:
        if self._intake.total is None:
            self._intake.total = await self._source.count()
            self._show_total()

    def _show_total(self) -> None:
        intake = self._intake
        intake.left_out = self._source.left_out
        if intake.total is not None:
            self._bar.set_total(intake.total - intake.left_out)

    async def _next(self) -> Item | None:
        while True:
            if not self._queue:
                if self._all_read:
                    return None
                await self._queue_waiting.park()
            elif not self._window.has_room and not self._output.awaits(self._queue[0]):
                # Lines of finished items have filled the window in the meantime.
                await self._window.change()
            else:
                if self._trace is not None:
                    self._trace.end_wait()
                return self._queue.popleft()

    async def _work(self) -> None:
        options = self._options
        try:
            async with AsyncExitStack() as stack:
                try:
                    context = await stack.enter_async_context(_open_context(options))
                except ValueError as error:
                    # All other options were checked before.
                    why = error.__cause__
                    self.stop(CommandError(f"cannot write {options.trace}: {getattr(why, 'strerror', None) or error}"))
                    return
                self._trace = context._pool.launcher.trace  # of items that wait
                self._summary.watch(context.statistics)
                try:
                    async with trio.open_nursery() as onlookers:
                        if self._summary.wanted:
                            onlookers.start_soon(self._update_workers)
                        async with trio.open_nursery() as work:
                            work.start_soon(self._read)
                            if self._bar.is_shown:
                                work.start_soon(self._count)
                            for _ in range(options.workers):
                                work.start_soon(self._serve, context)
                        onlookers.cancel_scope.cancel()
                finally:
                    self._summary.look()
                    self._summary.watch(None)
        except trio_offload.BrokenWorkerError as error:
            # All items have been printed, so this is only a warning.
            self._warnings.append(one_line(error))

    async def _update_workers(self) -> None:
        while True:
            self._bar.set_workers(self._summary.look())
            await trio.sleep(_STATISTICS_INTERVAL)

    async def _serve(self, context: trio_offload.WorkerContext) -> None:
        slot = Slot(context, self._options.job, self._summary, self._output)
        if not await self._begin(slot):
            return
        while (item := await self._next()) is not None:
            self._finish(item, await slot.run(item))
            if slot.has_no_workers:
                self.stop(CommandError(f"workers cannot be started any more: {slot.last_problem}"))

    async def _begin(self, slot: Slot) -> bool:
        """Start a worker for a slot. Return False, which closes the slot, if that fails."""
        try:
            await slot.make_ready()
        except FunctionProblem as problem:
            if self._function_found.is_set():
                return True  # another worker has imported it, so try again with the first item
            self.stop(CommandError(str(problem)))
            return False
        except trio_offload.WorkerStartError as error:
            self._slots_without_worker.append(one_line(error))
            if len(self._slots_without_worker) == self._options.workers:
                self.stop(CommandError(f"no worker could be started: {one_line(error)}"))
            return False
        self._function_found.set()
        return True

    def _finish(self, item: Item, reply: Reply) -> None:
        self._output.put(item, reply.line)
        self._summary.count(reply.failure)
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
        forward_logging=options.log_level,
    )
