"""A Trio service that runs what its users send: regular expressions, some of which never come to an end.

The event loop stays free while they run, and a runaway one is really stopped: its worker process is killed, which no thread can be.
"""

from __future__ import annotations

import re
import time

import trio

import trio_offload

PATIENCE = 2  # seconds
REQUESTS = [
    (r"[\w.]+@[\w.]+", "Write to somebody@example.org or nobody@example.net"),
    (r"(a+)+b", "a" * 50),  # would take longer than the universe has time
    (r"\d{4}-\d\d-\d\d", "From 2024-02-29 to 2024-03-01."),
]


async def serve(pattern: str, text: str) -> None:
    with trio.move_on_after(PATIENCE):
        found = await trio_offload.run_sync(re.findall, pattern, text, kill_on_cancel=True)
        print(f"{pattern}: found {found}")
        return
    print(f"{pattern}: given up after {PATIENCE} seconds")


async def tick(cancel_scope: trio.CancelScope) -> None:
    """Show that the event loop is alive: the longest time that it did not come round."""
    longest = 0.0
    with cancel_scope:
        while True:
            before = time.perf_counter()
            await trio.sleep(0.01)
            longest = max(longest, time.perf_counter() - before - 0.01)
    print(f"the event loop was never busy for longer than {longest * 1000:.0f} ms")


async def main() -> None:
    ticking = trio.CancelScope()
    async with trio.open_nursery() as background:
        background.start_soon(tick, ticking)
        async with trio.open_nursery() as nursery:
            for pattern, text in REQUESTS:
                nursery.start_soon(serve, pattern, text)
        ticking.cancel()


if __name__ == "__main__":
    trio.run(main)
