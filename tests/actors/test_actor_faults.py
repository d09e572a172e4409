"""The fault matrix of actors: the actor dies, or a job that calls it, at each moment and with each kind of worker.

| the actor dies | its calls |
|---|---|
| while it runs a method, by each cause | the running one gets its death; those that wait are told of it, or run on a fresh object |
| between two calls | as those that wait |

| a job dies | the actor |
|---|---|
| while its call waits | never runs it |
| while its call runs | the method is told, and the object lives |
| with the reply in its socket, or in hand | the method has run once |
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import actor_jobs as jobs
import pytest
import trio
from actor_jobs import Counter
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, callback

Open = Callable[..., AbstractAsyncContextManager[Any]]
CAUSES = {"SIGKILL": "died of SIGKILL", "SIGSEGV": "died of SIGSEGV", "_exit": "exited with status 3"}


async def note(outcomes: dict[str, str], who: str, afn: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Note the class and the text of an error, or the text of a result."""
    try:
        outcomes[who] = repr(await afn(*args))
    except Exception as error:
        outcomes[who] = f"{type(error).__name__}: {error}"


class Inside:
    """A method of the actor that waits inside of a callback."""

    def __init__(self) -> None:
        self.entered, self.go_on = trio.Event(), trio.Event()

    async def _wait(self) -> None:
        self.entered.set()
        await self.go_on.wait()

    async def hold(self, actor: Any, nursery: trio.Nursery) -> None:
        nursery.start_soon(actor.say, callback(self._wait))
        await self.entered.wait()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


# --- the actor dies ------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("restart", ["never", "fresh"])
async def test_actor_dies_in_a_method(open_actor: Open, context: WorkerContext, cause: str, restart: str) -> None:
    outcomes: dict[str, str] = {}
    inside = Inside()
    async with open_actor(Counter, 5, restart=restart) as counter:
        async with trio.open_nursery() as nursery:
            await inside.hold(counter, nursery)
            nursery.start_soon(note, outcomes, "killer", counter.end_by, cause)
            await wait_all_tasks_blocked()
            nursery.start_soon(note, outcomes, "task", counter.add)
            await wait_all_tasks_blocked()
            nursery.start_soon(note, outcomes, "job", context.run_sync, jobs.catch, counter, "add")
            await until(lambda: counter.statistics().pending == 3)
            inside.go_on.set()
        await note(outcomes, "later", counter.add)
    death = f"{CAUSES[cause]} while it ran actor_jobs.Counter.end_by"
    assert outcomes["killer"].startswith("BrokenWorkerError")
    assert death in outcomes["killer"]
    if restart == "fresh":
        assert (outcomes["task"], outcomes["job"], outcomes["later"]) == ("6", repr(("", "")), "8")
    else:
        assert all(death in outcome for outcome in outcomes.values())
        assert outcomes["task"].startswith("BrokenResourceError")
        assert outcomes["job"].startswith("('BrokenResourceError'")
        assert outcomes["later"].startswith("BrokenResourceError")


@pytest.mark.parametrize("cause", CAUSES)
async def test_actor_dies_in_a_jobs_method(open_actor: Open, context: WorkerContext, cause: str) -> None:
    async with open_actor(Counter) as counter:
        kind, text = await context.run_sync(jobs.catch, counter, "end_by", cause)
        assert kind == "BrokenResourceError"
        assert f"{CAUSES[cause]} while it ran actor_jobs.Counter.end_by" in text


async def test_actor_is_killed_while_its_method_waits_for_a_callback(open_actor: Open, context: WorkerContext) -> None:
    outcomes: dict[str, str] = {}
    cancelled = trio.Event()

    async def wait() -> None:
        try:
            os.kill(counter.statistics().pid, signal.SIGKILL)
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with open_actor(Counter) as counter:
        await note(outcomes, "task", counter.say, callback(wait))
        assert cancelled.is_set()
    assert outcomes["task"].startswith("BrokenWorkerError")


# --- a job that calls it dies --------------------------------------------------------------------


def kill_job(context: WorkerContext, number: signal.Signals = signal.SIGKILL) -> None:
    (worker,) = context.statistics().workers
    os.kill(worker.pid, number)


async def test_job_dies_while_its_call_waits(open_actor: Open, context: WorkerContext) -> None:
    inside = Inside()
    async with open_actor(Counter) as counter, trio.open_nursery() as nursery:
        await inside.hold(counter, nursery)
        outcomes: dict[str, str] = {}
        async with trio.open_nursery() as calls:
            calls.start_soon(note, outcomes, "job", context.run_sync, jobs.call, counter, "add", 5)
            await until(lambda: counter.statistics().pending == 1)
            kill_job(context)
        assert outcomes["job"].startswith("BrokenWorkerError")
        assert counter.statistics().pending == 0
        inside.go_on.set()
        assert await counter.add() == 1


async def test_job_dies_while_its_call_runs(open_actor: Open, context: WorkerContext) -> None:
    event = trio_offload.Event()
    async with open_actor(Counter) as counter:
        outcomes: dict[str, str] = {}
        async with trio.open_nursery() as calls:
            calls.start_soon(note, outcomes, "job", context.run_sync, jobs.call, counter, "wait", event)
            await until(lambda: event.statistics().tasks_waiting == 1)
            kill_job(context)
        assert outcomes["job"].startswith("BrokenWorkerError")
        assert await counter.add(0) == -1
        assert counter.statistics().restarts == 0


async def test_job_dies_with_the_reply_in_its_socket(open_actor: Open, context: WorkerContext) -> None:
    inside = Inside()
    async with open_actor(Counter) as counter:
        outcomes: dict[str, str] = {}
        async with trio.open_nursery() as calls:
            arguments = (jobs.call, counter, "say_then_add", callback(inside._wait), 5)
            calls.start_soon(note, outcomes, "job", context.run_sync, *arguments)
            await inside.entered.wait()
            kill_job(context, signal.SIGSTOP)
            inside.go_on.set()
            await until(lambda: counter.statistics().calls == 1)
            await wait_all_tasks_blocked()
            kill_job(context)
        assert outcomes["job"].startswith("BrokenWorkerError")
        assert await counter.add() == 6


async def test_job_dies_with_the_result_in_hand(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Counter) as counter:
        with pytest.raises(BrokenWorkerError):
            handle = callback(lambda: kill_job(context))
            await context.run_sync(jobs.call_and_stay, handle, counter, "add", 5)
        assert await counter.add() == 6


async def test_many_dead_callers_leave_nothing(open_actor: Open, context: WorkerContext) -> None:
    inside = Inside()
    async with open_actor(Counter) as counter, trio.open_nursery() as nursery:
        await inside.hold(counter, nursery)
        outcomes: dict[str, str] = {}
        async with trio.open_nursery() as calls:
            for number in range(4):
                run = functools.partial(context.run_sync, limiter=trio.CapacityLimiter(1))
                calls.start_soon(note, outcomes, str(number), run, jobs.call, counter, "add", 5)
            await until(lambda: counter.statistics().pending == 4)
            for worker in context.statistics().workers:
                os.kill(worker.pid, signal.SIGKILL)
        assert all(outcome.startswith("BrokenWorkerError") for outcome in outcomes.values())
        assert counter.statistics().pending == 0
        inside.go_on.set()
        assert await counter.add() == 1
