"""The page of a context: its path is checked when the context opens, and written when it closes."""

from __future__ import annotations

import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .._trace import TraceWriter

logger: Final = logging.getLogger("trio_offload")


def check_packages() -> None:
    """Raise ModuleNotFoundError if the library that draws is missing."""
    if find_spec("plotly") is None:
        raise ModuleNotFoundError("a report needs plotly: pip install 'trio-offload[report]'", name="plotly")


def check_path(path: str, trace: str | None = None) -> None:
    """Raise ValueError if the file cannot be written, or is the trace. Its content stays.

    So an hour's run does not end with this error.
    """
    if path == trace:
        raise ValueError(f"report and trace must be two files, got {path!r} for both")
    new = os.O_CREAT | os.O_EXCL
    try:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | new, 0o666))
        except FileExistsError:
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        else:
            os.unlink(path)
    except OSError as error:
        raise ValueError(f"report={path!r} cannot be written: {error.strerror}") from error


class ReportFile:
    """The page of one context. It is drawn from the trace of the run."""

    def __init__(self, path: str, trace: TraceWriter) -> None:
        self._path = path
        self._trace: TraceWriter | None = trace
        self._process = os.getpid()

    def write(self) -> None:
        """Write the page, once, after the trace was closed.

        A failure is logged, because the exception of the block that ends is more important.
        """
        trace, self._trace = self._trace, None
        if trace is None or os.getpid() != self._process:
            return  # a fork of the process has the parent's run
        try:
            from .page import page_of
            from .run import read_run

            page = page_of(read_run(trace.read_back()), _program())
            with open(self._path, "w", encoding="utf-8") as file:
                file.write(page)
        except Exception as error:
            logger.warning("the report %s could not be written: %s: %s", self._path, type(error).__name__, error)


def _program() -> str:
    """Return the name of this program, for a title."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "a run of trio-offload" if name in ("", "-c", "-m") else name
