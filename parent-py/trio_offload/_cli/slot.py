"""A slot of ``trio-offload map``: run items in one worker, one at a time, and format the outcomes.

All slots share one context. Each runs one item at a time, so the context has at most as many
workers as slots.

``--timeout`` measures the item only. Before its clock starts, the slot makes sure that an idle
worker exists whose ``init`` has imported the function. Other tasks do not run between the end of
:meth:`~trio_offload.WorkerContext.prewarm` and the start of the call, so the slot gets that worker.
Otherwise the item after a killed worker would pay for a start and an import, and one slow item
could make all later ones fail.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_offload
from trio_offload_worker._jobs import cli_items
from trio_offload_worker._jobs.cli_lines import Figures, encode_item, failure_line

if TYPE_CHECKING:
    from types import TracebackType

    from .sources import Item
    from .summary import Summary

_ENDS_GROUPS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that a service manager, a shell or a terminal sends to a whole process group."""

_OWN_SIGNAL_DELAY: Final = 0.05
"""Seconds to wait for the same signal in this process after it killed a worker.

If it arrives, the item was interrupted and did not fail.
"""

_NOT_OF_THE_IMPORT: Final = (2, 3, 4, 5, 6, 7, 127, None)
"""Exit codes before READY that the imported code did not cause.

They are the worker's own (PROTOCOL.md) and the dynamic loader's.
"""

_MAX_START_FAILURES: Final = 5
"""Consecutive failed starts of a slot after which the run ends, instead of the item."""


@attrs.frozen
class Job:
    """The work on each item."""

    function: cli_items.Function
    timeout: float | None
    """Seconds that one item may take. None means unlimited."""
    retries: int = 0
    """Number of further tries of an item whose worker died or exceeded the time."""


@attrs.frozen
class Reply:
    """The outcome of an item."""

    line: bytes
    failure: str | None = None
    """Kind of the failure, in a word or two. None means success."""
    may_retry: bool = False
    """True if the worker failed, False if the function did."""


class FunctionProblem(Exception):
    """The function cannot be called: its module does not import, lacks it, or ends the worker.

    The message is one line.
    """


