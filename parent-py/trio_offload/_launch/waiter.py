"""Wait for an operation of another task, perhaps in another run of Trio."""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from .._exceptions import WorkerStartError


class Waiter:
    """One task that waits for another's start of a process."""

    def __init__(self) -> None:
        self._event: Final = trio.Event()
        self._token: Final = trio.lowlevel.current_trio_token()
        self._failure: WorkerStartError | None = None

    def wake(self, failure: WorkerStartError | None) -> None:
        """End the wait, from any thread. ``failure`` is the error of the start."""
        self._failure = failure
        # The run may have ended: the task was cancelled, and does not wait any more.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._event.set)

    async def wait(self) -> None:
        """Wait for :meth:`wake`.

        Raises:
            WorkerStartError: a copy of the failure for each task, because tracebacks and notes are
                added to it.
        """
        await self._event.wait()
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure.__cause__
