"""The progress bar of ``trio-offload map``, with the table of workers above it.

It needs ``rich``, and standard error must be a terminal. A Trio task draws it instead of a thread
of rich, so other output to the same terminal is written between two drawings.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Protocol

import trio

from .output import DISTANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from trio_offload import WorkerStatistics

    from .worker_table import Display, WorkerTable

_INTERVAL = 0.1
"""Seconds between two drawings."""


class Bar(Protocol):
    """The display of a run's progress."""

    @property
    def is_shown(self) -> bool:
        """True if it is visible. Then items are counted and workers' statistics are read."""

    @property
    def write_distance(self) -> float:
        """Minimum number of seconds between two writes to standard output."""

    def set_total(self, total: int) -> None:
        """Set the number of all items."""

    def set_workers(self, workers: Sequence[WorkerStatistics]) -> None:
        """Set the current workers."""

    def advance(self, *, failed: bool) -> None:
        """Count a finished item. Called for each item, so it must be cheap."""

    def around_write(self) -> AbstractContextManager[object]:
        """Return a block around each write to standard output."""

    def around_message(self) -> AbstractContextManager[object]:
        """Return a block around each write to standard error."""

    async def run(self) -> None:
        """Update the display until cancelled."""

    def close(self) -> None:
        """Draw it once more, and release the terminal. May be called again."""


class NoBar:
    """Stands for a display that is not wanted, or not possible."""

    is_shown = False
    write_distance = DISTANCE

    def set_total(self, total: int) -> None:
        pass

    def set_workers(self, workers: Sequence[WorkerStatistics]) -> None:
        pass

    def advance(self, *, failed: bool) -> None:
        pass

    def around_write(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def around_message(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    async def run(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        pass


class RichBar:
    """Items done and failed, items per second, and the time left if the number of items is known.

    Args:
        progress: rich's display.
        table: the table above it.
        shares_terminal: standard output is the terminal that the bar is on.
    """

    is_shown = True

    def __init__(self, progress: Display, table: WorkerTable, *, shares_terminal: bool) -> None:
        self._progress = progress
        self._table = table
        self._shares_terminal = shares_terminal
        # Hiding and showing the display takes longer than most items. A person needs it less often.
        self.write_distance = _INTERVAL if shares_terminal else DISTANCE
        self._total: int | None = None
        self._done = 0
        self._failed = 0
        # Of the running items, as far as their jobs tell it.
        self._parts = 0.0
        self._started = time.monotonic()
        self._shown = False
        self._closed = False
        self._task = progress.add_task("", total=None, done="", failed="", rate="")

    def set_total(self, total: int) -> None:
        self._total = total

    def set_workers(self, workers: Sequence[WorkerStatistics]) -> None:
        if not self._closed:
            self._table.set(workers)
            self._parts = sum((worker.progress and worker.progress.fraction) or 0 for worker in workers)

    def advance(self, *, failed: bool) -> None:
        self._done += 1
        self._failed += failed

    def around_write(self) -> AbstractContextManager[object]:
        return self.around_message() if self._shares_terminal else contextlib.nullcontext()

    @contextlib.contextmanager
    def around_message(self) -> Iterator[None]:
        away = self._shown
        if away:
            self._hide(leave_it=False)
        try:
            yield
        finally:
            if away:
                self._show()

    async def run(self) -> None:
        self._show()
        try:
            while True:
                await trio.sleep(_INTERVAL)
                self._draw()
        finally:
            self.close()

    def close(self) -> None:
        # Only the bar stays on the terminal; the workers are about to exit.
        self.set_workers(())
        self._draw()
        self._closed = True
        self._hide(leave_it=True)

    def _show(self) -> None:
        if not self._shown and not self._closed:
            self._shown = True
            self._progress.start()

    def _hide(self, *, leave_it: bool) -> None:
        if self._shown:
            self._shown = False
            self._progress.live.transient = not leave_it
            self._progress.stop()

    def _draw(self) -> None:
        if not self._shown:
            return
        rate = self._done / max(time.monotonic() - self._started, 1e-3)
        self._progress.update(
            self._task,
            total=self._total,
            completed=self._done + self._parts,
            done=f"{self._done}" if self._total is None else f"{self._done}/{self._total}",
            failed=f"{self._failed} failed" if self._failed else "",
            rate=f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s",
        )
        self._progress.refresh()


def open_bar(function: str, *, wanted: bool) -> tuple[Bar, str | None]:
    """Return the bar for standard error, and a hint if the user could have a better one.

    Args:
        function: the name of the user's function.
        wanted: True if the user has not disabled the bar.
    """
    if not wanted or not os.isatty(2):
        return NoBar(), None
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from .worker_table import Display, WorkerTable
    except ImportError:
        return NoBar(), "for a progress bar: pip install 'trio-offload[cli]'"
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return NoBar(), None
    progress = Display(
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.fields[done]} done"),
        TextColumn("[red]{task.fields[failed]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.table = table = WorkerTable(function)
    return RichBar(progress, table, shares_terminal=_same_terminal(1, 2)), None


def _same_terminal(first: int, second: int) -> bool:
    try:
        return os.isatty(first) and os.ttyname(first) == os.ttyname(second)
    except OSError:
        # A terminal of another namespace is unnamed here. Hiding the bar too often is harmless.
        return os.isatty(first)
