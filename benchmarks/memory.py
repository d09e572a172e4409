"""Rows about memory: that of a worker which waits, and that of a parent which maps without end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import trio
from contenders import (
    ANYIO,
    EXECUTOR,
    LOKY,
    OURS,
    OURS_FORKSERVER,
    POOL,
    TRIO_PARALLEL,
    contenders,
)
from measure import Samples, Settings


class Idle:
    """Megabytes (10^6 bytes) of a worker that has run one trivial job and waits."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        chosen = contenders(settings, OURS, OURS_FORKSERVER, TRIO_PARALLEL, ANYIO, EXECUTOR, POOL, LOKY)
        for _ in range(min(settings.rounds, 5)):
            for contender in chosen:
                async with contender.open(1) as pool:
                    pid = await pool.call(os.getpid)
                    samples[contender.name].append(self._megabytes(pid))
        return samples

    def _megabytes(self, pid: int) -> float:
        kilobytes = 0
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            field, amount = line.split()[:2]
            if field.rstrip(":") in self.fields:
                kilobytes += int(amount)
        return kilobytes * 1024 / 1e6


class Endless:
    """Megabytes of resident memory that a parent has held at most after some time with an endless input.

    `pause`: seconds that the reader of the results spends with each; 0: it reads as fast as they come.
    """

    def __init__(self, pause: float) -> None:
        self.pause = pause

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        program = Path(__file__).with_name("endless.py")
        seconds = 3.0 if settings.scale == "full" else 0.2
        names = {"offload": OURS, "imap": f"{POOL}.imap"} if settings.peers else {"offload": OURS}
        for _ in range(min(settings.rounds, 3)):
            for which, name in names.items():
                command = [sys.executable, str(program), which, str(self.pause), str(seconds)]
                run = await trio.run_process(command, stdin=subprocess.DEVNULL, capture_stdout=True)
                samples[name].append(float(run.stdout))
        return samples
