"""The picture of the workers' memory: curves, ceilings and deaths."""

from __future__ import annotations

import bisect
import heapq
import math
import statistics
from collections.abc import Iterator
from typing import Final

import plotly.graph_objects as go

from .figures import MAX_MARKERS, largest_of_each_moment, moments
from .run import TracedRun, TracedWorker
from .style import BLUE, DEATH, MIB, OUTCOMES, Picture, over_time, rounded, shown

MAX_NAMED: Final = 10
"""Curves above this number have no entry in the legend."""
MAX_CURVES: Final = 60
"""Workers above this number are shown as the largest one and the median."""
_MAX_POINTS: Final = 30_000  # of all curves
_DISTANT: Final = 3.0  # times the largest worker


def memory(run: TracedRun) -> Picture:
    """Return the resident memory of the workers over time, with the ceilings and the deaths."""
    reports = [size for worker in run.workers.values() for _, size in worker.memory]
    if not any(reports):
        return Picture("Memory", "No worker has reported its memory.")
    figure = go.Figure()
    if len(run.workers) <= MAX_CURVES:
        caption = "The resident memory of each worker, as it has reported it."
        _add_curves(figure, run)
    else:
        caption = "The resident memory of the largest worker and of the median one."
        _add_range(figure, run)
    caption += _add_ceilings(figure, run, max(reports))
    _add_deaths(figure, run)
    figure.update_yaxes(title="MiB", rangemode="tozero")
    figure.update_layout(height=400)
    return Picture("Memory", caption, over_time(figure, run))


def _add_curves(figure: go.Figure, run: TracedRun) -> None:
    seconds, columns = run.seconds, max(20, _MAX_POINTS // 2 // len(run.workers))
    for worker in run.workers.values():
        reports = worker.memory
        if worker.ended is not None and reports and not reports[-1][1]:
            # The curve ends with the worker, and does not fall to zero.
            reports = [*reports[:-1], (worker.ended, reports[-2][1] if len(reports) > 1 else 0)]
        points = largest_of_each_moment(reports, seconds, columns)
        figure.add_scatter(
            name=f"worker {worker.pid}",
            mode="lines",
            line={"shape": "hv", "width": 1.5},
            showlegend=len(run.workers) <= MAX_NAMED,
            x=[rounded(when) for when, _ in points],
            y=[_mib(size) for _, size in points],
            hovertemplate="%{y:.1f} MiB at %{x:.2f} s",
        )


def _add_range(figure: go.Figure, run: TracedRun) -> None:
    columns = moments(run)
    sizes: list[list[int]] = [[] for _ in columns]
    for worker in run.workers.values():
        when = [moment for moment, _ in worker.memory]
        first = bisect.bisect_left(columns, when[0]) if when else len(columns)
        for column in range(first, len(columns)):
            if worker.ended is not None and columns[column] > worker.ended:
                break
            sizes[column].append(worker.memory[bisect.bisect_right(when, columns[column]) - 1][1])
    for name, choose, colour in (("largest worker", max, OUTCOMES["raised"]), ("median worker", statistics.median, BLUE)):
        figure.add_scatter(
            name=name,
            mode="lines",
            line={"width": 1.5, "color": colour},
            x=columns,
            y=[_mib(choose(column)) if column else None for column in sizes],
            hovertemplate="%{y:.1f} MiB at %{x:.2f} s",
        )


def _add_ceilings(figure: go.Figure, run: TracedRun, largest: int) -> str:
    """Draw the ceilings that are near. Return a sentence about the others."""
    distant = []
    for name, ceilings, dash in (
        ("memory_limit", [] if run.memory_limit is None else [run.memory_limit], "dash"),
        ("retire_when(rss=)", sorted({worker.ceiling for worker in run.workers.values() if worker.ceiling}), "dot"),
    ):
        if len(ceilings) > MAX_NAMED:  # above the baseline of each worker
            ceilings = [ceilings[0], ceilings[-1]]
        near = [ceiling for ceiling in ceilings if ceiling <= _DISTANT * largest]
        distant += [f"{name} of {ceiling / MIB:,.0f} MiB" for ceiling in ceilings if ceiling not in near][:1]
        if near:
            lines = [(x, _mib(ceiling)) for ceiling in near for x in (0.0, rounded(run.seconds), None)]
            figure.add_scatter(
                name=name,
                mode="lines",
                line={"dash": dash, "width": 1.5, "color": DEATH},
                x=[x for x, _ in lines],
                y=[y for _, y in lines],
                hovertemplate="%{y:.1f} MiB",
            )
    return f" Above the picture: {', '.join(distant)}." if distant else ""


def _add_deaths(figure: go.Figure, run: TracedRun) -> None:
    deaths = list(deaths_of(run))
    if not deaths:
        return
    deaths = deaths[:: math.ceil(len(deaths) / MAX_MARKERS)]
    figure.add_scatter(
        name="deaths",
        mode="markers",
        x=[rounded(when) for when, _, _ in deaths],
        y=[_mib(_memory_at(worker, when)) for when, worker, _ in deaths],
        marker={"color": DEATH, "symbol": "x", "size": 9},
        text=[shown(f"worker {worker.pid}: {text[:100]}") for _, worker, text in deaths],
        hovertemplate="%{text}<extra></extra>",
    )


def deaths_of(run: TracedRun) -> Iterator[tuple[float, TracedWorker, str]]:
    """Return the time, the worker and a text of each death, in a job or without one."""
    for job in run.jobs:
        if job.has_died:
            yield job.ended, run.workers[job.worker], job.error or job.outcome
    for worker in run.workers.values():
        if worker.died and worker.ended is not None:
            yield worker.ended, worker, f"{worker.died}, without a job"


def _memory_at(worker: TracedWorker, moment: float) -> int:
    at = bisect.bisect_right(worker.memory, (moment, math.inf))
    return next((size for _, size in reversed(worker.memory[:at]) if size), 0)


def largest_sum(run: TracedRun) -> int:
    """Return the largest memory of all workers at one moment, in bytes."""
    now: dict[int, int] = {}
    total = most = 0
    each = [[(when, worker.pid, size) for when, size in worker.memory] for worker in run.workers.values()]
    for _, pid, size in heapq.merge(*each):
        total += size - now.get(pid, 0)
        now[pid] = size
        most = max(most, total)
    return most


def _mib(size: float) -> float:
    return round(size / MIB, 2)
