"""Histories of jobs and threads that use one object, also while workers are killed, are those of an object with one operation at a time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from typing import Any

import attrs
import history_jobs as jobs
import linearizable
import pytest
import trio
from linearizable import UNKNOWN, Operation, explain

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, callback, open_worker_context

TIMEOUT = 60.0  # seconds: a test that hangs fails
OWNERS, OPERATIONS = 4, 14
# In a job it is a message without a reply, so it may take effect after its return.
WITHOUT_REPLY = {"release"}


@attrs.define
class History:
    """The operations of all owners."""

    operations: list[Operation] = attrs.field(factory=list)
    owners: int = 0

    def add_owner(self) -> Any:
        """Return a function for its notes."""
        self.owners += 1
        owner = self.owners

        def note(what: str, *facts: Any) -> None:
            if what == "call":
                name, argument, called = facts
                self.operations.append(Operation(owner, name, argument, UNKNOWN, called))
            else:
                outcome, returned = facts
                last = next(index for index in self.places(owner))
                name = self.operations[last].name
                end = {} if name in WITHOUT_REPLY else {"returned": returned}
                self.operations[last] = attrs.evolve(self.operations[last], outcome=outcome, **end)

        return note

    def places(self, owner: int) -> list[int]:
        """The places of its operations, the last one first."""
        return [index for index in reversed(range(len(self.operations))) if self.operations[index].owner == owner]

    def die(self, owner: int) -> None:
        places = self.places(owner)
        called = self.operations[places[0]].called if places else time.monotonic()
        self.operations.append(Operation(owner, "die", None, None, called, time.monotonic()))


def opened(kind: str) -> tuple[Any, Any, linearizable.Model, Any]:
    """The object, the same for a thread, its model, and the model's first state."""
    if kind == "lock":
        lock = trio_offload.Lock()
        return lock, lock.handle, linearizable.lock, None
    if kind == "semaphore":
        semaphore = trio_offload.Semaphore(2)
        return semaphore, semaphore.handle, linearizable.semaphore, (2, ())
    # The program's ends stay open, so no job is the only sender, whose items may arrive after a send has returned.
    send, receive = trio_offload.open_channel[str](2)
    return (send, receive), (send.handle, receive.handle), linearizable.channel(2), ()


async def act_in_worker(context: WorkerContext, history: History, kind: str, handle: Any, seed: str) -> None:
    note = history.add_owner()
    owner = history.owners
    try:
        await context.run_sync(jobs.act, kind, handle, seed, OPERATIONS, callback(note, wait=False))
    except BrokenWorkerError:
        history.die(owner)
        await act_in_worker(context, history, kind, handle, f"{seed}+")


async def kill_some(context: WorkerContext, rng: random.Random) -> None:
    for _ in range(3):
        await trio.sleep(rng.random() * 0.02)
        running = [worker.pid for worker in context.statistics().workers if worker.state == "running"]
        if running:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(rng.choice(running), signal.SIGKILL)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind_of_object", ["lock", "semaphore", "channel"])
async def test_history(of_any_kind: WorkerType, kind_of_object: str, seed: int) -> None:
    history = History()
    handle, in_thread, model, state = opened(kind_of_object)
    with trio.fail_after(TIMEOUT):
        async with open_worker_context(worker_type=of_any_kind) as context, trio.open_nursery() as nursery:
            await context.prewarm(OWNERS - 1)
            for number in range(OWNERS - 1):
                nursery.start_soon(act_in_worker, context, history, kind_of_object, handle, f"{seed} {number}")
            args = kind_of_object, in_thread, f"{seed} thread", OPERATIONS, callback(history.add_owner())
            nursery.start_soon(trio.to_thread.run_sync, jobs.act, *args)
            # Items that a dead job had not got go back to the front, which is no operation of a channel.
            if kind_of_object != "channel":
                nursery.start_soon(kill_some, context, random.Random(seed))
    assert len(history.operations) >= OWNERS * OPERATIONS
    assert explain(history.operations, model, state) is not None, "\n".join(map(str, history.operations))


# --- the search -----------------------------------------------------------------------------------


def at(owner: int, name: str, outcome: Any, called: float, returned: float, argument: Any = None) -> Operation:
    return Operation(owner, name, argument, outcome, called, returned)


FOREVER = float("inf")
RIGHT: dict[str, tuple[list[Operation], linearizable.Model, Any]] = {
    "one after the other": (
        [at(1, "acquire", None, 0, 1), at(1, "release", None, 2, FOREVER), at(2, "acquire", None, 3, 4)],
        linearizable.lock,
        None,
    ),
    "a release arrives later": (
        [at(1, "acquire", None, 0, 1), at(1, "release", None, 2, FOREVER), at(2, "acquire_nowait", "WouldBlock", 3, 4)],
        linearizable.lock,
        None,
    ),
    "a death": (
        [at(1, "acquire", UNKNOWN, 0, FOREVER), at(1, "die", None, 0, 5), at(2, "acquire", "AbandonedLockError", 6, 7)],
        linearizable.lock,
        None,
    ),
    "a death before it held": (
        [at(1, "acquire", UNKNOWN, 0, FOREVER), at(1, "die", None, 0, 5), at(2, "acquire", None, 6, 7)],
        linearizable.lock,
        None,
    ),
    "items that overlap": (
        [at(1, "send", None, 0, 5, "a"), at(2, "send", None, 0, 5, "b"), at(1, "receive", "b", 6, 7)],
        linearizable.channel(2),
        (),
    ),
    "tokens of the dead": (
        [at(1, "acquire", None, 0, 1), at(1, "die", None, 1, 3), at(2, "acquire_nowait", None, 4, 5)],
        linearizable.semaphore,
        (1, ()),
    ),
}
WRONG: dict[str, tuple[list[Operation], linearizable.Model, Any]] = {
    "two holders": (
        [at(1, "acquire", None, 0, 1), at(2, "acquire", None, 2, 3), at(1, "release", None, 4, FOREVER)],
        linearizable.lock,
        None,
    ),
    "free, but refused": ([at(1, "acquire_nowait", "WouldBlock", 0, 1)], linearizable.lock, None),
    "a dead holder is forgotten": (
        [at(1, "acquire", None, 0, 1), at(1, "die", None, 2, 3), at(2, "acquire", None, 4, 5)],
        linearizable.lock,
        None,
    ),
    "out of order": (
        [at(1, "send", None, 0, 1, "a"), at(2, "send", None, 2, 3, "b"), at(1, "receive", "b", 4, 5)],
        linearizable.channel(2),
        (),
    ),
    "twice": (
        [at(1, "send", None, 0, 1, "a"), at(1, "receive", "a", 2, 3), at(2, "receive", "a", 2, 3)],
        linearizable.channel(2),
        (),
    ),
    "too many": ([at(1, "send", None, 0, 1, "a"), at(2, "send", None, 0, 1, "b")], linearizable.channel(1), ()),
    "three of two tokens": (
        [at(owner, "acquire", None, owner, owner + 0.5) for owner in (1, 2, 3)],
        linearizable.semaphore,
        (2, ()),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_search_explains(name: str) -> None:
    operations, model, state = RIGHT[name]
    found = explain(operations, model, state)
    assert found is not None
    assert len(found) == len(operations)


@pytest.mark.parametrize("name", WRONG)
def test_search_finds_no_order(name: str) -> None:
    operations, model, state = WRONG[name]
    assert explain(operations, model, state) is None
