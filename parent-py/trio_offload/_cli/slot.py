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
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_offload
from trio_offload_worker._jobs import cli_items

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


@attrs.frozen
class Job:
    """The work on each item."""

    function: cli_items.Function
    timeout: float | None
    """Seconds that one item may take. None means unlimited."""


@attrs.frozen
class Reply:
    """The outcome of an item."""

    line: bytes
    failure: str | None = None
    """Kind of the failure, in a word or two. None means success."""


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
        self.start_failures = 0
        """Number of consecutive failures to get a worker ready."""
        self.last_problem = ""
        """The reason of the last one."""

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
        """Call the function for one item. If cancelled, the worker is killed."""
        timeout = self._job.timeout
        try:
            if timeout is None:
                return await self._call(item)
            await self._context.prewarm(1)
            with trio.move_on_after(timeout):
                return await self._call(item)
        except trio_offload.WorkerStartError as error:
            await _let_own_signal_come(error)
            self.last_problem = self._problem_of_function(error) or one_line(error)
            self.start_failures += 1
            return _failure(item, type(error).__name__, type(error).__name__, self.last_problem)
        except trio_offload.BrokenWorkerError as error:
            await _let_own_signal_come(error)
            self._summary.note_death(error)
            self.start_failures = 0
            traceback = None if error.crash is None else error.crash.note()
            return _failure(item, _kind(error), type(error).__name__, str(error), traceback)
        except Exception as error:
            # An error of the call, such as MemoryError. The function's errors are in the reply.
            return _failure(item, type(error).__name__, type(error).__name__, str(error))
        self.start_failures = 0
        return _failure(
            item, "timeout", "TimeoutError", f"took longer than {timeout:g} s (--timeout), so its worker was killed"
        )

    async def _call(self, item: Item) -> Reply:
        if self._job.timeout is not None:
            # A killed worker does not return its process ID, so read it once the call is sent.
            self._summary.look_soon()
        pid, failure, line = await self._context.run_sync(
            _Named(self._job.function, item),
            item.kind,
            item.number,
            item.content,
            kill_on_cancel=True,
            limiter=self._limiter,
        )
        self.start_failures = 0
        self._summary.note_worker(pid)
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


def _failure(item: Item, kind: str, type_name: str, message: str, traceback: str | None = None) -> Reply:
    encoded = cli_items.encode_item(item.kind, item.content)
    return Reply(cli_items.failure_line(encoded, type_name, message, traceback), kind)


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
