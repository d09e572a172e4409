"""End to end: what workers tell of their memory, when they are replaced for it, and when a job is ended for it."""

from __future__ import annotations

import math
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import memory_jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline
from running import run_script

import trio_offload
import trio_offload_worker
from trio_offload import (
    BrokenWorkerError,
    WorkerContext,
    WorkerMemoryError,
    WorkerStartError,
    WorkerStatistics,
    cache_scope,
    open_worker_context,
    retire_when,
    run_sync,
)
from trio_offload._sizes import parse_size, readable_limit, readable_size

MIB = 2**20


def only_worker(context: WorkerContext) -> WorkerStatistics:
    (worker,) = context.statistics().workers
    return worker


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what only the worker's clock brings about."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


# --- what is told --------------------------------------------------------------------------------


async def test_an_idle_worker_has_told_what_it_holds() -> None:
    async with open_worker_context() as context:
        assert context.statistics().workers == ()
        pid = await context.run_sync(os.getpid)
        first = only_worker(context)
        assert (first.pid, first.state, first.jobs, first.function) == (pid, "idle", 1, None)
        assert first.rss is not None
        assert first.peak_rss is not None
        assert first.vms is not None
        assert first.cpu_time is not None
        assert 2 * MIB < first.rss <= first.peak_rss <= first.vms
        assert 0 < first.age < PATIENCE
        assert 0 < first.cpu_time < PATIENCE
        await context.run_sync(memory_jobs.leak, 64 * MIB)
        second = only_worker(context)
        assert second.jobs == 2
        assert second.rss is not None
        assert second.rss > first.rss + 60 * MIB
        assert second.age > first.age
        assert second.cpu_time is not None
        assert second.cpu_time > first.cpu_time


async def test_the_peak_outlives_what_was_given_back() -> None:
    async with open_worker_context() as context:
        told = await context.run_sync(memory_jobs.take_and_give_back, 100 * MIB)
        worker = only_worker(context)
        assert worker.rss is not None
        assert worker.peak_rss is not None
        assert worker.peak_rss > 100 * MIB > worker.rss
        assert worker.peak_rss >= told - MIB


async def test_peak_excludes_the_starting_program() -> None:
    """What getrusage(2) calls the peak is handed on through fork and exec."""
    ballast = memory_jobs.touched(200 * MIB)
    async with open_worker_context() as context:
        await context.run_sync(bool)
        worker = only_worker(context)
    del ballast
    assert worker.peak_rss is not None
    assert worker.peak_rss < 100 * MIB


async def test_a_running_job_is_reported_on_although_it_holds_the_gil(line: Lifeline) -> None:
    async with open_worker_context(report_interval=0.05) as context:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await context.run_sync(memory_jobs.leak_and_hold_the_gil, line.path, 64 * MIB, kill_on_cancel=True)

            nursery.start_soon(call)
            pid = await line.pid()
            assert await line.line() == "taken"
            await until(lambda: (only_worker(context).rss or 0) > 64 * MIB)
            worker = only_worker(context)
            assert (worker.pid, worker.state, worker.jobs) == (pid, "running", 0)
            assert worker.function is not None
            assert "leak_and_hold_the_gil" in worker.function
            nursery.cancel_scope.cancel()
        assert context.statistics().workers == ()


async def test_without_reports_only_results_tell(line: Lifeline, gate: Gate) -> None:
    async with open_worker_context(report_interval=math.inf) as context:
        await context.run_sync(bool)
        before = only_worker(context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, memory_jobs.leak_and_wait, line.path, gate.path, 64 * MIB)
            await line.pid()
            now = only_worker(context)
            assert (now.state, now.rss) == ("running", before.rss)
            gate.open()
        after = only_worker(context)
        assert after.rss is not None
        assert after.rss > 64 * MIB


async def test_each_worker_has_its_own_record(line: Lifeline, gate: Gate) -> None:
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(context.run_sync, jobs.pass_gate, line.path, gate.path)
            pids = {await line.pid(), await line.pid()}
            assert {worker.pid for worker in context.statistics().workers} == pids
            gate.open()
            gate.open()
        workers = context.statistics().workers
        assert {worker.pid for worker in workers} == pids
        assert [worker.age for worker in workers] == sorted((worker.age for worker in workers), reverse=True)


