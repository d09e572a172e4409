"""``trio-offload top``: real programs, seen from outside while they work."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import top_jobs
import trio
from cli_support import PATIENCE, run, started, wait_until
from kinds import environment_of, type_of
from running import in_fork, run_script
from running import started as started_program

from trio_offload import WorkerContext, WorkerType, open_worker_context
from trio_offload._cli import top as top_command
from trio_offload._cli.exit_status import CommandError
from trio_offload._process.record import OPT_OUT
from trio_offload._top.programs import NoProgram, find_program, find_programs
from trio_offload._top.sampler import Sample, Sampler

PROGRAM = """
import os, sys, time
import trio, trio_offload, top_jobs

def block(path):
    open("blocked", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)

async def main(kind, how, *names):
    async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType(kind)) as context:
        await context.run_sync(abs, -1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, top_jobs.wait_for, "go")
            # The test may be over before the job has been seen.
            while context.statistics().workers[0].state != "running" and not os.path.exists("go"):
                await trio.sleep(0.01)
            if how == "blocked":
                # The worker has its call once its record says so.
                await trio.sleep(0.1)
                block("unblock")

if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
"""
FIELDS = [
    "pid",
    "context",
    "state",
    "function",
    "progress",
    "jobs",
    "rss",
    "peak_rss",
    "vms",
    "cpu_time",
    "cpu_percent",
    "age",
]


@contextmanager
def program(
    folder: Path, kind: str = "spawn", how: str = "plain", **changes: str | None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program with a worker of this kind. Its second job waits for the file ``go``."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", type_of(kind).value, how]
    with started_program(command, environment=environment_of(kind, **changes), folder=folder) as process:
        try:
            yield process
        finally:
            (folder / "unblock").touch()
            (folder / "go").touch()


def sample_of(pid: int) -> Sample:
    return Sampler(find_program(pid)).sample()


def running(pid: int) -> list[Any]:
    """The workers that run a job; none if the program has no worker yet."""
    try:
        return [worker for worker in sample_of(pid).workers if worker.state == "running"]
    except NoProgram:
        return []


async def until_running(count: int) -> Sample:
    """A sample of this process, once so many workers run a job."""
    with trio.fail_after(PATIENCE):
        while len(running(os.getpid())) < count:  # noqa: ASYNC110  # workers in other processes
            await trio.sleep(0.01)
    return sample_of(os.getpid())


# --- the figures -------------------------------------------------------------------------------------


async def test_the_figures_are_those_of_statistics(kind: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with open_worker_context(worker_type=type_of(kind)) as context, trio.open_nursery() as nursery:
        await context.run_sync(abs, -1)
        await context.run_sync(abs, -2)
        sample = sample_of(os.getpid())
        assert [(worker.state, worker.function, worker.jobs) for worker in sample.workers] == [("idle", None, 2)]
        nursery.start_soon(partial(context.run_sync, top_jobs.tell_and_wait_for, str(go), kill_on_cancel=True))
        seen = (await until_running(1)).workers
        with trio.fail_after(PATIENCE):
            while seen[0].progress is None:
                await trio.sleep(0.01)
                seen = sample_of(os.getpid()).workers
        (told,) = context.statistics().workers
        go.touch()
    (worker,) = seen
    assert (worker.pid, worker.state, worker.function, worker.jobs) == (told.pid, "running", told.function, told.jobs)
    assert worker.function == "top_jobs.tell_and_wait_for"
    assert worker.progress == told.progress
    assert told.age - 10 < worker.age <= told.age
    assert worker.rss is not None
    assert worker.peak_rss is not None
    assert worker.vms is not None
    assert worker.cpu_time
    assert 1_000_000 < worker.rss <= worker.peak_rss < worker.vms


async def test_the_first_call_has_its_name(kind: str, tmp_path: Path) -> None:
    """It may be sent before the worker is ready."""
    go = tmp_path / "go"
    async with open_worker_context(worker_type=type_of(kind)) as context, trio.open_nursery() as nursery:
        nursery.start_soon(partial(context.run_sync, top_jobs.wait_for, str(go), kill_on_cancel=True))
        (worker,) = (await until_running(1)).workers
        go.touch()
    assert (worker.function, worker.jobs) == ("top_jobs.wait_for", 0)


async def test_several_contexts_are_told_apart(tmp_path: Path) -> None:
    go, limiter = tmp_path / "go", trio.CapacityLimiter(3)
    async with (
        open_worker_context() as first,
        open_worker_context() as second,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(first.run_sync, top_jobs.wait_for, str(go), kill_on_cancel=True, limiter=limiter))
        nursery.start_soon(partial(second.run_sync, top_jobs.wait_for, str(go), kill_on_cancel=True, limiter=limiter))
        nursery.start_soon(partial(second.run_sync, top_jobs.wait_for, str(go), kill_on_cancel=True, limiter=limiter))
        workers = (await until_running(3)).workers
        go.touch()
    numbers = [worker.context for worker in workers]
    assert len(set(numbers)) == 2
    assert sorted(counts_of(numbers).values()) == [1, 2]


def counts_of(numbers: list[int]) -> dict[int, int]:
    return {number: numbers.count(number) for number in numbers}


def test_workers_of_several_threads(tmp_path: Path) -> None:
    go = tmp_path / "go"

    async def in_thread() -> None:
        async with open_worker_context() as context:
            await context.run_sync(top_jobs.wait_for, str(go))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, trio.run, in_thread)
            await until_running(2)
            go.touch()

    trio.run(main)


@pytest.mark.parametrize("chunk_size", [1, 5])
async def test_a_map_shows_the_users_function(chunk_size: int, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with open_worker_context() as context:
        async with context.map(top_jobs.wait_for, [str(go)] * 10, chunk_size=chunk_size, workers=2) as results:
            workers = (await until_running(2)).workers
            go.touch()
            await results.collect()
        assert {worker.function for worker in workers} == {"top_jobs.wait_for"}
        assert {worker.jobs for worker in workers} == {0}
        told = {worker.pid: worker.jobs for worker in context.statistics().workers}
        assert {worker.pid: worker.jobs for worker in sample_of(os.getpid()).workers} == told


async def test_functions_that_take_turns(tmp_path: Path) -> None:
    async with open_worker_context() as context, trio.open_nursery() as nursery:
        for number, function in enumerate((top_jobs.wait_for, top_jobs.spin_for, top_jobs.wait_for)):
            go = tmp_path / f"go-{number}"
            nursery.start_soon(partial(context.run_sync, function, str(go), kill_on_cancel=True))
            (worker,) = (await until_running(1)).workers
            assert worker.function == f"top_jobs.{function.__name__}"
            go.touch()
            with trio.fail_after(PATIENCE):
                while context.statistics().running_workers:  # noqa: ASYNC110
                    await trio.sleep(0.01)


async def test_a_long_name_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    module = "m" * 205 + "é"
    monkeypatch.setitem(sys.modules, module, top_jobs)
    monkeypatch.setattr(top_jobs.wait_under_another_name, "__module__", module)
    async with open_worker_context(worker_type=WorkerType.FORK) as context, trio.open_nursery() as nursery:
        nursery.start_soon(partial(context.run_sync, top_jobs.wait_under_another_name, str(go), kill_on_cancel=True))
        (worker,) = (await until_running(1)).workers
        go.touch()
    # 208 bytes.
    assert worker.function == module + "."


async def test_an_idle_worker_does_not_keep_the_function_alive(context: WorkerContext) -> None:
    import gc
    import weakref

    def local() -> int:
        return 1

    ended = weakref.ref(local)
    assert await context.run_sync(local) == 1
    del local
    gc.collect()
    assert ended() is None


async def test_processor_use_is_of_the_time_between_two_samples(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with open_worker_context() as context, trio.open_nursery() as nursery:
        nursery.start_soon(partial(context.run_sync, top_jobs.spin_for, str(go), kill_on_cancel=True))
        await until_running(1)
        sampler = Sampler(find_program(os.getpid()))
        assert sampler.sample().workers[0].cpu_percent is None
        before = sampler.sample().workers[0].cpu_time
        with trio.fail_after(PATIENCE):
            while (worker := sampler.sample().workers[0]).cpu_time == before:  # noqa: ASYNC110
                await trio.sleep(0.05)
        go.touch()
    assert worker.cpu_percent is not None
    assert 0 < worker.cpu_percent < 150


# --- programs ----------------------------------------------------------------------------------------


def test_a_blocked_event_loop_hides_nothing(kind: str, tmp_path: Path) -> None:
    with program(tmp_path, kind, "blocked") as process:
        wait_until((tmp_path / "blocked").exists, "the block")
        (worker,) = sample_of(process.pid).workers
        assert (worker.state, worker.function, worker.jobs) == ("running", "top_jobs.wait_for", 1)
        # The worker's own word: its answer has not been read.
        (tmp_path / "go").touch()
        wait_until(lambda: not running(process.pid), "the end of the job")
        assert [worker.jobs for worker in sample_of(process.pid).workers] == [2]


def test_json_of_a_program(tmp_path: Path) -> None:
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")
        ran = run(tmp_path, "top", str(process.pid), "--json")
    assert (ran.status, ran.stderr) == (0, "")
    (line,) = lines_of(ran.stdout)
    assert list(line) == ["time", "pid", "command", "workers"]
    assert line["pid"] == process.pid
    assert line["command"] == f"{sys.executable} program.py spawn plain"
    (worker,) = line["workers"]
    assert list(worker) == FIELDS
    assert (worker["state"], worker["function"], worker["jobs"]) == ("running", "top_jobs.wait_for", 1)
    assert worker["cpu_percent"] is not None


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_without_a_terminal_the_table_is_printed_once(tmp_path: Path) -> None:
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")
        ran = run(tmp_path, "top", str(process.pid))
    heading, names, row = ran.stdout.splitlines()
    assert ran.status == 0
    assert heading == f"{process.pid}: 1 worker, 1 running: {sys.executable} program.py spawn plain"
    assert names.split() == ["pid", "state", "cpu", "memory", "peak", "jobs", "age", "function"]
    assert row.split()[1] == "running"
    assert row.split()[-1] == "top_jobs.wait_for"


def test_an_interval_repeats_until_the_program_is_killed(tmp_path: Path) -> None:
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")
        with started(tmp_path, "top", str(process.pid), "--interval", "0.05", "--json") as top:
            assert top.stdout is not None
            lines = [json.loads(top.stdout.readline()) for _ in range(3)]
            process.kill()
            rest, stderr = top.communicate(timeout=PATIENCE)
    assert [line["workers"][0]["function"] for line in lines] == ["top_jobs.wait_for"] * 3
    assert all(json.loads(line)["pid"] == process.pid for line in rest.splitlines())
    assert (top.returncode, stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_table_ends_with_its_program(number: int, tmp_path: Path) -> None:
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")
        with on_terminal(tmp_path, str(process.pid), "--interval", "0.05") as (top, shown):
            wait_until(lambda: b"top_jobs.wait_for" in shown(), "the table")
            process.send_signal(number)
            process.wait(PATIENCE)
            wait_until(lambda: b"has ended" in shown(), "the last sentence")
            assert top.wait(PATIENCE) == 0
    assert shown().rstrip().endswith(f"Process {process.pid} has ended.".encode())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_program_that_ends_before_it_is_shown(as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to show is an error, not an empty output."""
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")

        def kill(seconds: float) -> None:
            process.kill()
            process.wait()

        monkeypatch.setattr(top_command.time, "sleep", kill)
        with pytest.raises(CommandError, match=f"^process {process.pid} ended meanwhile$"):
            top_command.run_top(top_command.TopOptions(process.pid, as_json=as_json, once=True, interval=None))


