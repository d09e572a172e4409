"""What `instructions.py` counts the instructions of: calls in batches, with a mark behind each.

    python benchmarks/counted.py SIDE CALLS BATCHES ROW

The mark is a call of getpriority(2) on the counted side, at which callgrind writes down what it has counted.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio
from talking_jobs import call_often

MARK = "getpriority"
PARENT, WORKER = "parent", "worker"
CALL, MAP, CALLBACK = "call", "map", "callback"
# The exit status if the installed version cannot do it.
LACKING = 3
WATCH = "watch"


def main() -> None:
    if sys.argv[1] == WATCH:
        _watch(int(sys.argv[2]))
        return
    side, calls, batches, row = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if row == MAP:
        # How many calls `map` has in flight depends on how long they take. No time passes, so sixteen. The package may remember the
        # clock, so it is imported afterwards.
        time.perf_counter = itertools.repeat(0.0).__next__
    # When the collector runs depends on what was made before the batch.
    gc.disable()
    # Which of two tasks has its turn first is chosen at random.
    trio._core._run._r.seed(0)
    trio.run(_count, side, row, calls, batches)


async def _count(side: str, row: str, calls: int, batches: int) -> None:
    import trio_offload

    if row == CALLBACK and not hasattr(trio_offload, "callback"):
        sys.exit(LACKING)
    async with trio_offload.open_worker_context(report_interval=float("inf")) as context:
        await context.run_sync(gc.disable)
        with _answers_before_looks(await context.run_sync(os.getpid)) if side == PARENT else contextlib.nullcontext():
            # What comes before the first pair is the program's start too, and what is slower at first.
            for length in [2 * calls, *[calls, 2 * calls] * batches]:
                if row == MAP:
                    async with context.map(abs, range(length), workers=1) as results:
                        async for _ in results:
                            pass
                elif row == CALLBACK:
                    await context.run_sync(call_often, trio_offload.callback(_nothing), length)
                else:
                    for _ in range(length):
                        await context.run_sync(bool)
                if side == PARENT:
                    os.getpriority(os.PRIO_PROCESS, 0)
                else:
                    await context.run_sync(os.getpriority, os.PRIO_PROCESS, 0)


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _answers_before_looks(worker: int) -> Iterator[None]:
    """Have the worker answer all that it has been sent before the parent looks.

    How often the parent looks, and how many answers it finds, would depend on the machine's other work. Without callgrind it
    finds the answer at once in 97 of 100 cases. Another process waits for the worker, so that this costs a write and a read.
    """
    command = [sys.executable, __file__, WATCH, str(worker)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        asking, answering = watcher.stdin.fileno(), watcher.stdout.fileno()

        def waiting(send: Callable[..., int]) -> Callable[..., int]:
            def sent(channel: socket.socket, *arguments: Any) -> int:
                count = send(channel, *arguments)
                os.write(asking, b"?")
                os.read(answering, 1)
                return count

            return sent

        ways = {name: getattr(socket.socket, name) for name in ("send", "sendmsg")}
        for name, send in ways.items():
            setattr(socket.socket, name, waiting(send))
        try:
            yield
        finally:
            for name, send in ways.items():
                setattr(socket.socket, name, send)


def _watch(worker: int) -> None:
    """Answer each byte once the worker sleeps. A send has made it runnable by then, so it has done all that it was sent."""
    status = Path(f"/proc/{worker}/stat")
    while os.read(0, 1):
        while status.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.0002)
        os.write(1, b"!")


if __name__ == "__main__":
    main()
