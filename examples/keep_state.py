"""Workers that prepare something expensive once, use it for many jobs, and are replaced after some of them.

``init`` runs in each new worker before its first job; ``retire`` after each job, and a worker for which it returns
true is replaced by a fresh one: the remedy for code that leaks.
"""

from __future__ import annotations

import os
import sqlite3
from functools import partial

import trio

import trio_offload

JOBS = 12
JOBS_PER_WORKER = 4


class WorkerState:
    """What a worker keeps from one job to the next."""

    database: sqlite3.Connection
    jobs = 0


def prepare(size: int) -> None:
    """Fill the table that the jobs look things up in. Imagine a model of some gigabytes here."""
    WorkerState.database = sqlite3.connect(":memory:")
    WorkerState.database.execute("create table squares (root integer primary key, square integer)")
    WorkerState.database.executemany("insert into squares values (?, ?)", ((i, i * i) for i in range(size)))


def look_up(root: int) -> tuple[int, int]:
    WorkerState.jobs += 1
    (square,) = WorkerState.database.execute("select square from squares where root = ?", (root,)).fetchone()
    return os.getpid(), square


def has_done_enough() -> bool:
    return WorkerState.jobs >= JOBS_PER_WORKER


async def main() -> None:
    pids = []
    async with trio_offload.open_worker_context(init=partial(prepare, 1000), retire=has_done_enough) as context:
        for root in range(JOBS):
            pid, square = await context.run_sync(look_up, root)
            print(f"worker {pid}: {root} squared is {square}")
            pids.append(pid)
    # Here all workers of this context are gone.
    print(f"{JOBS} jobs, {len(set(pids))} workers one after another")


if __name__ == "__main__":
    trio.run(main)
