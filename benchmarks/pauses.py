"""What a worker takes of a processor between calls that come some microseconds apart, and what a call then takes.

    python benchmarks/pauses.py [--seconds 1] [--idle]

The parent is on the first processor it may use and the worker on the second: where both share one, to look costs nothing, as a
worker that looks gives way. Between two calls the parent computes; `--idle`: it sleeps. To be run in an environment per version,
by turns. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from pathlib import Path

import trio
from report import aligned

from trio_offload import open_worker_context

PAUSES = (0, 25, 50, 100, 200, 300)  # microseconds
HEADINGS = ("pause, us", "calls/s", "median, us", "p99, us", "worker, %", "parent, %")
PR_SET_TIMERSLACK = 29


def processor_time(process: int) -> float:
    """Of all its threads, in seconds."""
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def pause_for(seconds: float, idle: bool) -> None:
    if idle:
        time.sleep(seconds)
        return
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def main(duration: float, idle: bool) -> None:
    if idle:
        # Otherwise a sleep takes 50 us longer.
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    rows = []
    async with open_worker_context() as context:
        worker = await context.run_sync(os.getpid)
        # Not before: whether there is a second processor, the worker asks once.
        for _ in range(100):
            await context.run_sync(bool)
        for process, processor in zip((0, worker), sorted(os.sched_getaffinity(0)), strict=False):
            os.sched_setaffinity(process, {processor})
        for pause in PAUSES:
            times = []
            before = (processor_time(worker), time.process_time())
            begin = time.perf_counter()
            while time.perf_counter() < begin + duration:
                start = time.perf_counter()
                await context.run_sync(bool)
                times.append(time.perf_counter() - start)
                if pause:
                    pause_for(pause / 1e6, idle)
            took = time.perf_counter() - begin
            shares = (processor_time(worker) - before[0], time.process_time() - before[1])
            found = (statistics.median(times), statistics.quantiles(times, n=100)[98])
            numbers = (
                pause,
                len(times) / took,
                *(1e6 * found_one for found_one in found),
                *(100 * share / took for share in shares),
            )
            rows.append(tuple(f"{number:.0f}" for number in numbers))
    print(aligned([HEADINGS, *rows]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--idle", action="store_true")
    arguments = parser.parse_args()
    trio.run(main, arguments.seconds, arguments.idle)
