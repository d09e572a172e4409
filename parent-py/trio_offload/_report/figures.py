"""The pictures of a run, drawn by Plotly."""

from __future__ import annotations

import bisect
import collections
import math
from typing import Any, Final

import plotly.graph_objects as go

from .run import CANCELLED, OK, RAISED, TracedJob, TracedRun

MAX_BARS: Final = 4000
"""Jobs above this number are shown as the busy share of each moment."""
COLUMNS: Final = 600
"""Moments of an aggregated picture."""
MAX_MARKERS: Final = 2000
_MIB: Final = 1 << 20
# Readable on light and on dark ground, and by those who see red and green alike (Okabe and Ito).
_COLOURS: Final = {OK: "#0072B2", RAISED: "#E69F00", CANCELLED: "#999999"}
_DEATH: Final = "#D55E00"
_BUSY: Final = [[0.0, "rgba(0,114,178,0)"], [1.0, "rgba(0,114,178,1)"]]


def lanes(run: TracedRun) -> go.Figure:
    """Return the jobs of each worker over time: one bar each, or their share of each moment."""
    rows = [str(pid) for pid in run.workers]
    figure = go.Figure()
    failed = [job for job in run.jobs if job.has_failed]
    if len(run.jobs) <= MAX_BARS:
        by_outcome: dict[str, list[TracedJob]] = collections.defaultdict(list)
        for job in run.jobs:
            by_outcome[job.outcome].append(job)
        for outcome, jobs in by_outcome.items():
            figure.add_bar(
                name=outcome,
                orientation="h",
                base=[job.began for job in jobs],
                x=[job.seconds for job in jobs],
                y=[str(job.worker) for job in jobs],
                marker_color=_COLOURS.get(outcome, _DEATH),
                customdata=[[job.name, job.error] for job in jobs],
                hovertemplate="%{customdata[0]}<br>%{x:.3f} s from %{base:.3f} s<br>%{customdata[1]}",
            )
    else:
        figure.add_heatmap(
            z=_busy_shares(run),
            x=_moments(run),
            y=rows,
            zmin=0.0,
            zmax=1.0,
            colorscale=_BUSY,
            showscale=False,
            hovertemplate="worker %{y}, %{x:.2f} s: busy for %{z:.0%}<extra></extra>",
        )
        shown = failed[:: math.ceil(len(failed) / MAX_MARKERS)] if failed else []
        figure.add_scattergl(
            name="failures",
            mode="markers",
            x=[job.ended for job in shown],
            y=[str(job.worker) for job in shown],
            marker={"color": _DEATH, "symbol": "x", "size": 6},
            customdata=[[job.name, job.error] for job in shown],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.2, height=120 + 24 * min(len(rows), 40))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows[::-1], title="worker")
    return _over_time(figure, run)


def _moments(run: TracedRun) -> list[float]:
    return [(column + 0.5) * run.seconds / COLUMNS for column in range(COLUMNS)]


def _busy_shares(run: TracedRun) -> list[list[float]]:
    width = run.seconds / COLUMNS or 1.0
    shares = {pid: [0.0] * COLUMNS for pid in run.workers}
    for job in run.jobs:
        row = shares[job.worker]
        first, last = (min(int(moment / width), COLUMNS - 1) for moment in (job.began, job.ended))
        for column in range(first, last + 1):
            begin, end = column * width, (column + 1) * width
            row[column] += max(0.0, min(end, job.ended) - max(begin, job.began)) / width
    return [[min(share, 1.0) for share in row] for row in shares.values()]


def memory(run: TracedRun) -> go.Figure:
    """Return the resident memory of each worker over time, with the limit and the deaths."""
    figure = go.Figure()
    for worker in run.workers.values():
        reports = worker.memory
        figure.add_scattergl(
            name=str(worker.pid),
            mode="lines",
            line_shape="hv",
            x=[when for when, _ in reports],
            y=[size / _MIB for _, size in reports],
            hovertemplate="%{y:.1f} MiB at %{x:.2f} s",
        )
    deaths = [job for job in run.jobs if job.outcome not in _COLOURS]
    if deaths:
        figure.add_scattergl(
            name="deaths",
            mode="markers",
            x=[job.ended for job in deaths],
            y=[_memory_before(run, job) / _MIB for job in deaths],
            marker={"color": _DEATH, "symbol": "x", "size": 9},
            text=[f"{job.worker}: {job.error or job.outcome}" for job in deaths],
            hovertemplate="%{text}<extra></extra>",
        )
    if run.memory_limit is not None:
        figure.add_hline(run.memory_limit / _MIB, line_dash="dash", line_color=_DEATH, annotation_text="memory_limit")
    figure.update_yaxes(title="MiB", rangemode="tozero")
    return _over_time(figure, run)


def _memory_before(run: TracedRun, job: TracedJob) -> int:
    reports = run.workers[job.worker].memory
    at = bisect.bisect_right(reports, (job.ended, math.inf))
    return next((size for _, size in reversed(reports[:at]) if size), 0)


def load(run: TracedRun) -> go.Figure:
    """Return how many jobs ran at each moment, in the mean."""
    figure = go.Figure()
    figure.add_scattergl(
        mode="lines",
        line_shape="hvh",
        fill="tozeroy",
        x=_moments(run),
        y=[sum(column) for column in zip(*_busy_shares(run), strict=True)],
        line_color=_COLOURS[OK],
        hovertemplate="%{y:.2f} at %{x:.2f} s<extra></extra>",
    )
    figure.update_yaxes(title="running jobs", rangemode="tozero")
    return _over_time(figure, run)


def durations(run: TracedRun) -> go.Figure:
    """Return a histogram of the jobs' times, on a logarithmic scale."""
    logarithms = [math.log10(max(job.seconds, 1e-7)) for job in run.jobs]
    counts = collections.Counter(math.floor(each * 10) for each in logarithms)
    figure = go.Figure()
    if counts:
        bins = range(min(counts), max(counts) + 1)
        figure.add_bar(
            x=[10 ** ((each + 0.5) / 10) for each in bins],
            y=[counts[each] for each in bins],
            width=[10 ** ((each + 1) / 10) - 10 ** (each / 10) for each in bins],
            marker_color=_COLOURS[OK],
            hovertemplate="%{y} jobs of about %{x:.3g} s<extra></extra>",
        )
    figure.update_xaxes(type="log", title="seconds of a job")
    figure.update_yaxes(title="jobs")
    return figure


def _over_time(figure: go.Figure, run: TracedRun) -> go.Figure:
    figure.update_xaxes(title="seconds", range=[0, run.seconds or 1.0])
    return figure


def styled(figure: go.Figure) -> dict[str, Any]:
    """Return the figure as JSON can have it. Its ground is the page's, which is light or dark."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 70, "r": 20, "t": 20, "b": 45},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    document: dict[str, Any] = figure.to_plotly_json()
    return document
