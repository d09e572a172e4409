"""Which jobs there are, and what is right for each."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import marked_jobs as jobs

LARGEST_PAYLOAD: Final = 50_000_000
MEMORY_LIMIT: Final = 600_000_000

# What the worker may raise in place of an exception that does not travel, or that no coroutine can raise.
STAND_INS: Final = ("RemoteError", "RuntimeError")
# These would end the program, so a JobExitError carries them.
EXITS: Final = ("SystemExit", "KeyboardInterrupt", "GeneratorExit")


@attrs.frozen
class Job:
    """A function with its arguments, and what has to come of it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    # What it returns; None: `check` judges that.
    value: Any = None
    check: Callable[[Any], bool] | None = None
    # The name of the exception that it raises.
    raises: str | None = None
    # It is the end of its worker.
    ends_worker: bool = False
    # It takes more memory than the context allows.
    grows: bool = False
    # It has no end: the call has to be cancelled.
    endless: bool = False
    # Where it writes which programs it has started, if those must not outlive the call.
    family: Path | None = None

    def is_right(self, value: Any) -> bool:
        """Whether this is what the job had to return."""
        if self.raises is not None or self.ends_worker or self.endless:
            return False
        if self.grows:
            # The ceiling is held by a process or thread of its own, which may have been killed.
            return True
        return bool(value == self.value) if self.check is None else self.check(value)

    def may_raise(self, error: BaseException) -> bool:
        """Whether this is what the job had to raise."""
        name = type(error).__name__
        if self.raises is None:
            return False
        if self.raises in EXITS:
            return name == "JobExitError" and type(error.__cause__).__name__ == self.raises
        return name == self.raises or (name in STAND_INS and self.raises in str(error))


def quick(rng: random.Random) -> Job:
    number = rng.randrange(1000)
    return Job(jobs.double, (number,), 2 * number)


def choose(rng: random.Random, number: int, *, limited: bool, folder: Path) -> Job:
    """A job for the call of that number."""
    kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    if kind == "grow" and not limited:
        kind = "nap"
    if kind == "nap":
        seconds = rng.choice([0.001, 0.01, 0.1, 0.4])
        return Job(jobs.nap, (seconds,), seconds)
    if kind == "spin":
        seconds = rng.choice([0.001, 0.01, 0.05])
        return Job(jobs.spin, (seconds,), seconds)
    if kind == "gil":
        count = rng.choice([1_000, 100_000, 2_000_000])
        return Job(jobs.hold_the_gil, (count,), count * (count - 1) // 2)
    if kind == "payload":
        return _payload(rng)
    if kind == "raise":
        name = rng.choice(_ODD)
        return Job(jobs.raise_odd, (name,), raises=name)
    if kind == "end":
        return Job(jobs.end_worker, (rng.choice(["exit", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"]),), ends_worker=True)
    if kind == "grow":
        return Job(jobs.grow, (MEMORY_LIMIT,), grows=True)
    if kind == "program":
        return Job(jobs.run_program, (), check=lambda status: status == 3 or status < 0)
    if kind == "leave":
        return Job(jobs.leave_program, (number, rng.random() < 0.5), check=lambda pid: pid >= 0)
    if kind == "endless":
        return Job(rng.choice([jobs.sleep_for_ever, jobs.spin_for_ever]), endless=True)
    if kind == "family":
        file = folder / f"family-{number}"
        return Job(jobs.start_family_and_sleep, (number, str(file)), endless=True, family=file)
    return quick(rng)


def for_map(rng: random.Random, *, hangs: bool) -> Job:
    """A job for an item of a map; `hangs`: one that takes too long may be among them."""
    chance = rng.random()
    if chance < 0.02:
        return Job(jobs.raise_odd, ("ValueError",), raises="ValueError")
    if chance < 0.025:
        return Job(jobs.end_worker, ("SIGKILL",), ends_worker=True)
    if chance < 0.04:
        return Job(jobs.nap, (0.02,), 0.02)
    if chance < 0.05 and hangs:
        return Job(jobs.sleep_for_ever, endless=True)
    return quick(rng)


def _payload(rng: random.Random) -> Job:
    """Data in one direction or both, mostly small."""
    # Half of them below 100 kB, one in fifty about the largest.
    size = int(10 ** rng.uniform(1, 7.7)) if rng.random() < 0.5 else rng.randrange(100_000)
    size = min(size, LARGEST_PAYLOAD)
    kind = rng.choice(["bytes", "bytearray", "list", "text", "array"])
    arguments = (kind, size, rng.randrange(1000))
    data = jobs.payload(*arguments)
    digest = jobs.digest(data)
    way = rng.choice(["there", "back", "both"])
    if way == "there":
        return Job(jobs.digest, (data,), digest)
    if way == "back":
        return Job(jobs.payload, arguments, check=lambda value: jobs.digest(value) == digest)
    return Job(jobs.same, (data,), check=lambda value: jobs.digest(value) == digest)


_WEIGHTS: Final = {
    "quick": 60,
    "nap": 10,
    "spin": 5,
    "gil": 4,
    "payload": 14,
    "raise": 8,
    "end": 1,
    "grow": 4,
    "program": 3,
    "leave": 0.5,
    "endless": 2,
    "family": 1,
}
_ODD: Final = [
    "TwoArguments",
    "Unpicklable",
    "RecursionError",
    "ZeroDivisionError",
    "KeyError",
    "ValueError",
    "SystemExit",
    "KeyboardInterrupt",
    "MemoryError",
    "GeneratorExit",
]
