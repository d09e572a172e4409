"""Tokens on loan: a job that waits for its parent lets another job have its token.

Otherwise a callback that itself calls ``run_sync`` could wait for ever: for a token that the job
holds which waits for the callback. A waiting job leaves its processor idle, so its limiter gets a
further token until the wait ends.

The loan begins after :data:`_LOAN_AFTER` seconds. Most waits are shorter, and a further token may
start a further worker.
"""

from __future__ import annotations

import math
import time
from typing import Final

import trio

from .. import _clock

_LOAN_AFTER: Final = 0.001
_INTERVAL: Final = 0.002
"""Seconds between two looks at the jobs that have begun to wait."""


class Loan:
    """The token of one job."""

    __slots__ = ("_is_lent", "_lenders", "_limiter", "_since")

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._is_lent = False
        self._since = 0.0
        self._lenders = _lenders()

    def begin(self) -> None:
        """The job waits now. The loan begins if the wait is long."""
        self._since = time.monotonic()
        self._lenders.add(self)

    def lend(self) -> None:
        """Lend the token."""
        self._is_lent = True
        self._limiter.total_tokens += 1

    def is_due(self, now: float) -> bool:
        """Return True if the job has waited for long."""
        return now - self._since >= _LOAN_AFTER

    def end(self) -> None:
        """The job runs on. Whoever has the token keeps it until it is released."""
        self._lenders.discard(self)
        if self._is_lent:
            self._is_lent = False
            self._limiter.total_tokens -= 1


class _Lenders:
    """The jobs of one run of Trio that have begun to wait."""

    def __init__(self) -> None:
        self._waiting: set[Loan] = set()
        self._some = trio.Event()
        trio.lowlevel.spawn_system_task(self._look, name="the loans of trio-offload")

    def add(self, loan: Loan) -> None:
        self._waiting.add(loan)
        self._some.set()

    def discard(self, loan: Loan) -> None:
        self._waiting.discard(loan)

    async def _look(self) -> None:
        while True:
            await self._some.wait()
            await _clock.sleep(_INTERVAL)
            now = time.monotonic()
            for loan in [loan for loan in self._waiting if loan.is_due(now)]:
                self._waiting.discard(loan)
                loan.lend()
            if not self._waiting:
                self._some = trio.Event()


_of_run: Final[trio.lowlevel.RunVar[_Lenders]] = trio.lowlevel.RunVar("lenders")


def _lenders() -> _Lenders:
    try:
        return _of_run.get()
    except LookupError:
        lenders = _Lenders()
        _of_run.set(lenders)
        return lenders


def loan_of(limiter: object) -> Loan | None:
    """Return the loan of a job that holds a token of this limiter, if it lends any."""
    if type(limiter) is trio.CapacityLimiter and limiter.total_tokens != math.inf:
        return Loan(limiter)
    return None
