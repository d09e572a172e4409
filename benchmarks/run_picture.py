"""Run a parser that leaks, crashes and takes too much memory, and draw the run: docs/run.svg, for README.md.

    python benchmarks/run_picture.py PICTURE.svg

It is drawn from the trace of a real run. It needs trio-offload and matplotlib.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
import matplotlib
import trio
from leaking_jobs import parse
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from picture import INK, LINE, PAPER, with_dark

import trio_offload

FILES, SLOTS = 24, 3
CEILING, ENOUGH = 300, 110  # MiB

# Okabe and Ito's, as in picture.py. All are readable on the light and on the dark background.
BLUE, RED, GREEN, GREY = "#3391c9", "#d55e00", "#009e73", "#858d96"
SLOT_COLOURS = (BLUE, GREEN, "#cc79a7")


@attrs.define
class Run:
    """The trace's events, and the moments at which a task of the program had its turn, in seconds."""

    events: list[dict[str, Any]]
    turns: list[float]


async def parse_all(trace: Path) -> Run:
    turns: list[float] = []
    limiter = trio.CapacityLimiter(SLOTS)
    retire = trio_offload.retire_when(rss=f"{ENOUGH}MiB")
    options: dict[str, Any] = {"retire": retire, "memory_limit": f"{CEILING}MiB", "report_interval": 0.05}
    began = trio.current_time()
    async with trio.open_nursery() as nursery, trio_offload.open_worker_context(trace=trace, **options) as context:

        async def take_turns() -> None:
            while True:
                turns.append(trio.current_time() - began)
                await trio.sleep(0.02)

        async def parse_one(number: int) -> None:
            try:
                await context.run_sync(parse, number, limiter=limiter)
            except trio_offload.BrokenWorkerError as error:
                print(str(error).partition(":")[0])

        nursery.start_soon(take_turns)
        async with trio.open_nursery() as parsers:
            for number in range(FILES):
                parsers.start_soon(parse_one, number)
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    return Run(json.loads(await trio.Path(trace).read_text()), turns)


def slots_of(events: list[dict[str, Any]]) -> dict[int, int]:
    """For each worker the first lane that was free when it started."""
    spans: dict[int, list[float]] = {}
    for event in events:
        if event.get("cat") in ("worker", "job"):
            begin, end = event["ts"], event["ts"] + event["dur"]
            first, last = spans.get(event["tid"], (begin, end))
            spans[event["tid"]] = [min(first, begin), max(last, end)]
    slots: dict[int, int] = {}
    free = [0.0] * SLOTS
    for worker, (begin, end) in sorted(spans.items(), key=lambda span: span[1]):
        # The successor of a worker that leaks starts while that one answers.
        slots[worker] = min(range(SLOTS), key=lambda slot: (free[slot] > begin + 60_000, free[slot]))
        free[slots[worker]] = end
    return slots


def draw(run: Run, path: Path) -> None:
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "trio-offload",
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), PAPER),
        "grid.color": LINE,
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.6, 4.6), layout="constrained")
        lanes, memory = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        slots = slots_of(run.events)
        _draw_lanes(lanes, run, slots)
        _draw_memory(memory, run, slots)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, handletextpad=0.2)
        figure.savefig(path, metadata={"Date": None})
    path.write_text(with_dark(path.read_text()))


def _draw_lanes(axes: Axes, run: Run, slots: dict[int, int]) -> None:
    axes.vlines(run.turns, -0.3, 0.3, color=INK, linewidth=0.7)
    for event in run.events:
        lane = slots.get(event["tid"], 0) + 1
        place = (event.get("ts", 0) / 1e6, event.get("dur", 0) / 1e6)
        if event.get("cat") == "worker":
            axes.broken_barh([place], (lane - 0.3, 0.6), facecolor=GREY, linewidth=0)
        elif event.get("cat") == "job":
            outcome = event["args"]["outcome"]
            colour = BLUE if outcome == "ok" else RED
            axes.broken_barh([place], (lane - 0.3, 0.6), facecolor=colour, edgecolor=PAPER, linewidth=1)
            if outcome != "ok":
                name = "segmentation fault" if outcome == "BrokenWorkerError" else "above the ceiling"
                axes.text(place[0] + place[1] / 2, lane + 0.34, name, ha="center", va="top", fontsize=8, color=RED)
    axes.set_yticks(range(SLOTS + 1), ["your program", *(f"worker {number}" for number in range(1, SLOTS + 1))])
    axes.invert_yaxis()
    title = f"{FILES} files and a parser that leaks and crashes: two calls raise, {FILES - 2} return, the program goes on"
    axes.set_title(title, fontsize=10, loc="left")
    for colour, name in ((BLUE, "a call that returns"), (RED, "a call that raises"), (GREY, "a worker starts")):
        axes.plot([], [], "s", color=colour, label=name)
    axes.plot([], [], "|", color=INK, label="a task has its turn")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_memory(axes: Axes, run: Run, slots: dict[int, int]) -> None:
    axes.axhline(CEILING, color=RED, linewidth=1, linestyle="--")
    axes.text(0, CEILING - 8, "memory_limit", color=RED, va="top", fontsize=9)
    axes.axhline(ENOUGH, color=GREY, linewidth=1, linestyle="--")
    axes.text(0, ENOUGH + 8, "retire_when(rss=…)", color=INK, va="bottom", fontsize=9)
    reports = sorted(
        (event for event in run.events if event["ph"] == "C" and "rss" in event["args"]), key=lambda e: e["tid"]
    )
    for worker, group in itertools.groupby(reports, key=lambda event: int(event["tid"])):
        points = sorted((event["ts"] / 1e6, event["args"]["rss"] / 2**20) for event in group)
        times, held = zip(*points, strict=True)
        axes.plot(times, held, color=SLOT_COLOURS[slots.get(worker, 0)], linewidth=1.5, drawstyle="steps-post")
    axes.set_ylim(0, CEILING * 1.15)
    axes.set_yticks([0, 100, 200, 300], ["0", "100", "200", "300 MiB"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw(trio.run(parse_all, Path(folder, "run.json")), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
