"""A slot of ``trio-offload map``: run items in one worker, one at a time, and format the outcomes.

All slots share one context. Each runs one item at a time, so the context has at most as many
workers as slots.

``--timeout`` measures the item only: its clock starts in a worker whose ``init`` has imported the
function. Otherwise the item after a killed worker would pay for a start and an import, and one slow
item could make all later ones fail.
"""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_offload
from trio_offload_worker._jobs import cli_items
from trio_offload_worker._jobs.cli_lines import Figures, encode_item, failure_line

if TYPE_CHECKING:
    from types import TracebackType

    from .output import Output
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
    grace: float | None = None
    """Seconds that an item has to end by itself, once it is told to. None means no time."""
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

    def __init__(self, context: trio_offload.WorkerContext, job: Job, summary: Summary, output: Output) -> None:
        self._context = context
        self._job = job
        self._summary = summary
        self._output = output
        self._yields = False
        self._limiter = _Unlimited()
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

    async def _try(self, item: Item, tries: int) -> Reply:
        try:
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
            self._summary.note_death(error.crash)
            self._start_failures = 0
            return _failure_of_worker(item, _kind(error), error, tries)
        except trio_offload.WorkerTimeoutError as error:
            self._start_failures = 0
            self._summary.note_death(error.crash)
            return _failure_of_worker(item, "timeout", error, tries)
        except Exception as error:
            # An error of the call, such as MemoryError. The function's errors are in the reply.
            figures = Figures(None, None, None, tries)
            return _failure(item, type(error).__name__, type(error).__name__, str(error), figures)

    async def _call(self, item: Item, tries: int) -> Reply:
        pid, peak_rss, failure, line = await self._run_sync(item, tries)
        if not line:
            # A generator function, whose values have lines too. It has not begun.
            self._yields = True
            pid, peak_rss, failure, line = await self._run_sync(item, tries)
        self._start_failures = 0
        self._summary.note_worker(pid, peak_rss)
        return Reply(line, failure)

    async def _run_sync(self, item: Item, tries: int) -> cli_items.Outcome:
        parts = None
        if self._yields:
            parts = trio_offload.callback(functools.partial(self._output.put_part, item))
        return await self._context.run_sync(
            cli_items.NamedCall(self._job.function, item.label),
            item.kind,
            item.number,
            item.content,
            tries,
            parts,
            kill_on_cancel=True,
            limiter=self._limiter,
            timeout=self._job.timeout,
            grace=self._job.grace,
        )

    def _problem_of_function(self, error: trio_offload.WorkerStartError) -> str | None:
        """Return the problem of the function. None means that it is not the reason."""
        if isinstance(error.__cause__, cli_items.UnusableFunction):
            return str(error.__cause__)
        process = error.process
        if process is None or process.killed or process.exitcode in _NOT_OF_THE_IMPORT:
            return None
        return f"cannot import {self._job.function.module}: {one_line(error)}"


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


def _failure_of_worker(
    item: Item, kind: str, error: trio_offload.BrokenWorkerError | trio_offload.WorkerTimeoutError, tries: int
) -> Reply:
    """Return the reply of an item whose worker died, or was killed."""
    crash = error.crash
    figures, traceback = Figures(None, None, None, tries), None
    if crash is not None:
        figures = Figures(crash.age, crash.peak_rss, crash.pid, tries)
        traceback = crash.note()
    return _failure(item, kind, type(error).__name__, str(error), figures, traceback, may_retry=True)


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
