"""The look that the pictures of a run share: colours, axes of time, texts."""

from __future__ import annotations

import html
from typing import Any, Final

import attrs
import plotly.graph_objects as go

from .run import CANCELLED, OK, RAISED, TracedRun

MIB: Final = 1 << 20
# Readable on light and on dark ground, and by those who see red and green alike (Okabe and Ito).
BLUE: Final = "#2C8BC6"
DEATH: Final = "#D55E00"
OUTCOMES: Final = {
    OK: BLUE,
    RAISED: "#E69F00",
    "WorkerTimeoutError": "#CC79A7",
    CANCELLED: "#999999",
}
"""Colours by outcome. Each other outcome is a death."""
NAMES: Final = {
    "WorkerTimeoutError": "timed out",
    "WorkerMemoryError": "over memory_limit",
    "BrokenWorkerError": "died",
}
"""Short names of outcomes."""
START: Final = "rgba(128,128,128,0.35)"


@attrs.frozen
class Picture:
    """One picture, or the reason why there is none."""

    name: str
    caption: str
    figure: go.Figure | None = None


def shown(text: str) -> str:
    """Return a text as the library shows it. It reads a few tags and entities of HTML."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def rounded(moment: float) -> float:
    """Return a time with the digits that a picture needs. Pages would be twice as large."""
    return round(moment, 6)


def over_time(figure: go.Figure, run: TracedRun) -> go.Figure:
    """Give a figure the axis of time of the whole run."""
    figure.update_xaxes(title="seconds", range=[0, rounded(run.seconds) or 1.0])
    return figure


def counted(figure: go.Figure, title: str, height: int) -> None:
    """Give a figure a vertical axis of numbers, and its height in pixels."""
    largest = max(max(trace.y) for trace in figure.data)
    figure.update_yaxes(title=title, rangemode="tozero", tickformat=",", dtick=1 if largest <= 5 else None)
    figure.update_layout(height=height)


def styled(figure: go.Figure) -> str:
    """Return the figure as JSON for a page. Its ground and its lines are the page's."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 70, "r": 20, "t": 30, "b": 50},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hoverlabel={"align": "left", "namelength": -1},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    document: Any = figure.to_json()
    # "</script>" in a name would end the script that holds this.
    return str(document).replace("<", "\\u003c")
