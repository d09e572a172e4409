"""End to end: frames have a socket of their own, and the standard streams are the user's (rule 3 of the design)."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from programs import descriptor_jobs as jobs
from running import PROGRAMS, TIMEOUT, run, run_script, started, write

from trio_offload import BrokenWorkerError, WorkerContext, open_worker_context

pytestmark = pytest.mark.usefixtures("worker_type")

PATIENCE = 60  # seconds, where nothing should take long


@pytest.fixture
def inheritable() -> Iterator[set[str]]:
    """Descriptors that this process would hand to any program: a file, a pipe, a socket, a large number."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1000:
        pytest.skip("the limit of open files is low here")
    file = tempfile.TemporaryFile()  # noqa: SIM115
    pair = socket.socketpair()
    pipe = os.pipe()
    high = os.dup2(file.fileno(), 900, inheritable=True)
    numbers = [file.fileno(), pair[0].fileno(), pair[1].fileno(), *pipe, high]
    for number in numbers:
        os.set_inheritable(number, True)
    yield {os.readlink(f"/proc/self/fd/{number}") for number in numbers}
    for number in (*pipe, high):
        os.close(number)
    file.close()
    for end in pair:
        end.close()


# --- what a worker has ---------------------------------------------------------------------------------------


def is_of_libffi(target: str) -> bool:
    """From version 3.4 on that library, which ctypes loads, may keep its own file open in every process that uses it."""
    return os.path.basename(target).startswith("libffi")


async def test_a_worker_has_its_streams_and_its_own(context: WorkerContext, inheritable: set[str]) -> None:
    """Nothing that this process has open is open in the worker, however it was marked; and nothing is for its children."""
    found = await context.run_sync(jobs.listed)
    ours = jobs.listed()
    for number in (0, 1, 2):
        assert found[number] == (ours[number][0], True)
    own = {number: value for number, value in found.items() if number > 2 and not is_of_libffi(value[0])}
    assert not [value for value in own.values() if value[1]], "what a job starts would inherit it"
    assert not {target for target, _ in own.values()} & inheritable
    sockets = [number for number, (target, _) in own.items() if target.startswith("socket:")]
    assert sockets == [3]
    # A pidfd of the parent, a pipe of the signal handler and one of the native thread, the record: the worker's own, and few.
    kinds = ("socket:", "anon_inode:", "pipe:", "/memfd:trio-offload-record")
    assert all(target.startswith(kinds) for target, _ in own.values()), own
    assert len(own) <= 8, own


async def test_workers_do_not_have_each_others_sockets() -> None:
    async with open_worker_context() as context:
        lists: list[dict[int, Any]] = []

        async def look() -> None:
            lists.append(await context.run_sync(jobs.listed))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(look)
        sockets = [target for found in lists for target, _ in found.values() if target.startswith("socket:")]
        # One each; the same one again if a worker ran several of the calls.
        assert len(sockets) == 6
        ours = {target for target, _ in jobs.listed().values() if target.startswith("socket:")}
        assert not ours & set(sockets)


async def test_what_this_process_starts_does_not_have_the_sockets(context: WorkerContext) -> None:
    before = jobs.with_subprocess(False)
    await context.run_sync(bool)
    ours = [value for number, value in jobs.listed().items() if number > 2 and value[0].startswith("socket:")]
    assert ours
    # Open for the worker's sake, and closed in every program that is started meanwhile.
    found = await trio.to_thread.run_sync(jobs.with_subprocess, False)
    assert [target for number, (target, _) in found.items() if number not in before] == []


STARTERS = [
    ("with_subprocess", True),
    ("with_subprocess", False),
    ("with_popen",),
    ("with_posix_spawn",),
    ("with_fork_and_exec",),
    ("with_multiprocessing", "spawn"),
]


@pytest.mark.parametrize("starter", STARTERS, ids=str)
async def test_what_a_job_starts_has_the_streams_only(context: WorkerContext, inheritable: set[str], starter: Any) -> None:
    name, *arguments = starter
    found = await context.run_sync(getattr(jobs, name), *arguments)
    own = {number: target for number, (target, _) in found.items() if number > 2}
    if name == "with_fork_and_exec":
        # The job's own mistake: it handed on the pipe's other end. (Python makes it close-on-exec, so not even that.)
        assert own == {}
    if "multiprocessing" in name:
        # Queues and the resource tracker, made by multiprocessing; none of them is a socket.
        assert not [target for target in own.values() if target.startswith("socket:")]
    else:
        assert own == {}
    assert not set(own.values()) & inheritable


@pytest.mark.parametrize(
    "starter", [("with_fork",), ("with_multiprocessing", "fork"), ("with_multiprocessing", "forkserver")], ids=str
)
async def test_a_fork_of_a_worker_does_not_have_its_socket(context: WorkerContext, starter: Any) -> None:
    """Otherwise it would keep the worker's death from being seen."""
    name, *arguments = starter
    mine = {target for target, _ in (await context.run_sync(jobs.listed)).values() if target.startswith("socket:")}
    found = await context.run_sync(getattr(jobs, name), *arguments)
    assert not mine & {target for target, _ in found.values()}


