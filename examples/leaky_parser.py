"""A parser that leaks, over many files, under a ceiling. The work gets done, and the machine never notices.

    python leaky_parser.py [TRACE]

It writes some files to parse, one of which makes the parser take more memory than anybody has. Workers that have grown are
replaced (`retire_when`), the bad file costs its own job only (`memory_limit`). TRACE gets the run as a file to open in
https://ui.perfetto.dev: the memory of each worker climbs, until the next one begins.

The same from the shell, for a parser of your own:

    find data -name '*.csv' | trio-offload map --lines - parser:parse \\
        --retire-rss 100MiB --memory-limit 300MiB --trace run.json > totals.jsonl
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import attrs
import trio

import trio_offload
import trio_offload_worker

FILES = 24
CEILING = "300MiB"  # what one file may take
ENOUGH = "100MiB"  # a worker that holds more after a file is replaced

everything_ever_parsed: list[bytearray] = []


def parse(path: str) -> float:
    """The sum of a column. A C library that forgets to free something would look the same from outside."""
    text = Path(path).read_text()
    everything_ever_parsed.append(bytearray(b"leak") * 4_000_000)  # 16 MB for each file
    total = 0.0
    for line in text.splitlines():
        _name, value = line.split(",")
        if value == "repeat for ever":
            while True:  # what an unclosed quote does to some parsers
                everything_ever_parsed.append(bytearray(b"more") * 4_000_000)
        total += float(value)
    return total


def parse_and_tell(path: str) -> tuple[float, int, int]:
    """The sum, and which process has made it, and what that holds now."""
    return parse(path), os.getpid(), trio_offload_worker.memory_info().rss


@attrs.define
class Report:
    """What became of the files."""

    totals: dict[str, float] = attrs.field(factory=dict)
    refused: dict[str, str] = attrs.field(factory=dict)
    workers: set[int] = attrs.field(factory=set)
    largest: int = 0


async def parse_all(paths: list[str], trace: str | None) -> Report:
    report = Report()
    async with trio_offload.open_worker_context(
        retire=trio_offload.retire_when(rss=ENOUGH), memory_limit=CEILING, trace=trace
    ) as context:

        async def parse_one(path: str) -> None:
            try:
                report.totals[path], pid, held = await context.run_sync(parse_and_tell, path)
                report.workers.add(pid)
                report.largest = max(report.largest, held)
            except trio_offload.WorkerMemoryError as error:
                report.refused[path] = f"it had taken {error.reached or 0:,} bytes when it was ended"

        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(parse_one, path)
    return report


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number:02}.csv") for number in range(FILES)]
        for number, path in enumerate(paths):
            path.write_text(f"first,{number}\nsecond,0.5\n")
        paths[7].write_text("first,1\nsecond,repeat for ever\n")
        report = trio.run(parse_all, [str(path) for path in paths], sys.argv[1] if len(sys.argv) > 1 else None)
    print(f"{len(report.totals)} of {FILES} files parsed, the sum is {sum(report.totals.values())}")
    for path, why in report.refused.items():
        print(f"{Path(path).name} was given up: {why}")
    print(f"{len(report.workers)} workers; after a file none of them held more than {report.largest / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
