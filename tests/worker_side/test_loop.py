"""The worker in Python: it passes the contract of the worker executable, and is watched as that one watches itself.

Contract: tests of other files once more, with workers that are loops; chosen for what the loop does itself (run, raise,
die, forked copies, descriptors, multiprocessing's identity). End to end: the watcher, what a job sees of the process, and
a program run by an interpreter that has no libpython.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bad_jobs
import jobs
import pytest
import test_death
import test_descriptors
import test_faults
import test_identity
import test_memory
import test_multiprocessing
import test_orphans
import test_output
import test_pickling
import test_worker
import trio
from kinds import BY_THE_LOOP, LOOP, environment_of, use_loops
from lifeline import PATIENCE, Gate, Lifeline, process_state
from programs import loop_jobs
from running import PACKAGES, plain_environment, run, run_script, write
from test_worker_side import Parent

from trio_offload import (
    BrokenWorkerError,
    WorkerContext,
    WorkerMemoryError,
    _sizes,
    open_worker_context,
)
from trio_offload._interpreter import command_line as _command_line
from trio_offload._pickling.calls import dump_call
from trio_offload._process import start as _process
from trio_offload_worker._protocol.frames import Kind
from trio_offload_worker._system import family, linux


@pytest.fixture(autouse=True)
def by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and in the programs that these tests start."""
    use_loops(monkeypatch)
    for module in (test_orphans, test_output):
        path = module.ENVIRONMENT["PYTHONPATH"]
        monkeypatch.setitem(module.ENVIRONMENT, "PYTHONPATH", f"{BY_THE_LOOP}{os.pathsep}{path}")


ENVIRONMENT = environment_of("loop")


@pytest.fixture
def side(line: Lifeline, gate: Gate) -> Any:
    return test_worker.RealSide(line, gate)


# --- what the executable passes ------------------------------------------------------------------

starts = test_faults.starts
inheritable = test_descriptors.inheritable


def reuse(module: Any, *names: str) -> None:
    """Collect tests of another file here too; all of them if none is named."""
    for name in names or [name for name in vars(module) if name.startswith("test_")]:
        globals()[name] = getattr(module, name)


reuse(
    test_worker,
    "test_started_worker_is_idle_and_answers_calls",
    "test_what_a_job_raises_is_an_outcome_and_the_worker_lives_on",
    "test_a_worker_that_is_asked_leaves_well",
    "test_a_worker_that_retired_by_itself_is_heard",
    "test_a_call_to_a_worker_that_has_retired_is_not_run",
    "test_a_killed_worker_ends",
    "test_a_cancelled_call_has_ended_the_worker_when_it_returns",
    "test_a_worker_that_breaks_says_so_and_has_ended",
    "test_a_failed_start_leaves_nothing",
    "test_a_start_can_be_cancelled_if_it_says_so",
    "test_large_call_does_not_wait_for_retired_worker",
    "test_a_new_worker_does_not_time_out_before_its_first_call",
)
reuse(
    test_faults,
    "test_exception_reaches_caller_and_worker_survives",
    "test_a_death_is_explained_and_the_next_call_has_a_new_worker",
    "test_a_result_that_cannot_travel",
    "test_a_function_that_the_worker_does_not_find",
    "test_an_init_that_raises",
    "test_an_asynchronous_init_or_retire_is_refused",
    "test_a_retire_that_raises_breaks_a_later_call",
)
reuse(
    test_death,
    "test_a_job_that_replaces_the_worker_by_another_program",
    "test_job_that_closes_socket_writes_no_frame_into_file",
    "test_sigterm_to_idle_workers_is_a_good_end",
    "test_a_worker_swallows_ctrl_c_and_what_a_job_starts_gets_it",
    "test_a_cancelled_job_takes_its_family_along",
    "test_surviving_child_does_not_hide_death",
    "test_ordinary_retirement_leaves_a_jobs_children_alone",
    "test_a_copy_of_the_worker_that_a_job_forked_never_answers",
)
reuse(
    test_descriptors,
    "test_a_worker_has_its_streams_and_its_own",
    "test_workers_do_not_have_each_others_sockets",
    "test_a_fork_of_a_worker_does_not_have_its_socket",
    "test_job_that_writes_into_socket_breaks_only_its_worker",
    "test_a_job_that_closes_everything_breaks_its_worker_only",
)
reuse(
    test_multiprocessing,
    "test_a_worker_is_a_child_of_this_process",
    "test_log_records_name_the_worker",
    "test_a_fork_that_returns_from_its_job_gives_no_second_answer",
)
reuse(
    test_pickling,
    "test_the_traceback_shows_the_workers_frames",
    "test_causes_and_contexts_arrive_with_their_tracebacks",
    "test_what_cloudpickle_has_to_pickle",
    "test_a_result_is_not_changed_by_the_next_call",
)
reuse(test_memory, "test_what_init_takes_is_part_of_the_baseline")
reuse(test_output, "test_what_a_job_printed_is_out_when_the_call_returns")
reuse(
    test_orphans,
    "test_killed_parent_ends_idle_worker_and_leftovers",
    "test_os_exit_takes_the_workers_along",
    "test_a_stopped_parent_keeps_its_workers",
    "test_a_program_that_ends_sees_its_idle_workers_off",
)


