"""End to end: what is told of a worker that died: how, of what, on which line of Python."""

from __future__ import annotations

import errno
import faulthandler
import json
import logging
import os
import pickle
import platform
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jobs
import memory_jobs
import pytest
import trio
from lifeline import PATIENCE, Lifeline
from running import run_script

from trio_offload import (
    BrokenWorkerError,
    CrashRecord,
    WorkerContext,
    WorkerStartError,
    WorkerType,
    open_worker_context,
)
from trio_offload import _crash as crash_module
from trio_offload._process import record as record_module

pytestmark = pytest.mark.usefixtures("worker_type")


async def death_of(context: WorkerContext, job: Callable[..., Any], *args: Any) -> tuple[BrokenWorkerError, CrashRecord]:
    with trio.fail_after(PATIENCE), pytest.raises(BrokenWorkerError) as told:
        await context.run_sync(job, *args)
    assert told.value.crash is not None
    return told.value, told.value.crash


# --- kinds of death ------------------------------------------------------------------------------

FAULTS: list[Any] = [
    pytest.param(jobs.segfault, signal.SIGSEGV, "in segfault", id="a read from nowhere"),
    pytest.param(jobs.abort, signal.SIGABRT, "in abort", id="abort"),
    pytest.param(memory_jobs.abort_by_signal, signal.SIGABRT, "in abort_by_signal", id="SIGABRT to itself"),
    pytest.param(memory_jobs.fatal_error, signal.SIGABRT, "in fatal_error", id="a fatal error of Python's"),
    pytest.param(
        memory_jobs.overflow_in_c,
        signal.SIGSEGV,
        "in overflow_in_c",
        id="the stack used up in C",
        marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="the job's machine code is for x86-64"),
    ),
]


@pytest.mark.parametrize(("job", "number", "frame"), FAULTS)
async def test_a_fault_is_told_with_the_line_of_python(job: Any, number: signal.Signals, frame: str) -> None:
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        error, crash = await death_of(context, job)
        assert (error.pid, error.exitcode, error.signal) == (pid, -number, number)
        assert (crash.pid, crash.exitcode, crash.signal) == (pid, -number, number)
        assert frame in crash.stack
        assert crash.function is not None
        assert job.__name__ in crash.function
        assert 0 <= crash.age < PATIENCE
        assert crash.rss is not None
        assert crash.rss > 2 * 2**20
        # A log is enough to find the line.
        shown = "".join(traceback.format_exception(error))
        assert number.name in shown
        assert frame in shown
        assert Path(jobs.__file__).name in shown or Path(memory_jobs.__file__).name in shown
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_an_exit_leaves_no_stack() -> None:
    async with open_worker_context() as context:
        error, crash = await death_of(context, os._exit, 42)
        assert (error.exitcode, error.signal, crash.signal, crash.stack) == (42, None, None, "")
        assert "exited with status 42" in str(error)
        assert crash.function is not None
        assert crash.function.endswith("_exit")


