"""The end of a run that leaves items: messages, and the forced exit after a signal."""

from __future__ import annotations

import os
import shlex
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from .summary import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .exit_status import ExitStatus
    from .resume import EarlierOutput

_FORCED_EXIT: Final = 0.8
"""Seconds after a signal until the process exits."""

_LAST_MESSAGE: Final = 0.1
"""Seconds for a message before a forced exit. Standard error may be a full pipe."""


@attrs.define
class Intake:
    """The items that a run has read so far."""

    items: int = 0
    """Number of items to run."""
    is_complete: bool = False
    """True after the last one."""
    total: int | None = None
    """Number of items of the source, with those that are left out. None means unknown."""
    left_out: int = 0
    """Number of items that ``--resume`` has left out."""

    def balance(self, finished: int, *, resumed: bool) -> Balance:
        """Return the balance of a run that has written lines for ``finished`` items."""
        if self.is_complete:
            return Balance(finished, self.items - finished)
        if self.total is None:
            return Balance(finished, self.items - finished, "at least")
        # --resume may leave out some of the items that were not read.
        return Balance(finished, self.total - self.left_out - finished, "at most" if resumed else "")


@attrs.frozen
class Balance:
    """Items at the end of a run."""

    finished: int
    """Number of lines written."""
    left: int
    """Number of the other items."""
    bound: str = ""
    """``"at least"`` or ``"at most"`` if the number of items left is a bound."""

    def __str__(self) -> str:
        if self.bound:
            left = f", {self.bound} {self.left} left" if self.left else "; the input was not read to its end"
            return f"{count_of(self.finished, 'item')} finished{left}"
        return f"{self.finished} of {count_of(self.finished + self.left, 'item')} finished, {self.left} left"

    @property
    def is_complete(self) -> bool:
        """True if all items are finished."""
        return not self.left and not self.bound


def interruption_lines(reason: str, balance: Balance, earlier: Sequence[EarlierOutput]) -> list[str]:
    """Return the message of a run that ended early.

    Args:
        reason: the end, such as "interrupted by SIGINT".
        balance: the items.
        earlier: the files of ``--resume``.
    """
    lines = [f"{reason}: {balance}"]
    if not balance.is_complete:
        lines.append(f"to continue, {_way_to_continue(earlier)}")
    return lines


def _way_to_continue(earlier: Sequence[EarlierOutput]) -> str:
    if any(file.is_output for file in earlier):
        return "run the same command again"
    name = _output_file()
    if name is None:
        return "give the output of this run, as a file, to --resume"
    return f"run the same command with --resume {name} >> {name}"


def _output_file() -> str | None:
    """Return the name of standard output's file. None for a pipe or a terminal."""
    try:
        if not stat.S_ISREG(os.fstat(1).st_mode):
            return None
        path = Path(os.readlink("/proc/self/fd/1"))
        if not path.exists():  # deleted
            return None
        here = Path.cwd()
        return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
    except OSError:
        return None


def print_message(line: str) -> None:
    """Print a line on standard error, with the program's name."""
    try:
        if sys.stderr is not None:
            print(f"trio-offload: {line}", file=sys.stderr, flush=True)
    except OSError:  # standard error is closed, and the command succeeds all the same
        pass


def start_forced_exit(status: ExitStatus, report: Callable[[], None], grace: float) -> threading.Timer:
    """Exit the process after a delay, if it still runs then. ``report`` prints a message before.

    Jobs have ``grace`` seconds of their own.
    """

    def leave() -> None:
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        reporter.join(_LAST_MESSAGE)
        os._exit(int(status))

    timer = threading.Timer(_FORCED_EXIT + grace, leave)
    timer.daemon = True
    timer.start()
    return timer