@pytest.mark.parametrize("job", ["hold_the_gil", "start_family"])
async def test_a_killed_parent_takes_a_busy_worker_along(tmp_path: Path, line: Lifeline, job: str) -> None:
    await test_orphans.test_a_killed_parent_takes_a_busy_worker_along(tmp_path, line, "in a job", job)


@pytest.mark.parametrize("sent", ["nothing", "half of HELLO", "all"])
def test_parent_killed_during_start_leaves_no_worker(tmp_path: Path, sent: str) -> None:
    test_orphans.test_parent_killed_during_start_leaves_no_worker(tmp_path, sent)


async def test_slowly_dying_parent_ends_leftovers(tmp_path: Path, line: Lifeline) -> None:
    await test_orphans.test_slowly_dying_parent_ends_leftovers(tmp_path, line, "SPAWN")


async def test_living_fork_of_parent_keeps_no_worker(tmp_path: Path, line: Lifeline) -> None:
    await test_orphans.test_living_fork_of_parent_keeps_no_worker(tmp_path, line, "hold")


@pytest.mark.parametrize(
    "switches", ["", "-I", "-E -s -B -q", "-OO -X dev -W ignore", "-S -u -b -X utf8=0", "-X whatever=a=b"]
)
def test_it_is_the_same_python(tmp_path: Path, switches: str) -> None:
    # Not by the variable, which some of these switches turn off.
    by_the_loop = "change:from trio_offload._interpreter import locate as _locate; _locate.runtime = lambda: _locate.WorkerRuntime('', '', 'test')"
    environment = plain_environment(PYTHONINSPECT="1", PYTHONWARNINGS="error::UserWarning", LC_ALL="C")
    found = test_identity.compare(tmp_path, switches.split(), arguments=[by_the_loop], environment=environment, stdin=b"")
    test_identity.assert_same(found)


# --- what a job sees -----------------------------------------------------------------------------


async def test_no_wait_of_a_jobs_sees_the_watcher(context: WorkerContext) -> None:
    """It is the worker's child, and a job that waits for any child of its own waits for none of ours."""
    told = await context.run_sync(loop_jobs.wait_for_anybody)
    assert told == ["ChildProcessError"] * 4 + ["7", "no SIGCHLD but its own"]


async def test_the_watcher_holds_nothing_of_the_workers(context: WorkerContext) -> None:
    """Neither its streams, whose readers wait for their end, nor the socket, whose end is the worker's death, nor a folder."""
    pid = await context.run_sync(os.getpid)
    (watcher,) = family.children([pid])
    assert watcher == await trio.to_thread.run_sync(watcher_of, pid)
    assert contents(f"/proc/{watcher}/comm") == "offload-watcher\n"
    held = {os.readlink(f"/proc/{watcher}/fd/{number}") for number in os.listdir(f"/proc/{watcher}/fd")}
    others = {target for target in held if "pidfd" not in target and not target.startswith("pipe:")}
    assert others == {"/dev/null", "anon_inode:[eventpoll]", "/memfd:trio-offload-record (deleted)"}
    assert os.readlink(f"/proc/{watcher}/cwd") == "/"
    # All but SIGKILL and SIGSTOP, and the two that the C library keeps.
    assert "SigBlk:\tfffffffe7ffbfeff\n" in contents(f"/proc/{watcher}/status")


