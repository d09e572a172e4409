"""End to end: who ends whom. At every instant of every ending one of those who take part may be killed, and nothing is left.

A lifeline is held by all that a job has started, so its end proves that nobody lives.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from kinds import environment_of
from lifeline import PATIENCE, Gate, Lifeline, process_state
from running import ceiling, started, write

from trio_offload import (
    BrokenWorkerError,
    WorkerMemoryError,
    WorkerStartError,
    WorkerType,
    open_worker_context,
)
from trio_offload._process import start as _process
from trio_offload._worker import launcher as _launcher
from trio_offload_worker._system import family, linux

PROGRAM = """
import os, signal, sys
import trio, trio_offload, jobs
from trio_offload._process.process import WorkerProcess
from trio_offload_worker._system import family, linux

kind, job, line = sys.argv[1:4]
left = int(sys.argv[4])

def then_die(function):
    def lying(*arguments):
        global left
        function(*arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return lying

async def main():
    options = {} if kind == "loop" else {"worker_type": trio_offload.WorkerType(kind)}
    async with trio_offload.open_worker_context(**options) as context:
        print(await context.run_sync(os.getpid), flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(getattr(jobs, job), line, kill_on_cancel=True))
            await trio.to_thread.run_sync(sys.stdin.readline)
            WorkerProcess._signal = then_die(WorkerProcess._signal)
            family._kill_one = then_die(family._kill_one)
            nursery.cancel_scope.cancel()

if __name__ == "__main__":
    trio.run(main)
"""


def has_whole_family(worker: int) -> bool:
    """True if a job's family is there: four times sleep, the daemon, and no longer the daemon's parent."""
    names = [command_name(pid) for pid in family.descendants(worker, 0)]
    return names.count("sleep") == 4 and names.count(command_name(worker)) == 1


def command_name(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return None


async def test_parent_killed_after_each_signal_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """The first stops the worker, six kill what the job has started, the eighth kills the worker, the ninth a watcher."""
    script = write(tmp_path / "program.py", PROGRAM)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # The types differ in who goes on, which the first and the last ones show.
    for count in range(1, 10) if kind in ("spawn", "loop") else (1, 5, 7, 8):
        line = Lifeline(tmp_path / f"line {count}")
        command = [sys.executable, script, kind, "start_family", line.path, str(count)]
        with started(command, environment=environment_of(kind), **pipes) as program:
            await line.pid()
            await line.pid()
            # Its shell has started two programs.
            worker = int(program.stdout.readline())
            with trio.fail_after(PATIENCE):
                while not has_whole_family(worker):  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.001)
            program.stdin.write(b"\n")
            program.stdin.flush()
            await trio.to_thread.run_sync(program.wait)
            with trio.fail_after(PATIENCE):
                await line.ended()
            line.close()
            assert count > 8 or program.returncode == -signal.SIGKILL


async def test_parent_killed_with_stopped_worker_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """One that holds the GIL, and has started nothing."""
    script = write(tmp_path / "program.py", PROGRAM)
    line = Lifeline(tmp_path / "line")
    command = [sys.executable, script, kind, "hold_the_gil", line.path, "1"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, environment=environment_of(kind), **pipes) as program:
        await line.pid()
        program.stdin.write(b"\n")
        program.stdin.flush()
        await trio.to_thread.run_sync(program.wait)
        await line.ended()
        assert program.returncode == -signal.SIGKILL
    line.close()


def exec_true() -> None:
    os.execvp("true", ["true"])


WAYS: dict[str, Any] = {
    "exit": jobs.exit_quietly,
    "a good exit": (os._exit, 0),
    "crash": jobs.segfault,
    "another program": exec_true,
}


@pytest.mark.parametrize("way", ["killed by somebody", "killed while idle", *WAYS])
async def test_every_end_of_worker_ends_its_family(of_any_kind: WorkerType, line: Lifeline, way: str) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        worker = await context.run_sync(jobs.leave_family, line.path)
        assert line.held()
        if way == "killed while idle":
            pidfd = os.pidfd_open(worker)
            os.kill(worker, signal.SIGKILL)
            # Until all its threads have ended the socket is open, and a call that it takes by then is lost with it.
            with trio.fail_after(PATIENCE):
                await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
            assert await context.run_sync(os.getpid) != worker
        elif way == "killed by somebody":
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(os.kill, worker, signal.SIGKILL)
        else:
            function, *arguments = WAYS[way] if isinstance(WAYS[way], tuple) else (WAYS[way],)
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(function, *arguments)
        await line.ended()


async def test_a_job_that_starts_programs_on_and_on_leaves_none(of_any_kind: WorkerType, line: Lifeline) -> None:
    async with open_worker_context(worker_type=of_any_kind, memory_limit=await ceiling(of_any_kind, 60 << 20)) as context:
        with pytest.raises(WorkerMemoryError):
            await context.run_sync(jobs.start_on_and_on, line.path)
        await line.ended()


@pytest.mark.parametrize("kind", ["fork", "loop"], indirect=True)
async def test_loop_killed_together_with_parent_leaves_nothing(kind: str, tmp_path: Path, line: Lifeline) -> None:
    """Its watcher is there still. (A worker executable has none, as docs/platforms.md says.)"""
    script = write(tmp_path / "program.py", PROGRAM)
    command = [sys.executable, script, kind, "start_family", line.path, "0"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, environment=environment_of(kind), **pipes) as program:
        worker = int(program.stdout.readline())
        await line.pid()
        await line.pid()
        os.kill(program.pid, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        os.kill(program.pid, signal.SIGKILL)
        await line.ended()


@pytest.mark.parametrize("kind", ["fork", "loop"], indirect=True)
async def test_killed_sentinel_leaves_no_stopped_worker(of_any_kind: WorkerType) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        with trio.fail_after(PATIENCE):
            assert await context.run_sync(jobs.go_on_without_watcher, kill_on_cancel=True) == 1


async def test_orphans_of_jobs_are_not_the_workers_children(of_any_kind: WorkerType, gate: Gate) -> None:
    """As in any program: init has them and reaps them, and what a job waits for are its own."""
    async with open_worker_context(worker_type=of_any_kind) as context:
        worker = await context.run_sync(jobs.leave_orphans, 20)
        gate.open()
        assert await context.run_sync(jobs.wait_for_own_children, gate.path) == (7, 9, 0)
        children = [pid for pid in family.children([worker]) if process_state(pid) == "Z"]
        assert not children


async def test_a_worker_out_of_descriptors_is_held_to_its_ceiling(of_any_kind: WorkerType, line: Lifeline) -> None:
    limit = await ceiling(of_any_kind, 150 << 20)
    async with open_worker_context(worker_type=of_any_kind, memory_limit=limit) as context:
        with pytest.raises(WorkerMemoryError):
            # It has started a program, so of the pages that a fork shares with this process only its share counts.
            await context.run_sync(jobs.run_out_of_descriptors, line.path, limit + (50 << 20))
        await line.ended()


async def test_worker_without_descriptors_ends_with_parent_and_family(kind: str, tmp_path: Path, line: Lifeline) -> None:
    script = write(tmp_path / "program.py", PROGRAM)
    command = [sys.executable, script, kind, "run_out_of_descriptors", line.path, "0"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, environment=environment_of(kind), **pipes) as program:
        await line.pid()
        assert await line.line() == "out"
        program.kill()
        await line.ended()


# --- systems that do not allow all of this -------------------------------------------------------

REFUSING = """
import ctypes, json, logging, os, resource, struct, sys
import trio, trio_offload, jobs

libc = ctypes.CDLL(None, use_errno=True)
kind, refused, line = sys.argv[1:]
if refused != "nothing":
    # Too low for a mark.
    resource.setrlimit(10, (1000, 1000))
if refused == "both":
    # What qemu's user mode does: prctl(PR_SET_CHILD_SUBREAPER) gives EINVAL. The numbers are those of seccomp(2), the filter
    # loads the number of the system call, then the first argument.
    number = {"x86_64": 157, "aarch64": 167}[os.uname().machine]
    steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 36), (0x06, 0, 0, 0x00050016),
             (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    filter = struct.pack("=HxxxxxxQ", len(steps), ctypes.addressof(program))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, filter) == 0
    assert libc.prctl(36, 1, 0, 0, 0) == -1 and ctypes.get_errno() == 22

