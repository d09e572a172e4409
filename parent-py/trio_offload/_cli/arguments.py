"""The arguments of the commands, and the text of ``--help``."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

from .._process.processors import usable_processors
from .._sizes import parse_levels, parse_size
from .exit_status import CommandError

_DESCRIPTION = "Run Python functions in parallel worker processes."

_COMMANDS = """\
commands:
  map       call a function for each item, in parallel; print one line of JSON per item
  report    show a traced run as an HTML page
  top       show the workers of a running program
  doctor    show the facts for a bug report, and the problems of this installation

examples:
  trio-offload map json:loads '[1, 2]' '{"a": null}'
  seq 20 | trio-offload map --json-lines - math:factorial
  trio-offload map --help
"""

_MAP_DESCRIPTION = """\
Call a function once for each item, in parallel worker processes.

Only the workers import MODULE. The working directory is importable, as with python -m.
FUNCTION may be dotted: module:Class.method. It takes one argument, the item."""

_MAP_DETAILS = """\
items (from one of these):
  arguments          each argument is an item, a string
  --lines FILE       each line is an item, a string without its line break; - is standard input
  --json-lines FILE  the JSON value on each line is an item; blank lines are skipped

output: one line of JSON per item on standard output, in the order of the items, as soon as the
lines before it are printed. --unordered prints each line as soon as its item is finished.
  {"item": ..., "ok": true, "value": ..., FIGURES}
  {"item": ..., "ok": true, "repr": "...", FIGURES}      a value that JSON cannot hold
  {"item": ..., "ok": false, "error": {"type": ..., "message": ..., "traceback": ...}, FIGURES}
FIGURES are "seconds", "peak_rss" (bytes of memory), "pid" of the worker, and "tries".
The function's own output goes to standard error; its standard input is empty.

failures: if a worker dies, its item fails with BrokenWorkerError. An item that exceeds --timeout
fails with WorkerTimeoutError, one that exceeds --memory-limit with WorkerMemoryError. "traceback"
has the Python stack of that moment. The other items continue. --retries tries these items again,
but not an item whose function raised an exception.

resume: --resume FILE leaves out the items that have a line with "ok": true in FILE, the output of
earlier runs. With --resume FILE >> FILE, one command starts a run and continues it later.

progress and summary: if standard error is a terminal and the package rich is installed, it shows a
progress bar, a table of the workers, and a summary at the end: jobs, failures by kind, workers,
peak memory, wall and processor time. --summary prints the summary anywhere.
SIZE is a number of bytes, or a text such as 500M or 2GiB (powers of 1024), or 2GB (of 1000).

exit status:
  0    every item succeeded, or was left out by --resume
  1    an item failed
  2    a wrong argument, a function that cannot be called, an unreadable file
  130  Ctrl+C: finished items are printed, no worker is left running
  141  the reader closed standard output before the end
  143  SIGTERM: as Ctrl+C

examples:
  trio-offload map json:loads '[1, 2]' '{"a": null}'
  seq 20 | trio-offload map --json-lines - math:factorial --unordered
  ls -A | trio-offload map --lines - os.path:getsize --timeout 10 --retries 2 > sizes.jsonl
  ls -A | trio-offload map --lines - os.path:getsize --resume sizes.jsonl >> sizes.jsonl
  trio-offload map builtins:int --memory-limit 2GB --retire-rss 500MiB --trace run.json -- -1 4
"""

_REPORT_DESCRIPTION = """\
Show a traced run as one HTML page, which needs no network: what each worker did, its memory, the
durations of jobs, the failures with their tracebacks. It needs plotly: trio-offload[report]."""

_TOP_DESCRIPTION = """\
Show the workers of a running program of this user: state, processor, memory, jobs, age, function.
The program needs no line for this, and its event loop may be busy. Without PID: the program of this
user that has workers, or a list if there are several.

On a terminal the table is renewed until the program ends, or until Ctrl+C. Otherwise, and with
--json, it is printed once; --interval repeats it. The table needs rich: trio-offload[cli].

A program that is started with TRIO_OFFLOAD_TOP=0 is not shown."""

_TOP_DETAILS = """\
json: one line for each program and sample
  {"time": seconds since 1970, "pid": ..., "command": ..., "workers": [
    {"pid": ..., "context": ..., "state": "idle" or "running", "function": ..., "progress": ...,
     "jobs": ..., "rss": ..., "peak_rss": ..., "vms": ..., "cpu_time": ..., "cpu_percent": ...,
     "age": ...}, ...]}
