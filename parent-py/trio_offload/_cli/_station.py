"""A place for one worker of ``trio-offload map``: runs items, one at a time, and turns every ending into a line.

All stations share one context; as each runs one item at a time there are no more workers than stations. ``--timeout`` is exact
nevertheless: before an item's clock starts there is an idle worker, which has imported the function (its ``init`` does that).
Between the end of :meth:`~trio_offload.WorkerContext.prewarm` and the beginning of the call no other task runs, so no other
station takes that worker. Otherwise a station that has lost its worker would pay for a start and for an import from the next
item's time, and after the first item over time every later one might be over time as well.
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

    from ._sources import Item
    from ._tally import Tally

_ENDS_GROUPS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that a service manager, a shell or a terminal sends to all processes of a group."""

_OWN_SIGNAL_DELAY: Final = 0.05
"""Seconds. A worker ended by one of them may be only the first of its group: this process is about to get the same signal,
and then the item did not fail but was interrupted. Time for that to happen."""

_NOT_OF_THE_IMPORT: Final = (2, 3, 4, 5, 6, 7, 127, None)
"""What a worker that was not ready exits with for other reasons than the code that it imports: its own exit codes
(PROTOCOL.md), and the dynamic loader's."""


@attrs.frozen
class Job:
    """What is done with each item."""

    function: cli_items.Function
    timeout: float | None
    """Seconds that one item may take; ``None``: as long as it likes."""


@attrs.frozen
class Reply:
    """What became of an item."""

    line: bytes
    failure: str | None = None
    """What kind of failure it was, in a word or two; ``None``: it succeeded."""


class FunctionProblem(Exception):
    """The function cannot be called: it does not import, is not there, ends the worker. One line of text."""


class Station:
    """Uses ``context`` together with others. Tells ``tally`` which workers it has used."""

    def __init__(self, context: trio_offload.WorkerContext, job: Job, tally: Tally) -> None:
        self._context = context
        self._job = job
        self._tally = tally
        self._limiter = _Unlimited()
        self.start_failures = 0
        """How often in a row no worker could be made ready."""
        self.last_problem = ""
        """Why not, the last time."""

    async def make_ready(self) -> None:
        """See to it that there is an idle worker.

        Raises :class:`FunctionProblem` if the function is to blame, :class:`trio_offload.WorkerStartError` if there is no
        worker.
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
        """Call the function for one item. Cancelled, it has killed the worker when it raises."""
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
            self._tally.note_death(error)
            self.start_failures = 0
            traceback = None if error.crash is None else error.crash.note()
            return _failure(item, _kind(error), type(error).__name__, str(error), traceback)
        except Exception as error:  # the function's own are in the reply; this is about the call, a MemoryError perhaps
            return _failure(item, type(error).__name__, type(error).__name__, str(error))
        self.start_failures = 0
        return _failure(item, "timeout", "TimeoutError", f"over its {timeout:g} s: the worker was killed")

    async def _call(self, item: Item) -> Reply:
        if self._job.timeout is not None:
            # One that is killed never tells who it was: look as soon as this call is on its way.
            self._tally.look_soon()
        pid, failure, line = await self._context.run_sync(
            _Named(self._job.function, item),
            item.kind,
            item.number,
            item.content,
            kill_on_cancel=True,
            limiter=self._limiter,
        )
        self.start_failures = 0
        self._tally.note_worker(pid)
        return Reply(line, failure)

    def _problem_of_function(self, error: trio_offload.WorkerStartError) -> str | None:
        """What is wrong with the function, if that is why no worker was ready."""
        if isinstance(error.__cause__, cli_items.UnusableFunction):
            return str(error.__cause__)
        process = error.process
        if process is None or process.killed or process.exitcode in _NOT_OF_THE_IMPORT:
            return None
        return f"cannot import {self._job.function.module}: {one_line(error)}"


class _Named(cli_items.Function):
    """The user's function, with the item in its name: what is said about a worker says what it works on, or died of.

    The worker gets the function only.
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
    """The message of an exception without its line breaks."""
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
    """A limiter that costs nothing: a station runs one item at a time anyway."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
