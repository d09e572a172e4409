"""Async callbacks for which the job does not wait. Its call waits for them, as a nursery does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .loans import Loan


class Unawaited:
    """The callbacks of one worker's jobs that run on their own."""

    def __init__(self) -> None:
        self._running = 0
        self._are_done = trio.Event()

    def __bool__(self) -> bool:
        return self._running > 0

    def count(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function for a nursery that counts as running from now on."""
        self._running += 1

        async def run(*args: Any) -> None:
            try:
                await function(*args)
            finally:
                self._running -= 1
                self._are_done.set()

        return run

    async def wait(self, loan: Loan | None) -> None:
        """Wait for all of them, after the job has ended. Its worker needs no processor meanwhile.

        Args:
            loan: the job's token of the limiter, which a callback may need.
        """
        if loan is not None:
            loan.begin_at_once()
        try:
            while self._running:
                self._are_done = trio.Event()
                await self._are_done.wait()
        finally:
            if loan is not None:
                loan.end()
