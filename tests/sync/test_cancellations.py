"""The cancellation matrix: a job's wait is given up at each moment, in each way. It is done, or it is not done.

| way | the wait is given up |
|---|---|
| cancelled | because the caller is cancelled, and waits for the job |
| timeout | by the job's own timeout |
| signal | because a signal handler raises in the job |

Moments: before the operation, while it is parked, and as it is completed, in either order. The waits of tasks are in
``test_locks_of_tasks.py`` and ``test_channels.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any, Final

import fault_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline
from things import PARKED, THINGS, Arrivals, Thing, stop

from trio_offload import WorkerContext, WorkerType, open_worker_context

WITH_TIMEOUT: Final = [name for name in THINGS if name != "callback"]
# What is left if the operation was done, and the job has released what it gave.
DONE: Final = PARKED | {
    "Barrier": "broken False, 0 waiting, met",
    "send": "from the job | EndOfChannel",
    "receive": "behind",
    "WorkQueue": "left [], failed []",
    "WorkQueue with retries": "left [], failed []",
    "callback": "done",
}
# What is left if it was not: as after a death, but a sender has closed in order.
NOT_DONE: Final = PARKED | {"send": " | EndOfChannel"}


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Arrivals:
    return Arrivals(monkeypatch)


class Call:
    """A job whose operation waits, and how that ends."""

    def __init__(self, context: WorkerContext, name: str, line: Lifeline, gate: Gate, timeout: float | None = None) -> None:
        self.thing: Thing = THINGS[name]()
        self.thing.occupy()
        self.ends: list[str] = []
        self.scope = trio.CancelScope()
        self._args = (self.thing.argument, self.thing.op, line.path, gate.path, timeout)
        self._context = context
        self._name = name

    async def run(self) -> None:
        with self.scope:
            self.ends.append(await self._context.run_sync(jobs.give_up, *self._args))

    async def check(self, *ends: str) -> None:
        """The operation has ended in one of these ways, and what is left fits to it."""
        (end,) = self.ends
        assert end in ends
        await trio.testing.wait_all_tasks_blocked()
        assert await self.thing.state() == (DONE if end == "value" else NOT_DONE)[self._name]

    def complete(self) -> None:
        if self._name != "Barrier" or not self.thing.argument.broken:
            self.thing.complete()


@pytest.mark.parametrize("name", THINGS)
async def test_cancelled_before(context: WorkerContext, line: Lifeline, gate: Gate, name: str) -> None:
    """It raises although it could be done at once."""
    call = Call(context, name, line, gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run)
        await line.pid()
        if name not in ("Event", "Condition", "Barrier"):  # these are completed while somebody waits
            call.complete()
        call.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    if name == "Event":
        call.complete()
    if name == "Barrier":
        assert call.ends == ["Cancelled"]
        assert call.thing.argument.n_waiting == 0
    elif name == "callback":
        assert call.ends == ["Cancelled"]
        assert await call.thing.state() == "", "it was not called"
    else:
        await call.check("Cancelled")


@pytest.mark.parametrize("way", ["cancelled", "timeout", "signal"])
@pytest.mark.parametrize("name", THINGS)
async def test_parked(context: WorkerContext, arrivals: Arrivals, line: Lifeline, gate: Gate, name: str, way: str) -> None:
    if way == "timeout" and name not in WITH_TIMEOUT:
        pytest.skip("a callback has no timeout")
    call = Call(context, name, line, gate, 0.05 if way == "timeout" else None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run)
        pid = await line.pid()
        gate.open()
        await arrivals.of(call.thing.request).wait()
        if way == "cancelled":
            call.scope.cancel()
        elif way == "signal":
            os.kill(pid, signal.SIGUSR1)
    call.complete()
    await call.check({"cancelled": "Cancelled", "timeout": "TimeoutError", "signal": "LookupError"}[way])


@pytest.mark.parametrize("order", ["completed first", "cancelled first"])
@pytest.mark.parametrize("name", THINGS)
async def test_completed_and_cancelled_at_once(
    context: WorkerContext, arrivals: Arrivals, line: Lifeline, gate: Gate, name: str, order: str
) -> None:
    call = Call(context, name, line, gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run)
        await line.pid()
        gate.open()
        await arrivals.of(call.thing.request).wait()
        if order == "completed first":
            call.complete()
            call.scope.cancel()
        else:
            call.scope.cancel()
            call.complete()
    # The task that hears of the cancellation is another than the one that completes.
    await call.check("value", "Cancelled")


@pytest.mark.parametrize("way", ["timeout", "signal"])
@pytest.mark.parametrize("name", WITH_TIMEOUT)
async def test_completed_and_given_up_by_the_job_at_once(
    context: WorkerContext, arrivals: Arrivals, line: Lifeline, gate: Gate, name: str, way: str
) -> None:
    """The reply is in the socket of a stopped worker whose wait is then over."""
    timeout = 0.2 if way == "timeout" else None
    call = Call(context, name, line, gate, timeout)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run)
        pid = await line.pid()
        gate.open()
        await arrivals.of(call.thing.request).wait()
        stop(pid)
        call.complete()
        await trio.testing.wait_all_tasks_blocked()
        if way == "timeout":
            await trio.sleep(0.25)
        else:
            os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGCONT)
    if way == "signal" and name in ("send", "Barrier") and call.ends == ["LookupError"]:
        # It came behind the reply: what was sent is sent, and who has met has met.
        assert await call.thing.state() == DONE[name]
    else:
        ends: dict[str, Any] = {"timeout": ("value", "TimeoutError"), "signal": ("value", "LookupError")}
        await call.check(*ends[way])