async def main():
    options = {} if kind == "loop" else {"worker_type": trio_offload.WorkerType(kind)}
    async with trio_offload.open_worker_context(**options) as context:
        for _ in range(2):
            worker = await context.run_sync(os.getpid)
            with trio.move_on_after(0.5):
                await context.run_sync(jobs.start_family, line, kill_on_cancel=True)
    async with trio_offload.open_worker_context(**options) as context:
        await context.run_sync(bool)

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    trio.run(main)
"""


@pytest.mark.parametrize("refused", ["nothing", "marks", "both"])
async def test_system_without_orphan_search_runs_workers_and_warns(
    kind: str, refused: str, tmp_path: Path, line: Lifeline
) -> None:
    script = write(tmp_path / "program.py", REFUSING)
    # A file, because what is left would keep a pipe open.
    with (tmp_path / "stderr").open("w+") as stderr:
        command = [sys.executable, script, kind, refused, line.path]
        with started(command, environment=environment_of(kind), stdout=stderr, stderr=stderr) as program:
            await trio.to_thread.run_sync(program.wait)
        stderr.seek(0)
        text = stderr.read()
    assert program.returncode == 0, text
    assert text.count("could not mark itself") == (refused != "nothing"), text
    if refused != "both":
        await line.ended()
        return
    # Two daemons, which nobody finds.
    for _ in range(2):
        await line.pid()
        os.kill(await line.pid(), signal.SIGKILL)
    await line.ended()


async def test_without_proc_a_memory_limit_is_refused(of_any_kind: WorkerType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launcher, "has_proc", lambda: False)
    async with open_worker_context(worker_type=of_any_kind, memory_limit=1 << 30) as context:
        with pytest.raises(WorkerStartError, match="memory_limit cannot be enforced here, because /proc"):
            await context.run_sync(bool)


async def test_without_proc_the_log_says_what_does_not_hold_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_process, "has_proc", lambda: False)
    monkeypatch.setattr(_process, "_has_warned", False)
    with caplog.at_level(logging.WARNING, "trio_offload"):
        for _ in range(2):
            async with open_worker_context() as context:
                await context.run_sync(bool)
    assert [record.message[:30] for record in caplog.records] == ["/proc cannot be read here. So "]


async def test_without_proc_what_a_job_has_started_ends_with_it(
    of_any_kind: WorkerType, line: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is read without it, and numbers are tried one after the other."""

    def read_nothing(path: str) -> Any:
        raise FileNotFoundError(2, "there is none", path)

    async with open_worker_context(worker_type=of_any_kind) as context:
        await context.run_sync(bool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(jobs.start_family, line.path, kill_on_cancel=True))
            await line.pid()
            await line.pid()
            monkeypatch.setattr(linux, "_read_once", read_nothing)
            monkeypatch.setattr(family, "listed_processes", lambda: None)
            nursery.cancel_scope.cancel()
        await line.ended()