Memory is in bytes, cpu_time and age are in seconds. A field is null if it is unknown."""

_DOCTOR_DESCRIPTION = """\
Show the facts for a bug report: versions, the platform, the worker executable and its libpython,
a trial call. Problems are listed with their remedies. Exit status 0 without problems, else 1."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises CommandError, whose message is one line."""

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
        if message.endswith("lines: expected one argument"):
            message += ": a file, or - for standard input"
        raise CommandError(f"{message} (see {self.prog} --help)")


def command_parser() -> argparse.ArgumentParser:
    from trio_offload import __version__

    parser = _Parser("trio-offload", "%(prog)s [--version] COMMAND ...", _DESCRIPTION, _COMMANDS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    # Subparsers would reject positional arguments after the first option.
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def map_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "trio-offload map",
        "%(prog)s [options] MODULE:FUNCTION [ITEM ...]",
        _MAP_DESCRIPTION,
        _MAP_DETAILS,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    _add_data_options(parser)
    _add_worker_options(parser)
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first item that fails")
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write a trace of the run for https://ui.perfetto.dev or chrome://tracing",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write an HTML page about the run: workers, memory, durations, failures (needs trio-offload[report])",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        type=_level,
        help="print log records of the function on standard error, from LEVEL on: debug, info, warning, a number",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no bar, table or summary on a terminal")
    parser.add_argument("--summary", action="store_true", help="print a summary on standard error at the end")
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", metavar="FILE", help="use the lines of FILE as items; - is standard input")
    parser.add_argument(
        "--json-lines", metavar="FILE", help="use the JSON values on the lines of FILE as items; - is standard input"
    )
    parser.add_argument(
        "--resume",
        metavar="FILE",
        action="append",
        default=[],
        help="leave out the items that have a line with ok in FILE, the output of earlier runs",
    )
    parser.add_argument("--unordered", action="store_true", help="print each line as soon as its item is finished")


def _add_worker_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_worker_count,
        default=usable_processors(),
        help="number of worker processes (default: the usable processors, %(default)s here)",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="kill the worker of an item that takes longer than S seconds; the item fails",
    )
    parser.add_argument(
        "--grace",
        metavar="S",
        type=_seconds,
        help="give an item S seconds to end by itself after --timeout or Ctrl+C (default: kill it at once)",
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=_retry_count,
        default=0,
        help="try an item again, up to N times, if its worker died or it took too long (default: 0)",
    )
    parser.add_argument(
        "--memory-limit",
        metavar="SIZE",
        type=_size,
        help="kill the worker of an item that uses more memory, child processes included; the item fails",
    )
    parser.add_argument(
        "--retire-rss",
        metavar="SIZE",
        type=_size,
        help="replace a worker that uses more memory after an item (for functions that leak)",
    )
    parser.add_argument("--retire-jobs", metavar="N", type=_job_count, help="replace a worker after N items")


def report_parser() -> argparse.ArgumentParser:
    parser = _Parser("trio-offload report", "%(prog)s [--output FILE] TRACE", _REPORT_DESCRIPTION, None)
    parser.add_argument("trace", metavar="TRACE", help="the file of --trace, or of a context's trace=")
    parser.add_argument("--output", "-o", metavar="FILE", help="the page (default: TRACE with the suffix .html)")
    return parser


def top_parser() -> argparse.ArgumentParser:
    parser = _Parser("trio-offload top", "%(prog)s [options] [PID]", _TOP_DESCRIPTION, _TOP_DETAILS)
    parser.add_argument("pid", metavar="PID", nargs="?", type=_process_id, help="the program (default: the only one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per sample, on one line")
    how_often = parser.add_mutually_exclusive_group()
    how_often.add_argument("--once", action="store_true", help="print one sample, also on a terminal")
    how_often.add_argument(
        "--interval", metavar="S", type=_seconds, help="repeat every S seconds (default on a terminal: 1)"
    )
    return parser


def doctor_parser() -> argparse.ArgumentParser:
    parser = _Parser("trio-offload doctor", "%(prog)s [--json]", _DOCTOR_DESCRIPTION, None)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _process_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"must be the ID of a process, got {text!r}")
    return int(text)


def _worker_count(text: str) -> int:
    return _count(text, "workers")


def _job_count(text: str) -> int:
    return _count(text, "items")


def _retry_count(text: str) -> int:
    return _count(text, "retries", 0)


def _count(text: str, what: str, least: int = 1) -> int:
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < least:
        raise argparse.ArgumentTypeError(f"must be a number of {what}, {least} or more, got {text!r}")
    return count


def _level(text: str) -> int:
    try:
        levels = parse_levels(int(text) if text.isdigit() else text.upper())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a level such as info, got {text!r}") from error
    return levels[""] if levels else 0


def _size(text: str) -> int:
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
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds
