"""The table for people, the JSON for programs, and the machine that both were made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from contenders import OURS
from measure import FULL, Row, Settings, Summary

PACKAGES = ("trio-offload", "trio", "trio-parallel", "anyio", "numpy", "cbor2")


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


def as_record(row: Row, summaries: dict[str, Summary]) -> dict[str, Any]:
    """A row as JSON holds it."""
    ours = summaries[OURS]
    goals = []
    for goal in row.goals:
        yardstick = summaries.get(goal.yardstick)
        if yardstick is not None:
            ratio = ours.median / yardstick.median
            met = ratio <= goal.limit if row.better == "less" else ratio >= goal.limit
            goals.append({"yardstick": goal.yardstick, "ratio": ratio, "limit": goal.limit, "met": met})
    return {
        "row": row.name,
        "unit": row.unit,
        "better": row.better,
        "contenders": {
            name: {"median": summary.median, "quartiles": [summary.low, summary.high], "rounds": summary.samples}
            for name, summary in summaries.items()
        },
        "goals": goals,
    }


HEADINGS = ("what", "trio-offload", "beside", "", "ratio", "goal", "met")


def table(records: list[dict[str, Any]]) -> str:
    """A line for each yardstick, in Markdown, aligned so that a terminal shows it well."""
    lines: list[tuple[str, ...]] = []
    for record in records:
        ours = _shown(record, OURS)
        goals = {goal["yardstick"]: goal for goal in record["goals"]}
        first = True
        others = [name for name in record["contenders"] if name != OURS]
        for name in sorted(others, key=lambda name: name not in goals):
            goal = goals.get(name)
            ratio = record["contenders"][OURS]["median"] / record["contenders"][name]["median"]
            sign = "≤" if record["better"] == "less" else "≥"
            lines.append(
                (
                    f"{record['row']}, {record['unit']}" if first else "",
                    ours if first else "",
                    name,
                    _shown(record, name),
                    f"{ratio:.3g} ×",
                    f"{sign} {goal['limit']:g} ×" if goal else "",
                    ("yes" if goal["met"] else "NO") if goal else "",
                )
            )
            first = False
        if not others:
            lines.append((f"{record['row']}, {record['unit']}", ours, "", "", "", "", ""))
    widths = [max(len(line[column]) for line in [HEADINGS, *lines]) for column in range(len(HEADINGS))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [HEADINGS, rule, *lines]
    )


def _shown(record: dict[str, Any], name: str) -> str:
    entry = record["contenders"][name]
    low, high = entry["quartiles"]
    return f"{_number(entry['median'])} ({_number(low)}–{_number(high)})"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def page(described: dict[str, Any], settings: Settings, records: list[dict[str, Any]]) -> str:
    """The table with what is needed to read it."""
    packages = ", ".join(f"{name} {version}" for name, version in described["packages"].items())
    missed = [
        f"{record['row']} beside {goal['yardstick']}" for record in records for goal in record["goals"] if not goal["met"]
    ]
    counted = sum(len(record["goals"]) for record in records)
    verdict = f"{counted - len(missed)} of {counted} goals met."
    if missed:
        verdict += " Not met: " + "; ".join(missed) + "."
    run = "full run" if settings == FULL else f"quick run: the transfers are of {settings.transfer_size / 1e6:g} MB"
    return (
        f"{described['processor']}, {described['cores']} cores, {described['memory_gb']:g} GB, "
        f"Linux {described['kernel']}, transparent huge pages: {described['transparent_huge_pages']}; "
        f"{described['python']}; {packages}; "
        f"load before: {described['load_before']:g}.\n\n"
        f"Medians of the rounds and, in parentheses, their quartiles; the rounds of all in a row alternate "
        f"({run}). Ratio: trio-offload divided by what it is beside.\n\n"
        f"{table(records)}\n\n{verdict}\n"
    )


def complain(message: str) -> None:
    print(message, file=sys.stderr)
