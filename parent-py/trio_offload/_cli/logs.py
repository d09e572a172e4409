"""Records of :mod:`logging` on standard error, the jobs' and the program's, for ``--log-level``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .progress import Bar

_FORMAT = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error while the bar is hidden."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        with self._bar.around_message():
            super().emit(record)


@contextlib.contextmanager
def shown_logs(level: int | None, bar: Bar) -> Iterator[None]:
    """Show records from this level on. Without a level, leave logging alone."""
    if level is None:
        yield
        return
    root, handler = logging.getLogger(), _Handler(bar)
    handler.setFormatter(logging.Formatter(_FORMAT))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
