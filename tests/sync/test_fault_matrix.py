"""The fault matrix: a worker dies at each moment of each operation, with each kind of worker.

| moment | the worker is killed |
|---|---|
| parked | while its request waits in the parent |
| unread | with the reply in its socket |
| in hand | when its code has the result |
| said | when a one-way message is in the socket, and the parent has not read it |

``test_cut_conversations.py`` has torn messages. Each cell has a test of its own; the table is in their ids.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import fault_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline
from things import (
    PARKED,
    THINGS,
    Arrivals,
    Thing,
    condition,
    event,
    kill_and_wait,
    limiter,
    lock_of,
    lock_state,
    semaphore,
    sender,
    stop,
    work_queue,
)

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback, open_worker_context


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Arrivals:
    return Arrivals(monkeypatch)


UNREAD: Final = PARKED | {
    "Lock": "abandoned by wait_inside",
    "RLock": "abandoned by wait_inside",
    "Condition": "abandoned by wait_inside, 0 waiting",
    "Barrier": "broken False, 0 waiting, met",
    "send": "from the job | BrokenResourceError",
    "callback": "done",
}
IN_HAND: Final = UNREAD | {
    "Lock": "abandoned by hold",
    "RLock": "abandoned by hold",
    "Condition": "abandoned by hold, 0 waiting",
    "receive": "behind",
    "WorkQueue": "left [], failed [work]",
}


def call(context: WorkerContext, errors: list[BrokenWorkerError], *args: Any, **options: Any) -> Any:
    async def called() -> None:
        try:
            await context.run_sync(*args, **options)
        except BrokenWorkerError as error:
            errors.append(error)

    return called


@pytest.mark.parametrize("cause", ["killed", "cancelled"])
@pytest.mark.parametrize("name", THINGS)
async def test_parked(context: WorkerContext, arrivals: Arrivals, line: Lifeline, name: str, cause: str) -> None:
    thing = THINGS[name]()
    thing.occupy()
    errors: list[BrokenWorkerError] = []
    async with trio.open_nursery() as nursery:
        run = call(context, errors, jobs.wait_inside, thing.argument, thing.op, line.path, kill_on_cancel=True)
        nursery.start_soon(run)
        await arrivals.of(thing.request).wait()
        if cause == "killed":
            (worker,) = context.statistics().workers
            os.kill(worker.pid, signal.SIGKILL)
        else:
            nursery.cancel_scope.cancel()
    assert len(errors) == (cause == "killed")
    if name != "Barrier":  # nobody meets at a broken one
        thing.complete()
    await trio.testing.wait_all_tasks_blocked()
    assert await thing.state() == PARKED[name]


@pytest.mark.parametrize("cause", ["killed", "cancelled"])
@pytest.mark.parametrize("name", THINGS)
async def test_unread(context: WorkerContext, arrivals: Arrivals, line: Lifeline, name: str, cause: str) -> None:
    thing = THINGS[name]()
    thing.occupy()
    errors: list[BrokenWorkerError] = []
    async with trio.open_nursery() as nursery:
        run = call(context, errors, jobs.wait_inside, thing.argument, thing.op, line.path, kill_on_cancel=True)
        nursery.start_soon(run)
        await arrivals.of(thing.request).wait()
        (worker,) = context.statistics().workers
        stop(worker.pid)
        thing.complete()
        await trio.testing.wait_all_tasks_blocked()
        if cause == "killed":
            os.kill(worker.pid, signal.SIGKILL)
        else:
            nursery.cancel_scope.cancel()
    assert len(errors) == (cause == "killed")
    assert not line.held(), "its code did not get the reply"
    await trio.testing.wait_all_tasks_blocked()
    assert await thing.state() == UNREAD[name]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit", "cancelled"])
@pytest.mark.parametrize("name", THINGS)
async def test_in_hand(context: WorkerContext, arrivals: Arrivals, line: Lifeline, name: str, how: str) -> None:
    thing = THINGS[name]()
    errors: list[BrokenWorkerError] = []
    waits_first = name in ("Event", "Condition", "Barrier", "receive", "WorkQueue", "WorkQueue with retries", "callback")
    async with trio.open_nursery() as nursery:
        dies = "wait" if how == "cancelled" else how
        run = call(context, errors, jobs.hold, thing.argument, thing.op, line.path, dies, kill_on_cancel=True)
        nursery.start_soon(run)
        await arrivals.of(thing.request).wait()
        if waits_first:
            thing.complete()
        await line.pid()
        if how == "cancelled":
            nursery.cancel_scope.cancel()
    assert len(errors) == (how != "cancelled")
    await trio.testing.wait_all_tasks_blocked()
    assert await thing.state() == IN_HAND[name]
    if errors:
        assert [len(in_hand.items()) for in_hand in errors[0].in_hand] == ([1] if name == "receive" else [])


SAID: Final[dict[str, tuple[Callable[[], Thing], tuple[str, ...], str]]] = {
    "Lock": (lambda: lock_of(trio_offload.Lock), ("acquire", "release"), "free"),
    "RLock": (lambda: lock_of(trio_offload.RLock), ("acquire", "release"), "free"),
    "Semaphore": (semaphore, ("acquire", "release"), "1 left"),
    "CapacityLimiter": (limiter, ("acquire", "release"), "1 left"),
    "Event": (event, ("set",), "set True, 0 waiting"),
    "Condition": (condition, ("acquire", "notify"), "abandoned by say, 0 waiting"),
    "send, then close": (sender, ("send", "close"), "from the job | BrokenResourceError"),
    "WorkQueue": (work_queue, ("get", "done"), "left [], failed []"),
}


@pytest.mark.parametrize("name", SAID)
async def test_said(context: WorkerContext, line: Lifeline, gate: Gate, name: str) -> None:
    make, ops, expected = SAID[name]
    thing = make()
    if name == "WorkQueue":
        thing.complete()
    await _kill_after_message(context, line, gate, thing.argument, ops)
    if name == "send, then close":
        expected = "from the job | EndOfChannel"  # it had closed before it died
    assert await thing.state() == expected


async def test_callback_without_a_wait_that_was_said(context: WorkerContext, line: Lifeline, gate: Gate) -> None:
    called: list[int] = []
    await _kill_after_message(context, line, gate, callback(called.append, wait=False), ("call",))
    assert called == [7]


async def _kill_after_message(
    context: WorkerContext, line: Lifeline, gate: Gate, argument: Any, ops: tuple[str, ...]
) -> None:
    errors: list[BrokenWorkerError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call(context, errors, jobs.say, argument, ops, line.path, gate.path))
        pid = await line.pid()
        # From here on the parent reads nothing: the event loop stands still.
        gate.open()
        os.set_blocking(line._descriptor, True)
        assert os.read(line._descriptor, 100) == b"said\n"
        kill_and_wait(pid)
        os.set_blocking(line._descriptor, False)
    assert len(errors) == 1


async def test_after_the_end_of_the_job(of_any_kind: WorkerType) -> None:
    """What a worker held in an earlier call is settled long before it dies."""
    lock = trio_offload.Lock()
    with pytest.raises(BrokenWorkerError, match="not all workers exited cleanly"):
        async with open_worker_context(worker_type=of_any_kind) as context:
            await context.run_sync(_use, lock)
            (worker,) = context.statistics().workers
            kill_and_wait(worker.pid)
            assert await lock_state(lock) == "free"


def _use(lock: Any) -> None:
    with lock:
        pass
