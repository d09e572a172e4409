"""A program of the soak, seen from outside: its events, what its calls have come to, and what it leaves."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final

import attrs
import processes
from ledger import BROKEN, Death, Files, Judge
from marked_jobs import CALL
from processes import Process

PROGRAM: Final = Path(__file__).with_name("program.py")
VARIABLE: Final = "SOAK_PROGRAM"
LEAVING_TIME: Final = (
    10.0  # seconds that what a program leaves has to end; a second is the rule, on a busy machine it takes longer
)
# A start that failed so soon after a kill was hit by it, though the error does not say which process it was.
_EXPLAINS: Final = 10.0  # seconds

# What a program may have at a rest beside what it began with. A worker takes three open files, a template as many, and one that is
# forked ahead too; the fourth is for what is just being closed.
DESCRIPTORS_A_CHILD: Final = 4
# Whoever has died idle is reaped when the context is used next: a template, one that is forked ahead, and a few that were idle.
MOST_ZOMBIES: Final = 6
# Freed memory that the C library keeps for want of a whole free page run, and payloads that Trio's or Python's last frames hold: one
# largest payload and a bit.
MEMORY_GROWTH: Final = 64  # MB


@attrs.frozen
class Figures:
    descriptors: int
    children: int
    zombies: int
    threads: int
    memory: int
    # Those that were zombies at the rest before too.
    lasting_zombies: int


class Watched:
    """A program that has been started."""

    def __init__(self, name: str, folder: Path, arguments: list[str]) -> None:
        self.name = name
        self.files = Files(folder / name)
        self.files.create()
        self.judge = Judge(name, self.files)
        self.at_first: Figures | None = None
        self.figures: list[Figures] = []
        self.heard = time.monotonic()
        # Who has been killed here, and when.
        self.killed: dict[int, float] = {}
        self.chaos = threading.Lock()
        self.resting = False
        self._zombies: set[int] = set()
        self._stderr = (self.files.folder / "stderr").open("wb")
        environment = {**_environment(), VARIABLE: self._mark}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--folder", str(self.files.folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def _mark(self) -> str:
        return str(self.files.folder)

    def close(self) -> None:
        """Close the files. What the program has left must have been ended: it would hold the other ends."""
        self._listener.join()
        for file in (self.process.stdin, self.process.stdout, self._stderr):
            assert file is not None
            file.close()

    def _listen(self) -> None:
        answers: IO[str] | None = self.process.stdin
        events: IO[str] | None = self.process.stdout
        assert answers is not None
        assert events is not None
        for line in events:
            event: dict[str, Any] = json.loads(line)
            self.heard = time.monotonic()
            kind = event.pop("event")
            if kind == "rests":
                with self.chaos:
                    self.resting = True
                try:
                    print(file=answers, flush=True)
                except BrokenPipeError:
                    return
                continue
            zombies = set(event.pop("zombies"))
            figures = Figures(**event, zombies=len(zombies), lasting_zombies=len(zombies & self._zombies))
            self._zombies = zombies
            if kind == "begins":
                self.at_first = figures
            else:
                self.figures.append(figures)
                self.resting = False

    # --- judgement -------------------------------------------------------------------------------

    def look(self) -> list[dict[str, object]]:
        """What is wrong about what has happened since the last time."""
        wrong = self.judge.read()
        deaths, self.judge.unexplained = self.judge.unexplained, []
        return wrong + [
            self.problem("undocumented", f"nobody has killed process {death.pid}: {death.text}", death.number)
            for death in deaths
            if not self._explains(death)
        ]

    def _explains(self, death: Death) -> bool:
        if death.pid in self.killed:
            return True
        latest = max(self.killed.values(), default=-_EXPLAINS)
        return death.how != BROKEN and time.monotonic() - latest < 2 * _EXPLAINS

    def growth(self) -> list[dict[str, object]]:
        """What has grown over the rests."""
        first = self.at_first
        if first is None or not self.figures:
            return [self.problem("growth", "it has told no figures")]
        wrong = []
        for number, now in enumerate(self.figures, 1):
            if now.lasting_zombies or now.zombies > MOST_ZOMBIES:
                wrong.append(f"{now.zombies} zombies at rest {number}, {now.lasting_zombies} of them for longer")
            most = first.descriptors + DESCRIPTORS_A_CHILD * (now.children + 1)
            if now.descriptors > most:
                wrong.append(
                    f"{now.descriptors} descriptors with {now.children} children at rest {number}, more than {most}"
                )
            if now.threads > first.threads:
                wrong.append(f"{now.threads} threads at rest {number}, {first.threads} at first")
        # The first third is the warm-up: code, caches, and the peak of what is held at once.
        third = len(self.figures) // 3
        if third:
            begin = max(figures.memory for figures in self.figures[:third])
            end = statistics.median(figures.memory for figures in self.figures[-third:])
            if end > begin + MEMORY_GROWTH:
                wrong.append(f"memory at rest rose from {begin} to {end} MB, by more than {MEMORY_GROWTH}")
            begin = max(figures.children for figures in self.figures[:third])
            end = statistics.median(figures.children for figures in self.figures[-third:])
            if end > 2 * begin + 4:
                wrong.append(f"children at rest rose from {begin} to {end}")
        return [self.problem("growth", text) for text in wrong]

    def unanswered(self) -> list[dict[str, object]]:
        """The calls that have not come to an end, of a program that has."""
        return [self.problem("lost", "it neither returned nor raised", number) for number in self.judge.unanswered()]

    def left(self) -> list[dict[str, object]]:
        """End what the program has left, once it had time to; a complaint for each that had no right to be there."""
        deadline = time.monotonic() + LEAVING_TIME
        wrong = []
        while True:
            wrong += self.look()
            there = processes.with_variable(VARIABLE, self._mark)
            strangers = [process for process in there if not self._may_live(process)]
            if not strangers or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        wrong += [
            self.problem(
                "left", f"process {process.pid} ({process.state}, of {process.parent}): {processes.command(process.pid)}"
            )
            for process in strangers
        ]
        for process in there:
            processes.send(process, signal.SIGKILL)
        return wrong

    def _may_live(self, process: Process) -> bool:
        """Whether it is a program that a job had left behind when it ended."""
        number = processes.variable(process.pid, CALL)
        return number is not None and self.judge.has_ended(int(number))

    def problem(self, kind: str, text: str, number: int = 0) -> dict[str, object]:
        return {"program": self.name, "kind": kind, "number": number, "time": time.time(), "text": text}


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
