"""The table for people, the JSON for programs, and the machine that both were made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import OURS
from measure import Curve, Goal, Places, Row, Samples, Settings, Summary

PACKAGES = ("trio-offload", "trio", "trio-parallel", "anyio", "loky", "aioprocessing", "numpy", "cbor2")


def machine() -> dict[str, Any]:
    """What a reader needs to know to compare; nothing that names the machine."""
    return {
        "processor": _first(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "transparent_huge_pages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "python": f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}",
        "load_before": round(os.getloadavg()[0], 2),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _first(path: Path, field: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def _chosen(path: Path) -> str | None:
    """Of «always [madvise] never», the one in brackets."""
    try:
        return path.read_text().partition("[")[2].partition("]")[0] or None
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def as_record(row: Row, samples: Samples) -> dict[str, Any]:
    """A row as JSON holds it."""
    return _record(row.name, row.unit, row.better, row.goals, samples)


def as_curve(curve: Curve, places: Places) -> dict[str, Any]:
    return {
        "curve": curve.name,
        "unit": curve.unit,
        "of_what": curve.of_what,
        "series": {
            name: [{"place": place, **_entry(samples)} for place, samples in sorted(of_one.items())]
            for name, of_one in places.items()
        },
    }


def goal_of_curve(curve: Curve, settings: Settings, places: Places) -> dict[str, Any]:
    """The row that says whether the curve is flat."""
    ours = places[OURS]
    first, last = curve.from_place(settings), max(ours)
    yardstick = f"{first:,} {curve.of_what}"
    name = f"{curve.name}: {last:,} {curve.of_what}"
    samples = {OURS: ours[last], yardstick: ours[first]}
    for other, of_other in places.items():
        if other != OURS and last in of_other:
            samples[other] = of_other[last]
    return _record(name, curve.unit, "less", (Goal(yardstick, curve.limit),), samples)


def _record(name: str, unit: str, better: str, goals: tuple[Goal, ...], samples: Samples) -> dict[str, Any]:
    entries = {contender: _entry(values) for contender, values in samples.items()}
    ours = entries[OURS]["median"]
    judged = []
    for goal in goals:
        if goal.yardstick is None or goal.yardstick in entries:
            ratio = ours if goal.yardstick is None else ours / entries[goal.yardstick]["median"]
            met = ratio <= goal.limit if better == "less" else ratio >= goal.limit
            judged.append({"yardstick": goal.yardstick, "ratio": ratio, "limit": goal.limit, "met": met})
    return {"row": name, "unit": unit, "better": better, "contenders": entries, "goals": judged}


def _entry(samples: list[float]) -> dict[str, Any]:
    summary = Summary.of(samples)
    return {"median": summary.median, "quartiles": [summary.low, summary.high], "rounds": samples}


HEADINGS = ("what", "trio-offload", "beside", "", "ratio", "goal", "met")


def table(records: list[dict[str, Any]]) -> str:
    """A line for each yardstick, in Markdown, aligned so that a terminal shows it well."""
    lines = []
    for record in records:
        goals = {goal["yardstick"]: goal for goal in record["goals"]}
        others = sorted((name for name in record["contenders"] if name != OURS), key=lambda name: name not in goals)
        # A goal for ours alone has a line of its own.
        for number, name in enumerate([None] * (None in goals or not others) + others):
            row = (f"{record['row']}, {record['unit']}", _shown(record, OURS)) if number == 0 else ("", "")
            beside = ("", "", "") if name is None else (name, _shown(record, name), f"{_ratio(record, name):.3g} ×")
            lines.append((*row, *beside, *_judged(record, goals.get(name))))
    return aligned([HEADINGS, *lines])


def _ratio(record: dict[str, Any], name: str) -> float:
    return float(record["contenders"][OURS]["median"] / record["contenders"][name]["median"])


def _judged(record: dict[str, Any], goal: dict[str, Any] | None) -> tuple[str, str]:
    if goal is None:
        return "", ""
    sign = "≤" if record["better"] == "less" else "≥"
    unit = record["unit"] if goal["yardstick"] is None else "×"
    return f"{sign} {goal['limit']:g} {unit}", "yes" if goal["met"] else "NO"


def curve_table(curve: dict[str, Any]) -> str:
    """A line for each contender, a column for each place."""
    places = sorted({point["place"] for points in curve["series"].values() for point in points})
    lines: list[tuple[str, ...]] = [(f"{curve['unit']}, {curve['of_what']}:", *(f"{place:,}" for place in places))]
    for name, points in curve["series"].items():
        shown = {point["place"]: f"{_number(point['median'])}" for point in points}
        lines.append((name, *(shown.get(place, "") for place in places)))
    return aligned(lines)


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown; the first line is its head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def _shown(record: dict[str, Any], name: str) -> str:
    entry = record["contenders"][name]
    low, high = entry["quartiles"]
    return shown(Summary(entry["median"], low, high, entry["rounds"]))


def shown(summary: Summary) -> str:
    """The median, and the quartiles in parentheses."""
    return f"{_number(summary.median)} ({_number(summary.low)}–{_number(summary.high)})"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def page(written: dict[str, Any], picture: str | None) -> str:
    """All that was written down, with what is needed to read it."""
    described, records = written["machine"], written["rows"]
    packages = ", ".join(f"{name} {version}" for name, version in described["packages"].items())
    missed = [
        f"{record['row']} beside {goal['yardstick'] or 'its limit'}"
        for record in records
        for goal in record["goals"]
        if not goal["met"]
    ]
    counted = sum(len(record["goals"]) for record in records)
    verdict = f"{counted - len(missed)} of {counted} goals met."
    if missed:
        verdict += " Not met: " + "; ".join(missed) + "."
    parts = [
        "# Figures",
        (
            f"{described['processor']}, {described['cores']} cores, {described['memory_gb']:g} GB, "
            f"Linux {described['kernel']}, transparent huge pages: {described['transparent_huge_pages']}; "
            f"{described['python']}; {packages}; load before: {described['load_before']:g}."
        ),
        (
            "Medians of the rounds and, in parentheses, their quartiles; the rounds of all in a row alternate "
            f"({written['run']} run). Ratio: trio-offload divided by what it is beside. [How each is measured](../README.md)."
        ),
    ]
    if picture is not None:
        parts.append(f"![Ratios to the peers in each row, and the cost of a call at several sizes]({picture})")
    if records:
        parts.append(table(records))
    parts += [
        f"{curve['curve'].capitalize()}: {curve['unit']} each, medians.\n\n{curve_table(curve)}"
        for curve in written["curves"]
    ]
    parts += [verdict, *(f"Left out: {line}." for line in written["left_out"])]
    return "\n\n".join(parts) + "\n"


def complain(message: str) -> None:
    print(message, file=sys.stderr)