def test_records_of_statistics_cannot_be_changed() -> None:
    async def main() -> Any:
        async with open_worker_context() as context:
            await context.run_sync(bool)
            return only_worker(context)

    record = trio.run(main)
    with pytest.raises(AttributeError):
        record.rss = 0
    assert pickle.loads(pickle.dumps(record)) == record


async def test_a_job_asks_what_it_holds() -> None:
    async with open_worker_context() as context:
        before = await context.run_sync(memory_jobs.info)
        await context.run_sync(memory_jobs.leak, 64 * MIB)
        after = await context.run_sync(memory_jobs.info)
    assert 2 * MIB < before.rss <= before.peak_rss <= before.vms
    assert after.rss > before.rss + 60 * MIB
    assert repr(after) == f"MemoryInfo(rss={after.rss}, peak_rss={after.peak_rss}, vms={after.vms})"
    assert after != before
    assert hash(after) == hash(pickle.loads(pickle.dumps(after)))


def test_memory_info_outside_of_a_worker() -> None:
    info = trio_offload_worker.memory_info()
    assert abs(info.rss - trio_offload_worker.resident_memory()) < 16 * MIB


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio_offload_worker, "open", lambda *_, **__: open("/does/not/exist"), raising=False)  # noqa: SIM115
    with pytest.raises(RuntimeError, match="memory use of a process is unavailable"):
        trio_offload_worker.memory_info()


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        (5e8, 500_000_000),
        (2**53 + 1, 2**53 + 1),
        ("7", 7),
        ("7 B", 7),
        ("1kB", 1000),
        ("1 KiB", 1024),
        ("500MiB", 500 * MIB),
        ("500mib", 500 * MIB),
        ("2 GB", 2_000_000_000),
        (" 1.5 GiB ", 3 * 2**29),
        ("0.5TiB", 2**39),
        (".5 GB", 500_000_000),
        # Docker's and systemd's.
        ("2G", 2 * 2**30),
        ("2g", 2 * 2**30),
        ("500m", 500 * MIB),
        ("1.5 T", 3 * 2**39),
        ("64K", 65_536),
        ("64k", 65_536),
        # Kubernetes'.
        ("2Gi", 2 * 2**30),
        ("64 ki", 65_536),
        ("2gb", 2_000_000_000),
        ("1_000_000", 1_000_000),
        ("1_000 MB", 1_000_000_000),
        # A float of these would be a byte or more off.
        ("0.3GB", 300_000_000),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text, "rss") == size


@pytest.mark.parametrize(
    "value",
    [
        *["", "much", "5 apples", "1e9", "-1", "1,5 GB", "MiB", "nan", "0", 0, -1, 0.5, math.inf, math.nan, 2**63],
        *["2GBi", "2 G B", "2P", "1__0", "_1", "1_", ".", "G", "9" * 20, "9" * 5000],
    ],
)
def test_what_is_no_size(value: Any) -> None:
    for use in (lambda: retire_when(rss=value), lambda: trio_offload.configure_default_context(memory_limit=value)):
        with pytest.raises(ValueError, match='Give a number of bytes, or text like "500MiB" or "2 GB"') as told:
            use()
        assert repr(value) in str(told.value)


@pytest.mark.parametrize("value", [True, b"1", [], 1j])
def test_what_is_not_even_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match="Give a number of bytes"):
        retire_when(rss=value)


def test_sizes_for_people() -> None:
    assert [readable_size(size) for size in (0, 1023, 1536, 5 * MIB, 3 * 2**40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("200MB", "200 MB"),
        ("200MiB", "200 MiB"),
        ("2G", "2 GiB"),
        ("2Gi", "2 GiB"),
        ("2 gb", "2 GB"),
        ("1.5GB", "1.5 GB"),
        ("1.5GiB", "1.5 GiB"),
        (700, "700 bytes"),
        (2**30, "1 GiB"),
        (123_456_789, "117.7 MiB"),
    ],
)
def test_a_limit_is_shown_in_the_unit_in_which_it_was_given(given: Any, shown: str) -> None:
    assert readable_limit(parse_size(given, "rss")) == shown