class Slot:
    """Runs items through a shared context, and reports its workers to the summary."""

    def __init__(self, context: trio_offload.WorkerContext, job: Job, summary: Summary) -> None:
        self._context = context
        self._job = job
        self._summary = summary
        self._limiter = _Unlimited()
        self._running: _Named | None = None
        self._scope = trio.CancelScope()  # of the running item
        self._deadline = 0.0
        self._victim: trio_offload.WorkerStatistics | None = None
        self._start_failures = 0
        self.last_problem = ""
        """The reason of the last failure to get a worker ready."""

    @property
    def has_no_workers(self) -> bool:
        """True if so many starts have failed in a row that further items are pointless."""
        return self._start_failures >= _MAX_START_FAILURES

    async def make_ready(self) -> None:
        """Make sure that an idle worker exists.

        Raises:
            FunctionProblem: the function prevents it.
            trio_offload.WorkerStartError: something else prevents it.
        """
        try:
            await self._context.prewarm(1)
        except trio_offload.WorkerStartError as error:
            await _let_own_signal_come(error)
            problem = self._problem_of_function(error)
            if problem is None:
                raise
            raise FunctionProblem(problem) from error

    async def run(self, item: Item) -> Reply:
        """Call the function for one item, several times if its worker fails.

        If cancelled, the worker is killed.
        """
        tries = 1
        while True:
            reply = await self._try(item, tries)
            if not reply.may_retry or tries > self._job.retries or self.has_no_workers:
                return reply
            self._summary.count_retry()
            tries += 1

    async def watch_time(self, seconds: float) -> None:
        """Cancel each item that takes longer than ``--timeout``. Runs until cancelled.

        A deadline of the scope would end the worker before its figures could be read.
        """
        while True:
            if self._running is None:
                # The next item has a later deadline.
                await trio.sleep(seconds)
            elif self._deadline > trio.current_time():
                await trio.sleep_until(self._deadline)
            else:
                self._victim = self._find_worker(repr(self._running))
                self._running = None
                self._scope.cancel()

    def _find_worker(self, name: str) -> trio_offload.WorkerStatistics | None:
        """Return the worker that runs a call, if it is the only one with such a call."""
        found = [worker for worker in self._summary.look() if worker.function == name]
        return found[0] if len(found) == 1 else None

    async def _try(self, item: Item, tries: int) -> Reply:
        timeout = self._job.timeout
        began = time.monotonic()
        try:
            if timeout is not None:
                await self._context.prewarm(1)
                began = time.monotonic()
                self._deadline = trio.current_time() + timeout
            with trio.CancelScope() as self._scope:
                return await self._call(item, tries)
        except trio_offload.WorkerStartError as error:
            await _let_own_signal_come(error)
            self.last_problem = self._problem_of_function(error) or one_line(error)
            self._start_failures += 1
            figures = Figures(None, None, None, tries)
            name = type(error).__name__
            return _failure(item, name, name, self.last_problem, figures, may_retry=True)
        except trio_offload.BrokenWorkerError as error:
            await _let_own_signal_come(error)
            self._summary.note_death(error)
            self._start_failures = 0
            return _death(item, error, time.monotonic() - began, tries)
        except Exception as error:
            # An error of the call, such as MemoryError. The function's errors are in the reply.
            figures = Figures(None, None, None, tries)
            return _failure(item, type(error).__name__, type(error).__name__, str(error), figures)
        self._start_failures = 0
        message = f"took longer than {timeout or 0:g} s (--timeout), so its worker was killed"
        pid, peak_rss = (None, None) if self._victim is None else (self._victim.pid, self._victim.peak_rss)
        figures = Figures(time.monotonic() - began, peak_rss, pid, tries)
        return _failure(item, "timeout", "TimeoutError", message, figures, may_retry=True)

    async def _call(self, item: Item, tries: int) -> Reply:
        self._running = named = _Named(self._job.function, item)
        try:
            pid, peak_rss, failure, line = await self._context.run_sync(
                named,
                item.kind,
                item.number,
                item.content,
                tries,
                kill_on_cancel=True,
                limiter=self._limiter,
            )
        finally:
            self._running = None
        self._start_failures = 0
        self._summary.note_worker(pid, peak_rss)
        return Reply(line, failure)

    def _problem_of_function(self, error: trio_offload.WorkerStartError) -> str | None:
        """Return the problem of the function. None means that it is not the reason."""
        if isinstance(error.__cause__, cli_items.UnusableFunction):
            return str(error.__cause__)
        process = error.process
        if process is None or process.killed or process.exitcode in _NOT_OF_THE_IMPORT:
            return None
        return f"cannot import {self._job.function.module}: {one_line(error)}"


class _Named(cli_items.Function):
    """The user's function with the item in its name, so messages and the table name the item.

    The worker receives the function only.
    """

    __slots__ = ("_item",)

    def __init__(self, function: cli_items.Function, item: Item) -> None:
        super().__init__(function.module, function.attribute)
        self._item = item

    def __repr__(self) -> str:
        return f"{super().__repr__()}({self._item.label})"

    def __reduce__(self) -> tuple[type[cli_items.Function], tuple[str, str]]:
        return cli_items.Function, (self.module, self.attribute)


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split())


async def _let_own_signal_come(error: trio_offload.BrokenWorkerError) -> None:
    if error.signal in _ENDS_GROUPS:
        await trio.sleep(_OWN_SIGNAL_DELAY)


def _kind(error: trio_offload.BrokenWorkerError) -> str:
    if isinstance(error, trio_offload.WorkerMemoryError):
        return "out of memory"
    if error.signal is not None:
        return error.signal.name
    if error.exitcode is not None:
        return f"exit status {error.exitcode}" if error.exitcode >= 0 else f"signal {-error.exitcode}"
    return type(error).__name__


def _death(item: Item, error: trio_offload.BrokenWorkerError, seconds: float, tries: int) -> Reply:
    """Return the reply of an item whose worker died."""
    traceback, peak_rss = None, None
    if error.crash is not None:
        traceback, peak_rss = error.crash.note(), error.crash.peak_rss
    figures = Figures(seconds, peak_rss, error.pid, tries)
    return _failure(item, _kind(error), type(error).__name__, str(error), figures, traceback, may_retry=True)


def _failure(
    item: Item,
    kind: str,
    type_name: str,
    message: str,
    figures: Figures,
    traceback: str | None = None,
    *,
    may_retry: bool = False,
) -> Reply:
    encoded = encode_item(item.kind, item.content)
    return Reply(failure_line(encoded, type_name, message, traceback, figures), kind, may_retry)


class _Unlimited:
    """A limiter without a limit: a slot runs one item at a time anyway."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
