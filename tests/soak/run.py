"""The soak: programs that make calls of all kinds while their workers are killed, stopped and cancelled; what must never happen is counted.

    python tests/soak/run.py MINUTES SEED [--folder FOLDER]

One line a minute. Exit status 1 if anything was wrong: then the folder stays, with each program's complaints, marks, outcomes and
standard error. docs/reliability.md says what is done and what is counted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import attrs
from chaos import Chaos
from ledger import BROKEN, CANCELLED, GIVEN_UP, NOT_RUN, OVER_LIMIT, RAISED, RETURNED, TIMED_OUT, VIOLATIONS
from watched import Figures, Watched

_REST: Final = 20.0  # seconds between two rests
# A program that says nothing for so long does not come to a rest; its own watchdog has complained by then.
_SILENCE: Final = 240.0  # seconds
_STEP: Final = 0.1  # seconds
_MOST_TOLD: Final = 20  # problems that are printed

_COLUMNS: Final = {
    "calls": "calls",
    RETURNED: "returned",
    RAISED: "raised",
    CANCELLED: "cancelled",
    BROKEN: "broken",
    NOT_RUN: "not run",
    OVER_LIMIT: "over limit",
    TIMED_OUT: "timed out",
    GIVEN_UP: "given up",
}


@attrs.define
class Soak:
    seed: str
    minutes: float
    folder: Path
    chaos: Chaos = attrs.field(init=False)
    programs: list[Watched] = attrs.field(factory=list)
    problems: list[dict[str, object]] = attrs.field(factory=list)
    # Of programs that have been killed.
    counts: Counter[str] = attrs.field(factory=Counter)
    victim: tuple[Watched, float] | None = None
    killed_programs: int = 0

    def __attrs_post_init__(self) -> None:
        self.chaos = Chaos(random.Random(f"{self.seed} chaos"))

    def run(self) -> None:
        """Everything, to the last look at what is left."""
        seconds = f"{60 * self.minutes}"
        for name, more in (("native", []), ("loop", ["--loop", "--threads", "2"])):
            arguments = ["--seed", f"{self.seed} {name}", "--seconds", seconds, "--rest", f"{_REST}", *more]
            self.programs.append(Watched(name, self.folder, arguments))
        rng = random.Random(f"{self.seed} victims")
        began = time.monotonic()
        minute = 1
        looked = began
        print(_row(["minute", *_COLUMNS.values(), "kills", "stops", "parents", *VIOLATIONS, *map(_titled, self.programs)]))
        while any(program.process.poll() is None for program in self.programs):
            time.sleep(_STEP)
            now = time.monotonic()
            if now - began < 60 * self.minutes:
                self.chaos.step(self.programs)
                self._step_victim(rng, now)
            else:
                self.chaos.end()
            if now - looked > 2:
                looked = now
                self._look()
            if now - began >= 60 * minute:
                self._print(str(minute))
                minute += 1
            self._end_silent(now)
        self.chaos.end()
        self._end_victim()
        for program in self.programs:
            self._finish(program)
        self._print("all")

    def _add(self, problems: list[dict[str, object]]) -> None:
        """Take down what is wrong, and tell the first of it."""
        with (self.folder / "problems").open("a") as file:
            for problem in problems:
                print(json.dumps(problem), file=file)
                self.problems.append(problem)
                if len(self.problems) <= _MOST_TOLD:
                    text = f"{problem['kind']}: {problem['program']}, call {problem['number']}: {problem['text']}"
                    print(text, file=sys.stderr, flush=True)

    def _look(self) -> None:
        for program in self.programs:
            self._add(program.look())

    def end(self) -> None:
        """Leave nothing, however it came to this."""
        self.chaos.end()
        for program in [*self.programs, *([self.victim[0]] if self.victim else [])]:
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait()
                program.left()

    def _finish(self, program: Watched) -> None:
        left = program.left()
        program.close()
        self._add(left + program.look() + program.judge.twice() + program.unanswered() + program.growth())
        if program.process.returncode:
            self._add([program.problem("undocumented", f"it ended with {program.process.returncode}")])

    def _end_silent(self, now: float) -> None:
        for program in self.programs:
            if now - program.heard > _SILENCE and program.process.poll() is None:
                self.problems.append(
                    program.problem("hung", "it has not come to a rest; its stacks are in its standard error")
                )
                program.process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                program.process.kill()

    # --- programs that are killed themselves -----------------------------------------------------

    def _step_victim(self, rng: random.Random, now: float) -> None:
        """One after the other is started, and killed some seconds later, wherever it is."""
        if self.victim is None:
            name = f"victim-{self.killed_programs}"
            # Half of them have workers that are loops.
            arguments = ["--seed", f"{self.seed} {name}", "--seconds", "600", "--rest", "600", "--threads", "1"]
            if rng.random() < 0.5:
                arguments.append("--loop")
            self.victim = Watched(name, self.folder, arguments), now + rng.uniform(1, 8)
        elif now >= self.victim[1]:
            self._end_victim()

    def _end_victim(self) -> None:
        if self.victim is None:
            return
        program, _ = self.victim
        self.victim = None
        self.killed_programs += 1
        program.process.kill()
        program.process.wait()
        problems = program.left()
        program.close()
        problems += program.look() + program.judge.twice()
        self._add(problems)
        self.counts.update(program.judge.counts)
        if not problems:
            shutil.rmtree(program.files.folder)

    # --- the table -------------------------------------------------------------------------------

    def _print(self, minute: str) -> None:
        counts = Counter(self.counts)
        for program in self.programs:
            counts.update(program.judge.counts)
        kinds = Counter(str(problem["kind"]) for problem in self.problems)
        cells = [minute, *(counts[name] for name in _COLUMNS), *(self.chaos.counts[name] for name in ("kills", "stops"))]
        cells += [self.killed_programs, *(kinds[kind] for kind in VIOLATIONS)]
        cells += [_shown(program.figures[-1] if program.figures else program.at_first) for program in self.programs]
        print(_row(list(map(str, cells))), flush=True)


def _titled(program: Watched) -> str:
    return f"{program.name}: fds/children/zombies/threads/MB"


def _shown(figures: Figures | None) -> str:
    return "" if figures is None else "/".join(map(str, attrs.astuple(figures)[:5]))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Load, kill, stop and cancel for so many minutes, and count what goes wrong."
    )
    parser.add_argument("minutes", type=float, metavar="MINUTES")
    parser.add_argument("seed", metavar="SEED")
    parser.add_argument("--folder", type=Path, help="where the programs write; it stays")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(arguments.seed, arguments.minutes, folder)
    # Whoever ends this ends all of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        soak.run()
    finally:
        soak.end()
    if soak.problems:
        sys.exit(
            f"{len(soak.problems)} problems, all in {folder}/problems; again with: ci/soak {arguments.minutes:g} {arguments.seed}"
        )
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
