"""Maps over an endless input for a while, and prints by how many megabytes (10^6 bytes) this process has grown at most.

    python endless.py offload|imap PAUSE SECONDS

PAUSE is what the reader of the results takes for each. A result is a kilobyte.
"""

import importlib
import itertools
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import trio
from jobs import kilobyte

# The first results make all that is made once: workers, threads, buffers.
FIRST = 200


def peak() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def with_imap(pause: float, seconds: float) -> int:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.imap(kilobyte, itertools.count())
        for _ in range(FIRST):
            next(results)
        before, end = peak(), time.monotonic() + seconds
        for _ in results:
            time.sleep(pause)
            if time.monotonic() > end:
                break
        return peak() - before


async def with_offload(pause: float, seconds: float) -> int:
    # As in contenders.py.
    trio_offload: Any = importlib.import_module("trio_offload")
    before, end = 0, 0.0
    async with trio_offload.map(kilobyte, itertools.count(), workers=2) as results:
        number = 0
        async for _ in results:
            number += 1
            if number < FIRST:
                continue
            if number == FIRST:
                before, end = peak(), trio.current_time() + seconds
            await trio.sleep(pause)
            if trio.current_time() > end:
                break
    return peak() - before


def main() -> None:
    pause, seconds = float(sys.argv[2]), float(sys.argv[3])
    grown = with_imap(pause, seconds) if sys.argv[1] == "imap" else trio.run(with_offload, pause, seconds)
    # A page at least: nothing is no number to divide by.
    print(max(grown, 4096) / 1e6)


if __name__ == "__main__":
    main()
