"""The picture of a run: how trio-offload does beside each peer in each row, and the curves.

python benchmarks/picture.py RESULTS.json PICTURE.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator
from ratios import BOUNDS, OURS, PEERS, advantage

# Light and dark: the file as it is, and what a reader's browser that prefers dark puts in its place.
INK, PAPER, LINE = "#1f2328", "#ffffff", "#d1d9e0"
DARK = {INK: "#e6edf3", PAPER: "#0d1117", LINE: "#3d444d"}
# Told apart by people who see few colours (Okabe and Ito), and readable on both.
COLOURS = dict(zip(PEERS, ("#d55e00", "#0072b2", "#009e73", "#000000", "#cc79a7", "#e69f00", "#56b4e9"), strict=True))
MARKERS = dict(zip(PEERS, "osDX^vP", strict=True))
GREY = "#858d96"


def draw(written: dict[str, Any], path: Path) -> None:
    rows = [record for record in written["rows"] if any(_peer(name) for name in record["contenders"])]
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "trio-offload",
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), PAPER),
        "grid.color": LINE,
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        curves = written["curves"]
        heights = [0.27 * len(rows) + 1.2] * bool(rows) + [2.4] * bool(curves)
        if not heights:
            return  # the rows that were asked for have neither peers nor curves
        figure = Figure(figsize=(9.6, sum(heights)), layout="constrained")
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if rows:
            _draw_rows(parts[0], rows)
        if curves:
            for axes, curve in zip(parts[-1].subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
                _draw_curve(axes, curve)
        # Without a date, so that the same results give the same file.
        figure.savefig(path, metadata={"Date": None})
    path.write_text(with_dark(path.read_text()))


def _draw_rows(part: SubFigure, rows: list[dict[str, Any]]) -> None:
    axes = part.subplots()
    for place, record in enumerate(rows):
        axes.axhline(place, color=LINE, linewidth=0.5, zorder=0)
        for name in record["contenders"]:
            ratio, peer = advantage(record, name), _peer(name)
            if peer is not None:
                axes.plot(ratio, place, MARKERS[peer], color=COLOURS[peer], markersize=6, label=peer)
            elif name in BOUNDS:
                axes.plot(ratio, place, "|", color=GREY, markersize=11, markeredgewidth=2, label="the machine itself")
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(rows)), [record["row"] for record in rows])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    part.suptitle("trio-offload is so many times as fast, or as small: right of 1 it is ahead", fontsize=10)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in (*PEERS, "the machine itself") if name in handles]
    part.legend(
        [handles[name] for name in names],
        names,
        ncols=len(names),
        loc="outside lower center",
        frameon=False,
        columnspacing=1,
        handletextpad=0,
    )


def _draw_curve(axes: Axes, curve: dict[str, Any]) -> None:
    for name, points in curve["series"].items():
        colour, marker = (INK, "o") if name == OURS else (COLOURS.get(name, GREY), MARKERS.get(name, "."))
        places = [point["place"] for point in points]
        axes.plot(places, [point["median"] for point in points], f"-{marker}", color=colour, markersize=4, label=name)
        low, high = zip(*(point["quartiles"] for point in points), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.1 * max(point["quartiles"][1] for points in curve["series"].values() for point in points))
    axes.set_title(f"{curve['curve']}: {curve['unit']} each", fontsize=10, loc="left")
    axes.set_xlabel(curve["of_what"])
    axes.grid(axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _peer(name: str) -> str | None:
    return next((peer for peer in PEERS if name.startswith(peer)), None)


def with_dark(svg: str) -> str:
    """A rule for each colour and use of it; a program that knows no such rules shows the light picture."""
    rules = [
        f'[style*="{use}: {light}"] {{ {use}: {dark} !important }}'
        for light, dark in DARK.items()
        for use in ("fill", "stroke")
    ]
    style = f"<style>@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}</style>"
    place = svg.index("<defs>")
    return svg[:place] + style + "\n " + svg[place:]


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