def test_a_size_is_shown_in_the_unit_of_the_limit_beside_it() -> None:
    assert readable_size(215_300_000, like=200_000_000) == "215.3 MB"
    assert readable_size(215_300_000, like=200 * MIB) == "205.3 MiB"
    assert readable_size(2_500_000_000_000_000, like=200_000_000) == "2500.0 TB"
    assert readable_size(215_300_000, like=123_456_789) == "205.3 MiB"


# --- replacement ---------------------------------------------------------------------------------


async def test_replaced_after_so_many_jobs() -> None:
    async with open_worker_context(retire=retire_when(jobs=3)) as context:
        pids = [await context.run_sync(os.getpid) for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


async def test_replaced_after_so_much_memory() -> None:
    async with open_worker_context(retire=retire_when(rss="150MiB")) as context:
        pids = [await context.run_sync(memory_jobs.leak, 60 * MIB) for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3]


async def test_the_peak_alone_replaces_nobody() -> None:
    async with open_worker_context(retire=retire_when(rss="100MiB")) as context:
        pid = await context.run_sync(os.getpid)
        assert await context.run_sync(memory_jobs.take_and_give_back, 150 * MIB) > 150 * MIB
        assert await context.run_sync(os.getpid) == pid


async def test_replaced_after_some_time() -> None:
    async with open_worker_context(retire=retire_when(seconds=0)) as context:
        assert await context.run_sync(os.getpid) != await context.run_sync(os.getpid)
    async with open_worker_context(retire=retire_when(seconds=3600)) as context:
        assert await context.run_sync(os.getpid) == await context.run_sync(os.getpid)


async def test_any_condition_is_enough() -> None:
    async with open_worker_context(retire=retire_when(rss="64 GiB", jobs=1, seconds=3600)) as context:
        assert await context.run_sync(os.getpid) != await context.run_sync(os.getpid)


async def test_in_a_cache_scope() -> None:
    async with cache_scope(retire=retire_when(jobs=1)):
        assert await run_sync(os.getpid) != await run_sync(os.getpid)


def test_in_the_default_context(tmp_path: Path) -> None:
    text = """
    import os
    import trio, trio_offload

    async def main():
        pids = [await trio_offload.run_sync(os.getpid) for _ in range(4)]
        print([pids.count(pid) for pid in dict.fromkeys(pids)])

    if __name__ == "__main__":
        trio_offload.configure_default_context(retire=trio_offload.retire_when(jobs=2))
        trio.run(main)
    """
    ended = run_script(tmp_path, text)
    assert ended.lines() == ["[2, 2]"]
    assert ended.stderr == ""


async def test_a_ceiling_under_the_baseline_replaces_nobody_for_ever() -> None:
    with pytest.warns(  # noqa: PT031
        UserWarning, match="is below the baseline, a worker's memory before its first job"
    ) as told:
        async with open_worker_context(retire=retire_when(rss="1MiB")) as context:
            pids = [await context.run_sync(os.getpid) for _ in range(5)]
            baseline = only_worker(context).rss
            assert len(set(pids)) == 1
            # It may still grow by so much, and not by more.
            await context.run_sync(memory_jobs.leak, 64 * MIB)
            assert await context.run_sync(os.getpid) not in pids
    assert len(told) == 1
    assert baseline is not None
    assert ": 1 MiB is below" in str(told[0].message)


async def test_what_init_takes_is_part_of_the_baseline() -> None:
    with pytest.warns(UserWarning, match="below the baseline"):
        async with open_worker_context(init=memory_jobs.import_much, retire=retire_when(rss="50MiB")) as context:
            assert await context.run_sync(os.getpid) == await context.run_sync(os.getpid)


async def test_the_warning_as_an_error_leaves_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with open_worker_context(retire=retire_when(rss=1)) as context:
            with pytest.raises(UserWarning, match="below the baseline"):
                await context.run_sync(os.getpid)
            # It has been said.
            assert await context.run_sync(os.getpid) > 0


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({}, ValueError, "at least one of rss, jobs and seconds"),
        ({"jobs": 0}, ValueError, "jobs must be 1 or more, got 0"),
        ({"jobs": 1.0}, TypeError, "jobs must be an integer, got 1.0"),
        ({"jobs": True}, TypeError, "jobs must be an integer, got True"),
        ({"seconds": -1}, ValueError, "seconds must be 0 seconds or more, got -1"),
        ({"seconds": math.nan}, ValueError, "seconds must be 0 seconds or more, got nan"),
        ({"seconds": "1"}, TypeError, "seconds must be a number of seconds, got '1'"),
    ],
)
def test_conditions_that_are_none(conditions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        retire_when(**conditions)


def test_retire_when_can_be_pickled_compared_and_shown() -> None:
    policy = retire_when(rss="1 GiB", jobs=5)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert repr(policy) == f"retire_when(rss={2**30}, jobs=5)"
    assert policy != retire_when(jobs=5)
    assert hash(policy) == hash(retire_when(rss=2**30, jobs=5))


async def test_a_worker_with_a_policy_imports_no_more_than_it_needs() -> None:
    async with open_worker_context(retire=retire_when(jobs=100, rss="1GiB")) as context:
        await context.run_sync(bool)
        modules = await context.run_sync(jobs.modules)
    assert not {"trio", "attr", "trio_offload"} & set(modules)


# --- ceilings ------------------------------------------------------------------------------------


async def test_a_job_that_takes_too_much_is_ended_and_no_other(line: Lifeline, gate: Gate) -> None:
    async with open_worker_context(memory_limit="150MiB") as context:
        survivors: list[int] = []
        async with trio.open_nursery() as nursery:

            async def survive() -> None:
                survivors.append(await context.run_sync(jobs.pass_gate, line.path, gate.path))

            nursery.start_soon(survive)
            survivor = await line.pid()
            with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as told:
                await context.run_sync(memory_jobs.grow_for_ever)
            gate.open()
        error = told.value
        assert survivors == [survivor]
        assert error.limit == 150 * MIB
        assert error.reached is not None
        assert error.reached > error.limit
        assert error.exitcode == 7
        assert error.signal is None
        assert "memory_jobs.grow_for_ever" in str(error)
        assert "memory_limit is 150 MiB" in str(error)
        assert error.crash is not None
        assert "in grow_for_ever" in error.crash.stack
        assert "in grow_for_ever" in "".join(error.__notes__)
        again = pickle.loads(pickle.dumps(error))
        assert (again.limit, again.reached, again.crash) == (error.limit, error.reached, error.crash)
        assert isinstance(error, BrokenWorkerError)


async def test_a_job_that_holds_the_gil_is_ended_too(line: Lifeline) -> None:
    async with open_worker_context(memory_limit="100MiB") as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as told:
            await context.run_sync(memory_jobs.leak_and_hold_the_gil, line.path, 150 * MIB)
        await line.ended()
        assert told.value.crash is not None
        assert "in leak_and_hold_the_gil" in told.value.crash.stack


async def test_what_a_child_of_the_job_holds_counts(line: Lifeline) -> None:
    async with open_worker_context(memory_limit="200MiB") as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as told:
            await context.run_sync(memory_jobs.child_that_grows, line.path)
        # The child has gone with it.
        await line.ended()
        assert told.value.reached is not None
        assert told.value.reached > 200 * MIB


async def test_memory_that_children_share_counts_once() -> None:
    async with open_worker_context(memory_limit="400MiB") as context:
        # Resident in five processes, 750 MiB in all; for so long that the native thread looks several times.
        assert await context.run_sync(memory_jobs.children_that_share, 150 * MIB, 4, 0.5) == "done"


async def test_a_ceiling_that_is_not_reached_disturbs_nobody() -> None:
    async with open_worker_context(memory_limit="1 GiB", report_interval=0.01) as context:
        pids = {await context.run_sync(os.getpid) for _ in range(300)}
        assert len(pids) == 1


async def test_a_ceiling_under_the_baseline_is_an_error() -> None:
    async with open_worker_context(memory_limit="1MiB") as context:
        with pytest.raises(
            WorkerStartError, match=r"below the baseline, a worker's memory before its first job: \d+\.\d MiB"
        ):
            await context.run_sync(bool)
        assert context.statistics().workers == ()


async def test_init_has_the_ceiling_too() -> None:
    async with open_worker_context(memory_limit="100MiB", init=memory_jobs.grow_in_init) as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerStartError, match=r"while it ran init, .*grow_in_init"):
            await context.run_sync(bool)