def contents(path: str) -> str:
    with open(path) as file:
        return file.read()


def test_it_has_imported_little(tmp_path: Path) -> None:
    """Each import is paid at each start. (In a program of its own: the worker of a test has this process's warning filters.)"""
    program = """
    import trio, trio_offload
    print(*trio.run(trio_offload.run_sync, eval, "list(__import__('sys').modules)"))
    """
    plain = set(run([sys.executable, "-c", "import sys; print(*sys.modules)"]).stdout.split())
    modules = set(run_script(tmp_path, program, environment=ENVIRONMENT).stdout.split())
    print("imported by the loop beyond a bare Python:", sorted(modules - plain))
    ours = {name for name in modules if name.startswith("trio_offload")}
    assert modules - plain - ours <= {
        "__future__",
        "__mp_main__",
        "_contextvars",
        "atexit",
        # What it is made of: memory that two processes share, system calls, the socket, the pickler.
        "mmap",
        "select",
        "_ctypes",
        "_socket",
        "faulthandler",
        "struct",
        "_struct",
        "_pickle",
        "_compat_pickle",
        "copyreg",
        "_functools",
        # An object, which a job that talks looks for.
        "_trio_offload_line",
        # It finds the dictionary behind the unpickler's class.
        "gc",
        # Whether sys.modules has these after a start depends on the minor version.
        "_operator",
        "itertools",
        # The test's own hand in it.
        "sitecustomize",
    }
    folders = {
        "_protocol.": "cbor decoder frames header parts segments",
        "_system.": "family figures linux",
        "_jobs.": "faults guards",
        "_loop.": "executor hooks interpreter line main sentinel session signals transport",
    }
    names = {folder + name for folder, names in folders.items() for name in names.split()}
    names |= {folder.rstrip(".") for folder in folders if folder}
    assert ours == {"trio_offload_worker", *(f"trio_offload_worker.{name}" for name in names)}


MAIN = """
import os, sys
import trio, trio_offload

with open(sys.argv[1], "a") as runs:
    runs.write(__name__ + "\\n")

def job(value):
    return __name__, value

async def main():
    assert await trio_offload.run_sync(abs, -5) == 5
    assert (await trio_offload.run_sync(eval, "sorted(globals())")) != []
    print(*await trio_offload.run_sync(job, 5))

if __name__ == "__main__":
    trio.run(main)
"""


def test_the_main_script_is_loaded_when_a_job_needs_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run_script(tmp_path, MAIN, str(runs), environment=ENVIRONMENT).lines() == ["__main__ 5"]
    assert runs.read_text().split() == ["__main__", "__mp_main__"]


def test_a_script_without_its_guard_learns_it(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        MAIN.replace('if __name__ == "__main__":\n    trio', "trio"),
        str(tmp_path / "runs"),
        environment=ENVIRONMENT,
        expect=1,
    )
    assert 'if __name__ == "__main__":' in ended.stderr
    assert len((tmp_path / "runs").read_text().split()) == 2


async def test_a_handler_of_a_jobs_that_raises_spoils_no_frame(context: WorkerContext, capfd: Any) -> None:
    """Wherever the signal finds the worker: idle, at its start of a job or at its end, in the middle of an answer."""
    pid = await context.run_sync(loop_jobs.be_interrupted_by_another_signal)
    interrupted = 0
    for number in range(60):
        try:
            os.kill(pid, signal.SIGUSR1)
            assert await context.run_sync(bytes.ljust, b"", number * 3000) == b" " * number * 3000
        except KeyboardInterrupt:
            interrupted += 1
    assert await context.run_sync(os.getpid) == pid
    assert interrupted + capfd.readouterr().err.count("\nKeyboardInterrupt\n") > 0


