"""The failures of a run, by their kind and their stack."""

from __future__ import annotations

import collections
import html
from typing import Final

from .run import TracedFailure, TracedRun

_MAX_STACKS: Final = 20  # of each kind
_MAX_PLACES: Final = 5  # of each stack


def failures_of(run: TracedRun) -> dict[str, list[list[TracedFailure]]]:
    """Return the failures of each kind in groups of the same stack. The largest come first."""
    kinds: dict[str, dict[str, list[TracedFailure]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for job in run.jobs:
        for failure in job.failures:
            kinds[failure.kind][_frames(failure.stack)].append(failure)
    groups = {kind: sorted(stacks.values(), key=len, reverse=True) for kind, stacks in kinds.items()}
    return dict(sorted(groups.items(), key=lambda item: -sum(map(len, item[1]))))


def _frames(stack: str) -> str:
    """Return the lines that name a frame. The others have messages and addresses."""
    return "\n".join(line for line in stack.splitlines() if line.lstrip().startswith('File "'))


def section(run: TracedRun) -> str:
    """Return the section as HTML."""
    parts = ['<section id="failures"><h2>Failures</h2>']
    kinds = failures_of(run)
    if not kinds:
        parts.append("<p>None.</p>")
    unseen = sum(max(0, job.failed - len(job.item_failures)) for job in run.jobs)
    if unseen:
        parts.append(f"<p>The trace has no stack of {unseen:,} more items. A chunk has a few of its failures.</p>")
    for kind, groups in kinds.items():
        count = sum(map(len, groups))
        stacks = f", {len(groups):,} stacks" if len(groups) > 1 else ""
        parts.append(f"<details><summary>{html.escape(kind)}: {count:,}{stacks}</summary>")
        parts += map(_group, groups[:_MAX_STACKS])
        if len(groups) > _MAX_STACKS:
            parts.append(f"<p>and {len(groups) - _MAX_STACKS:,} more stacks</p>")
        parts.append("</details>")
    return "\n".join([*parts, "</section>"])


def _group(failures: list[TracedFailure]) -> str:
    first = failures[0]
    places = "".join(f"<li>{html.escape(failure.place)}</li>" for failure in failures[:_MAX_PLACES])
    if len(failures) > _MAX_PLACES:
        places += f"<li>and {len(failures) - _MAX_PLACES:,} more</li>"
    stack = f"<pre>{html.escape(first.stack)}</pre>" if first.stack.strip() else "<p>There is no stack.</p>"
    return f"<h3>{html.escape(first.error)}</h3><ul>{places}</ul>{stack}"
