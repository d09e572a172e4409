"""The bank: jobs and tasks move money and pass items around, while their workers are killed. Nothing may be lost that is not told.

    python tests/soak/bank.py SECONDS SEED [--type spawn|forkserver|fork] [--loop]

* Transfers: a job, or a task, holds the locks of two accounts, and changes both in two steps. A job that is killed in between leaves
  abandoned locks. Whoever meets one undoes the half transfer before it recovers the lock. The sum stays.
* A ring of three channels, in which numbered items go round. An item may be missing only if the error of a dead job names it as in
  its hand. None may be there twice.
* A semaphore and a limiter: at most so many are inside at once, and all tokens come back.
* A work queue whose items are retried: each is finished, or failed after all its attempts.

The checks are made each second, with all jobs and tasks at rest, and at the end. Exit status 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs
import bank_jobs as jobs
import trio
import trio.lowlevel

import trio_offload
from trio_offload import AbandonedLockError, BrokenWorkerError, WorkerContext
from trio_offload._wait_graph import WAITS

ACCOUNTS: Final = 6
START: Final = 100
ITEMS: Final = 40
TOKENS: Final = 2
CUSTOMERS: Final = 3
PATIENCE: Final = 30.0  # seconds
ROUND: Final = 1.0  # seconds between two looks
KILLS: Final = 0.05  # seconds between two kills


@attrs.define
class Bank:
    """The state that jobs change by callbacks, and what has been told about losses."""

    rng: random.Random
    balances: list[int] = attrs.field(factory=lambda: [START] * ACCOUNTS)
    half_done: dict[tuple[int, int, int], tuple[int, int]] = attrs.field(factory=dict)
    """Accounts and process of a transfer that has begun -> the balances before it."""
    living: Callable[[], set[int]] = set
    counts: Counter[str] = attrs.field(factory=Counter)
    told: set[int] = attrs.field(factory=set)
    problems: list[str] = attrs.field(factory=list)
    locks: list[trio_offload.Lock] = attrs.field(factory=lambda: [trio_offload.Lock() for _ in range(ACCOUNTS)])
    semaphore: trio_offload.Semaphore = attrs.field(factory=lambda: trio_offload.Semaphore(TOKENS))
    limiter: trio_offload.CapacityLimiter = attrs.field(factory=lambda: trio_offload.CapacityLimiter(TOKENS))

    # Called by jobs.

    def balance(self, account: int) -> int:
        return self.balances[account]

    def change_first(self, first: int, second: int, pid: int, amount: int) -> None:
        self.half_done[first, second, pid] = self.balances[first], self.balances[second]
        self.balances[first] -= amount

    def change_second(self, first: int, second: int, pid: int, amount: int) -> None:
        self.balances[second] += amount
        del self.half_done[first, second, pid]
        self.counts["transfers"] += 1

    def undo(self, account: int) -> None:
        """Undo the half transfer of a dead holder of this account's lock.

        Several may come to this, one of them late, when the lock has a new holder.
        """
        living = self.living()
        for first, second, pid in [*self.half_done]:
            if account in (first, second) and pid not in living:
                self.balances[first], self.balances[second] = self.half_done.pop((first, second, pid))
                self.counts["undone"] += 1

    # Tasks.

    async def transfer(self) -> None:
        first, second = sorted(self.rng.sample(range(ACCOUNTS), 2))
        async with self.held(first), self.held(second):
            amount = self.rng.randrange(10)
            self.change_first(first, second, os.getpid(), amount)
            await trio.lowlevel.checkpoint()
            self.change_second(first, second, os.getpid(), amount)

    @contextlib.asynccontextmanager
    async def held(self, account: int) -> AsyncIterator[None]:
        while True:
            try:
                await self.locks[account].acquire()
                break
            except AbandonedLockError:
                self.undo(account)
                self.locks[account].recover()
        try:
            yield
        finally:
            self.locks[account].release()

    def handles(self) -> dict[str, Any]:
        names = ("balance", "change_first", "change_second", "undo")
        return {name: trio_offload.callback(getattr(self, name)) for name in names}


class Ring:
    """Three channels in a circle."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.left_over: list[int] = []
        self.channels = [trio_offload.open_channel[int](5), trio_offload.open_channel[int](50)]
        self.channels.append(trio_offload.open_channel[int](100))

    async def fill(self) -> None:
        for number in range(ITEMS):
            await self.channels[2][0].send(number)

    async def turn(self, context: WorkerContext, place: int, event: trio_offload.Event) -> None:
        """Pass items on in a job, until the event is set. Note the items that a dead job had in its hand."""
        receive, send = self.channels[place][1], self.channels[(place + 1) % 3][0]
        try:
            self.left_over += await context.run_sync(jobs.pass_on, receive, send, event)
        except BrokenWorkerError as error:
            self.bank.counts["killed"] += 1
            for in_hand in error.in_hand:
                self.bank.told.update(in_hand.items())

    def check(self) -> None:
        found, self.left_over = self.left_over, []
        for _, receive in self.channels:
            items: list[int] = []
            while True:
                try:
                    items.append(receive.receive_nowait())
                except trio.WouldBlock:
                    break
            found += items
        twice = [number for number, count in Counter(found).items() if count > 1]
        lost = {*range(ITEMS)} - {*found} - self.bank.told
        if twice or lost:
            self.bank.problems.append(f"items that are there twice: {twice}; lost: {sorted(lost)}")
        self.bank.counts["lost, and told"] = len({*range(ITEMS)} - {*found})
        # The ring begins anew with all items.
        self.bank.told.clear()
        for number in range(ITEMS):
            self.channels[2][0].send_nowait(number)


