"""The command line: ``trio-offload map`` and ``trio-offload doctor``. :func:`main` is the entry point.

| module | its one job |
|---|---|
| ``__init__`` | arguments in, an exit status out |
| ``_exit`` | the exit statuses, and the error that is one line |
| ``_sources`` | where items come from |
| ``_map`` | the run: who waits for whom, and how it ends |
| ``_station`` | one worker's place: an item in, its line out |
| ``_output`` | lines in the order of the items, and the bound on memory |
| ``_progress``, ``_table`` | the bar; the table of workers over it |
| ``_tally`` | the summary |
| ``_doctor``, ``_probes`` | what a bug report needs |
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from .._process.processors import usable_processors
from ._exit import CommandError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_offload_worker._jobs.cli_items import Function

    from ._sources import Source

_DESCRIPTION = "Run Python functions in parallel worker processes."

_COMMANDS = """\
commands:
  map       call a function once for each item, in parallel; one line of JSON each
  doctor    show what a bug report needs, and whether all is well here

examples:
  trio-offload map os.path:getsize README.md pyproject.toml
  find . -name '*.py' | trio-offload map --lines - measure_source:measure
  trio-offload map --help
"""

_MAP_DESCRIPTION = """\
Call a function once for each item, in parallel worker processes.

MODULE:FUNCTION is imported in the workers, never in this process; the working directory is
importable, as with python -m. FUNCTION may be dotted: module:Class.method.
The function gets the item as its only argument."""

_MAP_DETAILS = """\
items (from one of these):
  arguments          each is an item, a text
  --lines FILE       each line is an item, without its line break; - is standard input
  --json-lines FILE  the value on each line is an item; blank lines are skipped

output: one line of JSON an item on standard output, in the order of the items, as soon as all
before it are there:
  {"item": ..., "ok": true, "value": ...}
  {"item": ..., "ok": true, "repr": "..."}      a value that JSON cannot hold
  {"item": ..., "ok": false, "error": {"type": ..., "message": ..., "traceback": ...}}
What the function itself prints goes to standard error; its standard input is empty.
A worker that dies is the failure of its item (BrokenWorkerError; "traceback" is what it left behind,
the Python stack above all), and so is one over its --timeout (TimeoutError) or over --memory-limit
(WorkerMemoryError); the rest go on.

progress and summary: where standard error is a terminal and the package rich is installed, a bar
and a table of the workers; and at the end what --summary prints anywhere: jobs, failures by kind,
workers used, the largest memory, wall and processor time.
SIZE is a number of bytes, or text like 500MiB or 2GB.

exit status:
  0    every item succeeded
  1    an item failed
  2    wrong usage: bad arguments, a function that cannot be imported, an unreadable file
  130  Ctrl+C: what was finished is printed, nothing is left running (143: SIGTERM)
  141  standard output was closed before the end

examples:
  trio-offload map os.path:getsize *.txt
  find . -name '*.py' | trio-offload map --lines - measure_source:measure
  trio-offload map --json-lines points.jsonl --workers 4 --timeout 10 model:fit > results.jsonl
  trio-offload map --lines files --memory-limit 2GB --retire-rss 500MiB --trace run.json mod:parse
  trio-offload map builtins:int -- -1 4
"""

_DOCTOR_DESCRIPTION = """\
Show what a bug report needs: versions, the platform, the worker executable and its libpython,
a trial call; and the problems found, with what to do. Exit status 0 if all is well, else 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: those of the process) and return its exit status.

    ``--help`` and ``--version`` raise :class:`SystemExit`, as they do everywhere.
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
        # Before a run watches signals, and after it, Ctrl+C is an exception like any other.
        if not _is_interrupt(error):
            raise
        status = ExitStatus.INTERRUPTED
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # nobody listens; that is no reason to fail
        _leave_closed_output(2)
    return int(status)


def _run(arguments: Sequence[str]) -> ExitStatus:
    chosen = _command_parser().parse_args(arguments)
    match chosen.command:
        case "map":
            return _run_map(chosen.rest)
        case "doctor":
            return _run_doctor(chosen.rest)
        case None:
            raise CommandError("which command? map or doctor (see trio-offload --help)")
        case other:
            raise CommandError(f"no such command: {other!r}; there are map and doctor (see trio-offload --help)")


