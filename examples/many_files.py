"""Two thousand files, through a parser that leaks, hangs and crashes; and on from there after an interruption.

    python many_files.py FOLDER [STOP]

The first run makes the files. STOP ends a run after so many results, as Ctrl+C or a reboot would. The next run leaves out the
files that have a line with "ok" in FOLDER/results.jsonl. The output of `python many_files.py data 1500`, and of the run after it:

    2000 files, 2000 to do
    stopped after 1500
    2000 files, 503 to do
    ended: 4 failed
      0007.csv: ValueError: could not convert string to float: 'n/a'
      0400.csv: WorkerMemoryError
      1300.csv: BrokenWorkerError
      1900.csv: WorkerTimeoutError
    the sum is 1995393.0

data/crashes has a record of each worker that died, with its Python stack.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import trio

import trio_offload

FILES = 2000
BAD = {7: "n/a", 400: "grows", 1300: "crashes", 1900: "hangs"}

leaked: list[bytearray] = []


def parse(path: str) -> float:
    """Add up a file. The leak stands for a C library that forgets to free something."""
    leaked.append(bytearray(b"leak") * 250_000)  # 1 MB for each file
    total = 0.0
    for value in Path(path).read_text().split():
        if value == "grows":
            while True:
                leaked.append(bytearray(b"more") * 1_000_000)
        if value == "crashes":
            os.abort()
        if value == "hangs":
            time.sleep(3600)
        total += float(value)
    return total


async def parse_all(folder: Path, paths: list[Path], stop: int | None) -> None:
    results = folder / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    totals = {line["file"]: line["total"] for line in lines if line["ok"]}
    todo = [str(path) for path in paths if path.name not in totals]
    print(f"{FILES} files, {len(todo)} to do")
    failed: dict[str, BaseException] = {}
    retire = trio_offload.retire_when(rss="100MB")  # a worker that has leaked so much is replaced
    async with trio_offload.open_worker_context(
        retire=retire, memory_limit="300MB", crash_dir=folder / "crashes"
    ) as context:
        async with context.map(parse, todo, timeout=5, ordered=False, return_outcomes=True, return_items=True) as outcomes:
            with results.open("a") as file:
                async for path, outcome in outcomes:
                    name = Path(path).name
                    try:
                        totals[name] = outcome.unwrap()
                        line = {"file": name, "ok": True, "total": totals[name]}
                    except Exception as error:
                        failed[name] = error
                        line = {"file": name, "ok": False, "error": type(error).__name__}
                    print(json.dumps(line), file=file, flush=True)
                    stop = stop and stop - 1
                    if stop == 0:
                        # The end of the block kills the jobs in progress. Their files have no line.
                        print(f"stopped after {len(totals) + len(failed)}")
                        return
    print(f"ended: {len(failed)} failed")
    for name, error in sorted(failed.items()):
        print(f"  {name}: {type(error).__name__}" + (f": {error}" if isinstance(error, ValueError) else ""))
    print(f"the sum is {sum(totals.values())}")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:04}.csv" for number in range(FILES)]
    for number, path in enumerate(paths):
        if not path.exists():
            path.write_text(f"{number} {BAD.get(number, '0.0')}\n")
    trio.run(parse_all, folder, paths, int(sys.argv[2]) if len(sys.argv) > 2 else None)


if __name__ == "__main__":
    main()
