"""The program behind run.py: chooses rows, measures them one after the other, and writes down what came out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import ratios
import report
import trio
from contenders import CONTENDERS, OURS, Contender
from measure import FULL, QUICK, Curve, Row, Settings
from rows import CURVES, ROWS, scaled
from talkers import TALKERS


def main() -> None:
    arguments = _parsed()
    settings = attrs.evolve(QUICK if arguments.quick else FULL, peers=not arguments.no_peers)
    every_contender: list[Contender[Any]] = [*CONTENDERS, *TALKERS]
    lacking = {contender.name: reason for contender in every_contender if (reason := contender.lacking()) is not None}
    if OURS in lacking:
        sys.exit(f"trio_offload is not installed in {sys.prefix}; ci/bench makes an environment that has it")
    left_out = [f"{name}: {reason}" for name, reason in lacking.items()] if settings.peers else []
    chosen: list[Row | Curve] = []
    every: list[Row | Curve] = [*ROWS, *CURVES]
    for row in every:
        if arguments.rows and not any(word in row.name for word in arguments.rows):
            continue
        if row.ours in lacking:
            left_out.append(f"the row «{row.name}»: {lacking[row.ours]}")
            continue
        chosen.append(row)
    for line in left_out:
        report.complain(f"left out is {line}")
    if not chosen:
        sys.exit("no row has such a name; the rows are:\n  " + "\n  ".join(row.name for row in every))
    written: dict[str, Any] = {"machine": report.machine(), "run": settings.scale, "left_out": left_out}
    written.update(_measured(chosen, settings))
    _write(written, arguments.output, _name(arguments))
    if arguments.check and not all(goal["met"] for record in written["rows"] for goal in record["goals"]):
        sys.exit(1)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure trio-offload beside its yardsticks.")
    parser.add_argument("--quick", action="store_true", help="show that everything runs; the numbers mean little")
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only the rows whose names contain one of these")
    parser.add_argument("--no-peers", action="store_true", help="ours and the bounds only; for compare.py")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), metavar="FOLDER")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is not met")
    parser.add_argument("--bare-main", action="store_true", help="the main script imports nothing; see run.py")
    return parser.parse_args()


def _name(arguments: argparse.Namespace) -> str:
    """A part of the rows must not take the place of the whole."""
    if arguments.quick:
        return "quick"
    return "part" if arguments.rows or arguments.no_peers or arguments.bare_main else "bench"


def _measured(chosen: list[Row | Curve], settings: Settings) -> dict[str, Any]:
    records, curves = [], []
    for row in chosen:
        began = time.perf_counter()
        # An event loop for each row: the workers of anyio live as long as that, and would bring what the last row left in them.
        if isinstance(row, Row):
            records.append(report.as_record(row, scaled(row.unit, trio.run(row.measure, settings))))
        else:
            measured = trio.run(row.measure, settings)
            places = {name: scaled(row.unit, of_one) for name, of_one in measured.items()}
            curves.append(report.as_curve(row, places))
            records.append(report.goal_of_curve(row, settings, places))
        report.complain(f"{time.perf_counter() - began:6.1f} s  {row.name}")
    return {"rows": records, "curves": curves}


def _write(written: dict[str, Any], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"{name}.json"
    results.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    drawn = None
    try:
        import picture
    except ImportError as error:
        report.complain(f"there is no picture: {error}")
    else:
        drawn = f"{name}.svg"
        picture.draw(written, folder / drawn)
    page = report.page(written, drawn)
    (folder / f"{name}.md").write_text(page)
    print(page)
    if results.resolve() == ratios.RESULTS:
        ratios.write()
