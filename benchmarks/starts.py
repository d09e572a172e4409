"""Rows about the beginning and the end of workers."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jobs
import trio
import trio.testing
from contenders import (
    ANYIO,
    EXECUTOR,
    EXECUTOR_FORKSERVER,
    INTERPRETERS,
    LOKY,
    ONE_JOB,
    OURS,
    OURS_FORKSERVER,
    POOL,
    POOL_FORKSERVER,
    TRIO_PARALLEL,
    TRIO_PARALLEL_FORKSERVER,
    WITHOUT_REPORTS,
    Call,
    Contender,
    Pool,
    Pools,
    contenders,
)
from fork import fork_once
from measure import Samples, Settings

if TYPE_CHECKING:
    from typing_extensions import Self

PYTHON_PROCESS = "python -c pass"
BARE_FORK = "bare fork, one byte back"
OURS_SPAWN = f"{OURS}, spawn"
OWN_FORK = "fork of this program, one byte back"


async def cold_start(settings: Settings) -> Samples:
    """From opening a pool to its first result."""
    samples: Samples = defaultdict(list)
    peers = contenders(settings, OURS, TRIO_PARALLEL, ANYIO, EXECUTOR, INTERPRETERS, POOL, LOKY)
    for number in range(settings.starts + 1):
        for contender in peers:
            duration = await first_result(contender)
            # The first round finds the files not yet in the page cache.
            if number:
                samples[contender.name].append(duration)
        duration = python_process()
        if number:
            samples[PYTHON_PROCESS].append(duration)
    return samples


async def first_result(contender: Contender[Pool]) -> float:
    if contender.name == ANYIO:
        # Its workers belong to the event loop, so a pool without any is a new loop.
        return await trio.to_thread.run_sync(trio.run, _first_result_here, contender)
    return await _first_result_here(contender)


async def _first_result_here(contender: Contender[Pool]) -> float:
    began = time.perf_counter()
    async with contender.open(1) as pool:
        await pool.call(bool)
        return time.perf_counter() - began


def python_process() -> float:
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], os.environ)
    os.waitpid(pid, 0)
    return time.perf_counter() - began


async def cold_start_forkserver(settings: Settings) -> Samples:
    """From the call that needs a new worker to its result, with a template that is up."""
    samples: Samples = defaultdict(list)
    new_pools = contenders(settings, EXECUTOR_FORKSERVER, POOL_FORKSERVER)
    with Forks() as forks:
        async with Pools() as stack:
            killed = await stack.opened(settings, OURS_FORKSERVER, TRIO_PARALLEL, TRIO_PARALLEL_FORKSERVER)
            for number in range(settings.starts + 1):
                durations = {}
                for name, pool in killed.items():
                    await _time_to_kill(pool, jobs.wait, 1000.0)
                    durations[OURS if name == OURS_FORKSERVER else name] = await _first_call(pool)
                for contender in new_pools:
                    durations[contender.name] = await _first_result_here(contender)
                durations[BARE_FORK] = forks.one()
                durations[OWN_FORK] = _fork_here()
                if number:
                    for name, duration in durations.items():
                        samples[name].append(duration)
    return samples


async def _first_call(pool: Pool) -> float:
    began = time.perf_counter()
    await pool.call(bool)
    return time.perf_counter() - began


def _fork_here() -> float:
    """The same as in fork.py, with all that a program with Trio has in memory."""
    with warnings.catch_warnings():
        # There are threads; the child does nothing that could wait for one.
        warnings.simplefilter("ignore", DeprecationWarning)
        return fork_once()


class Forks:
    """fork.py, running."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", Path(__file__).with_name("fork.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def one(self) -> float:
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        asked.write(b".")
        asked.flush()
        (duration,) = struct.unpack("d", answered.read(8))
        return float(duration)


class OneJob:
    """Jobs a second where each gets a worker that nobody has used; two at once."""

    def __init__(self, ours: str, *others: str) -> None:
        self.names = [name + ONE_JOB for name in (ours, *others)]

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        async with Pools() as stack:
            pools = await stack.opened(settings, *self.names, workers=2)
            # multiprocessing.Pool looks ten times a second whether a worker has left; less than a second would be luck.
            seconds = max(settings.seconds, 1.5) if settings.scale == "full" else settings.seconds
            for _ in range(max(settings.rounds // 2, 1)):
                for name, pool in pools.items():
                    shown = {OURS + ONE_JOB: OURS_SPAWN, self.names[0]: OURS}.get(name, name.removesuffix(ONE_JOB))
                    samples[shown].append(await calls_per_second(pool.call, seconds, tasks=2))
        return samples


async def calls_per_second(call: Call, seconds: float, tasks: int) -> float:
    done = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call(bool)
            done += 1

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(caller)
    return done / (time.perf_counter() - began)


async def reports_cold(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    both = contenders(settings, OURS, WITHOUT_REPORTS)
    for number in range(20 * settings.starts):
        for contender in both[:: -1 if number % 2 else 1]:
            samples[contender.name].append(await _first_result_here(contender))
    return samples


async def kill(settings: Settings) -> Samples:
    """From the cancellation of a call that never ends until it has returned and its process is gone."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(settings, OURS, TRIO_PARALLEL, ANYIO)
        for number in range(settings.rounds + 1):
            for name, pool in pools.items():
                duration = await _time_to_kill(pool, jobs.spin)
                if number:
                    samples[name].append(duration)
    return samples


async def _time_to_kill(pool: Pool, job: Callable[..., None], *arguments: object) -> float:
    assert pool.killable is not None
    # The cache hands out the last worker first, so the endless call gets the one that has just answered.
    pid = await pool.call(os.getpid)
    cancelled_at = 0.0
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.killable, job, *arguments)
            if job is jobs.spin:
                await _is_busy(pid)
            else:
                await trio.testing.wait_all_tasks_blocked()
            cancelled_at = time.perf_counter()
            scope.cancel()
    duration = time.perf_counter() - cancelled_at
    if _is_there(pid):
        raise AssertionError(f"the call has returned, but process {pid} is still there")
    return duration


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _is_busy(pid: int) -> None:
    """Wait until the process has used some time of a processor."""
    while True:
        before = _processor_ticks(pid)
        await trio.sleep(0.05)
        if _processor_ticks(pid) - before >= 2:
            return


def _processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])
