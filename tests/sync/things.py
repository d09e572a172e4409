"""What jobs of the fault and cancellation matrices use: a lock, a channel and so on, each with the state that it is left in."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import pytest
import trio
from lifeline import PATIENCE

import trio_offload
from trio_offload import AbandonedLockError, callback
from trio_offload._worker.conversation import Conversation


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
        with contextlib.suppress(trio_offload.BrokenBarrierError):
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
