"""The rows of the table: what is measured, beside what, and what must be reached.

Every row alternates: one round of each contender, then the next round. A machine that is slow for a while is then slow
for all of them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import jobs
import trio
from contenders import ANYIO, ECHO, OURS, TRIO_PARALLEL, TRIO_THREAD, WITHOUT_REPORTS, Contender, Pool, contenders
from measure import Goal, Row, Samples, Settings, median_call, one_call

PYTHON_PROCESS = "python -c pass"
MEMCPY = "memcpy to fresh memory"


class Pools(contextlib.AsyncExitStack):
    """Several contenders up at once, each warm."""

    async def opened(self, *names: str) -> dict[str, Pool]:
        pools = {}
        for contender in contenders(*names):
            pools[contender.name] = await self.enter_async_context(contender.open())
            await pools[contender.name].call(bool)
        return pools


async def cold_start(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    peers = contenders(OURS, TRIO_PARALLEL)
    for number in range(settings.starts + 1):
        for contender in peers:
            duration = await _first_result(contender)
            # The first round finds the files not yet in the page cache.
            if number:
                samples[contender.name].append(duration)
        duration = _python_process()
        if number:
            samples[PYTHON_PROCESS].append(duration)
    return samples


async def _first_result(contender: Contender) -> float:
    began = time.perf_counter()
    async with contender.open() as pool:
        await pool.call(bool)
        return time.perf_counter() - began


def _python_process() -> float:
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], os.environ)
    os.waitpid(pid, 0)
    return time.perf_counter() - began


async def warm_call(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(OURS, ECHO, TRIO_PARALLEL, ANYIO, TRIO_THREAD)
        for pool in pools.values():
            await median_call(pool.call, settings.calls // 4, bool)
        for _ in range(settings.rounds):
            for name, pool in pools.items():
                samples[name].append(await median_call(pool.call, settings.calls, bool))
    return samples


async def reports_warm(settings: Settings) -> Samples:
    """What it costs a call that workers tell of their memory. The two change places at each round."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(OURS, WITHOUT_REPORTS)
        for number in range(2 * settings.rounds):
            for name, pool in sorted(pools.items(), reverse=bool(number % 2)):
                samples[name].append(await median_call(pool.call, 2 * settings.calls, bool))
    return samples


async def reports_cold(settings: Settings) -> Samples:
    samples: Samples = defaultdict(list)
    both = contenders(OURS, WITHOUT_REPORTS)
    for number in range(2 * settings.starts):
        for contender in both[:: -1 if number % 2 else 1]:
            samples[contender.name].append(await _first_result(contender))
    return samples


async def throughput(settings: Settings) -> Samples:
    """Calls a second of four tasks that share two workers."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(OURS, TRIO_PARALLEL, ANYIO)
        for number in range(settings.rounds + 1):
            for name, pool in pools.items():
                rate = await _calls_per_second(pool, settings.seconds)
                if number:
                    samples[name].append(rate)
    return samples


async def _calls_per_second(pool: Pool, seconds: float) -> float:
    call = pool.two_at_once
    assert call is not None
    done = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call(bool)
            done += 1

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(caller)
    return done / (time.perf_counter() - began)


class Transfer:
    """Gigabytes (10^9 bytes) a second of one object of 100 MB, in one direction."""

    def __init__(self, kind: str, to_worker: bool) -> None:
        self.kind = kind
        self.to_worker = to_worker

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        size = settings.transfer_size
        value = jobs.make(self.kind, size)
        async with Pools() as stack:
            pools = await stack.opened(OURS, TRIO_PARALLEL)
            for pool in pools.values():
                await pool.call(jobs.keep, self.kind, size)
            for number in range(settings.transfer_rounds + 1):
                for name, pool in pools.items():
                    gc.collect()
                    if self.to_worker:
                        duration = await one_call(pool.call, jobs.size_of, value)
                    else:
                        duration = await one_call(pool.call, jobs.kept, self.kind, size)
                    if number:
                        samples[name].append(size / duration / 1e9)
                if self.kind == "array":
                    duration = _copied(value)
                    if number:
                        samples[MEMCPY].append(size / duration / 1e9)
        return samples


def _copied(array: object) -> float:
    # NumPy asks for huge pages for memory of this size, so this is the fastest copy that Python code can have.
    began = time.perf_counter()
    copy = array.copy()  # type: ignore[attr-defined]
    duration = time.perf_counter() - began
    del copy
    return duration


class Memory:
    """Megabytes (10^6 bytes) of a worker that has run one trivial job and waits."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields

    async def __call__(self, settings: Settings) -> Samples:
        samples: Samples = defaultdict(list)
        for _ in range(min(settings.rounds, 5)):
            for contender in contenders(OURS, TRIO_PARALLEL):
                async with contender.open() as pool:
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


