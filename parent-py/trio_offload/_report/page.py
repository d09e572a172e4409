"""The page of a run: one HTML file, which needs no network."""

from __future__ import annotations

import collections
import html
from typing import Final

import plotly.io
from plotly.offline import get_plotlyjs

from .figures import durations, lanes, load, memory, styled
from .run import CANCELLED, OK, RAISED, TracedJob, TracedRun

_MIB: Final = 1 << 20
_SHOWN_FAILURES: Final = 20  # of each kind
# Plotly has no colours that follow the page's. So its texts and lines get them again when the
# reader's preference changes.
_SCRIPT: Final = """\
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const text = dark.matches ? "#ddd" : "#222", line = dark.matches ? "#444" : "#ddd";
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line};
  for (const plot of document.querySelectorAll(".plotly-graph-div")) {
    Plotly.update(plot, {}, {"font.color": text, ...Object.fromEntries(["xaxis", "yaxis"].flatMap(
      name => Object.entries(axis).map(([key, value]) => [`${name}.${key}`, value])))});
  }
}
dark.addEventListener("change", paint);
addEventListener("load", paint);
"""
_STYLE: Final = """\
:root { color-scheme: light dark; --text: #222; --ground: #fff; --soft: #666; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --ground: #16181c; --soft: #999; --line: #444; } }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--ground); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0; }
dt { color: var(--soft); font-size: 0.85rem; } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; } pre { overflow-x: auto; font-size: 0.85rem; border-left: 3px solid var(--line); padding-left: 1rem; }
"""


def page_of(run: TracedRun, title: str) -> str:
    """Return the page as HTML.

    Args:
        run: The run.
        title: Its heading.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<script>{get_plotlyjs()}</script></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        _numbers(run),
    ]
    pictures = [
        ("Workers", lanes),
        ("Memory", memory),
        ("Load", load),
        ("Durations", durations),
    ]
    for heading, draw in pictures:
        if not run.jobs:
            continue
        figure = plotly.io.to_html(
            styled(draw(run)),
            include_plotlyjs=False,
            full_html=False,
            config={"responsive": True, "displaylogo": False, "displayModeBar": False},
        )
        parts.append(f'<section id="{heading.lower()}"><h2>{heading}</h2>{figure}</section>')
    parts += [_failures(run), f"<script>{_SCRIPT}</script></body></html>"]
    return "\n".join(parts)


def _numbers(run: TracedRun) -> str:
    outcomes = collections.Counter(job.outcome for job in run.jobs)
    deaths = sum(count for outcome, count in outcomes.items() if outcome not in (OK, RAISED, CANCELLED))
    peak = max((size for worker in run.workers.values() for _, size in worker.memory), default=0)
    numbers = [
        ("jobs", f"{len(run.jobs):,}"),
        ("returned", f"{outcomes[OK]:,}"),
        ("raised", f"{outcomes[RAISED]:,}"),
        ("died or killed", f"{deaths:,}"),
        ("cancelled", f"{outcomes[CANCELLED]:,}"),
        ("workers", f"{len(run.workers):,}"),
        ("seconds", f"{run.seconds:.3g}"),
        ("seconds in jobs", f"{sum(job.seconds for job in run.jobs):.3g}"),
        ("largest worker", f"{peak / _MIB:.1f} MiB"),
    ]
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in numbers)}</dl>"


def _failures(run: TracedRun) -> str:
    kinds: dict[str, list[TracedJob]] = collections.defaultdict(list)
    for job in run.jobs:
        if job.has_failed:
            kinds[job.error.partition(":")[0] or job.outcome].append(job)
    parts = ["<section id='failures'><h2>Failures</h2>", "" if kinds else "<p>None.</p>"]
    for kind, jobs in sorted(kinds.items(), key=lambda item: -len(item[1])):
        rows = "".join(
            f"<p>{html.escape(job.name)} at {job.began:.3f} s in worker {job.worker}: {html.escape(job.error)}</p>"
            f"<pre>{html.escape(job.stack)}</pre>"
            for job in jobs[:_SHOWN_FAILURES]
        )
        more = f"<p>and {len(jobs) - _SHOWN_FAILURES:,} more</p>" if len(jobs) > _SHOWN_FAILURES else ""
        parts.append(f"<details><summary>{html.escape(kind)}: {len(jobs):,}</summary>{rows}{more}</details>")
    return "\n".join([*parts, "</section>"])
