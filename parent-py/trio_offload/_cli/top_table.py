"""The tables of ``trio-offload top``. Imported only with a table: it needs ``rich``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TextIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .._sizes import readable_size
from .._top.programs import printable
from .worker_table import shown_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._top.sampler import Sample, WorkerSample

_WIDE: Final = 1000  # columns: in a file or a pipe nothing is cut
_TEXTS: Final = ("progress", "function", "command")
_OTHER_LINES: Final = 4  # of the screen: the heading, the table's header, the rest, the cursor


def console_of(file: TextIO) -> Console:
    """Return a console that cuts lines on a terminal only."""
    return Console(file=file) if file.isatty() else Console(file=file, width=_WIDE)


def heading_of(sample: Sample) -> Text:
    """Return the line above the table."""
    running = sum(worker.state == "running" for worker in sample.workers)
    count = len(sample.workers)
    counts = f"{count} worker{'s' * (count != 1)}, {running} running"
    return Text(f"{sample.program.pid}: {counts}: {sample.program.command}", no_wrap=True, overflow="ellipsis")


def page_of(sample: Sample, height: int) -> Group:
    """Return the heading and as much of the table as a screen of this height has room for."""
    return Group(heading_of(sample), table_of_workers(sample, height - _OTHER_LINES, fits=True))


def table_of_workers(sample: Sample, most: int | None = None, *, fits: bool) -> Table:
    """Return the table of workers, with at most ``most`` rows. See :func:`_table`."""
    workers = sample.workers
    has_contexts = len({worker.context for worker in workers}) > 1
    tells = any(worker.progress is not None for worker in workers)
    names = ["pid", *["context"] * has_contexts, "state", "cpu", "memory", "peak", "jobs", "age"]
    names += [*["progress"] * tells, "function"]
    shown = workers if most is None or len(workers) <= most else workers[: max(0, most - 1)]
    rows = [_row(worker, has_contexts=has_contexts, tells=tells) for worker in shown]
    if len(shown) < len(workers):
        rows.append([*[""] * (len(names) - 1), f"and {len(workers) - len(shown)} more"])
    return _table(names, rows, fits=fits)


def table_of_programs(samples: Sequence[Sample], *, fits: bool) -> Table:
    """Return the table of programs. See :func:`_table`."""
    rows = []
    for sample in samples:
        running = sum(worker.state == "running" for worker in sample.workers)
        rows.append([str(sample.program.pid), str(len(sample.workers)), str(running), sample.program.command])
    return _table(["pid", "workers", "running", "command"], rows, fits=fits)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], *, fits: bool) -> Table:
    """Return a table. One that ``fits`` a terminal cuts its texts and keeps its numbers."""
    table = Table(box=None, pad_edge=False, show_edge=False, expand=fits)
    for name in names:
        is_text = name in _TEXTS
        justify: Literal["left", "right"] = "left" if is_text or name == "state" else "right"
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify, ratio=1 if is_text and fits else None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _row(worker: WorkerSample, *, has_contexts: bool, tells: bool) -> list[str]:
    cpu = "" if worker.cpu_percent is None else f"{worker.cpu_percent:.0f} %"
    row = [str(worker.pid), *[str(worker.context)] * has_contexts, worker.state, cpu]
    row += [_size(worker.rss), _size(worker.peak_rss), str(worker.jobs), _duration(worker.age)]
    return [*row, *[shown_progress(worker.progress)] * tells, printable(worker.function or "")]


def _size(size: int | None) -> str:
    return "" if size is None else readable_size(size)


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
