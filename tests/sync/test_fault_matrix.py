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
import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import attrs
import fault_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline

import trio_offload
from trio_offload import AbandonedLockError, BrokenWorkerError, WorkerContext, WorkerType, callback, open_worker_context
from trio_offload._worker.conversation import Conversation


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind) as context:
            yield context


class Arrivals:
    """Lets a test wait until a request has been handled by the parent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._handled: dict[str, trio.Event] = {}
        take = Conversation.take

        def noticed(conversation: Conversation, frame: Any) -> None:
            take(conversation, frame)
            self.of(frame.body.get("op", "")).set()

        monkeypatch.setattr(Conversation, "take", noticed)

    def of(self, op: str) -> trio.Event:
        return self._handled.setdefault(op, trio.Event())


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Arrivals:
    return Arrivals(monkeypatch)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while True:
        with open(f"/proc/{pid}/stat") as status:
            if status.read().rpartition(")")[2].split()[0] == "T":
                return
        os.sched_yield()


def kill_and_wait(pid: int) -> None:
    """Kill a process, and wait without letting Trio run."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([descriptor], [], [], PATIENCE)
    finally:
        os.close(descriptor)


# --- what is used, and what must be left --------------------------------------------------------


@attrs.define
class Thing:
    """Something that a job uses, and its state afterwards."""

    argument: Any
    op: str
    """The operation that may wait."""
    request: str
    """The request that waits for it in the parent."""
    occupy: Callable[[], Any]
    """Lets the operation wait."""
    complete: Callable[[], Any]
    """Ends the wait."""
    state: Callable[[], Awaitable[str]]
    """What is left, in a word."""


async def lock_state(lock: Any) -> str:
    try:
        lock.acquire_nowait()
    except AbandonedLockError as error:
        return f"abandoned by {error.function.rpartition('.')[2] if error.function else None}"
    except trio.WouldBlock:
        return "held"
    lock.release()
    return "free"


def lock_of(make: Callable[[], Any]) -> Thing:
    lock = make()
    holder = Holder(lock)
    return Thing(lock, "acquire", "acquire", holder.take, holder.release, lambda: lock_state(lock))


class Holder:
    """A task that holds a lock: the test's own task waits for the job, which would be a deadlock."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._taken, self._released = trio.Event(), trio.Event()

    def take(self) -> None:
        trio.lowlevel.spawn_system_task(self._hold)

    async def _hold(self) -> None:
        async with self._lock:
            self._taken.set()
            await self._released.wait()

    def release(self) -> None:
        self._released.set()


def semaphore() -> Thing:
    semaphore = trio_offload.Semaphore(1)

    async def state() -> str:
        return f"{semaphore.value} left"

    return Thing(semaphore, "acquire", "acquire", semaphore.acquire_nowait, semaphore.release, state)


def limiter() -> Thing:
    limiter = trio_offload.CapacityLimiter(1)

    async def state() -> str:
        return f"{limiter.available_tokens} left"

    def occupy() -> None:
        limiter.acquire_on_behalf_of_nowait("the test")

    return Thing(limiter, "acquire", "acquire", occupy, lambda: limiter.release_on_behalf_of("the test"), state)


def event() -> Thing:
    event = trio_offload.Event()

    async def state() -> str:
        return f"set {event.is_set()}, {event.statistics().tasks_waiting} waiting"

    return Thing(event, "wait", "wait", lambda: None, event.set, state)


def condition() -> Thing:
    condition = trio_offload.Condition()

    def notify() -> None:
        condition.acquire_nowait()
        condition.notify()
        condition.release()

    async def state() -> str:
        return f"{await lock_state(condition)}, {condition.statistics().tasks_waiting} waiting"

    return Thing(condition, "wait in a condition", "wait", lambda: None, notify, state)


def barrier() -> Thing:
    barrier = trio_offload.Barrier(2)
    outcomes: list[str] = []

    async def meet() -> None:
        outcomes.append(f"index {await barrier.wait()}")

    async def state() -> str:
        return f"broken {barrier.broken}, {barrier.n_waiting} waiting{', met' * len(outcomes)}"

    return Thing(barrier, "wait", "wait", lambda: None, lambda: trio.lowlevel.spawn_system_task(meet), state)


def sender() -> Thing:
    send, receive = trio_offload.open_channel[str](1)

    def occupy() -> None:
        send.send_nowait("from the test")

    async def state() -> str:
        left = []
        send.close()
        try:
            while True:
                left.append(receive.receive_nowait())
        except (trio.EndOfChannel, trio.BrokenResourceError) as error:
            return f"{', '.join(left)} | {type(error).__name__}"

    return Thing(send, "send", "send", occupy, receive.receive_nowait, state)


def receiver() -> Thing:
    send, receive = trio_offload.open_channel[str](2)

    async def state() -> str:
        left = []
        send.send_nowait("behind")
        while True:
            try:
                left.append(receive.receive_nowait())
            except trio.WouldBlock:
                return ", ".join(left)

    return Thing(receive, "receive", "receive", lambda: None, lambda: send.send_nowait("first"), state)


def work_queue(**options: Any) -> Thing:
    queue = trio_offload.WorkQueue[str](**options)

    async def state() -> str:
        failed = ", ".join(item.item for item in queue.failed)
        left = []
        while True:
            try:
                left.append(queue.get_nowait().item)
            except trio.WouldBlock:
                return f"left {left}, failed [{failed}]"

    return Thing(queue, "get", "get", lambda: None, lambda: queue.put_nowait("work"), state)


def async_callback() -> Thing:
    ends: list[str] = []
    released = trio.Event()

    async def wait() -> str:
        try:
            await released.wait()
        except trio.Cancelled:
            ends.append("cancelled")
            raise
        ends.append("done")
        return "value"

    async def state() -> str:
        return ", ".join(ends)

    return Thing(callback(wait), "call", "call", lambda: None, released.set, state)


THINGS: Final[dict[str, Callable[[], Thing]]] = {
    "Lock": lambda: lock_of(trio_offload.Lock),
    "RLock": lambda: lock_of(trio_offload.RLock),
    "Lock that goes on": lambda: lock_of(lambda: trio_offload.Lock(on_abandon="release")),
    "Semaphore": semaphore,
    "CapacityLimiter": limiter,
    "Event": event,
    "Condition": condition,
    "Barrier": barrier,
    "send": sender,
    "receive": receiver,
    "WorkQueue": work_queue,
    "WorkQueue with retries": lambda: work_queue(on_death="retry"),
    "callback": async_callback,
}

PARKED: Final = {
    "Lock": "free",
    "RLock": "free",
    "Lock that goes on": "free",
    "Semaphore": "1 left",
    "CapacityLimiter": "1 left",
    "Event": "set True, 0 waiting",
    "Condition": "free, 0 waiting",
    "Barrier": "broken True, 0 waiting",
    "send": " | BrokenResourceError",
    "receive": "first, behind",
    "WorkQueue": "left ['work'], failed []",
    "WorkQueue with retries": "left ['work'], failed []",
    "callback": "cancelled",
}
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


SAID: Final[dict[str, tuple[Callable[[], Any], tuple[str, ...], str]]] = {
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
