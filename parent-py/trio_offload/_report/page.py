"""The page of a run: one HTML file, which needs no network."""

from __future__ import annotations

import collections
import html
import statistics
from typing import Final

from plotly.offline import get_plotlyjs

from . import failures
from .figures import durations, lanes, load, queue
from .memory import largest_sum, memory
from .run import CANCELLED, TracedRun
from .style import MIB, Picture, styled

_PICTURES: Final = (lanes, memory, load, queue, durations)
# The library has no colours that follow the page's. So they are given when a picture is drawn, and
# again when the reader's preference changes. Between two pictures the browser may show the first.
_SCRIPT: Final = """\
const dark = matchMedia("(prefers-color-scheme: dark)");
function colours() {
  const [text, line, ground] = dark.matches ? ["#ddd", "#3a3d44", "#26292f"] : ["#222", "#ddd", "#fff"];
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line};
  const found = {"font.color": text, "hoverlabel.bgcolor": ground, "hoverlabel.font.color": text};
  for (const name of ["xaxis", "yaxis"])
    for (const [key, value] of Object.entries(axis)) found[`${name}.${key}`] = value;
  return found;
}
async function draw(source) {
  const {data, layout} = JSON.parse(source.textContent), found = colours();
  // The legend has a line for each entry there.
  if (innerWidth < 600) layout.height += 20 * data.filter(each => each.name && each.showlegend !== false).length;
  layout.font.color = found["font.color"];
  layout.hoverlabel = {...layout.hoverlabel, bgcolor: found["hoverlabel.bgcolor"], font: {color: found["font.color"]}};
  for (const name of ["xaxis", "yaxis"])
    for (const key of ["gridcolor", "zerolinecolor", "linecolor"]) layout[name][key] = found[`${name}.${key}`];
  await Plotly.newPlot(source.previousElementSibling, data, layout,
    {responsive: true, displaylogo: false, displayModeBar: false});
  await new Promise(resolve => setTimeout(resolve));
}
(async () => {
  for (const source of document.querySelectorAll("script.figure")) await draw(source);
  document.body.dataset.drawn = "";
  dark.addEventListener("change", () => {
    for (const plot of document.querySelectorAll(".plot")) Plotly.relayout(plot, colours());
  });
})();
"""
_STYLE: Final = """\
:root { color-scheme: light dark; --text: #222; --ground: #fff; --soft: #666; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --ground: #16181c; --soft: #999; --line: #444; } }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--ground); overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h3 { font-size: 1rem; margin-bottom: 0; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 0; border-top: 1px solid var(--line); padding-top: 1rem; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0; }
dt { color: var(--soft); font-size: 0.85rem; } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--soft); margin: 0; } ul { margin: 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: 0.85rem; border-left: 3px solid var(--line); padding-left: 1rem; overflow-wrap: normal; }
"""


def page_of(run: TracedRun, title: str) -> str:
    """Return the page as HTML.

    Args:
        run: The run.
        title: Its heading.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            _numbers(run),
            *(_section(draw(run)) for draw in _PICTURES),
            failures.section(run),
            "<noscript><p>The pictures need JavaScript.</p></noscript>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{_SCRIPT}</script></body></html>",
        ]
    )


def _section(picture: Picture) -> str:
    section = (
        f'<section id="{picture.name.lower()}"><h2>{picture.name}</h2><p class="caption">{html.escape(picture.caption)}</p>'
    )
    if picture.figure is not None:
        data = styled(picture.figure)
        section += f'<div class="plot"></div><script class="figure" type="application/json">{data}</script>'
    return f"{section}</section>"


def _numbers(run: TracedRun) -> str:
    found = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers(run))
    return f"<dl>{found}</dl>"


def numbers(run: TracedRun) -> list[tuple[str, str]]:
    """Return the names and the values on top of the page."""
    jobs = run.jobs
    deaths = sum(job.has_died for job in jobs) + sum(bool(worker.died) for worker in run.workers.values())
    raised = sum(job.failed or 1 for job in jobs if job.has_failed and not job.has_died)
    items = sum(job.items for job in jobs)
    lost = sum(job.items for job in jobs if job.has_died or job.outcome == CANCELLED)
    end = run.seconds
    ready = [worker for worker in run.workers.values() if worker.ready]
    lives = sum((end if worker.ended is None else worker.ended) - worker.ready for worker in ready)
    busy = sum(job.seconds for job in jobs)
    largest = max((size for worker in run.workers.values() for _, size in worker.memory), default=0)
    found = [
        ("jobs", f"{len(jobs):,}"),
        *([("items", f"{items:,}")] if items != len(jobs) else []),
        ("returned", f"{items - raised - lost:,}"),
        ("raised", f"{raised:,}"),
        ("died or killed", f"{deaths:,}"),
        ("cancelled", f"{collections.Counter(job.outcome for job in jobs)[CANCELLED]:,}"),
        ("workers", f"{len(run.workers):,}"),
        ("run time", seconds(end)),
    ]
    if jobs:
        found += [
            ("median job", seconds(statistics.median(job.seconds for job in jobs))),
            ("longest job", seconds(max(job.seconds for job in jobs))),
            ("workers' time in jobs", f"{min(1.0, busy / lives) if lives > 0 else 0:.0%}"),
        ]
    if any(run.waiting):
        found.append(("longest queue", f"{max(count for _, count in run.waiting):,}"))
    if largest:
        found += [
            ("largest worker", f"{largest / MIB:,.1f} MiB"),
            ("all workers at most", f"{largest_sum(run) / MIB:,.1f} MiB"),
        ]
    return found


def seconds(amount: float) -> str:
    """Return a time with three digits and the unit that suits it."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if amount >= factor:
            return f"{amount / factor:,.0f} {unit}" if amount >= 1000 * factor else f"{amount / factor:.3g} {unit}"
    return f"{amount * 1e6:.3g} µs" if amount else "0 s"
