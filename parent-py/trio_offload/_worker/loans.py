"""Tokens on loan: a job that waits for its parent lets another job have its token.

Otherwise a callback that itself calls ``run_sync`` could wait for ever: for a token that the job
holds which waits for the callback. A waiting job leaves its processor idle, so its limiter gets a
further token until the wait ends.

The loan begins after :data:`_LOAN_AFTER` seconds. Most waits are shorter, and a further token may
start a further worker.

A context has at most ``max_waiting_jobs`` loans. Beyond them a job that waits keeps its token. Then
callbacks that need a token may wait for each other. This is a deadlock if only jobs that wait hold
tokens. A look at the tasks that wait for a token finds it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from .. import _clock
from .._exceptions import DeadlockError
from .._limiter import counted_tokens
from .._wait_graph import WAITS
from .requests import Request, TaskOwner

if TYPE_CHECKING:
    from .._options import ContextOptions

_LOAN_AFTER: Final = 0.001
_INTERVAL: Final = 0.002
"""Seconds between two looks at the jobs that have begun to wait."""
_INTERVAL_AT_BOUND: Final = 0.02
"""Seconds between two looks at the jobs that keep their tokens."""


class Loan:
    """The token of one job."""

    __slots__ = ("_lenders", "_since", "is_kept", "is_lent", "limiter", "options", "requests")

    def __init__(self, limiter: Any, options: ContextOptions, requests: Mapping[int, Request]) -> None:
        self.limiter = limiter
        self.options = options
        self.requests = requests
        self.is_lent = False
        # True if it waits without a loan, because there are too many.
        self.is_kept = False
        self._since = 0.0
        self._lenders = _lenders()

    def begin(self) -> None:
        """The job waits now. The loan begins if the wait is long."""
        self._since = time.monotonic()
        self._lenders.add(self)

    def begin_at_once(self) -> None:
        """The job has ended, and its call waits for callbacks. No bound applies to this loan."""
        self._lenders.discard(self)
        self._lenders.lend(self)

    def is_due(self, now: float) -> bool:
        """Return True if the job has waited for long."""
        return now - self._since >= _LOAN_AFTER

    def end(self) -> None:
        """The job runs on. Whoever has the token keeps it until it is released."""
        self._lenders.discard(self)


class _Lenders:
    """The jobs of one run of Trio that have begun to wait."""

    def __init__(self) -> None:
        self._waiting: set[Loan] = set()
        # In the order of their waits.
        self._kept: dict[Loan, None] = {}
        self._lent: set[Loan] = set()
        self._counts: Counter[ContextOptions] = Counter()
        self._some = trio.Event()
        trio.lowlevel.spawn_system_task(self._look, name="the loans of trio-offload")

    def add(self, loan: Loan) -> None:
        self._waiting.add(loan)
        self._some.set()

    def discard(self, loan: Loan) -> None:
        self._waiting.discard(loan)
        if loan.is_lent:
            loan.is_lent = False
            self._lent.discard(loan)
            self._counts[loan.options] -= 1
            if not self._counts[loan.options]:
                del self._counts[loan.options]
            loan.limiter.total_tokens -= 1
            following = next((kept for kept in self._kept if kept.options is loan.options), None)
            if following is not None:
                self._keep_no_more(following)
                self.lend(following)
        elif loan.is_kept:
            self._keep_no_more(loan)

    def _keep_no_more(self, loan: Loan) -> None:
        del self._kept[loan]
        loan.is_kept = False

    def lend(self, loan: Loan) -> None:
        loan.is_lent = True
        self._lent.add(loan)
        self._counts[loan.options] += 1
        loan.limiter.total_tokens += 1

    async def _look(self) -> None:
        while True:
            if self._kept:
                with _clock.move_on_after(_INTERVAL_AT_BOUND):
                    await self._some.wait()
            else:
                await self._some.wait()
            if self._waiting:
                await _clock.sleep(_INTERVAL)
            now = time.monotonic()
            for loan in [loan for loan in self._waiting if loan.is_due(now)]:
                self._waiting.discard(loan)
                if self._counts[loan.options] < loan.options.max_waiting_jobs:
                    self.lend(loan)
                else:
                    loan.is_kept = True
                    self._kept[loan] = None
            self._refuse_callbacks()
            if not self._waiting:
                self._some = trio.Event()

    def _refuse_callbacks(self) -> None:
        """Fail a callback that needs a token, if only jobs that wait hold tokens."""
        for limiter in {loan.limiter for loan in self._kept}:
            waiting = [loan for loan in (*self._waiting, *self._kept, *self._lent) if loan.limiter is limiter]
            if limiter.available_tokens > 0 or limiter.borrowed_tokens > len(waiting):
                continue
            callbacks = _callbacks_of(waiting)
            if all(request.refusal is None for request in callbacks.values()):
                # The newest first. Trio has no public name for the tasks that wait.
                for task in reversed(list(limiter._pending_borrowers)):
                    request = _first_above(task, callbacks)
                    if request is not None:
                        request.refuse(_too_many(next(iter(self._kept)).options.max_waiting_jobs))
                        break


def _callbacks_of(loans: list[Loan]) -> dict[trio.lowlevel.Task, Request]:
    """Return the tasks of the callbacks that jobs wait for, and the requests of these."""
    callbacks = {}
    for request in [request for loan in loans for request in loan.requests.values()]:
        awaited = WAITS.awaited(request.owner) if request.ends_itself else None
        if awaited is not None and isinstance(awaited.holder, TaskOwner):
            callbacks[awaited.holder.task] = request
    return callbacks


def _first_above(task: trio.lowlevel.Task, callbacks: dict[trio.lowlevel.Task, Request]) -> Request | None:
    """Return the request of the first callback among a task and the tasks that wait for its end."""
    current: trio.lowlevel.Task | None = task
    while current is not None:
        if current in callbacks:
            return callbacks[current]
        nursery = current.parent_nursery
        current = None if nursery is None else nursery.parent_task
    return None


def _too_many(bound: int) -> DeadlockError:
    return DeadlockError(
        f"the callback needs a token of its limiter, but waiting jobs hold all of them, and {bound} jobs have lent theirs. "
        "Raise max_waiting_jobs of the context, or the tokens of the limiter"
    )


_of_run: Final[trio.lowlevel.RunVar[_Lenders]] = trio.lowlevel.RunVar("lenders")


def _lenders() -> _Lenders:
    try:
        return _of_run.get()
    except LookupError:
        lenders = _Lenders()
        _of_run.set(lenders)
        return lenders


def loan_of(limiter: object, options: ContextOptions, requests: Mapping[int, Request]) -> Loan | None:
    """Return the loan of a job that holds a token of this limiter, if it lends any.

    Args:
        limiter: the limiter.
        options: the options of the job's context.
        requests: the requests of the job that have no reply yet.
    """
    return None if counted_tokens(limiter) == math.inf else Loan(limiter, options, requests)
