"""The command line: ``trio-offload map``, ``report``, ``top`` and ``doctor``.

:func:`main` is the entry point.

| module | its job |
|---|---|
| ``__init__`` | run a command, return its exit status |
| ``arguments`` | the parsers and the text of ``--help`` |
| ``exit_status`` | the exit statuses; the error with a one-line message |
| ``sources`` | read the items |
| ``run`` | the tasks of ``map``, and their end |
| ``slot`` | run items in one worker, one at a time |
| ``output`` | write the lines, in the order of the items or not; bound the memory |
| ``resume`` | leave out the items that earlier runs have finished |
| ``ending`` | messages of a run that leaves items |
| ``progress``, ``worker_table`` | the progress bar; the table of workers above it |
| ``report`` | a traced run as an HTML page |
| ``top``, ``top_table`` | the workers of a running program; their table |
| ``summary`` | count jobs, failures, workers, memory and time |
| ``doctor``, ``probes`` | the report for bug reports, and its questions |
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

from .._exceptions import is_interrupt
from .arguments import command_parser, doctor_parser, map_parser, report_parser, top_parser
from .exit_status import CommandError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_offload_worker._jobs.cli_items import Function

    from .resume import EarlierOutput
    from .sources import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. None means the arguments of the process.

    ``--help`` and ``--version`` raise :class:`SystemExit`, as usual with argparse.
    """
    _fill_standard_descriptors()
    try:
        try:
            status = _run(sys.argv[1:] if arguments is None else arguments)
        except CommandError as error:
            _complain(str(error))
            status = ExitStatus.USAGE
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _leave_closed_output(1)
        status = ExitStatus.OUTPUT_CLOSED
    except BaseException as error:
        # Before and after a run, which handles signals itself, Ctrl+C is an ordinary exception.
        if not is_interrupt(error):
            raise
        status = ExitStatus.INTERRUPTED
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # standard error is closed, and the command succeeds all the same
        _leave_closed_output(2)
    return int(status)


def _run(arguments: Sequence[str]) -> ExitStatus:
    chosen = command_parser().parse_args(arguments)
    match chosen.command:
        case "map":
            return _run_map(chosen.rest)
        case "doctor":
            return _run_doctor(chosen.rest)
        case "report":
            return _run_report(chosen.rest)
        case "top":
            return _run_top(chosen.rest)
        case None:
            raise CommandError("a command is missing: map, report, top or doctor (see trio-offload --help)")
        case other:
            raise CommandError(f"unknown command {other!r}: must be map, report, top or doctor (see trio-offload --help)")


def _run_map(arguments: Sequence[str]) -> ExitStatus:
    from .report import traced_for_report
    from .run import MapOptions, run_map
    from .slot import Job

    # Words after "--" bypass argparse, which treats them differently in each version of Python.
    before, after = _split_at_dashes(arguments)
    chosen = map_parser().parse_intermixed_args(before)
    words = [*chosen.words, *after]
    if not words:
        raise CommandError("the function is missing: map MODULE:FUNCTION [ITEM ...] (see trio-offload map --help)")
    items = words[1:]
    if items == ["-"] and not after and not _is_terminal_or_null(0):
        raise CommandError("the item '-' is text. Use --lines - for the lines of standard input, and -- - for that text")
    with contextlib.ExitStack() as stack:
        trace = stack.enter_context(traced_for_report(chosen.trace, chosen.report, words[0]))
        options = MapOptions(
            job=Job(_function_named(words[0]), chosen.timeout, chosen.grace, chosen.retries),
            # At most one worker for each item.
            workers=min(chosen.workers, len(items)) if items else chosen.workers,
            fail_fast=chosen.fail_fast,
            progress=not chosen.no_progress,
            path_entry=_working_directory(),
            summary=chosen.summary,
            memory_limit=chosen.memory_limit,
            retire_rss=chosen.retire_rss,
            retire_jobs=chosen.retire_jobs,
            trace=trace,
            ordered=not chosen.unordered,
            log_level=chosen.log_level,
        )
        source = stack.enter_context(contextlib.closing(_open_source(items, chosen.lines, chosen.json_lines)))
        earlier = [stack.enter_context(contextlib.closing(_open_earlier(path))) for path in dict.fromkeys(chosen.resume)]
        return run_map(options, source, earlier)


def _run_doctor(arguments: Sequence[str]) -> ExitStatus:
    from .doctor import run_doctor

    chosen = doctor_parser().parse_args(arguments)
    return run_doctor(as_json=chosen.json)


def _run_report(arguments: Sequence[str]) -> ExitStatus:
    from .report import run_report

    chosen = report_parser().parse_args(arguments)
    return run_report(chosen.trace, chosen.output)


def _run_top(arguments: Sequence[str]) -> ExitStatus:
    from .top import TopOptions, run_top

    chosen = top_parser().parse_args(arguments)
    return run_top(TopOptions(chosen.pid, chosen.json, chosen.once, chosen.interval))


def _split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _function_named(target: str) -> Function:
    from trio_offload_worker._jobs.cli_items import Function

    module, colon, attribute = target.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if colon and all(name.isidentifier() for name in names):
        return Function(module, attribute)
    hint = ". Give a module by its name, not by its path" if "/" in module else ""
    raise CommandError(f"the function must be MODULE:FUNCTION, such as json:loads, got {target!r}{hint}")


def _open_source(items: Sequence[str], lines: str | None, json_lines: str | None) -> Source:
    from .sources import ArgumentSource, LineSource

    given = bool(items) + (lines is not None) + (json_lines is not None)
    if given == 0:
        if not _is_terminal_or_null(0):
            raise CommandError("items are missing. To take them from the lines of standard input, add --lines -")
        raise CommandError("items are missing: give them as arguments, or use --lines FILE or --json-lines FILE")
    if given > 1:
        raise CommandError("items must come from one source: arguments, --lines FILE or --json-lines FILE")
    if lines is not None:
        return LineSource(lines, "text")
    if json_lines is not None:
        return LineSource(json_lines, "json")
    return ArgumentSource(items)


def _open_earlier(path: str) -> EarlierOutput:
    from .resume import EarlierOutput

    if path == "-":
        raise CommandError("--resume must be a file, not standard input. For a file of that name: ./-")
    return EarlierOutput(path)


def _is_terminal_or_null(descriptor: int) -> bool:
    """Return False for a pipe, a file or a socket: it may have items."""
    return stat.S_ISCHR(os.fstat(descriptor).st_mode)


def _working_directory() -> str | None:
    """Return the folder that ``python -m`` puts first on ``sys.path``.

    None with the switches ``-I`` and ``-P``, which leave it out.
    """
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return None
    try:
        return os.getcwd()
    except OSError:  # deleted; the import of the function will fail
        return None


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # standard error is closed; the exit status remains
        if sys.stderr is not None:
            print(f"trio-offload: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _fill_standard_descriptors() -> None:
    """Open ``/dev/null`` for each closed descriptor among 0, 1 and 2.

    Otherwise the next socket would get the number, and a print would write into it. ``sys.stdin``,
    ``sys.stdout`` or ``sys.stderr`` stays None, which shows that it was closed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _leave_closed_output(descriptor: int) -> None:
    """Redirect a closed stream to ``/dev/null``.

    Otherwise Python would fail to flush it at exit, and exit with status 120.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
