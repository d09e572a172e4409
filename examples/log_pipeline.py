"""A pipeline of three stages over channels: read lines of a log, parse them, count them by status and minute.

Each stage is a job, and waits where it has nothing to do or where the next stage is behind. So memory stays flat,
however long the log is. Two parsers share the middle stage. A line that nobody can parse goes to
the program itself, through a callback.
"""

from __future__ import annotations

import itertools
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

import trio_offload

LINES = 20_000
PARSERS = 2
PATTERN = re.compile(r'^\S+ \S+ \S+ \[([^\]]+)\] "(\S+) (\S+) [^"]*" (\d{3}) (\d+)$')


def read(path: str, lines: Any) -> None:
    """The first stage: send the lines in batches, which costs less than one by one."""
    with open(path, encoding="utf-8") as file:
        while batch := [line.rstrip("\n") for line in itertools.islice(file, 500)]:
            lines.send(batch)


def parse(lines: Any, requests: Any, complain: Any) -> None:
    """The second stage."""
    for batch in lines:
        parsed = []
        for line in batch:
            found = PATTERN.match(line)
            if found is None:
                complain(line)
            else:
                time, method, path, status, size = found.groups()
                parsed.append((time[:17], method, path, int(status), int(size)))
        requests.send(parsed)


def count(requests: Any) -> Iterator[tuple[str, dict[int, int]]]:
    """The third stage: count, and yield the numbers of each minute."""
    minutes: dict[str, Counter[int]] = {}
    for batch in requests:
        for minute, _method, _path, status, _size in batch:
            minutes.setdefault(minute, Counter())[status] += 1
    for minute in sorted(minutes):
        yield minute, dict(minutes[minute])


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "access.log"))
        write_log(path)
        strange: list[str] = []
        lines_in, lines_out = trio_offload.open_channel[Any](10)
        requests_in, requests_out = trio_offload.open_channel[Any](10)
        # The stages live side by side, also on a machine with one processor.
        limiter = trio.CapacityLimiter(2 + PARSERS)
        async with trio.open_nursery() as nursery:

            async def run(*call: Any) -> None:
                await trio_offload.run_sync(*call, limiter=limiter)

            nursery.start_soon(run, read, path, lines_in.move())
            with lines_out, requests_in:
                for _ in range(PARSERS):
                    complain = trio_offload.callback(strange.append)
                    nursery.start_soon(run, parse, lines_out.clone().move(), requests_in.clone().move(), complain)
            total: Counter[int] = Counter()
            async with trio_offload.stream(count, requests_out.move(), limiter=limiter) as minutes:
                async for minute, statuses in minutes:
                    total.update(statuses)
                    print(minute, statuses.get(200, 0), "of", sum(statuses.values()), "succeeded")
    print("lines:", sum(total.values()) + len(strange), "strange:", len(strange), "errors:", total[500])


def write_log(path: str) -> None:
    """Write a log to read. A server would."""
    chance = random.Random(7)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(LINES):
            minute, second = divmod(number * 180 // LINES, 60)
            request = f'"GET /page/{number % 90} HTTP/1.1" {500 if chance.random() < 0.01 else 200} 512'
            time = f"27/Nov/2026:10:{minute:02}:{second:02} +0000"
            print(f"10.0.0.7 - - [{time}] {request}" if number % 5000 else "a line that was torn", file=file)


if __name__ == "__main__":
    trio.run(main)
