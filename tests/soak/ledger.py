"""What has become of each call: written by the program that makes the calls, judged by the one that watches it.

The calls of a program are numbered. It writes a line for each call that has ended; the jobs leave their marks in another file.
Neither keeps anything in the memory of the program, whose growth is watched.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

import attrs
from marked_jobs import BEGAN, ENDED, MARKS

from trio_offload import BrokenWorkerError

# How a call ended. Behind each: how often its job may have begun, and ended.
RETURNED, RAISED, CANCELLED, BROKEN, OVER_LIMIT, NOT_RUN, TIMED_OUT, GIVEN_UP = "RXCKMNTG"
MAY_BEGIN: Final = {
    RETURNED: {1},
    RAISED: {1},
    CANCELLED: {0, 1},
    BROKEN: {0, 1},
    OVER_LIMIT: {1},
    NOT_RUN: {0},
    TIMED_OUT: {0, 1},
    GIVEN_UP: {0, 1},
}
NAMES: Final = {
    RETURNED: "returned",
    RAISED: "raised",
    CANCELLED: "cancelled",
    BROKEN: "broken",
    OVER_LIMIT: "over limit",
    NOT_RUN: "not run",
    TIMED_OUT: "timed out",
    GIVEN_UP: "given up",
}
MUST_HAVE_ENDED: Final = {RETURNED, RAISED}
UNANSWERED: Final = "A"

VIOLATIONS: Final = ("lost", "twice", "wrong", "hung", "undocumented", "outlived", "left", "growth")


@attrs.frozen
class Files:
    """Where a program's marks, outcomes and complaints are."""

    folder: Path

    @property
    def marks(self) -> Path:
        return self.folder / "marks"

    @property
    def outcomes(self) -> Path:
        return self.folder / "outcomes"

    @property
    def complaints(self) -> Path:
        return self.folder / "complaints"

    def create(self) -> None:
        self.folder.mkdir(parents=True)
        for file in (self.marks, self.outcomes, self.complaints):
            file.touch()


class Writer:
    """The side of the program that makes the calls. For several threads."""

    def __init__(self, files: Files) -> None:
        self._numbers = itertools.count(1)
        self._outcomes = os.open(files.outcomes, os.O_WRONLY | os.O_APPEND)
        self._complaints = os.open(files.complaints, os.O_WRONLY | os.O_APPEND)
        self._lock = threading.Lock()
        os.environ[MARKS] = str(files.marks)

    def next_call(self) -> int:
        with self._lock:
            number = next(self._numbers)
        os.write(self._outcomes, b"%s %d\n" % (UNANSWERED.encode(), number))
        return number

    def ended(self, number: int, how: str) -> None:
        """Write down how a call ended."""
        os.write(self._outcomes, f"{how} {number}\n".encode())

    def died(self, number: int, how: str, error: BrokenWorkerError, *, expected: bool = False) -> None:
        """Write down that a worker died, in a call or (number 0) outside of one. `expected`: the job was to end it."""
        text = "" if expected else f" {error.pid or 0} {json.dumps(str(error))}"
        os.write(self._outcomes, f"{how} {number}{text}\n".encode())

    def complain(self, kind: str, number: int, text: str) -> None:
        """Write down what must not have happened."""
        record = {"kind": kind, "number": number, "time": time.time(), "text": text}
        os.write(self._complaints, json.dumps(record).encode() + b"\n")


@attrs.define
class _Tail:
    """The whole lines that have been added to a file."""

    path: Path
    _position: int = 0
    _rest: bytes = b""

    def lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode() for line in lines]


@attrs.frozen
class Death:
    """A worker that died in a call, or could not be started."""

    number: int
    how: str
    pid: int
    text: str


class Judge:
    """The side that watches: reads both files, and says what is wrong."""

    def __init__(self, name: str, files: Files) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.unexplained: list[Death] = []
        self._marks, self._outcomes, self._complaints = map(_Tail, (files.marks, files.outcomes, files.complaints))
        # For each call by its number: how often its job began and ended, and how it came out.
        self._began, self._ended, self._how = bytearray(), bytearray(), bytearray()

    def read(self) -> list[dict[str, object]]:
        """Take in what is new; what is wrong about it."""
        # The outcomes first: the marks of a call are older than its outcome.
        outcomes = self._outcomes.lines()
        for line in self._marks.lines():
            self._take_mark(line)
        wrong = [problem for line in outcomes if (problem := self._take_outcome(line)) is not None]
        wrong += [{"program": self.name, **json.loads(line)} for line in self._complaints.lines()]
        return wrong

    def twice(self) -> list[dict[str, object]]:
        """The calls whose jobs have begun more than once."""
        return [
            self._problem("twice", number, f"its job began {count} times")
            for number, count in enumerate(self._began)
            if count > 1
        ]

    def unanswered(self) -> list[int]:
        """The calls that have not come to an end."""
        return [number for number, how in enumerate(self._how) if how == ord(UNANSWERED)]

    def has_ended(self, number: int) -> bool:
        """Whether the call's job has done its part."""
        return number < len(self._ended) and self._ended[number] > 0

    def _take_mark(self, line: str) -> None:
        kind, number_text = line.split()
        number = int(number_text)
        self._make_room(number)
        if kind == BEGAN:
            self._began[number] = min(self._began[number] + 1, 255)
        elif kind == ENDED:
            self._ended[number] = min(self._ended[number] + 1, 255)

    def _take_outcome(self, line: str) -> dict[str, object] | None:
        how, number_text, *rest = line.split(" ", 3)
        number = int(number_text)
        if how == UNANSWERED:
            self._make_room(number)
            self._how[number] = ord(how)
            self.counts["calls"] += 1
            return None
        if rest:
            self.unexplained.append(Death(number, how, int(rest[0]), json.loads(rest[1])))
        if number == 0:
            return None
        self.counts[how] += 1
        self._how[number] = ord(how)
        began, ended = self._began[number], self._ended[number]
        if began > 1:
            return self._problem("twice", number, f"its job began {began} times; it {NAMES[how]}")
        if began not in MAY_BEGIN[how]:
            return self._problem("lost", number, f"it {NAMES[how]}, and its job began {began} times")
        if how in MUST_HAVE_ENDED and ended != 1:
            return self._problem("lost", number, f"it {NAMES[how]}, and its job ended {ended} times")
        return None

    def _make_room(self, number: int) -> None:
        missing = number + 1 - len(self._how)
        if missing > 0:
            for column in (self._began, self._ended, self._how):
                column.extend(bytes(missing + 1000))

    def _problem(self, kind: str, number: int, text: str) -> dict[str, object]:
        return {"program": self.name, "kind": kind, "number": number, "time": time.time(), "text": text}