@pytest.mark.parametrize(
    ("job", "arguments"),
    [(jobs.start_sleeper_and_die, [True]), (jobs.start_sleeper_and_die, [False]), (jobs.fork_sleeper_and_die, [])],
)
async def test_a_death_is_seen_whatever_lives_on(tmp_path: Path, job: Any, arguments: list[bool]) -> None:
    path = tmp_path / "sleeper"
    try:
        with trio.fail_after(PATIENCE):
            async with open_worker_context() as context:
                with pytest.raises(BrokenWorkerError) as caught:
                    await context.run_sync(job, path, *arguments)
                assert caught.value.exitcode == 7
    finally:
        # It lives on, or there would be nothing to kill.
        os.kill(int(path.read_text()), signal.SIGKILL)


async def test_the_streams_keep_their_modes(context: WorkerContext) -> None:
    """Nobody makes them non-blocking: that would be so for everybody who has them."""
    before = jobs.flags()
    assert await context.run_sync(jobs.flags) == before
    assert jobs.flags() == before


@pytest.mark.parametrize("limit", [64, 4096])
def test_many_open_files(tmp_path: Path, limit: int) -> None:
    """Numbers above the limit of select(2), and a start with few left."""
    script = """
        import os, resource, sys, trio, trio_offload
        limit = int(sys.argv[1])
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard != resource.RLIM_INFINITY and hard < limit:
            print("skip"); sys.exit()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

        async def main():
            files = []
            try:
                while True:
                    files.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            try:
                await trio_offload.run_sync(bool)
            except OSError as error:
                print(type(error).__name__)
            except trio_offload.WorkerStartError as error:
                print(type(error).__name__, "ulimit -n" in str(error))
            for number in files[-8:]:
                os.close(number)
            async with trio_offload.open_worker_context() as context:
                print(await context.run_sync(abs, -5))
                print(sorted(int(name) for name in await context.run_sync(os.listdir, "/proc/self/fd"))[:4])

        trio.run(main)
    """
    ended = run_script(tmp_path, script, str(limit))
    if ended.lines() == ["skip"]:
        pytest.skip("the hard limit is below that")
    assert ended.lines()[0] in ("OSError", "WorkerStartError True")
    assert ended.lines()[1:] == ["5", "[0, 1, 2, 3]"]


# --- the streams belong to the user --------------------------------------------------------------------------------


def script(folder: Path, text: str) -> Path:
    return write(
        folder / "script.py",
        f"import sys\nsys.path.insert(0, {str(PROGRAMS)!r})\nimport descriptor_jobs as jobs, os, trio, trio_offload\n"
        "def call(*args):\n    return trio.run(trio_offload.run_sync, *args)\n" + text,
    )


def test_what_a_job_prints_is_out_before_its_caller_goes_on(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "for number in range(3):\n"
        "    call(jobs.print_both, f'job {number}')\n"
        "    print('caller', number, flush=True)\n"
        "    print('caller', number, flush=True, file=sys.stderr)\n",
    )
    ended = run([sys.executable, path])
    expected = [line for number in range(3) for line in (f"job {number}", f"caller {number}")]
    assert ended.lines() == expected
    assert ended.stderr.splitlines() == expected


def test_output_by_every_means(tmp_path: Path) -> None:
    ended = run([sys.executable, script(tmp_path, "print(call(jobs.write_in_every_way))")])
    assert ended.lines() == ["print", "buffer", "os.write", "subprocess", "system", "C", "left to be flushed", "result"]
    assert ended.stderr == ""


def test_a_megabyte_to_each_stream(tmp_path: Path) -> None:
    """Whoever reads the streams gets all of it; nothing on the way fills up."""
    ended = run([sys.executable, script(tmp_path, "assert call(jobs.write_much, 1_000_000) == 'result'")])
    assert ended.stdout.count("x") == ended.stderr.count("x") == 1_000_000
    assert ended.stdout.count("y") == ended.stderr.count("y") == 1_000_000


def test_output_that_looks_like_frames(tmp_path: Path) -> None:
    """The bytes of a RESULT, of nonsense, and of the beginning of a frame: to the streams they are only bytes."""
    path = script(
        tmp_path,
        "from trio_offload_worker._protocol.frames import Kind, encode_head\n"
        "frame = bytes(encode_head(Kind.RESULT, 1, (4,))) + b'\\x80\\x05N.'\n"
        "for data in (frame, b'tro\\x01', os.urandom(5000), b'\\0' * 100):\n"
        "    call(jobs.write_to_every_descriptor, data)\n"
        "    assert call(abs, -5) == 5\n",
    )
    run([sys.executable, path])


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01\x02", b"tro\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", b"x" * 1000],
    ids=["short", "head", "long"],
)
async def test_job_that_writes_into_socket_breaks_only_its_worker(data: bytes) -> None:
    """It has to look for the descriptor to do so. The caller is told; the next call has another worker."""
    with trio.fail_after(PATIENCE):
        async with open_worker_context() as context:
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(jobs.write_to_the_socket, data)
            assert await context.run_sync(abs, -5) == 5


