"""The program behind run.py: chooses rows, measures them one after the other, and writes down what came out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import report
import trio
from contenders import CONTENDERS, OURS
from measure import FULL, QUICK, Settings, Summary
from rows import ROWS, scaled


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure trio-offload beside its yardsticks.")
    parser.add_argument("--quick", action="store_true", help="show that everything runs; the numbers mean little")
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only the rows whose names contain one of these")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), metavar="FOLDER")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is not met")
    parser.add_argument("--bare-main", action="store_true", help="the main script imports nothing; see run.py")
    arguments = parser.parse_args()

    missing = [contender for contender in CONTENDERS if not contender.is_there()]
    if any(contender.name == OURS for contender in missing):
        sys.exit(f"trio_offload is not installed in {sys.prefix}; ci/bench makes an environment that has it")
    for contender in missing:
        report.complain(f"{contender.name} is left out: {contender.package} is not installed")

    settings = QUICK if arguments.quick else FULL
    chosen = [row for row in ROWS if not arguments.rows or any(word in row.name for word in arguments.rows)]
    if not chosen:
        sys.exit("no row has such a name; the rows are:\n  " + "\n  ".join(row.name for row in ROWS))
    described = report.machine()
    records = trio.run(_measure, chosen, settings)

    page = report.page(described, settings, records)
    print(page)
    # A part of the rows must not take the place of the whole.
    name = "quick" if arguments.quick else "part" if arguments.rows or arguments.bare_main else "bench"
    arguments.output.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {"machine": described, "run": settings.scale, "rows": records}
    (arguments.output / f"{name}.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    (arguments.output / f"{name}.md").write_text(page)
    if arguments.check and not all(goal["met"] for record in records for goal in record["goals"]):
        sys.exit(1)


async def _measure(chosen: list[Any], settings: Settings) -> list[dict[str, Any]]:
    records = []
    for row in chosen:
        began = time.perf_counter()
        samples = scaled(row, await row.measure(settings))
        summaries = {name: Summary.of(values) for name, values in samples.items()}
        records.append(report.as_record(row, summaries))
        report.complain(f"{time.perf_counter() - began:6.1f} s  {row.name}")
    return records