@pytest.mark.parametrize(
    "text", ['{"memory_limit": 1}\n', '{"memory_limit": "x", "reached": 2}\n', '{"memory_limit":', "nonsense\n"]
)
async def test_nonsense_in_the_record_is_shown_and_not_believed(text: str) -> None:
    async with open_worker_context() as context:
        with pytest.raises(BrokenWorkerError, match="exited with status 7") as told:
            await context.run_sync(memory_jobs.write_into_the_record, text)
        assert type(told.value) is BrokenWorkerError
        assert told.value.crash is not None


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS])
async def test_worker_that_faults_while_it_writes_its_stacks(number: signal.Signals) -> None:
    """It had exceeded its limit, and was about to be ended for that."""
    async with open_worker_context(memory_limit="1 GiB") as context:
        with pytest.raises(WorkerMemoryError) as info:
            await context.run_sync(memory_jobs.die_in_the_stacks, number)
        assert (info.value.limit, info.value.reached) == (1000, 2000)
    async with open_worker_context() as context:
        with pytest.raises(BrokenWorkerError) as told:
            await context.run_sync(memory_jobs.die_in_the_stacks, number)
        assert type(told.value) is BrokenWorkerError


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"report_interval": 0}, ValueError),
        ({"report_interval": math.nan}, ValueError),
        ({"report_interval": -1}, ValueError),
        ({"report_interval": "1"}, TypeError),
        ({"crash_dir": 5}, TypeError),
        ({"trace": 5}, TypeError),
        ({"trace": "/does/not/exist/trace.json"}, ValueError),
    ],
)
async def test_settings_that_are_none(settings: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        async with open_worker_context(**settings):
            pytest.fail("it was opened")


# --- the system's own ceiling --------------------------------------------------------------------


def memory_group() -> Path | None:
    """Where a control group for memory can be made; None where this process may not."""
    for root, control in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(root) / f"trio-offload-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / control).exists():
            return group
        group.rmdir()
    return None


def test_the_oom_killer_is_named(tmp_path: Path) -> None:
    group = memory_group()
    if group is None:
        pytest.skip("no control group for memory can be made here")
    try:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (group / name).exists():
                (group / name).write_text(str(150 * MIB))
        for name in ("memory.swap.max", "memory.swappiness"):
            if (group / name).exists():
                (group / name).write_text("0")
        text = f"""
        import os, sys
        open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
        sys.path.insert(0, {str(Path(memory_jobs.__file__).parent)!r})
        import trio, trio_offload, memory_jobs

        def main_job():
            # The kernel takes the one that holds most; the program itself is to be spared.
            open("/proc/self/oom_score_adj", "w").write("1000")
            memory_jobs.grow_for_ever()

        async def main():
            async with trio_offload.open_worker_context(report_interval=0.05) as context:
                try:
                    await context.run_sync(main_job)
                except trio_offload.WorkerMemoryError as error:
                    print(error.signal.name, error.limit, error.reached > 50_000_000)
                    print(error)
                print(await context.run_sync(int, "5"))

        if __name__ == "__main__":
            trio.run(main)
        """
        ended = run_script(tmp_path, text)
    finally:
        group.rmdir()
    first, second, third = ended.lines()
    assert first == "SIGKILL None True"
    assert "by the system's OOM killer: its count" in second
    assert third == "5"
