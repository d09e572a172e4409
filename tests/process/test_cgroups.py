"""What control groups say: how many processors may be used, and whether the OOM killer has ended a worker."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio

import trio_offload
from trio_offload import BrokenWorkerError, WorkerMemoryError
from trio_offload._process import oom as _oom
from trio_offload._process import proc
from trio_offload._process import processors as _processors

Files = Callable[[dict[str, str]], None]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    """The files of the system that there are, with what is in them."""

    def have(contents: dict[str, str]) -> None:
        monkeypatch.setattr(proc, "read_file", lambda path: contents.get(path, ""))

    return have


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    monkeypatch.delitem(sys._xoptions, "cpu_count", raising=False)


V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        pytest.param({}, 8, id="no control groups"),
        pytest.param({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "max 100000\n"}, 8, id="no quota"),
        pytest.param({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "300000 100000\n"}, 3, id="own group"),
        pytest.param({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "250000 100000\n"}, 3, id="rounded up"),
        pytest.param({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "10000 100000\n"}, 1, id="less than one"),
        pytest.param({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "9900000 100000\n"}, 8, id="more than there are"),
        pytest.param(
            {
                "/proc/self/cgroup": "0::/a/b/c\n",
                f"{V2}/a/b/c/cpu.max": "max 100000\n",
                f"{V2}/a/cpu.max": "200000 100000\n",
            },
            2,
            id="a group above",
        ),
        pytest.param({"/proc/self/cgroup": "0::/host/path\n", f"{V2}/cpu.max": "200000 100000\n"}, 2, id="a container"),
        pytest.param(
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/b\n0::/\n",
                f"{V1}/a/cpu.cfs_quota_us": "150000\n",
                f"{V1}/a/cpu.cfs_period_us": "50000\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            3,
            id="version 1",
        ),
        pytest.param({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "nonsense\n"}, 8, id="nonsense"),
    ],
)
def test_processors_by_quota(files: Files, contents: dict[str, str], expected: int) -> None:
    files(contents)
    assert _processors.usable_processors() == expected


def test_processors_by_affinity(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files({})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert _processors.usable_processors() == 2


def test_processors_as_told(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.13 has it: who says a number means it, and the switch comes before the variable."""
    files({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "300000 100000\n"})
    monkeypatch.setenv("PYTHON_CPU_COUNT", "default")
    assert _processors.usable_processors() == 3
    monkeypatch.setenv("PYTHON_CPU_COUNT", "20")
    assert _processors.usable_processors() == 20
    monkeypatch.setitem(sys._xoptions, "cpu_count", "6")
    assert _processors.usable_processors() == 6