def _run_map(arguments: Sequence[str]) -> ExitStatus:
    from ._map import MapOptions, run_map
    from ._station import Job

    # argparse is not asked about what follows "--": its own idea of it differs from one Python to the next.
    before, after = _split_at_dashes(arguments)
    chosen = _map_parser().parse_intermixed_args(before)
    words = [*chosen.words, *after]
    if not words:
        raise CommandError("which function? map MODULE:FUNCTION [ITEM ...] (see trio-offload map --help)")
    items = words[1:]
    options = MapOptions(
        job=Job(_function_named(words[0]), chosen.timeout),
        # For three items three workers are enough.
        workers=min(chosen.workers, len(items)) if items else chosen.workers,
        fail_fast=chosen.fail_fast,
        progress=not chosen.no_progress,
        path_entry=_working_directory(),
        summary=chosen.summary,
        memory_limit=chosen.memory_limit,
        retire_rss=chosen.retire_rss,
        retire_jobs=chosen.retire_jobs,
        trace=chosen.trace,
    )
    source = _open_source(items, chosen.lines, chosen.json_lines)
    try:
        return run_map(options, source)
    finally:
        source.close()


def _run_doctor(arguments: Sequence[str]) -> ExitStatus:
    from ._doctor import run_doctor

    chosen = _doctor_parser().parse_args(arguments)
    return run_doctor(as_json=chosen.json)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, by an exception."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str | None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def _command_parser() -> argparse.ArgumentParser:
    from trio_offload import __version__

    parser = _Parser("trio-offload", "%(prog)s [--version] COMMAND ...", _DESCRIPTION, _COMMANDS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    # Subparsers would take the positional arguments up to the first option and refuse those after it.
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _map_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "trio-offload map",
        "%(prog)s [options] MODULE:FUNCTION [ITEM ...]",
        _MAP_DESCRIPTION,
        _MAP_DETAILS,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--lines", metavar="FILE", help="take the lines of FILE as items; - is standard input")
    parser.add_argument("--json-lines", metavar="FILE", help="take the JSON values on the lines of FILE as items")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_worker_count,
        default=usable_processors(),
        help="worker processes (default: the processors that it may use, %(default)s here)",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="kill the worker of an item that takes longer than S seconds; the item has failed",
    )
    parser.add_argument(
        "--memory-limit",
        metavar="SIZE",
        type=_size,
        help="end an item that holds more, with the processes that it starts; the item has failed",
    )
    parser.add_argument(
        "--retire-rss",
        metavar="SIZE",
        type=_size,
        help="replace a worker that holds more after an item (for jobs that leak)",
    )
    parser.add_argument("--retire-jobs", metavar="N", type=_job_count, help="replace a worker after N items")
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write the run in the Chrome trace-event format, for https://ui.perfetto.dev or chrome://tracing",
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first item that fails")
    parser.add_argument("--no-progress", action="store_true", help="no bar, table or summary, also on a terminal")
    parser.add_argument("--summary", action="store_true", help="sum up on standard error at the end, terminal or not")
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    parser = _Parser("trio-offload doctor", "%(prog)s [--json]", _DOCTOR_DESCRIPTION, None)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


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
    hint = "; a module is given by its name, not by its path" if "/" in module else ""
    raise CommandError(f"not MODULE:FUNCTION: {target!r} (for example json:loads){hint}")


def _open_source(items: Sequence[str], lines: str | None, json_lines: str | None) -> Source:
    from ._sources import ArgumentSource, LineSource

    given = bool(items) + (lines is not None) + (json_lines is not None)
    if given == 0:
        raise CommandError("no items: give them as arguments, or --lines FILE, or --json-lines FILE")
    if given > 1:
        raise CommandError("items from one source only: arguments, or --lines FILE, or --json-lines FILE")
    if lines is not None:
        return LineSource(lines, "text")
    if json_lines is not None:
        return LineSource(json_lines, "json")
    return ArgumentSource(items)


def _working_directory() -> str | None:
    """What ``python -m`` puts in front of ``sys.path``; ``None`` where the user asked Python not to."""
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return None
    try:
        return os.getcwd()
    except OSError:  # it is gone; what needs it will say so
        return None


def _worker_count(text: str) -> int:
    return _count(text, "workers")


def _job_count(text: str) -> int:
    return _count(text, "items")


def _count(text: str, what: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"not a number of {what}: {text!r}")
    return count


def _size(text: str) -> int:
    from .._sizes import parse_size

    try:
        return parse_size(text, "SIZE")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"not a number of seconds above 0: {text!r}")
    return seconds


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens: the exit status says it still
        if sys.stderr is not None:
            print(f"trio-offload: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _is_interrupt(error: BaseException) -> bool:
    """Whether this is a KeyboardInterrupt, also in the groups that nurseries make (which Python 3.10 has no class for)."""
    within: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return isinstance(error, KeyboardInterrupt) or (bool(within) and all(map(_is_interrupt, within)))


def _fill_standard_descriptors() -> None:
    """Open what is closed of the descriptors 0, 1 and 2.

    Otherwise the next socket would get the number, and whoever prints would write into it. That it was closed is still to be
    seen: ``sys.stdin``, ``sys.stdout`` or ``sys.stderr`` is ``None``.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free: this one


def _leave_closed_output(descriptor: int) -> None:
    """Have what nobody reads go nowhere. The interpreter writes what is left once more at its end, and would exit with 120."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
