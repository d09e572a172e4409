"""How many instructions a warm call takes, in the parent and in the worker, a call of sixteen in flight, and a job's call of a
callback: they repeat where times do not.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --before PYTHON [--limit 1.01]

Each number is the difference between a batch of calls and one of twice as many, over several such pairs. `--before` names an
environment's Python that has another version of the package; exit status 1 if a call now takes more than `--limit` times as many,
parent and worker together. Both must be built alike: without link-time optimisation the worker takes a quarter more.
Needs valgrind, cc and taskset. `ci/bench --instructions` makes the environments.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from counted import CALL, CALLBACK, LACKING, MAP, MARK, PARENT, WORKER
from report import aligned

PROGRAM = Path(__file__).with_name("counted.py")
# Those of the worker take less time.
CALLS = {PARENT: 96, WORKER: 320}
PAIRS = 7
ROWS = {"a warm call": CALL, "one of sixteen in flight": MAP, "a callback's round trip": CALLBACK}
# For the thread that runs the calls only: the others wait for moments.
CLOCK = """\
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static struct timespec first;
    int failure = 0;
    if (clock != CLOCK_MONOTONIC || getpid() != gettid())
        return syscall(SYS_clock_gettime, clock, now);
    if (first.tv_sec == 0)
        failure = syscall(SYS_clock_gettime, clock, &first);
    *now = first;
    return failure;
}
"""
HEADINGS = ("instructions of", "before", "now", "now ÷ before")


class Count(NamedTuple):
    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.least:,.0f}–{self.most:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the instructions of a call with callgrind.")
    parser.add_argument("--before", type=Path, metavar="PYTHON", help="count that environment's version too, and compare")
    parser.add_argument("--limit", type=float, default=1.01, help="how many times as many are allowed (default: 1.01)")
    arguments = parser.parse_args()
    lacking = [tool for tool in ("valgrind", "cc", "taskset") if shutil.which(tool) is None]
    if lacking:
        sys.exit(f"not on this machine: {', '.join(lacking)} (Debian: apt-get install valgrind gcc util-linux)")
    lines: list[tuple[str, ...]] = [HEADINGS]
    exceeded = []
    for name, row in ROWS.items():
        pairs = []
        for side in (PARENT, WORKER):
            before = counted(str(arguments.before), side, row) if arguments.before else None
            now = counted(sys.executable, side, row)
            if now is None:
                sys.exit(f"the installed version has no {row}")
            pairs.append((before, now))
            lines.append(
                (f"{name}, {side}", str(before or ""), str(now), f"{now.median / before.median:.4f} ×" if before else "")
            )
        all_before, all_now = (sum(count.median for count in counts if count) for counts in zip(*pairs, strict=True))
        change = all_now / all_before if all_before else None
        lines.append(
            (f"{name}, both", f"{all_before:,.0f}" if change else "", f"{all_now:,.0f}", f"{change:.4f} ×" if change else "")
        )
        if change and change > arguments.limit:
            exceeded.append(name)
    print("Median of", PAIRS, "pairs of batches, in parentheses the least and the most.\n")
    print(aligned(lines))
    if exceeded:
        sys.exit(f"more than {arguments.limit:g} × as many as before: {', '.join(exceeded)}")


def counted(python: str, side: str, row: str) -> Count | None:
    """The instructions of one call, on one side; None if that version has no such calls."""
    calls = CALLS[side]
    with tempfile.TemporaryDirectory(prefix="instructions-") as folder:
        clock = _clock(Path(folder))
        callgrind = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--dump-before={MARK}"]
        callgrind.append(f"--callgrind-out-file={folder}/out")
        program = [python, str(PROGRAM), side, str(calls), str(PAIRS), row]
        executable = Path(python).with_name("trio-offload-worker")
        worker = _worker(Path(folder), executable, clock, callgrind if side == WORKER else [])
        if side == PARENT:
            program[:0] = callgrind
        # Sets and dictionaries of strings have the same order each time.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "TRIO_OFFLOAD_WORKER": worker}
        if side == PARENT:
            # Looks that are due after some time would come forty times as often beside calls that take forty times as long.
            environment["LD_PRELOAD"] = clock
        ended = subprocess.run(program, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if ended.returncode == LACKING:
            return None
        if ended.returncode:
            sys.exit(f"{' '.join(program)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
        # The first thread is the one that calls. Its first dump is the start.
        totals = [_total(Path(folder, f"out.{number}-01")) for number in range(2, 2 * PAIRS + 2)]
    each = [(twice - once) / calls for once, twice in zip(totals[::2], totals[1::2], strict=True)]
    return Count(statistics.median(each), min(each), max(each))


def _clock(folder: Path) -> str:
    """A library with a clock that stands still."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def _worker(folder: Path, executable: Path, clock: str, command: list[str]) -> str:
    """A program that runs the worker by that command, so that what it does depends on nothing but its calls.

    On one processor it does not look for the next call before it sleeps, which it would do as often as there is time. With a
    clock that stands still it has no reason to tell its memory with a result.
    """
    program = folder / "worker"
    run = shlex.join(["taskset", "-c", str(min(os.sched_getaffinity(0))), *command, str(executable)])
    program.write_text(f'#!/bin/sh\nexport LD_PRELOAD="{clock}${{LD_PRELOAD:+:$LD_PRELOAD}}"\nexec {run} "$@"\n')
    program.chmod(0o755)
    return str(program)


def _total(dump: Path) -> int:
    """What callgrind has counted since the mark before."""
    for line in dump.read_text().splitlines():
        if line.startswith("summary: "):
            return int(line.removeprefix("summary: "))
    sys.exit(f"callgrind has written no summary into {dump}")


if __name__ == "__main__":
    main()