async def test_an_idle_worker_keeps_neither_arguments_nor_results(context: WorkerContext) -> None:
    for _ in range(2):
        await context.run_sync(jobs.echo, jobs.Remembered(1_000_000))
        await context.run_sync(len, [jobs.Remembered(10)])
        error = await test_faults.caught(lambda: context.run_sync(bad_jobs.fail, jobs.Remembered(10)))
        assert isinstance(error, (KeyError, TypeError))
    assert await context.run_sync(jobs.count_remembered) == 0


@pytest.mark.parametrize("size", [0, 10_000, 3_000_000])
async def test_arrays_travel_both_ways_and_can_be_written_to(context: WorkerContext, size: int) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(size, dtype="u4")
    result = await context.run_sync(jobs.add_one, array)
    assert (result == array + 1).all()
    result += 1


async def test_more_arrays_than_an_array_of_lengths_has_room_for(context: WorkerContext) -> None:
    pytest.importorskip("numpy")
    back = await context.run_sync(jobs.make_many, 1_100, 16_384)
    assert jobs.check_many(back) == (1_100, True)
    assert await context.run_sync(jobs.check_many, back) == (1_100, True)


# --- the watcher ---------------------------------------------------------------------------------

# Each takes something away from the worker that it can do without.
PATCHES = {
    "as it is": "",
    "without a clone of its own": "sentinel.clone = lambda: None\n",
    "without ctypes": "sys.modules['_ctypes'] = None\n",
    "without pidfds": "del __import__('os').pidfd_open\n",
}


@contextmanager
def loop_with(patch: str) -> Iterator[Parent]:
    """A worker in Python in which something was changed before it began."""
    argv = _command_line.loop_command()
    place = argv.index("-c") + 1
    argv[place] = argv[place].replace("main.main(", f"from trio_offload_worker._loop import sentinel\n{patch}main.main(")
    process, ours, record = _process.spawn(argv[0], os.environb, argv)
    try:
        yield Parent(process, ours, LOOP)
    finally:
        process.kill()
        process.wait_sync(time.monotonic() + PATIENCE)
        ours.close()
        record.close()


def call(function: Any, *arguments: Any) -> bytes:
    payload = dump_call(function, arguments)
    return b"".join(payload.parts)


@pytest.mark.parametrize("patch", PATCHES)
def test_it_ends_with_the_worker(tmp_path: Path, patch: str) -> None:
    """However that ends."""
    for end in (Kind.RETIRE, signal.SIGKILL):
        with loop_with(PATCHES[patch]) as parent:
            parent.bring_to("IDLE")
            watcher = watcher_of(parent.process.pid)
            assert process_state(watcher) in ("S", "R")
            if end is Kind.RETIRE:
                parent.say(Kind.RETIRE)
                parent.expect(Kind.RETIRED)
                parent.expect_end(0)
            else:
                os.kill(parent.process.pid, signal.SIGKILL)
                parent.expect_end(-signal.SIGKILL)
            gone(watcher)


@pytest.mark.parametrize("patch", PATCHES)
async def test_a_worker_that_is_given_up_in_the_middle_of_a_job_ends(line: Lifeline, patch: str) -> None:
    """The parent lives, so nothing but the hang-up of the socket tells, and the job never lets go of the GIL."""
    with loop_with(PATCHES[patch]) as parent:
        parent.bring_to("IDLE")
        watcher = watcher_of(parent.process.pid)
        job = jobs.spin if "ctypes" in patch else jobs.hold_the_gil
        parent.say(Kind.CALL, 1, (call(job, line.path),))
        await line.pid()
        parent.socket.shutdown(socket.SHUT_RDWR)
        await line.ended()
        assert parent.process.wait_sync(time.monotonic() + PATIENCE)
        assert parent.process.exitcode == -signal.SIGKILL
        gone(watcher)