def test_a_table_ends_at_ctrl_c(tmp_path: Path) -> None:
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")
        with on_terminal(tmp_path, str(process.pid)) as (top, shown):
            wait_until(lambda: b"top_jobs.wait_for" in shown(), "the table")
            top.send_signal(signal.SIGINT)
            assert top.wait(PATIENCE) == 0
        assert b"Traceback" not in shown()


@contextmanager
def on_terminal(folder: Path, *arguments: str, columns: int = 120) -> Iterator[Any]:
    """The command with a terminal of 24 lines, and a function that returns all that it has shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.set_blocking(ours, False)
    text = bytearray()
    # These would be the width and height instead. A run of the tests in several processes sets them.
    sizes = ("COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in sizes} | {"TERM": "xterm"}

    def shown() -> bytes:
        try:
            while part := os.read(ours, 65536):
                text.extend(part)
        except OSError:  # nothing there, or the other end is closed
            pass
        return bytes(text)

    try:
        with started(folder, "top", *arguments, stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as top:
            os.close(theirs)
            theirs = -1
            yield top, shown
            shown()
    finally:
        os.close(ours)
        if theirs != -1:
            os.close(theirs)


def test_a_narrow_terminal_cuts_names_only(tmp_path: Path) -> None:
    with program(tmp_path) as process:
        wait_until(lambda: running(process.pid), "a running job")
        (worker,) = sample_of(process.pid).workers
        with on_terminal(tmp_path, str(process.pid), "--once", columns=60) as (top, shown):
            assert top.wait(PATIENCE) == 0
        *_, row = shown().decode().splitlines()
    assert row.split()[:2] == [str(worker.pid), "running"]
    assert row.endswith("…")
    assert len(row) <= 60


def test_numbers_are_those_of_the_readers_namespace(tmp_path: Path) -> None:
    """As of a program in a container, seen from outside."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let us make PID namespaces")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "program.py", "spawn", "plain"]
    with started_program(command, environment=environment_of(), folder=tmp_path) as process:
        try:
            (child,) = wait_for_children(process.pid)
            wait_until(lambda: running(child), "a running job")
            sample = sample_of(child)
            (worker,) = sample.workers
            assert sample.program.command.endswith("program.py spawn plain")
            assert "trio-offload-worker" in Path(f"/proc/{worker.pid}/cmdline").read_text()
            assert worker.pid in wait_for_children(child)
        finally:
            (tmp_path / "go").touch()