async def test_a_job_that_closes_everything_breaks_its_worker_only() -> None:
    """What programs do to become daemons."""
    with trio.fail_after(PATIENCE):
        async with open_worker_context() as context:
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(jobs.close_all, 3)
            assert await context.run_sync(abs, -5) == 5


def test_input_belongs_to_the_user(tmp_path: Path) -> None:
    """A job reads it as the program itself would; what it does not read is there for the next."""
    path = script(
        tmp_path,
        "print(call(jobs.read_by_descriptor, 6))\nprint(os.read(0, 7))\nprint(call(jobs.read_in_subprocess))\nprint(repr(call(jobs.read_line)))\n",
    )
    ended = run([sys.executable, path], stdin=b"first\nsecond\nthird\nfourth\n")
    assert ended.lines() == [r"b'first\n'", r"b'second\n'", r"b'third\nfourth\n'", "''"]


def test_a_terminal_is_one_in_a_job_too(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    try:
        path = script(
            tmp_path, f"open({str(tmp_path / 'answer')!r}, 'w').write(repr([call(jobs.is_terminal), call(jobs.read_line)]))"
        )
        os.write(ours, b"typed\n")
        with started([sys.executable, path], stdin=theirs, stdout=theirs, stderr=theirs) as process:
            process.wait(TIMEOUT)
        assert process.returncode == 0
        assert (tmp_path / "answer").read_text() == r"[[True, True, True], 'typed\n']"
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_a_worker_prints_at_its_end(tmp_path: Path) -> None:
    """Nothing of our own; and what is still in Python's buffers is written."""
    path = script(
        tmp_path,
        "import atexit\ncall(atexit.register, print, 'at exit')\ncall(jobs.print_both, 'job')\n",
    )
    ended = run([sys.executable, path])
    assert ended.lines() == ["job", "at exit"]
    assert ended.stderr == "job\n"


def test_a_stdout_that_was_closed_is_no_fault_of_the_worker(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "async def main():\n"
        "    async with trio_offload.open_worker_context() as context:\n"
        "        await context.run_sync(getattr(jobs, sys.argv[1]))\n"
        "        assert await context.run_sync(abs, -5) == 5\n"
        "trio.run(main)\n"
        "print('done')\n",
    )
    assert run([sys.executable, path, "close_stdout"]).lines() == ["done"]


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    """``program | head -1``: the job's output has nowhere to go, as the program's own; calls and the context are as ever."""
    path = script(
        tmp_path,
        "async def main():\n"
        "    async with trio_offload.open_worker_context() as context:\n"
        "        await context.run_sync(jobs.break_stdout)\n"
        "        assert await context.run_sync(abs, -5) == 5\n"
        "    print('done')\n"
        "trio.run(main)\n",
    )
    assert run([sys.executable, path]).lines() == ["done"]


def test_no_streams_at_all(tmp_path: Path) -> None:
    """A daemon that has closed them: its files get their numbers, and none of those may be taken for a stream."""
    answer = tmp_path / "answer"
    path = script(
        tmp_path,
        "os.closerange(0, 3)\n"
        f"files = [os.open({str(answer)!r}, os.O_RDWR | os.O_CREAT) for _ in range(3)]\n"
        "assert files == [0, 1, 2]\n"
        "found = call(jobs.listed)\n"
        "call(jobs.print_both, 'printed by a job')\n"
        f"open({str(answer)!r} + '2', 'w').write(repr(found))\n",
    )
    run([sys.executable, path])
    found = eval((tmp_path / "answer2").read_text())
    # The program's files are not inherited (PEP 446), so the worker has none of them.
    assert {found[number][0] for number in (0, 1, 2) if number in found} <= {"/dev/null"}
    assert answer.read_text() == ""


def test_a_start_of_the_executable_by_hand(tmp_path: Path) -> None:
    """It says what it is, and does not take descriptor 3 for a socket that it is not."""
    from trio_offload._interpreter import locate as _locate

    environment = {**os.environ, "LD_LIBRARY_PATH": os.path.dirname(_locate.libpython())}
    executable = _locate.worker_executable()
    explained = subprocess.run([executable], env=environment, capture_output=True, text=True, check=True)
    assert explained.stdout.count(".") >= 2
    assert explained.stderr == ""
    command = ["sh", "-c", 'exec "$0" serve 3 4 3</dev/null', executable]
    wrong = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "descriptor 3" in wrong.stderr
    for arguments in (["serve"], ["serve", "4"], ["--nonsense"], ["serve", "3", "4"]):
        wrong = subprocess.run([executable, *arguments], env=environment, capture_output=True, text=True)
        assert wrong.returncode == 2
        assert len(wrong.stderr.splitlines()) == 1