def watcher_of(worker: int) -> int:
    """The process of that name which watches this worker. It may be anybody's child, and not have a name at once."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "comm").read_bytes() == b"offload-watcher\n":
                    fields = linux.stat_fields(int(entry.name))
                    if fields is not None and (int(fields[1]) == worker or _is_watcher_of(entry, worker)):
                        return int(entry.name)
            except OSError:
                continue
        time.sleep(0.002)
    raise AssertionError("there is no watcher")


def _is_watcher_of(entry: Path, worker: int) -> bool:
    """Whether one that is another's child has the pidfd of this worker."""
    return any(f"Pid:\t{worker}\n" in info.read_text() for info in (entry / "fdinfo").iterdir())


def gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while process_state(pid) not in (None, "Z"):
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- what the watcher tells and forbids ----------------------------------------------------------


async def test_figures_come_with_the_answers(context: WorkerContext) -> None:
    await context.run_sync(jobs.keep, bytearray(b"x" * 30_000_000))
    await trio.sleep(0.002)
    rss = await context.run_sync(jobs.resident_bytes)
    (record,) = context.statistics().workers
    assert record.rss == pytest.approx(rss, rel=0.2)
    assert record.rss > 30_000_000
    assert record.peak_rss >= record.rss
    assert record.vms > record.rss
    assert record.cpu_time > 0


async def test_a_job_that_holds_the_gil_is_reported_on(line: Lifeline) -> None:
    async with open_worker_context(report_interval=0.05) as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(loop_jobs.hold_memory, line.path, 50_000_000, kill_on_cancel=True))
            await line.pid()
            with trio.fail_after(PATIENCE):
                while context.statistics().workers[0].rss < 50_000_000:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_reports_never_spoil_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of them as there can be, while frames of every size are on their way."""
    monkeypatch.setattr(_sizes, "check_seconds", lambda *args, **rules: None)
    async with open_worker_context(report_interval=0.001) as context:
        pid = await context.run_sync(os.getpid)
        for number in range(300):
            size = (number % 7) ** 6
            assert len(await context.run_sync(bytes, size)) == size
        await context.run_sync(time.sleep, 0.05)
        assert await context.run_sync(os.getpid) == pid


@pytest.mark.parametrize("family", [False, True], ids=["the job", "what it has started"])
async def test_a_job_over_its_ceiling_is_ended_and_told(line: Lifeline, tmp_path: Path, family: bool) -> None:
    async with open_worker_context(memory_limit="80MB", crash_dir=tmp_path / "crashes") as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerMemoryError) as told:
            await context.run_sync(
                loop_jobs.hold_memory_in_child if family else loop_jobs.hold_memory, line.path, 100_000_000
            )
        assert told.value.limit == 80_000_000
        assert told.value.reached is not None
        assert told.value.reached > 80_000_000
        if not family:
            assert "hold_memory" in (tmp_path / "crashes").joinpath(os.listdir(tmp_path / "crashes")[0]).read_text()
        await line.ended()
        assert await context.run_sync(abs, -5) == 5


def test_a_worker_that_holds_too_much_after_a_job_leaves() -> None:
    with loop_with("") as parent:
        parent.bring_to("AWAIT_SETUP")
        # So that the job is over before it looks.
        os.kill(watcher_of(parent.process.pid), signal.SIGSTOP)
        parent.say(Kind.SETUP, 0, (b"", b"", b""), {"eager": False, "memory_limit": 1_000_000})
        assert parent.expect(Kind.READY).body["figures"][0] > 1_000_000
        time.sleep(0.002)
        parent.say(Kind.CALL, 1, (call(abs, -5),))
        assert len(parent.expect(Kind.RESULT).body["figures"]) == 4
        assert parent.expect(Kind.RETIRED).body == {"reason": "memory"}
        parent.expect_end(0)


async def test_a_fault_leaves_its_stack(context: WorkerContext) -> None:
    with pytest.raises(BrokenWorkerError) as told:
        await context.run_sync(jobs.segfault)
    assert told.value.crash is not None
    assert "in segfault" in told.value.crash.stack


async def test_a_copy_that_a_job_forks_has_nothing_of_ours(context: WorkerContext) -> None:
    """Neither the socket nor the record, also if its own files get their numbers; nor does a fault in it write there."""
    assert await context.run_sync(loop_jobs.descriptors_in_fork) == []


# --- a Python without a libpython ----------------------------------------------------------------

README = """
import math, os, sys, trio, trio_offload