async def test_a_kill_from_outside_leaves_no_stack_and_says_so(line: Lifeline) -> None:
    async with open_worker_context() as context:
        errors: list[BrokenWorkerError] = []

        async def call() -> None:
            errors.append((await death_of(context, jobs.hold_for_ever, line.path))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            os.kill(await line.pid(), signal.SIGKILL)
        (error,) = errors
        assert "died of SIGKILL while it ran jobs.hold_for_ever" in str(error)
        assert "OOM" not in str(error)
        assert error.crash is not None
        assert error.crash.stack == ""
        assert "No Python stack: SIGKILL ends a process at once" in "".join(error.__notes__)


async def test_a_stack_used_up_by_python_is_told_one_way_or_the_other() -> None:
    """Some versions notice in time, others die; nobody hangs, and the pool lives on."""
    async with open_worker_context() as context:
        with trio.fail_after(PATIENCE), pytest.raises((BrokenWorkerError, RecursionError)) as told:
            await context.run_sync(memory_jobs.overflow_in_python)
        if isinstance(told.value, BrokenWorkerError):
            assert told.value.signal is signal.SIGSEGV
            assert told.value.crash is not None
            assert "in key" in told.value.crash.stack
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_the_faulthandler_is_on_in_every_worker() -> None:
    """Whatever it is here: there it writes to the record."""
    async with open_worker_context() as context:
        assert await context.run_sync(faulthandler.is_enabled)


async def test_all_threads_are_told() -> None:
    async with open_worker_context() as context:
        _, crash = await death_of(context, memory_jobs.crash_among_threads)
        assert "in sleep_in_a_thread" in crash.stack
        assert "in crash_among_threads" in crash.stack


async def test_a_death_in_init_is_told_with_its_line() -> None:
    async with open_worker_context(init=jobs.segfault) as context:
        with pytest.raises(WorkerStartError, match="died of SIGSEGV before it was ready") as told:
            await context.run_sync(bool)
        assert "in segfault" in str(told.value)


async def test_how_a_copy_died_is_not_how_the_worker_did() -> None:
    async with open_worker_context() as context:
        error, crash = await death_of(context, memory_jobs.crash_in_a_copy)
        assert (error.exitcode, crash.stack) == (3, "")


# --- the record ----------------------------------------------------------------------------------


async def test_the_error_and_its_record_travel() -> None:
    async with open_worker_context() as context:
        error, crash = await death_of(context, jobs.segfault)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is BrokenWorkerError
    assert (str(again), again.pid, again.exitcode, again.signal) == (str(error), error.pid, error.exitcode, error.signal)
    assert again.crash == crash
    assert again.__notes__ == error.__notes__


async def test_what_was_written_to_a_file_of_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    print("before the worker", file=sys.stderr, flush=True)
    async with open_worker_context() as context:
        _, crash = await death_of(context, memory_jobs.say_and_crash, "the last words\n")
    assert crash.stderr is not None
    assert crash.stderr.endswith("the last words\n")
    assert "before the worker" not in crash.stderr
    # It is where the user wanted it, all the same.
    assert "the last words\n" in capfd.readouterr().err


def test_standard_error_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    text = f"""
    import sys
    sys.path.insert(0, {str(Path(jobs.__file__).parent)!r})
    import trio, trio_offload, memory_jobs

    async def main():
        try:
            await trio_offload.run_sync(memory_jobs.say_and_crash, "to the pipe")
        except trio_offload.BrokenWorkerError as error:
            print(error.crash.stderr)

    if __name__ == "__main__":
        trio.run(main)
    """
    ended = run_script(tmp_path, text)
    assert ended.lines() == ["None"]
    assert ended.stderr == "to the pipe"


async def test_records_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "crashes"
    async with open_worker_context(crash_dir=folder) as context:
        _, first = await death_of(context, jobs.segfault)
        _, second = await death_of(context, os._exit, 42)
    files = sorted(folder.iterdir())
    assert len(files) == 2
    kept = {record["pid"]: record for record in (json.loads(file.read_text()) for file in files)}
    assert kept[first.pid]["signal"] == "SIGSEGV"
    assert kept[first.pid]["exitcode"] == -signal.SIGSEGV
    assert kept[first.pid]["stack"] == first.stack
    assert kept[first.pid]["function"] == first.function
    assert kept[first.pid]["rss"] == first.rss
    assert kept[second.pid]["signal"] is None
    assert kept[second.pid]["exitcode"] == 42
    assert all(file.name.startswith("trio-offload-crash-") and file.suffix == ".json" for file in files)


async def test_a_record_that_cannot_be_kept_does_not_hide_the_death(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_worker_context(crash_dir=tmp_path / "records") as context:
        (tmp_path / "records").rmdir()
        (tmp_path / "records").write_text("")
        await death_of(context, os._exit, 42)
    (message,) = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert "could not be saved" in message.getMessage()


async def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"crash_dir='.*' cannot be written: .*\. Name a directory"):
            async with open_worker_context(crash_dir=wrong):
                pass
    async with open_worker_context(crash_dir=tmp_path / "made" / "here"):
        assert (tmp_path / "made" / "here").is_dir()


def test_a_record_is_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = CrashRecord(pid=1, exitcode=1, signal=None, function="f", age=0.0, stack="")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    crash_module.save_crash_record(crash, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_without_a_directory_nothing_is_left_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TMP", "TEMP"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    async with open_worker_context() as context:
        for job in (jobs.segfault, jobs.abort, jobs.kill_self):
            await death_of(context, job)
    assert os.listdir(tmp_path) == []


def test_an_endless_record_is_cut() -> None:
    with closing(record_module.RecordFile()) as file:
        os.write(file.fileno(), b"x" * 10_000_000)
        assert 0 < len(file.read()) < 1_000_000
    assert file.read() == ""


def test_a_log_of_an_uncaught_death_is_enough(tmp_path: Path) -> None:
    text = f"""
    import sys
    sys.path.insert(0, {str(Path(jobs.__file__).parent)!r})
    import trio, trio_offload, jobs

    if __name__ == "__main__":
        trio.run(trio_offload.run_sync, jobs.segfault)
    """
    ended = run_script(tmp_path, text, expect=1)
    assert "SIGSEGV" in ended.stderr
    assert "jobs.py" in ended.stderr
    assert "in segfault" in ended.stderr


# --- where there is no room for the record ---------------------------------------------------------


@pytest.mark.parametrize("kind", [WorkerType.SPAWN, WorkerType.FORK])
async def test_a_system_without_memfd_create_has_a_file_for_the_record(
    kind: WorkerType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "memfd_create", refuse)
    async with open_worker_context(worker_type=kind) as context:
        with pytest.raises(BrokenWorkerError) as caught:
            await context.run_sync(jobs.segfault)
    assert caught.value.crash is not None
    assert "in segfault" in caught.value.crash.stack


@pytest.mark.parametrize("kind", [WorkerType.SPAWN, WorkerType.FORK])
@pytest.mark.parametrize("size", [0, 1000])
async def test_limit_of_file_sizes_is_told(kind: WorkerType, size: int) -> None:
    """Not that space is missing, although a write that such a limit cuts off looks the same."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_worker_context(worker_type=kind) as context:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(WorkerStartError, match=r"File too large.*ulimit -f"):
                await context.run_sync(bool)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert await context.run_sync(abs, -1) == 1


@pytest.mark.parametrize("kind", [WorkerType.SPAWN, WorkerType.FORK])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.EFBIG])
async def test_no_room_for_the_record_is_told(kind: WorkerType, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nothing would be known of a death, and a ceiling could not be told from another one."""

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    async with open_worker_context(worker_type=kind) as context:
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", refuse)
            with pytest.raises(WorkerStartError, match=os.strerror(code)) as caught:
                await context.run_sync(bool)
        expected = {
            errno.ENOSPC: "no space left",
            errno.ENOMEM: "not enough memory",
            errno.EMFILE: "ulimit -n",
            errno.EFBIG: "ulimit -f",
        }
        assert expected[code] in str(caught.value)
        # And it is as if nothing had been.
        assert await context.run_sync(abs, -1) == 1
