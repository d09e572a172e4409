"""A handler for tests, which keeps the program's records."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Records(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def take(self) -> list[str]:
        """The messages so far. The next call begins with none."""
        messages = [record.getMessage() for record in self.records]
        self.records.clear()
        return messages


@contextmanager
def kept_records() -> Iterator[Records]:
    """A handler of the root, whose level is INFO; all levels are put back."""
    handler, root = Records(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)
    for name in ("library", "library.part", "other"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)