# --- marks ---------------------------------------------------------------------------------------


async def test_a_worker_and_all_that_it_starts_have_its_mark(of_any_kind: WorkerType, line: Lifeline) -> None:
    before = family.boot_time()
    async with open_worker_context(worker_type=of_any_kind) as context:
        worker = await context.run_sync(jobs.leave_family, line.path)
        mark = family.mark_of(worker)
        assert family.is_marked(worker)
        assert not family.is_marked(os.getpid())
        assert len(family.orphans(worker, before)) >= 4
        assert not family.orphans(worker, family.boot_time() + 1)
        assert all(family.mark_of(pid) == mark for pid in family.orphans(worker, 0))
        # Any process may read it, one with other users too, where prlimit gives no answer.
        assert family._mark_in_table(worker) == mark
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(os.kill, worker, signal.SIGKILL)
        await line.ended()


def test_both_languages_make_the_same_mark() -> None:
    """`family.rs` has the same numbers in its own test."""
    assert family._front(1) << 39 == 1 << 62 | 1 << 39
    assert family._front(2**22 - 1) << 39 | family._TIME == 1 << 62 | 2**61 - 1
    assert family._front(2**22 - 1, True) << 39 == 1 << 62 | 1 << 61 | (2**22 - 1) << 39


def test_a_limit_that_the_program_has_set_itself_is_no_mark() -> None:
    soft, _ = resource.getrlimit(family.LIMIT)
    assert family.mark_of(os.getpid()) == soft
    assert not family.is_marked(os.getpid())


def test_the_doctor_says_how_processes_are_found(capfd: pytest.CaptureFixture[str]) -> None:
    from trio_offload._cli import main

    main(["doctor", "--json"])
    report = json.loads(capfd.readouterr().out)
    assert report["trial call"]["processes of jobs are found by"] == "a mark"
    assert report["kernel"]["/proc"] is True
