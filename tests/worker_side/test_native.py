"""End to end: a job's process looks as if the worker's native thread were not there, and it is there all the same."""

from __future__ import annotations

import mmap
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jobs
import memory_jobs
import native_jobs
import pytest
import trio
from lifeline import PATIENCE
from running import ceiling, in_fork, run_script, write

from trio_offload import BrokenWorkerError, WorkerMemoryError, WorkerType, open_worker_context
from trio_offload._interpreter import locate as _locate
from trio_offload_worker import single_threaded
from trio_offload_worker._loop import sentinel, sentinel_process

of_both_types = pytest.mark.usefixtures("worker_type")


def threads_of_a_job() -> int:
    return 2 if _locate.runtime().is_native else 1


# --- forks ---------------------------------------------------------------------------------------


@of_both_types
async def test_a_job_forks_off_a_process_with_one_thread() -> None:
    async with open_worker_context() as context:
        for _ in range(3):
            assert await context.run_sync(native_jobs.counted_forks, 5) == ([1] * 5, threads_of_a_job())


@of_both_types
async def test_hooks_in_python_are_part_of_the_fork() -> None:
    async with open_worker_context() as context:
        status, seen, after = await context.run_sync(native_jobs.fork_with_hooks)
    assert status == 1
    # The hook that was registered last is called first: the thread has not stepped aside by then.
    assert seen == [threads_of_a_job(), 1]
    assert after == threads_of_a_job()


@of_both_types
async def test_a_fork_in_another_thread_of_the_jobs() -> None:
    async with open_worker_context() as context:
        assert await context.run_sync(native_jobs.fork_in_another_thread) == [1]


@of_both_types
async def test_a_function_before_a_program() -> None:
    async with open_worker_context() as context:
        assert await context.run_sync(native_jobs.preexec) == 0
        assert await context.run_sync(native_jobs.thread_count) == threads_of_a_job()


@of_both_types
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
async def test_multiprocessing_with_warnings_as_errors(method: str) -> None:
    async with open_worker_context() as context:
        assert await context.run_sync(native_jobs.multiprocess, method) == [1, 2, 3]


@of_both_types
async def test_a_job_is_watched_after_its_fork() -> None:
    async with open_worker_context(memory_limit="100MiB") as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as told:
            await context.run_sync(native_jobs.fork_and_grow)
        assert told.value.crash is not None
        assert "in grow_for_ever" in told.value.crash.stack


# --- threads that jobs leave behind --------------------------------------------------------------


@pytest.mark.parametrize("in_the_line", [True, False])
async def test_thread_that_python_finds_at_its_end(tmp_path: Path, in_the_line: bool) -> None:
    """Up to 3.13, Python unwinds the thread's stack, which would abort the process in Rust code."""
    outcome = write(tmp_path / "outcome", "")
    async with open_worker_context() as context:
        await context.run_sync(native_jobs.leave_thread, str(outcome), in_the_line)
    is_in_rust = in_the_line and _locate.runtime().is_native
    assert outcome.read_text() == ("stopped" if is_in_rust or sys.version_info >= (3, 14) else "ended")


# --- namespaces ----------------------------------------------------------------------------------


def may_unshare() -> bool:
    return in_fork(lambda: native_jobs.unshare(native_jobs.CLONE_NEWUSER, None, False)[0] != "") == 0


@of_both_types
@pytest.mark.parametrize(
    ("flags", "library", "alone"),
    [
        (native_jobs.CLONE_NEWUSER, None, False),
        (native_jobs.CLONE_NEWUSER | native_jobs.CLONE_NEWPID, None, False),
        (native_jobs.CLONE_NEWUSER, "libc.so.6", True),
    ],
)
async def test_namespaces_of_a_process_with_one_thread(flags: int, library: str | None, alone: bool) -> None:
    if not may_unshare():
        pytest.skip("this system lets nobody have a user namespace")
    async with open_worker_context() as context:
        assert await context.run_sync(native_jobs.unshare, flags, library, alone) == ("", threads_of_a_job())


@of_both_types
async def test_what_the_kernel_refuses_anybody_is_refused() -> None:
    async with open_worker_context() as context:
        for _ in range(2):
            found = await context.run_sync(native_jobs.unshare, 1, None, False)
            assert found == ("Invalid argument", threads_of_a_job())


@of_both_types
async def test_a_job_is_watched_after_it_has_left_its_namespaces() -> None:
    if not may_unshare():
        pytest.skip("this system lets nobody have a user namespace")
    async with open_worker_context(memory_limit="100MiB") as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError):
            await context.run_sync(native_jobs.unshare_and_grow, native_jobs.CLONE_NEWUSER)


