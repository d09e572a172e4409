"""A place for one worker of ``trio-offload map``: runs items, one at a time, and turns every ending into a line.

Each station has a context of its own, with one worker at most. That is what makes ``--timeout`` exact: after a worker was
lost, the station brings up the next one and has it import the function before the next item's clock starts. With one
context for all, an item might find no idle worker and pay from its own time for a start and for an import, which may take
longer than the item; after the first item over time every later one would be over time as well.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_offload
from trio_offload_worker import _items

if TYPE_CHECKING:
    from types import TracebackType

    from ._sources import Item

_ENDS_GROUPS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that a service manager, a shell or a terminal sends to all processes of a group."""

_OWN_SIGNAL_DELAY: Final = 0.05
"""Seconds. A worker ended by one of them may be only the first of its group: this process is about to get the same signal,
and then the item did not fail but was interrupted. Time for that to happen."""


@attrs.frozen
class Job:
    """What is done with each item."""

    function: _items.Function
    timeout: float | None
    """Seconds that one item may take; ``None``: as long as it likes."""


@attrs.frozen
class Reply:
    """What became of an item."""

    ok: bool
    line: bytes


class FunctionProblem(Exception):
    """The function cannot be called: it does not import, is not there, ends the worker. One line of text."""


class Station:
    """Uses ``context``, which nobody else may use."""

    def __init__(self, context: trio_offload.WorkerContext, job: Job) -> None:
        self._context = context
        self._job = job
        self._limiter = _Unlimited()
        self._is_ready = False
        self.start_failures = 0
        """How often in a row no worker could be made ready."""
        self.last_problem = ""
        """Why not, the last time."""

    async def make_ready(self) -> None:
        """Have a worker that has imported the function.

        Raises :class:`FunctionProblem` if the function is to blame, :class:`trio_offload.WorkerStartError` if there is no
        worker.
        """
        if self._is_ready:
            return
        function = self._job.function
        self.start_failures += 1
        try:
            problem = await self._context.run_sync(_items.Import(function), kill_on_cancel=True, limiter=self._limiter)
        except trio_offload.WorkerStartError:
            raise
        except trio_offload.BrokenWorkerError as error:
            raise FunctionProblem(f"cannot import {function.module}: {one_line(error)}") from error
        if problem is not None:
            raise FunctionProblem(problem)
        self.start_failures = 0
        self._is_ready = True

    async def run(self, item: Item) -> Reply:
        """Call the function for one item. Cancelled, it has killed the worker when it raises."""
        job = self._job
        try:
            await self._make_ready_again()
            if job.timeout is None:
                return await self._call(item)
            with trio.move_on_after(job.timeout):
                return await self._call(item)
        except trio_offload.BrokenWorkerError as error:
            self._is_ready = False
            if error.signal in _ENDS_GROUPS:
                await trio.sleep(_OWN_SIGNAL_DELAY)
            return _failure(item, type(error).__name__, str(error))
        except Exception as error:  # the function's own are in the reply; this is about the call, a MemoryError perhaps
            return _failure(item, type(error).__name__, str(error))
        self._is_ready = False
        return _failure(item, "TimeoutError", f"over its {job.timeout:g} s: the worker was killed")

    async def _make_ready_again(self) -> None:
        try:
            await self.make_ready()
        except (FunctionProblem, trio_offload.WorkerStartError) as error:
            self.last_problem = one_line(error)
            raise

    async def _call(self, item: Item) -> Reply:
        ok, line = await self._context.run_sync(
            self._job.function,
            item.kind,
            item.number,
            item.content,
            kill_on_cancel=True,
            limiter=self._limiter,
        )
        return Reply(ok, line)


def one_line(error: BaseException) -> str:
    """The message of an exception without its line breaks."""
    return " ".join(str(error).split())


def _failure(item: Item, type_name: str, message: str) -> Reply:
    encoded = _items.encode_item(item.kind, item.content)
    return Reply(ok=False, line=_items.failure_line(encoded, type_name, message))


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
