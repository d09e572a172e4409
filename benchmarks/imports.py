"""The budgets of two imports, in instructions, which repeat where times do not.

    python benchmarks/imports.py

Each count is the difference between two programs: one that imports the modules, and one that imports only those before them.
The budget is a multiple of the latter, because another Python takes more or fewer instructions for both. Exit status 1 if a
budget is exceeded. Needs valgrind. `ci/bench --imports` makes the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

from report import aligned


class Budget(NamedTuple):
    name: str
    before: str
    modules: str
    at_most: float
    """In multiples of a program that imports only the modules before."""


BUDGETS = (
    # 0.26 at 55ae522, where it took 24 ms; 30 ms are allowed.
    Budget("`import trio_offload` after Trio", "trio", "trio_offload", 0.3),
    # 0.82 at 55ae522, with ten modules and packages fewer.
    Budget(
        "a loop's modules, after `os`",
        "os, sys; sys.path.insert(0, PLACE); import os",
        "trio_offload_worker._loop.main, trio_offload_worker._loop.session, _pickle",
        1.0,
    ),
)
HEADINGS = ("instructions of", "before, M", "modules, M", "modules ÷ before", "at most")


def main() -> None:
    if shutil.which("valgrind") is None:
        sys.exit("not on this machine: valgrind (Debian: apt-get install valgrind)")
    lines: list[tuple[str, ...]] = [HEADINGS]
    exceeded = []
    for budget in BUDGETS:
        before = counted(budget.before)
        modules = counted(f"{budget.before}, {budget.modules}") - before
        share = modules / before
        lines.append((budget.name, f"{before / 1e6:.1f}", f"{modules / 1e6:.1f}", f"{share:.3f} ×", f"{budget.at_most:g} ×"))
        if share > budget.at_most:
            exceeded.append(budget.name)
    print(aligned(lines))
    if exceeded:
        sys.exit(f"over its budget: {', '.join(exceeded)}")


def counted(modules: str) -> int:
    """The instructions of a program that imports these modules."""
    place = os.path.dirname(os.path.dirname(_file_of("trio_offload_worker")))
    program = [sys.executable, "-I", "-c", f"import {modules}".replace("PLACE", repr(place))]
    # Hashes of strings are the same each time. The bytecode is there when it counts.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(program, env=environment, check=True)
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    ended = subprocess.run([*callgrind, *program], env=environment, check=True, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", ended.stderr)
    if found is None:
        sys.exit(f"callgrind has counted nothing:\n{ended.stderr}")
    return int(found[1])


def _file_of(module: str) -> str:
    return str(__import__(module).__file__)


if __name__ == "__main__":
    main()
