"""``trio-offload report``, and ``--report`` of ``map``: a traced run as one HTML page."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from .._report.file import check_packages, check_path
from .exit_status import CommandError, ExitStatus


def run_report(trace: str, output: str | None) -> ExitStatus:
    """Write the page of a trace file.

    ``output`` is the page's path. None means the trace's, with the suffix ``.html``.
    """
    _check_packages()
    path = f"{trace.removesuffix('.json')}.html" if output is None else output
    _write_page(trace, path, os.path.basename(trace))
    print(path)
    return ExitStatus.OK


@contextlib.contextmanager
def traced_for_report(trace: str | None, report: str | None, title: str) -> Iterator[str | None]:
    """Return the path of a run's trace. At its end, also by an error, write the report."""
    if report is None:
        yield trace
        return
    _check_packages()
    try:
        check_path(report)
    except ValueError as error:
        why = error.__cause__
        raise CommandError(f"cannot write {report}: {getattr(why, 'strerror', None) or error}") from None
    with tempfile.TemporaryDirectory(prefix="trio-offload-") as folder:
        path = trace or os.path.join(folder, "trace.json")
        try:
            yield path
        except CommandError:
            with contextlib.suppress(CommandError):  # a run that did not begin has no trace
                _write_page(path, report, title)
            raise
        _write_page(path, report, title)


def _check_packages() -> None:
    try:
        check_packages()
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from None


def _write_page(trace: str, path: str, title: str) -> None:
    from .._report.page import page_of
    from .._report.run import NoTrace, read_run

    try:
        with open(trace, encoding="utf-8") as file:
            run = read_run(file.read())
    except OSError as error:
        raise CommandError(f"cannot read {trace}: {error.strerror}") from None
    except (NoTrace, UnicodeDecodeError) as error:
        raise CommandError(f"{trace} is no trace of trio-offload: {error}") from None
    page = page_of(run, title)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None
