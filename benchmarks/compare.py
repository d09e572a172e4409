"""Two versions side by side: the results of run.py for each, in one table.

    python benchmarks/compare.py --before FILE.json ... --after FILE.json ...

Several files of one side are taken together, so that the two can take turns: before, after, before, after. That is what
`ci/bench --against COMMIT` does.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from contenders import OURS
from measure import Summary
from report import aligned, shown

HEADINGS = ("what", "before", "after", "after ÷ before", "beside", "before", "after", "goal")

Medians = dict[str, Summary]


def main() -> None:
    parser = argparse.ArgumentParser(description="Show two versions of trio-offload side by side.")
    parser.add_argument("--before", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--after", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args()
    page = compared(_read(arguments.before), _read(arguments.after))
    print(page, end="")
    if arguments.output is not None:
        arguments.output.write_text(page)


def _read(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in paths]


def compared(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """The table, with a line for each row and yardstick that has a goal."""
    old, new = _merged(before), _merged(after)
    described = {record["row"]: record for run in [*before, *after] for record in run["rows"]}
    lines: list[tuple[str, ...]] = [HEADINGS]
    for name, record in described.items():
        lines += _lines(record, old.get(name, {}), new.get(name, {}))
    return (
        "Medians, and in parentheses the quartiles, of all rounds. Less is better for times and memory, more for rates. "
        "Ratios: trio-offload divided by what it is beside, in the same run.\n\n"
        f"{aligned(lines)}\n"
    )


def _merged(runs: list[dict[str, Any]]) -> dict[str, Medians]:
    rounds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for record in run["rows"]:
            for contender, entry in record["contenders"].items():
                rounds[record["row"]][contender] += entry["rounds"]
    return {row: {name: Summary.of(samples) for name, samples in of_row.items()} for row, of_row in rounds.items()}


def _lines(record: dict[str, Any], old: Medians, new: Medians) -> list[tuple[str, ...]]:
    sign = "≤" if record["better"] == "less" else "≥"
    change = f"{new[OURS].median / old[OURS].median:.3g} ×" if old and new else ""
    first = (f"{record['row']}, {record['unit']}", *(shown(side[OURS]) if side else "" for side in (old, new)), change)
    goals = [goal for goal in record["goals"] if goal["yardstick"] is not None]
    lines: list[tuple[str, ...]] = []
    for goal in goals:
        ratios = [_ratio(side, goal["yardstick"]) for side in (old, new)]
        lines.append((*(("",) * 4 if lines else first), goal["yardstick"], *ratios, f"{sign} {goal['limit']:g} ×"))
    return lines or [(*first, "", "", "", "")]


def _ratio(side: Medians, yardstick: str) -> str:
    return f"{side[OURS].median / side[yardstick].median:.3g} ×" if yardstick in side else ""


if __name__ == "__main__":
    main()
