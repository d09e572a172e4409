"""The tasks of async callbacks, in a nursery of the task that waits for the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .loans import Loan


class CallbackTasks:
    """The tasks that the jobs of one worker have asked for.

    The call waits for tasks for which its job does not, as a nursery does.
    """

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._to_start: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._unawaited = 0
        self._one_has_ended = trio.Event()

    @property
    def has_unawaited(self) -> bool:
        """True if there are tasks for which the job does not wait."""
        return self._unawaited > 0

    def begin(self, nursery: trio.Nursery) -> None:
        """Let the tasks run in this nursery."""
        self._nursery = nursery
        for function, args in self._to_start:
            nursery.start_soon(function, *args)
        self._to_start.clear()

    def end(self) -> None:
        """The nursery has ended."""
        self._nursery = None

    def cancel(self) -> None:
        """Cancel the nursery, and with it the task in which it is."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def cancel_unstarted(self) -> None:
        """Run the callbacks that a worker has asked for as it ended, cancelled. Not cancellable."""
        if self._to_start:
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.cancel()
                for function, args in self._to_start:
                    nursery.start_soon(function, *args)
                self._to_start.clear()

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """As :meth:`Replier.start`."""
        if self._nursery is None:
            self._to_start.append((function, args))
        else:
            self._nursery.start_soon(function, *args)

    def start_unawaited(self, function: Callable[..., Any], *args: Any) -> None:
        """As :meth:`Replier.start_unawaited`."""
        self._unawaited += 1
        self.start(self._run_unawaited, function, args)

    async def _run_unawaited(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        finally:
            self._unawaited -= 1
            self._one_has_ended.set()

    async def wait_for_unawaited(self, loan: Loan | None) -> None:
        """Wait for the tasks for which the job did not. Its worker needs no processor meanwhile.

        Args:
            loan: the job's token of the limiter, which a callback may need.
        """
        if loan is not None:
            loan.begin_at_once()
        try:
            while self._unawaited:
                self._one_has_ended = trio.Event()
                await self._one_has_ended.wait()
        finally:
            if loan is not None:
                loan.end()
