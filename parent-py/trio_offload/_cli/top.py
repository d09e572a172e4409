"""``trio-offload top``: the workers of a running program, as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import attrs

from .._top.programs import NoProgram, find_program, find_programs
from .._top.sampler import Sample, Sampler
from .exit_status import CommandError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._top.programs import Program

DEFAULT_INTERVAL: Final = 1.0  # seconds
# Seconds of a single sample: its processor use is measured in them.
_ONCE: Final = 0.2
_NONE: Final = "no program of this user shows workers of trio-offload"


@attrs.frozen
class TopOptions:
    """The arguments of the command."""

    pid: int | None
    as_json: bool
    once: bool
    interval: float | None


def run_top(options: TopOptions) -> ExitStatus:
    """Show the program with the given ID, or all programs of this user."""
    is_live = not options.once and (options.interval is not None or (sys.stdout.isatty() and not options.as_json))
    if not options.as_json and find_spec("rich") is None:
        raise CommandError("the table needs rich: pip install 'trio-offload[cli]'. Without it: --json")
    programs = _chosen_programs(options.pid)
    if len(programs) > 1 and not options.as_json:
        return _list_programs(programs)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            if options.as_json:
                _print_json(programs, (options.interval or DEFAULT_INTERVAL) if is_live else None)
            elif is_live and sys.stdout.isatty():
                _show_live(programs[0], options.interval or DEFAULT_INTERVAL)
            else:
                _print_tables(programs[0], (options.interval or DEFAULT_INTERVAL) if is_live else None)
    except NoProgram as error:
        raise CommandError(str(error)) from None
    return ExitStatus.OK


def _chosen_programs(pid: int | None) -> list[Program]:
    if pid is None:
        programs = find_programs()
        if not programs:
            raise CommandError(_NONE)
        return programs
    try:
        return [find_program(pid)]
    except NoProgram as error:
        raise CommandError(str(error)) from None


def _list_programs(programs: list[Program]) -> ExitStatus:
    from .top_table import console_of, table_of_programs

    samples = [Sampler(program).sample() for program in programs if program.is_running()]
    # The workers of one may have ended since it was found.
    shown = [sample for sample in samples if sample.workers]
    if not shown:
        raise CommandError(_NONE)
    console = console_of(sys.stdout)
    console.print(table_of_programs(shown, fits=console.is_terminal))
    print("Choose one: trio-offload top PID")
    return ExitStatus.OK


def _print_json(programs: list[Program], interval: float | None) -> None:
    def put(sample: Sample) -> None:
        print(json.dumps(sample.as_json()), flush=True)

    _sample_all([Sampler(program) for program in programs], interval, put)


def _print_tables(program: Program, interval: float | None) -> None:
    from .top_table import console_of, heading_of, table_of_workers

    console = console_of(sys.stdout)

    def put(sample: Sample) -> None:
        console.print(heading_of(sample))
        console.print(table_of_workers(sample, fits=console.is_terminal))
        sys.stdout.flush()

    _sample_all([Sampler(program)], interval, put)
    if interval is not None:
        print(_farewell(program))


def _show_live(program: Program, interval: float) -> None:
    from rich.live import Live

    from .top_table import console_of, page_of

    console = console_of(sys.stdout)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        _sample_all(
            [Sampler(program)],
            interval,
            lambda sample: live.update(page_of(sample, console.size.height), refresh=True),
        )
    print(_farewell(program))


def _sample_all(samplers: list[Sampler], interval: float | None, put: Callable[[Sample], None]) -> None:
    """Take samples until all programs have ended; a single one of each without an interval.

    Raises:
        NoProgram: all programs have ended before the single one.
    """
    programs = [sampler.program for sampler in samplers]
    for sampler in samplers:
        sampler.sample()
    next_at = time.monotonic()
    wait = _ONCE
    has_put = False
    while True:
        # A program that is slow to read must not shift the times of all later samples.
        next_at = max(next_at + wait, time.monotonic())
        time.sleep(max(next_at - time.monotonic(), 0))
        for sampler in samplers:
            sample = sampler.sample()
            if sampler.program.is_running():
                put(sample)
                has_put = True
        samplers = [sampler for sampler in samplers if sampler.program.is_running()]
        if interval is None and not has_put:
            raise NoProgram(" and ".join(f"process {program.pid}" for program in programs) + " ended meanwhile")
        if interval is None or not samplers:
            return
        wait = interval


def _farewell(program: Program) -> str:
    return f"Process {program.pid} has ended."