async def test_limits_follow_the_processors(files: Files) -> None:
    """The default limiter, and the workers of a map whose limiter has no bound."""
    files({"/proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "500000 100000\n"})
    assert trio_offload.current_default_worker_limiter().total_tokens == 5
    async with trio_offload.open_worker_context() as context:
        mapped: Any = context.map(abs, [1], limiter=trio.CapacityLimiter(math.inf))
        assert mapped.limit() == 5
        async with mapped as results:
            assert [result async for result in results] == [1]


# --- the OOM killer --------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Counter:
    """The count of the own control group."""

    def __init__(self) -> None:
        self.value = 0
        self.reads = 0

    def read(self, path: str) -> str:
        self.reads += path.startswith(V2)
        answers = {"/proc/self/cgroup": "0::/a\n", f"{V2}/a/memory.events": f"oom 9\noom_kill {self.value}\n"}
        return answers.get(path, "")


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(_oom, "_read", counter.read)
    monkeypatch.setattr(_oom._last_read, "of_group", ("", 0, -math.inf))
    return counter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time at which counters are read."""
    clock = Clock()
    monkeypatch.setattr(_oom, "time", clock)
    return clock


def rises_meanwhile(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look while the worker lived and its death."""
    explain = _oom.explain_kill

    def rise_and_explain(*arguments: Any) -> Any:
        counter.value += 1
        return explain(*arguments)

    monkeypatch.setattr(_oom, "explain_kill", rise_and_explain)


@pytest.mark.parametrize("calls_before", [0, 3])
async def test_a_kill_that_was_counted_in_the_call(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    monkeypatch.setattr(_oom, "CHECK_INTERVAL", 0.0)
    async with trio_offload.open_worker_context() as context:
        for _ in range(calls_before):
            await context.run_sync(abs, -1)
        rises_meanwhile(counter, monkeypatch)
        with pytest.raises(WorkerMemoryError, match=r"by the system's OOM killer: .* went from 0 to 1 during the call"):
            await context.run_sync(die)


async def test_a_kill_that_was_counted_before_the_call(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was another process's: the worker has lived on."""
    monkeypatch.setattr(_oom, "CHECK_INTERVAL", 0.0)
    async with trio_offload.open_worker_context() as context:
        await context.run_sync(abs, -1)
        counter.value += 1
        with pytest.raises(BrokenWorkerError) as caught:
            await context.run_sync(die)
    assert not isinstance(caught.value, WorkerMemoryError)
    assert "OOM" not in str(caught.value)


async def test_a_kill_that_may_have_been_before_the_call(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that follow each other closely do not each look. Then it is a guess, and said to be one."""
    monkeypatch.setattr(_oom, "CHECK_INTERVAL", math.inf)
    async with trio_offload.open_worker_context(report_interval=math.inf) as context:
        await context.run_sync(abs, -1)
        counter.value += 1
        with pytest.raises(BrokenWorkerError, match=r"a guess: .* may have been before this call") as caught:
            await context.run_sync(die)
    assert not isinstance(caught.value, WorkerMemoryError)


def test_busy_workers_share_the_reads(counter: Counter, clock: Clock) -> None:
    """200 workers that each begin a call every 10 ms, one after the other, for a second."""
    kills = [_oom.count_kills() for _ in range(200)]
    looks_at = [clock.now + _oom.CHECK_INTERVAL] * 200
    counter.reads = 0
    for _ in range(100):
        for worker in range(200):
            clock.now += _oom.CHECK_INTERVAL / 200
            if clock.now >= looks_at[worker]:
                kills[worker], looks_at[worker] = kills[worker].at_call(clock.now)
            assert clock.now - kills[worker].moment < _oom.CHECK_INTERVAL
    assert 95 <= counter.reads <= 105


def test_a_worker_that_was_idle_reads_at_its_call(counter: Counter, clock: Clock) -> None:
    """The jobs of an hour begin at the same moment: each is known to have lived when the count was this."""
    kills = [_oom.count_kills() for _ in range(8)]
    counter.reads = 0
    clock.now += 2 * _oom.CHECK_INTERVAL
    for worker in kills:
        began = clock.now
        clock.now += _oom.CHECK_INTERVAL / 100
        assert worker.at_call(began)[0].moment >= began
    assert counter.reads == 8


def test_a_shared_read_is_older_than_the_call(counter: Counter, clock: Clock) -> None:
    """Then a rise after it may have been before the call. Until another worker reads the same count during the call."""
    mine, others = _oom.count_kills(), _oom.count_kills()
    clock.now += _oom.CHECK_INTERVAL
    others, _ = others.at_call(clock.now)
    clock.now += _oom.CHECK_INTERVAL / 2
    began = clock.now
    mine, _ = mine.at_call(began)
    assert mine.moment == others.moment < began
    counter.value += 1
    guess = _oom.explain_kill(mine, None, began)
    assert guess is not None
    assert not guess.certain
    counter.value -= 1
    clock.now += _oom.CHECK_INTERVAL
    others.at_call(clock.now)
    counter.value += 1
    verdict = _oom.explain_kill(mine, None, began)
    assert verdict is not None
    assert verdict.certain


def test_a_later_read_of_another_count_proves_nothing(counter: Counter, clock: Clock) -> None:
    """That kill was before the call or in it: nobody looked in between."""
    mine, others = _oom.count_kills(), _oom.count_kills()
    clock.now += 1
    began = clock.now
    counter.value += 1
    clock.now += 1
    others.at_call(clock.now)
    verdict = _oom.explain_kill(mine, None, began)
    assert verdict is not None
    assert not verdict.certain


def test_a_rise_during_a_read_is_after_it(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count is at least as new as it says: a look that is interrupted claims no later moment than it was made at."""
    clock = Clock()
    kills = _oom.count_kills()
    read = counter.read

    def read_slowly(path: str) -> str:
        clock.now += 1
        return read(path)

    monkeypatch.setattr(_oom, "time", clock)
    monkeypatch.setattr(_oom, "_read", read_slowly)
    assert kills.refreshed().moment == 1000.0
    assert _oom.count_kills().moment == 1001.0


def test_a_counter_that_cannot_be_read_any_more(counter: Counter, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no free descriptor, or the group is gone. What was known stays known, and stays as old as it is."""
    kills = _oom.count_kills()
    monkeypatch.setattr(_oom, "_read", lambda path: "")
    clock.now += 1
    assert kills.at_call(clock.now) == (kills, clock.now + _oom.CHECK_INTERVAL)
    assert kills.at_call(clock.now)[0].moment == 1000.0


def test_another_group(counter: Counter, clock: Clock) -> None:
    """Of a program that has moved: the counts of two groups are never compared, and never shared."""
    kills = _oom.count_kills().refreshed()
    other = _oom.OomKills(0, None, f"{V2}/b/memory.events", kills.moment)
    assert other.at_call(clock.now)[0] is other
