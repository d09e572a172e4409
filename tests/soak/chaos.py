"""Who is killed, stopped and continued, and when: at random."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from typing import Final

import attrs
import processes
from processes import Process
from watched import Watched

_PAUSE: Final = 0.4  # seconds between two signals to one program, on average
_LONGEST_STOP: Final = 2.0  # seconds
_ACTIONS: Final = {
    signal.SIGKILL: 10,
    signal.SIGTERM: 3,
    signal.SIGSEGV: 3,
    signal.SIGSTOP: 6,
}


@attrs.define
class Chaos:
    """Signals to the processes below some programs."""

    rng: random.Random
    counts: Counter[str] = attrs.field(factory=Counter)
    _stopped: list[tuple[float, Process]] = attrs.field(factory=list)
    _next: dict[str, float] = attrs.field(factory=dict)

    def step(self, programs: list[Watched]) -> None:
        """Do what is due."""
        now = time.monotonic()
        self._continue(now)
        for program in programs:
            due = self._next.setdefault(program.name, now + self._pause())
            if now < due or program.process.poll() is not None:
                continue
            self._next[program.name] = now + self._pause()
            with program.chaos:
                if not program.resting:
                    self._hit(program, now)

    def end(self) -> None:
        """Nobody stays stopped."""
        self._continue(float("inf"))

    def _hit(self, program: Watched, now: float) -> None:
        candidates = processes.descendants(program.process.pid)
        if not candidates:
            return
        victim = self.rng.choice(candidates)
        (number,) = self.rng.choices(list(_ACTIONS), list(_ACTIONS.values()))
        if number != signal.SIGSTOP:
            # Before it, so that no ending is read without its reason.
            program.killed[victim.pid] = now
        if not processes.send(victim, number):
            return
        with (program.files.folder / "signals").open("a") as file:
            print(f"{time.time():.3f} {signal.Signals(number).name} {victim.pid} {victim.parent} {victim.name}", file=file)
        if number == signal.SIGSTOP:
            self._stopped.append((now + self.rng.uniform(0, _LONGEST_STOP), victim))
        self.counts["stops" if number == signal.SIGSTOP else "kills"] += 1

    def _continue(self, now: float) -> None:
        for stop in [stop for stop in self._stopped if stop[0] <= now]:
            self._stopped.remove(stop)
            processes.send(stop[1], signal.SIGCONT)

    def _pause(self) -> float:
        return self.rng.expovariate(1 / _PAUSE)
