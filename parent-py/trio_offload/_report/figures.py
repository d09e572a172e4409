"""The pictures of a run, drawn by Plotly: workers, queue and durations."""

from __future__ import annotations

import collections
import heapq
import math
from typing import Final

import plotly.graph_objects as go

from .run import OK, RAISED, TracedJob, TracedRun
from .style import BLUE, DEATH, NAMES, OUTCOMES, START, Picture, counted, over_time, rounded, shown

MAX_BARS: Final = 4000
"""Jobs above this number are shown as the busy share of each moment."""
MAX_ROWS: Final = 100
"""Workers above this number share rows: one begins where another has ended."""
COLUMNS: Final = 600
"""Moments of an aggregated picture."""
MAX_CELLS: Final = 200_000
MAX_MARKERS: Final = 500
_BUSY: Final = [[0.0, "rgba(44,139,198,0)"], [1.0, "rgba(44,139,198,1)"]]
_TIMES: Final = [
    "0.1 µs",
    "1 µs",
    "10 µs",
    "100 µs",
    "1 ms",
    "10 ms",
    "100 ms",
    "1 s",
    "10 s",
    "100 s",
    "1000 s",
    "10,000 s",
]


def lanes(run: TracedRun) -> Picture:
    """Return the jobs of each worker over time: one bar each, or their share of each moment."""
    if not run.jobs:
        return Picture("Workers", "No job has ended.")
    rows = rows_of(run)
    names = list(dict.fromkeys(rows.values()))
    figure = go.Figure()
    if len(run.jobs) <= MAX_BARS:
        caption = "A bar is a job."
        _add_bars(figure, run, rows)
    else:
        caption = "A stronger colour is a larger share of time in jobs."
        columns = max(50, min(COLUMNS, MAX_CELLS // len(names)))
        figure.add_heatmap(
            z=_busy_shares(run, rows, columns),
            x=moments(run, columns),
            y=names,
            zmin=0.0,
            zmax=1.0,
            colorscale=_BUSY,
            showscale=False,
            hovertemplate="%{y}, %{x:.2f} s: busy for %{z:.0%}<extra></extra>",
        )
    _add_failures(figure, run, rows)
    if len(run.workers) > MAX_ROWS:
        caption += f" A row has workers one after the other: {len(run.workers):,} in {len(names):,} rows."
    if any(job.items > 1 for job in run.jobs):
        caption += " A chunk of a map is one job."
    figure.update_layout(showlegend=True, barmode="overlay", bargap=0.2 if len(names) <= MAX_ROWS else 0.0)
    figure.update_layout(height=110 + 24 * min(len(names), 12) + 10 * max(0, min(len(names), 60) - 12))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1], range=[-0.5, len(names) - 0.5])
    return Picture("Workers", caption, over_time(figure, run))


def rows_of(run: TracedRun) -> dict[int, str]:
    """Return the name of each worker's row."""
    if len(run.workers) <= MAX_ROWS:
        return {pid: f"worker {pid}" for pid in run.workers}
    rows: dict[int, str] = {}
    free: list[int] = []
    busy: list[tuple[float, int]] = []  # the end of the last worker of a row, and the row
    for worker in sorted(run.workers.values(), key=lambda worker: worker.started):
        while busy and busy[0][0] <= worker.started:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy) + 1
        heapq.heappush(busy, (math.inf if worker.ended is None else worker.ended, row))
        rows[worker.pid] = f"row {row}"
    return dict(sorted(rows.items(), key=lambda item: int(item[1][4:])))


def _add_bars(figure: go.Figure, run: TracedRun, rows: dict[int, str]) -> None:
    started = [worker for worker in run.workers.values() if worker.ready]
    figure.add_bar(
        name="start",
        orientation="h",
        base=[rounded(worker.started) for worker in started],
        x=[rounded(worker.ready - worker.started) for worker in started],
        y=[rows[worker.pid] for worker in started],
        marker_color=START,
        customdata=[worker.pid for worker in started],
        hovertemplate="worker %{customdata} started in %{x:.3f} s<extra></extra>",
    )
    by_outcome: dict[str, list[TracedJob]] = collections.defaultdict(list)
    for job in run.jobs:
        by_outcome[job.outcome].append(job)
    for outcome in sorted(by_outcome, key=lambda outcome: (outcome not in OUTCOMES, [*OUTCOMES, outcome].index(outcome))):
        jobs = by_outcome[outcome]
        figure.add_bar(
            name=NAMES.get(outcome, outcome),
            orientation="h",
            base=[rounded(job.began) for job in jobs],
            x=[rounded(job.seconds) for job in jobs],
            y=[rows[job.worker] for job in jobs],
            marker_color=OUTCOMES.get(outcome, DEATH),
            customdata=[hover(job) for job in jobs],
            hovertemplate="%{customdata}<extra></extra>",
        )


def hover(job: TracedJob) -> str:
    """Return the text over a job: its function, its items, its times, its error."""
    lines = [job.name, job.item, f"{job.seconds:.4g} s from {job.began:.3f} s, in worker {job.worker}"]
    if job.failed:
        lines.append(f"{job.failed} of {job.items} items have failed, the first of them:")
        lines += [f"{item}: {error}" for item, error, _ in job.item_failures[:1]]
    elif job.outcome != OK:
        lines.append(job.error or job.outcome)
    return "<br>".join(shown(line if len(line) <= 100 else f"{line[:97]}...") for line in lines if line)


