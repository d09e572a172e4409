"""The app that frozen.py builds and runs: starts workers of ours and processes of multiprocessing's, by turns."""

import multiprocessing

if __name__ == "__main__":
    # Before anything else is imported: a process that multiprocessing starts in a frozen app runs this script to here. Most
    # apps import more before it, and pay for that in each such process; none can pay less.
    multiprocessing.freeze_support()

import json
import sys
import time

import trio
from jobs import answer

import trio_offload


async def measure(rounds: int) -> list[tuple[float, float]]:
    """Seconds to the first result, ours and multiprocessing's."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        async with trio_offload.open_worker_context() as context:
            await context.run_sync(abs, -3)
            ours = time.perf_counter() - began
        times.append((ours, spawn()))
    return times


def spawn() -> float:
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(theirs,))
    process.start()
    mine.recv()
    duration = time.perf_counter() - began
    process.join()
    return duration


if __name__ == "__main__":
    # The first of each is not counted: multiprocessing starts its resource tracker there, and files are read for the first time.
    json.dump(trio.run(measure, int(sys.argv[1]) + 1)[1:], sys.stdout)
