"""Measures the cold start in an app made by PyInstaller, beside that of a process that multiprocessing spawns in it.

    python benchmarks/frozen.py [--rounds N] [--check]

Builds the app as a folder and as one file, with what is installed beside this interpreter: the package and PyInstaller
(dependency group `test` of pyproject.toml). Goal: at most 0.7 of multiprocessing's time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Goal, Summary

GOAL = Goal("multiprocessing", 0.7)
APP = Path(__file__).with_name("frozen_app.py")
FORMS = {"a folder": (["--onedir"], "frozen_app/frozen_app"), "one file": (["--onefile"], "frozen_app")}
# Found in an environment for tests, and not what an app needs.
LEFT_OUT = ("_pytest", "pytest", "numpy", "rich", "setuptools", "pkg_resources")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cold start in an app made by PyInstaller.")
    parser.add_argument("--rounds", type=int, default=31, metavar="N")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the goal is not met")
    arguments = parser.parse_args()
    met = True
    print("| app as | ours, ms | multiprocessing's spawn, ms | ratio | goal |\n|---|---|---|---|---|")
    for form, (options, path) in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), options)
            run = subprocess.run(
                [Path(folder) / "dist" / path, str(arguments.rounds)], check=True, stdout=subprocess.PIPE, text=True
            )
        pairs = json.loads(run.stdout)
        ours, theirs = (Summary.of([1000 * pair[place] for pair in pairs]) for place in (0, 1))
        ratio = ours.median / theirs.median
        met = met and ratio <= GOAL.limit
        print(f"| {form} | {shown(ours)} | {shown(theirs)} | {ratio:.2f} | {GOAL.limit} |", flush=True)
    if arguments.check and not met:
        sys.exit(1)


def build(folder: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN", *options]
    for name in LEFT_OUT:
        command += ["--exclude-module", name]
    subprocess.run([*command, "--distpath", str(folder / "dist"), str(APP)], cwd=folder, check=True)


def shown(summary: Summary) -> str:
    return f"{summary.median:.1f} ({summary.low:.1f}–{summary.high:.1f})"


if __name__ == "__main__":
    main()
