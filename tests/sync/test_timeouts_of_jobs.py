"""Timeouts of jobs: what counts as one, in workers of every kind and in threads of Trio's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lock_jobs
import pytest
import trio
from lifeline import PATIENCE

from trio_offload import Barrier, CapacityLimiter, Event, Lock, Semaphore, WorkQueue, open_channel, open_worker_context
from trio_offload_worker import from_worker
from trio_offload_worker._requests.messages import deadline_after

Run = Callable[..., Any]
WAITS: list[tuple[Callable[[], Any], str]] = [
    (Lock, "acquire"),
    (lambda: Semaphore(1), "acquire"),
    (lambda: CapacityLimiter(1), "acquire"),
    (lambda: Barrier(1), "wait"),
    (lambda: WorkQueue[int](1), "join"),
    (lambda: _set(Event()), "wait"),
]


def _set(event: Event) -> Event:
    event.set()
    return event


@pytest.fixture(params=["worker", "thread"])
async def run(request: pytest.FixtureRequest) -> Any:
    """Runs a job."""
    with trio.fail_after(PATIENCE):
        if request.param == "thread":
            yield trio.to_thread.run_sync
        else:
            async with open_worker_context() as context:
                yield context.run_sync


@pytest.mark.parametrize("seconds", [0, -1])
@pytest.mark.parametrize(("make", "method"), WAITS)
async def test_no_time_is_enough_for_what_is_there(run: Run, make: Callable[[], Any], method: str, seconds: float) -> None:
    kind, _ = await run(partial(lock_jobs.outcome, make().handle, method, timeout=seconds))
    assert kind == "value"


@pytest.mark.parametrize("seconds", [0, -1, 0.01])
async def test_time_passes_without_a_change(run: Run, seconds: float) -> None:
    send, receive = open_channel[int](0)
    for handle, method in ((Event().handle, "wait"), (receive.handle, "receive")):
        outcome = await run(partial(lock_jobs.outcome, handle, method, timeout=seconds))
        assert outcome == ("TimeoutError", "the request has timed out")
    assert send.statistics().tasks_waiting_receive == 0


@pytest.mark.parametrize(("seconds", "error"), [(math.nan, "ValueError"), ("1", "TypeError")])
async def test_timeout_that_is_no_number(run: Run, seconds: Any, error: str) -> None:
    _send, receive = open_channel[int](0)
    expected = error, f"timeout must be None or a number of seconds, got {seconds!r}"
    for handle, method in ((Event().handle, "wait"), (receive.handle, "receive"), (Barrier(2).handle, "wait")):
        assert await run(partial(lock_jobs.outcome, handle, method, timeout=seconds)) == expected


async def test_endless_timeout(run: Run) -> None:
    event = Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, partial(lock_jobs.outcome, event.handle, "wait", timeout=math.inf))
        while not event.statistics().tasks_waiting:  # noqa: ASYNC110 (nothing tells)
            await trio.sleep(0.001)
        event.set()


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_sleep_and_shield_refuse(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be 0 or more"):
        from_worker.sleep(seconds)
    with pytest.raises(ValueError, match="seconds must be None, 0 or more"):
        from_worker.shielded(seconds)


def test_deadlines() -> None:
    assert deadline_after(None) == deadline_after(math.inf) == math.inf
    assert deadline_after(-1) < deadline_after(0) < deadline_after(1)
