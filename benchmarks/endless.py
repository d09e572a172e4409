"""Maps over an endless input for a while, and prints how many megabytes (10^6 bytes) of memory this process has held at most.

    python endless.py offload|imap PAUSE SECONDS

PAUSE is what the reader of the results takes for each, in seconds. A result is a kilobyte.
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


def with_imap(pause: float, seconds: float) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.imap(kilobyte, itertools.count())
        next(results)
        end = time.monotonic() + seconds
        for _ in results:
            time.sleep(pause)
            if time.monotonic() > end:
                return


async def with_offload(pause: float, seconds: float) -> None:
    # As in contenders.py.
    trio_offload: Any = importlib.import_module("trio_offload")
    async with trio_offload.map(kilobyte, itertools.count(), workers=2) as results:
        await results.__anext__()
        end = trio.current_time() + seconds
        async for _ in results:
            await trio.sleep(pause)
            if trio.current_time() > end:
                return


def main() -> None:
    pause, seconds = float(sys.argv[2]), float(sys.argv[3])
    if sys.argv[1] == "imap":
        with_imap(pause, seconds)
    else:
        trio.run(with_offload, pause, seconds)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main()