def _add_failures(figure: go.Figure, run: TracedRun, rows: dict[int, str]) -> None:
    """Mark the failures: a short job is narrower than a pixel."""
    died = [job for job in run.jobs if job.has_died]
    raised = [job for job in run.jobs if job.has_failed and not job.has_died]
    for name, colour, failed in (("failures", OUTCOMES[RAISED], raised), ("deaths", DEATH, died)):
        if not failed:
            continue
        step = math.ceil(len(failed) / MAX_MARKERS)
        jobs = failed[::step]
        figure.add_scatter(
            name=name if step == 1 else f"{name}, 1 of {step}",
            mode="markers",
            x=[rounded(job.ended) for job in jobs],
            y=[rows[job.worker] for job in jobs],
            marker={"color": colour, "symbol": "x", "size": 6},
            customdata=[hover(job) for job in jobs],
            hovertemplate="%{customdata}<extra></extra>",
        )


def moments(run: TracedRun, columns: int = COLUMNS) -> list[float]:
    """Return the middles of equal parts of the run."""
    width = run.seconds / columns
    return [rounded((column + 0.5) * width) for column in range(columns)]


def _busy_shares(run: TracedRun, rows: dict[int, str], columns: int) -> list[list[float]]:
    """Return the share of time in jobs, of each row at each moment."""
    width = run.seconds / columns or 1.0
    shares = {row: [0.0] * columns for row in rows.values()}
    for job in run.jobs:
        _add_share(shares[rows[job.worker]], job, width)
    return [[round(min(share, 1.0), 2) for share in row] for row in shares.values()]


def _add_share(shares: list[float], job: TracedJob, width: float) -> None:
    """Add the time of a job to the moments in which it ran, as a share of each."""
    most = len(shares) - 1
    first, last = max(0, min(int(job.began / width), most)), max(0, min(int(job.ended / width), most))
    if first == last:  # as of most jobs, if they are many
        shares[first] += (job.ended - job.began) / width
        return
    shares[first] += first + 1 - job.began / width
    shares[last] += job.ended / width - last
    for column in range(first + 1, last):
        shares[column] += 1.0


def load(run: TracedRun) -> Picture:
    """Return the number of running jobs at each moment, in the mean."""
    if not run.jobs:
        return Picture("Load", "No job has ended.")
    run_time = run.seconds
    shares = [0.0] * COLUMNS
    for job in run.jobs:
        _add_share(shares, job, run_time / COLUMNS or 1.0)
    figure = go.Figure()
    figure.add_scatter(
        mode="lines",
        line={"shape": "hvh", "color": BLUE, "width": 1},
        fill="tozeroy",
        x=moments(run, COLUMNS),
        y=[round(share, 2) for share in shares],
        hovertemplate="%{y:.2f} at %{x:.2f} s<extra></extra>",
    )
    counted(figure, "running jobs", 260)
    return Picture("Load", "The number of jobs that ran at each moment, in the mean.", over_time(figure, run))


def queue(run: TracedRun) -> Picture:
    """Return the number of calls that waited."""
    if not any(count for _, count in run.waiting):
        return Picture("Queue", "No call has waited for a token of the limiter, or for the start of a worker.")
    caption = (
        "The calls that waited for a token of the limiter, or for the start of a worker; of trio-offload map, the items "
        "that were read and had not begun. Chunks that a map sends ahead to its workers do not count."
    )
    points = largest_of_each_moment([(when, count) for when, count in run.waiting], run.seconds, 2 * COLUMNS)
    figure = go.Figure()
    figure.add_scatter(
        mode="lines",
        line={"shape": "hv", "color": OUTCOMES[RAISED], "width": 1},
        fill="tozeroy",
        x=[rounded(when) for when, _ in points] + [rounded(run.seconds)],
        y=[count for _, count in points] + [points[-1][1]],
        hovertemplate="%{y} from %{x:.3f} s<extra></extra>",
    )
    counted(figure, "waiting calls", 260)
    return Picture("Queue", caption, over_time(figure, run))


def largest_of_each_moment(points: list[tuple[float, int]], seconds: float, columns: int) -> list[tuple[float, int]]:
    """Return a curve with few points: the largest and the last value of each moment."""
    if len(points) <= 2 * columns:
        return points
    found: list[tuple[float, int]] = []
    moment = -1
    for point in points:
        if (now := int(point[0] / (seconds or 1.0) * columns)) != moment or len(found) < 2:
            moment = now
            found += [point, point]
        else:
            found[-1] = point
            if point[1] > found[-2][1]:
                found[-2] = point
    return found


def durations(run: TracedRun) -> Picture:
    """Return a histogram of the jobs' times, on a logarithmic scale."""
    if not run.jobs:
        return Picture("Durations", "No job has ended.")
    counts = collections.Counter(math.floor(math.log10(max(job.seconds, 1e-7)) * 10) for job in run.jobs)
    bins = range(min(counts), max(counts) + 1)
    figure = go.Figure()
    figure.add_bar(
        x=[10 ** ((each + 0.5) / 10) for each in bins],
        y=[counts[each] for each in bins],
        width=[10 ** ((each + 1) / 10) - 10 ** (each / 10) for each in bins],
        marker_color=BLUE,
        hovertemplate="%{y} jobs of about %{x:.3g} s<extra></extra>",
    )
    first, last = math.floor(bins[0] / 10), math.floor(bins[-1] / 10) + 1
    figure.update_xaxes(
        type="log",
        title="time of a job",
        range=[first - 0.01, last + 0.01],  # the ticks at the ends, for all their rounding
        tickvals=[10.0**power for power in range(-7, 5)],
        ticktext=_TIMES,
    )
    counted(figure, "jobs", 300)
    return Picture("Durations", "The number of jobs by the time that they took.", figure)