async def main():
    async with trio.open_nursery() as nursery:
        for number in (10**4, 2 * 10**4):
            nursery.start_soon(trio_offload.run_sync, math.factorial, number)
        with trio.move_on_after(1):
            await trio_offload.run_sync(sum, range(10**12), kill_on_cancel=True)
    print(await trio_offload.run_sync(os.readlink, "/proc/self/exe"))

trio.run(main)
"""
DISTRIBUTIONS = "/usr/bin/python3"


@contextmanager
def hidden_libraries() -> Iterator[list[str]]:
    """A command in front of others, to which the libpython of the distribution's Python is not there."""
    if not os.access(DISTRIBUTIONS, os.X_OK):
        pytest.skip(f"there is no {DISTRIBUTIONS} here")
    # On older ones these packages need others.
    supported = run([DISTRIBUTIONS, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], expect=None)
    if supported.status != 0:
        pytest.skip(f"{DISTRIBUTIONS} is too old")
    script = f"import sys; sys.path[:0] = {PACKAGES!r}; from trio_offload._interpreter import locate as _locate; print(_locate.libpython(), _locate._loaded_libpython())"
    found = run([DISTRIBUTIONS, "-c", script], expect=None)
    if found.status != 0:
        # It has none, which is what is wanted.
        yield []
        return
    library, loaded = found.stdout.split()
    if loaded != "None":
        pytest.skip(f"{DISTRIBUTIONS} itself needs its libpython")
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    command = [*unshare, "sh", "-c", 'mount --bind /dev/null "$0" && exec "$@"', library]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace cannot be made here")
    yield command


def environment_of(python: str, folder: Path) -> Path:
    """With the packages of this one, which need not be of the same version: those that matter are pure Python."""
    run([python, "-m", "venv", "--without-pip", folder])
    (site_packages,) = (folder / "lib").glob("python3*/site-packages")
    (site_packages / "packages_of_the_tests.pth").write_text("\n".join(PACKAGES) + "\n")
    return folder / "bin" / "python"


def test_a_real_python_without_its_library(tmp_path: Path) -> None:
    """Debian's Python without the package that has its libpython: the README's program, and what the doctor says."""
    with hidden_libraries() as command:
        python = environment_of(DISTRIBUTIONS, tmp_path / "environment")
        script = write(tmp_path / "script.py", README)
        ended = run([*command, python, script])
        assert ended.lines() == [os.path.realpath(DISTRIBUTIONS)]
        assert ended.stderr == ""
        doctor = run([*command, python, "-m", "trio_offload", "doctor", "--json"], expect=None)
    report = json.loads(doctor.stdout)
    runtime = report["worker runtime"]
    assert runtime["in use"] == "a loop in Python, run by this interpreter"
    assert "no shared libpython" in runtime["reason"]
    assert "times" in runtime["cost"]
    assert "apt-get install libpython3." in runtime["how to use the executable"]
    assert report["trial call"]["result"] == "ok"
    assert report["libpython"] == {"path": None}
    assert not [problem for problem in report["problems"] if "is not installed" not in problem["what"]]


async def test_python_that_does_not_start(monkeypatch: pytest.MonkeyPatch, context: WorkerContext, capfd: Any) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(BrokenWorkerError, match=r"Python did not start in the worker.*PYTHONHOME is set to '/nowhere'"):
        await context.run_sync(bool)
    assert "encodings" in capfd.readouterr().err


async def test_in_a_folder_with_modules_of_the_standard_librarys_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, context: WorkerContext
) -> None:
    """What -c would put in front of the path."""
    for name in ("mmap", "select", "struct", "os", "trio_offload_worker", "_pickle", "atexit"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    assert await context.run_sync(abs, -5) == 5