async def repeat(deadline: float, bank: Bank, call: Callable[[], Awaitable[object]]) -> None:
    while time.monotonic() < deadline:
        try:
            await call()
        except BrokenWorkerError:
            bank.counts["killed"] += 1


async def kill(deadline: float, context: WorkerContext, rng: random.Random) -> None:
    while time.monotonic() < deadline:
        await trio.sleep(KILLS * rng.random() * 2)
        workers = [worker.pid for worker in context.statistics().workers if worker.state == "running"]
        if workers:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(rng.choice(workers), signal.SIGKILL)


async def retried(context: WorkerContext, bank: Bank, deadline: float) -> None:
    """A work queue, from its first item to its last."""
    queue = trio_offload.WorkQueue[int](on_death="retry", attempts=1000)
    for number in range(20):
        queue.put_nowait(number)
    queue.close()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(repeat, deadline, bank, lambda: context.run_sync(jobs.work, queue))
    with trio.move_on_after(10) as scope:
        await context.run_sync(jobs.work, queue)
        await queue.join()
    if scope.cancelled_caught or queue.failed:
        bank.problems.append(f"the work queue: {queue.statistics()}, failed: {queue.failed}")


async def one_round(context: WorkerContext, bank: Bank, ring: Ring) -> None:
    deadline = time.monotonic() + ROUND
    stop, handles = trio_offload.Event(), bank.handles()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill, deadline, context, bank.rng)
        for _ in range(CUSTOMERS):
            seed = bank.rng.random()
            nursery.start_soon(
                repeat, deadline, bank, lambda seed=seed: context.run_sync(jobs.move, seed, bank.locks, handles)
            )
            nursery.start_soon(repeat, deadline, bank, bank.transfer)
        for tokens in (bank.semaphore, bank.limiter):
            for _ in range(CUSTOMERS):
                nursery.start_soon(repeat, deadline, bank, lambda tokens=tokens: context.run_sync(jobs.borrow, tokens))
        for place in range(3):
            nursery.start_soon(repeat, deadline, bank, lambda place=place: ring.turn(context, place, stop))
        nursery.start_soon(retried, context, bank, deadline)
        await trio.sleep(max(deadline - time.monotonic(), 0))
        # From here on each job ends by itself.
        stop.set()
        while nursery.child_tasks and time.monotonic() < deadline + PATIENCE:  # noqa: ASYNC110
            await trio.sleep(0.01)
        if nursery.child_tasks:
            bank.problems.append(f"jobs do not end: {context.statistics().waiting}")
            nursery.cancel_scope.cancel()


async def check(bank: Bank, ring: Ring) -> None:
    for account in range(ACCOUNTS):
        with trio.move_on_after(5) as scope:
            async with bank.held(account):
                pass
        if scope.cancelled_caught:
            bank.problems.append(f"a lock does not come back: {bank.locks[account]}")
    if sum(bank.balances) != ACCOUNTS * START or bank.half_done:
        bank.problems.append(f"the sum is {sum(bank.balances)}, half done: {bank.half_done}")
    if bank.semaphore.value != TOKENS or bank.limiter.borrowed_tokens:
        bank.problems.append(f"tokens are missing: {bank.semaphore}, {bank.limiter}")
    if len(WAITS):
        bank.problems.append("somebody is left in the graph of waits")
    ring.check()


async def main(seconds: float, seed: str, worker_type: str) -> Bank:
    bank = Bank(random.Random(seed))
    ring = Ring(bank)
    await ring.fill()
    deadline = time.monotonic() + seconds
    limiter = trio_offload.current_default_worker_limiter()
    limiter.total_tokens = 8
    async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType(worker_type)) as context:
        bank.living = lambda: {os.getpid(), *(worker.pid for worker in context.statistics().workers)}
        while time.monotonic() < deadline and not bank.problems:
            await one_round(context, bank, ring)
            await check(bank, ring)
            bank.counts["rounds"] += 1
    if limiter.total_tokens != 8 or limiter.borrowed_tokens:
        bank.problems.append(f"the limiter of the jobs: {limiter.statistics()}")
    return bank


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parent))
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed")
    parser.add_argument("--type", default="spawn")
    parser.add_argument("--loop", action="store_true")
    arguments = parser.parse_args()
    if arguments.loop:
        from trio_offload._interpreter import locate

        loop = locate.WorkerRuntime("", "", "the bank wants the loop")
        locate.runtime = lambda: loop
    ran = trio.run(main, arguments.seconds, arguments.seed, arguments.type)
    print(", ".join(f"{name}: {count}" for name, count in sorted(ran.counts.items())))
    for problem in ran.problems:
        print("WRONG:", problem)
    sys.exit(1 if ran.problems else 0)