def test_outside_of_a_worker_there_is_no_thread_to_step_aside() -> None:
    before = native_jobs.thread_count()
    with single_threaded():
        assert native_jobs.thread_count() == before


# --- descriptors ---------------------------------------------------------------------------------


def test_no_descriptor_of_a_jobs_is_touched(tmp_path: Path, worker_type: Any) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(b"0123456789abcdef" * 1000)
    script = f"""
import sys
sys.path.insert(0, {os.path.dirname(jobs.__file__)!r})
import native_jobs, trio
from trio_offload import BrokenWorkerError, WorkerType, open_worker_context

async def main():
    async with open_worker_context(memory_limit="1GiB", report_interval=0.05, worker_type={worker_type.value!r}) as context:
        for _ in range(3):
            try:
                await context.run_sync(native_jobs.close_all_and_read, {str(path)!r})
            except BrokenWorkerError:
                pass

trio.run(main)
"""
    outcome = run_script(tmp_path, script)
    assert outcome.stdout.splitlines() == [repr([b"0123456789abcdef"] * 20)] * 3
    assert "a job has closed descriptor 3" in outcome.stderr


@of_both_types
async def test_job_that_closed_all_descriptors_is_watched() -> None:
    async with open_worker_context(memory_limit="100MiB") as context:
        error: type[BrokenWorkerError] = WorkerMemoryError if _locate.runtime().is_native else BrokenWorkerError
        with trio.fail_after(PATIENCE), pytest.raises(error):
            await context.run_sync(native_jobs.close_all_and_grow)


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        native_jobs.enable_faulthandler,
        native_jobs.disable_faulthandler,
        native_jobs.register_all_signals,
        native_jobs.save_and_put_back_fault_handlers,
    ],
)
async def test_the_stack_is_told_whatever_a_job_did_before(of_any_kind: WorkerType, job: Any, tmp_path: Path) -> None:
    async with open_worker_context(worker_type=of_any_kind, memory_limit=await ceiling(of_any_kind, 150 << 20)) as context:
        assert await context.run_sync(job, str(tmp_path / "file"))
        with pytest.raises(BrokenWorkerError) as told:
            await context.run_sync(jobs.segfault)
        assert told.value.crash is not None
        assert "in segfault" in told.value.crash.stack
        assert await context.run_sync(job, str(tmp_path / "file"))
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as limit:
            await context.run_sync(memory_jobs.grow_for_ever)
        assert limit.value.crash is not None
        assert "in grow_for_ever" in limit.value.crash.stack


async def test_a_limit_holds_without_a_queue_of_signals(of_any_kind: WorkerType) -> None:
    """The kernel then tells no sender, and a wakeup is no request for stacks. They would come before the limit in the record."""
    before = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    async with open_worker_context(worker_type=of_any_kind, memory_limit=await ceiling(of_any_kind, 150 << 20)) as context:
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, before[1]))
        try:
            await context.run_sync(bool)
        finally:
            resource.setrlimit(resource.RLIMIT_SIGPENDING, before)
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as limit:
            await context.run_sync(memory_jobs.grow_for_ever)
        assert limit.value.crash is not None
        assert "in grow_for_ever" in limit.value.crash.stack


async def test_a_copy_that_a_job_forks_has_a_faulthandler_of_its_own(of_any_kind: WorkerType, tmp_path: Path) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        assert "in segfault" in await context.run_sync(native_jobs.crash_of_a_copy, str(tmp_path / "file"))


# --- ceilings ------------------------------------------------------------------------------------


class Sentinel(sentinel_process.SentinelProcess):
    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory


def test_the_sentinel_ends_the_job_that_it_has_measured_or_none() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    reader, bell = os.pipe()
    try:
        worker = sentinel.Sentinel(None, memory, bell)
        worker.configure(None, 1000)
        worker.tell(sentinel.BUSY)
        first = sentinel.JOBS.unpack_from(memory, sentinel.JOBS_AT)
        worker.tell(sentinel.IDLE)
        assert not Sentinel(memory)._seal(first)
        worker.tell(sentinel.BUSY)
        assert not Sentinel(memory)._seal(first)
        second = sentinel.JOBS.unpack_from(memory, sentinel.JOBS_AT)
        worker.tell(sentinel.SETTLING)
        assert not Sentinel(memory)._seal(second)
        worker.tell(sentinel.BUSY)
        third = sentinel.JOBS.unpack_from(memory, sentinel.JOBS_AT)
        assert Sentinel(memory)._seal(third)
        assert memory[sentinel.SEALED]
    finally:
        os.close(reader)
        os.close(bell)
        memory.close()