def wait_for_children(pid: int) -> list[int]:
    """The children of a process, once it has some."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(path.read_text, "a child")
    return [*map(int, path.read_text().split())]


def test_without_an_id_the_programs_of_this_user_are_found(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with program(first) as one:
        wait_until(lambda: running(one.pid), "a running job")
        assert one.pid in [found.pid for found in find_programs()]
        with program(second) as two:
            wait_until(lambda: running(two.pid), "a running job")
            ran = run(tmp_path, "top")
            lines = lines_of(run(tmp_path, "top", "--json").stdout)
    rows = {row.split()[0]: row.split()[1:3] for row in ran.stdout.splitlines()}
    assert rows[str(one.pid)] == rows[str(two.pid)] == ["1", "1"]
    assert ran.stdout.endswith("Choose one: trio-offload top PID\n")
    assert {one.pid, two.pid} <= {line["pid"] for line in lines}


# --- refusals ----------------------------------------------------------------------------------------


def complaint(folder: Path, *arguments: str) -> str:
    ran = run(folder, "top", *arguments)
    assert (ran.status, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    return line.removeprefix("trio-offload: error: ")


def test_a_process_that_does_not_exist(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert complaint(tmp_path, str(process.pid)) == f"there is no process {process.pid}"


def test_a_process_without_workers(tmp_path: Path) -> None:
    assert complaint(tmp_path, str(os.getpid())) == f"process {os.getpid()} has no workers of trio-offload"


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", str(2**31)])
def test_a_wrong_id(text: str, tmp_path: Path) -> None:
    line = complaint(tmp_path, "--", text)
    assert "must be the ID of a process" in line


async def test_a_worker_names_its_program(context: WorkerContext) -> None:
    pid = await context.run_sync(os.getpid)
    with pytest.raises(NoProgram, match=f"process {pid} is a worker of process {os.getpid()}: watch that one"):
        find_program(pid)


def test_a_program_may_opt_out(tmp_path: Path) -> None:
    with program(tmp_path, **{OPT_OUT: "0"}) as process:

        def is_hidden() -> bool:
            try:
                find_program(process.pid)
            except NoProgram as error:
                return str(error) == f"process {process.pid} does not show its workers: it has set TRIO_OFFLOAD_TOP=0"
            raise AssertionError("it is shown")

        wait_until(is_hidden, "a worker")
        assert process.pid not in [found.pid for found in find_programs()]
        for number in os.listdir(f"/proc/{process.pid}/fd"):
            path = f"/proc/{process.pid}/fd/{number}"
            if "trio-offload-record" in os.readlink(path):
                assert b"top_jobs" not in Path(path).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_sees_nothing(context: WorkerContext) -> None:
    await context.run_sync(abs, -1)
    (worker,) = sample_of(os.getpid()).workers
    watched = os.getpid()

    def as_another_user() -> int:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        for pid in (watched, worker.pid):
            with pytest.raises(NoProgram, match=f"process {pid} belongs to another user, or cannot be inspected"):
                find_program(pid)
        return int(watched in [found.pid for found in find_programs()])

    assert in_fork(as_another_user) == 0


async def test_a_fork_of_the_program_has_no_workers(context: WorkerContext) -> None:
    await context.run_sync(abs, -1)

    def in_copy() -> int:
        with pytest.raises(NoProgram, match="has no workers"):
            find_program(os.getpid())
        return 0

    assert in_fork(in_copy) == 0


def test_the_default_context_is_the_first(tmp_path: Path) -> None:
    text = """
    import trio, trio_offload, os
    from trio_offload._top.programs import find_program

    async def main():
        async with trio_offload.open_worker_context() as context:
            await trio_offload.run_sync(abs, -1)
            await context.run_sync(abs, -1)
            print([listing.entry.context for listing in find_program(os.getpid()).listings()])

    if __name__ == "__main__":
        trio.run(main)
    """
    assert run_script(tmp_path, text).stdout == "[1, 2]\n"
