"""The table of workers above the progress bar. Imported only with a bar: it needs ``rich``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress import Progress
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .._sizes import readable_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from trio_offload import JobProgress, WorkerStatistics


class WorkerTable:
    """The workers and their items, as a rich renderable."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._workers: Sequence[WorkerStatistics] = ()
        self._lines: list[list[Segment]] | None = None

    def set(self, workers: Sequence[WorkerStatistics]) -> None:
        """Replace the workers."""
        self._workers = workers
        self._lines = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The display is redrawn around each line of output on the same terminal, far more often
        # than the table changes. The layout takes milliseconds, so it is cached.
        if self._lines is None:
            self._lines = []
            if self._workers:
                self._lines = console.render_lines(self._build(console.size.height - _OTHER_LINES), options, pad=False)
        for line in self._lines:
            yield from line
            yield Segment.line()

    def _build(self, most: int) -> Table:
        table = Table(box=None, pad_edge=False, show_edge=False)
        for name in ("pid", "state", "memory", "jobs"):
            table.add_column(name, no_wrap=True, justify="left" if name == "state" else "right")
        tells = any(worker.progress is not None for worker in self._workers)
        if tells:
            table.add_column("progress", no_wrap=True, overflow="ellipsis", max_width=_MAX_PROGRESS)
        table.add_column("item", no_wrap=True, overflow="ellipsis")
        # A longer table would push the bar off the screen.
        shown = self._workers if len(self._workers) <= most else self._workers[: max(0, most - 1)]
        for worker in shown:
            memory = "" if worker.rss is None else readable_size(worker.rss)
            progress = [Text(shown_progress(worker.progress))] if tells else []
            item = Text(self._item_of(worker))
            table.add_row(str(worker.pid), worker.state, memory, str(worker.jobs), *progress, item)
        if len(shown) < len(self._workers):
            table.add_row("", "", "", "", *[""] * tells, f"and {len(self._workers) - len(shown)} more")
        return table

    def _item_of(self, worker: WorkerStatistics) -> str:
        name = worker.function or ""
        return name.removeprefix(f"{self._function}(").removesuffix(")") if name.startswith(self._function) else name


def shown_progress(progress: JobProgress | None) -> str:
    """Return the progress of a job in one line: a percentage or a number, and the note."""
    if progress is None:
        return ""
    fraction = progress.fraction
    amount = f"{round(progress.done, 3)} done" if fraction is None else f"{100 * fraction:.0f} %"
    # A note must not move the cursor.
    note = "".join(letter if letter.isprintable() else " " for letter in progress.note or "")
    return f"{amount} {note}".rstrip()


class Display(Progress):
    """A progress bar under a table."""

    table: WorkerTable | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.table is not None:
            yield self.table
        yield self.make_tasks_table(self.tasks)


_MAX_PROGRESS: Final = 40  # columns
_OTHER_LINES: Final = 3  # of the screen: the table's header, the bar, and the line below it