async def kill(settings: Settings) -> Samples:
    """From the cancellation of a call that never ends until it has returned and its process is gone."""
    samples: Samples = defaultdict(list)
    async with Pools() as stack:
        pools = await stack.opened(OURS, TRIO_PARALLEL)
        for number in range(settings.rounds + 1):
            for name, pool in pools.items():
                duration = await _time_to_kill(pool)
                if number:
                    samples[name].append(duration)
    return samples


async def _time_to_kill(pool: Pool) -> float:
    assert pool.killable is not None
    # The cache hands out the last worker first, so the endless call gets the one that has just answered.
    pid = await pool.call(os.getpid)
    cancelled_at = 0.0
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.killable, jobs.spin)
            await _is_busy(pid)
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


ROWS = [
    Row(
        "cold start: context opened → first result",
        "ms",
        "less",
        cold_start,
        (Goal(PYTHON_PROCESS, 0.75), Goal(TRIO_PARALLEL, 0.1)),
    ),
    Row(
        "warm call of bool()",
        "µs",
        "less",
        warm_call,
        (Goal(ECHO, 1.5), Goal(TRIO_PARALLEL, 0.34), Goal(ANYIO, 0.75), Goal(TRIO_THREAD, 0.6)),
    ),
    Row("warm call, memory reported every second", "µs", "less", reports_warm, (Goal(WITHOUT_REPORTS, 1.02),)),
    Row("cold start, memory reported every second", "ms", "less", reports_cold, (Goal(WITHOUT_REPORTS, 1.02),)),
    Row("small calls, 4 tasks over 2 workers", "calls/s", "more", throughput, (Goal(TRIO_PARALLEL, 3),)),
    Row(
        "100 MB NumPy array → worker",
        "GB/s",
        "more",
        Transfer("array", to_worker=True),
        (Goal(MEMCPY, 0.5), Goal(TRIO_PARALLEL, 10)),
    ),
    Row(
        "100 MB NumPy array ← worker",
        "GB/s",
        "more",
        Transfer("array", to_worker=False),
        (Goal(MEMCPY, 0.5), Goal(TRIO_PARALLEL, 10)),
    ),
    Row("100 MB bytes → worker", "GB/s", "more", Transfer("bytes", to_worker=True), (Goal(TRIO_PARALLEL, 4),)),
    Row("100 MB bytes ← worker", "GB/s", "more", Transfer("bytes", to_worker=False), (Goal(TRIO_PARALLEL, 4),)),
    Row("100 MB bytearray → worker", "GB/s", "more", Transfer("bytearray", to_worker=True), (Goal(TRIO_PARALLEL, 4),)),
    Row("100 MB bytearray ← worker", "GB/s", "more", Transfer("bytearray", to_worker=False), (Goal(TRIO_PARALLEL, 4),)),
    Row("idle worker, resident memory", "MB", "less", Memory("Rss"), (Goal(TRIO_PARALLEL, 0.4),)),
    Row("idle worker, its share of memory (PSS)", "MB", "less", Memory("Pss")),
    Row("idle worker, memory of its own (USS)", "MB", "less", Memory("Private_Clean", "Private_Dirty")),
    Row("kill: cancelled → returned, nothing left", "ms", "less", kill, (Goal(TRIO_PARALLEL, 1),)),
]

SCALES = {"ms": 1e3, "µs": 1e6}


def scaled(row: Row, samples: Samples) -> Samples:
    """Samples in the row's unit; times are measured in seconds."""
    scale = SCALES.get(row.unit, 1.0)
    return {name: [value * scale for value in values] for name, values in samples.items()}
