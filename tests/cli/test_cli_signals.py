"""End to end: how ``trio-offload map`` ends when it is told to: Ctrl+C, SIGTERM, a reader that has gone, a parent that is killed.

The command runs in a session of its own, and a signal goes to its whole process group, as a terminal and a service manager
send it. Afterwards nothing of that session may run, nor what a job had put into another session.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import COMMAND, JOBS, PATIENCE, in_session, is_running, started, wait_for_files, wait_until

# A second is what is promised; another one is for a machine that is busy with other tests.
STOP = 2.0
"""Seconds that the command has for its end after a signal."""


def assert_nothing_runs(process: subprocess.Popen[bytes]) -> None:
    # A killed process leaves the table a moment after whoever waited for it knows.
    wait_until(lambda: not in_session(process.pid), "the end of the session's processes", patience=2)


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals) -> float:
    """Signal the whole group and wait. Returns the seconds until the command had ended."""
    began = time.monotonic()
    os.killpg(process.pid, number)
    process.wait(PATIENCE)
    return time.monotonic() - began


def messages(process: subprocess.Popen[bytes]) -> list[str]:
    """The lines on standard error, without the program's name."""
    assert process.stderr is not None
    lines = process.stderr.read().decode().splitlines()
    assert all(line.startswith("trio-offload: ") for line in lines)
    return [line.removeprefix("trio-offload: ") for line in lines]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_run_and_prints_finished_items(folder: Path, number: signal.Signals, status: int) -> None:
    # The first item never ends; that the last has started says that the three between them are finished.
    items = ("hold-first", "a", "b", "c", "hold-last")
    with started(folder, "map", "jobs:hold", *items, "--workers", "2", stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-hold-first", "started-hold-last"])
        seconds = interrupt(process, number)
        assert process.stdout is not None
        assert process.stderr is not None
        assert [json.loads(line)["item"] for line in process.stdout] == ["a", "b", "c"]
        assert messages(process) == [
            f"interrupted by {number.name}: 3 of 5 items finished, 2 left",
            "to continue, give the output of this run, as a file, to --resume",
        ]
        assert process.returncode == status
        assert seconds < STOP
        assert_nothing_runs(process)


def test_ctrl_c_ends_what_a_job_has_started(folder: Path) -> None:
    """Also a program in a session of its own, which the terminal's signal does not reach."""
    with started(folder, "map", "jobs:hold", "family", stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-family", "child-of-family"])
        child = int((folder / "child-of-family").read_text())
        assert is_running(child)
        assert interrupt(process, signal.SIGINT) < STOP
        assert process.returncode == 130
        wait_until(lambda: not is_running(child), "the end of the job's own child", patience=2)
        assert_nothing_runs(process)


def test_ctrl_c_while_standard_input_is_silent(folder: Path) -> None:
    with started(folder, "map", "jobs:echo", "--lines", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n")
        assert json.loads(process.stdout.readline())["value"] == "a"
        assert interrupt(process, signal.SIGINT) < STOP
        assert process.returncode == 130
        assert messages(process)[0] == "interrupted by SIGINT: 1 item finished; the input was not read to its end"
        assert_nothing_runs(process)


def test_ctrl_c_while_nobody_reads_the_output(folder: Path) -> None:
    """The pipe is full, the writing thread stands still; the command ends nevertheless."""
    (folder / "items").write_text("x" * 500_000 + "\nhold\n")
    arguments = ("map", "jobs:hold", "--lines", "items", "--workers", "2")
    (folder / "jobs.py").write_text(JOBS.replace('Path(f"started-{item}")', 'Path(f"started-{item[:4]}")'))
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-xxxx", "started-hold"])
        wait_until(lambda: _writes_to_a_full_pipe(process.pid), "a write that stands still")
        assert interrupt(process, signal.SIGINT) < STOP
        assert process.returncode == 130
        assert_nothing_runs(process)


def _writes_to_a_full_pipe(pid: int) -> bool:
    channels = [(task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return any("pipe_write" in channel for channel in channels)


def test_ctrl_c_while_the_function_is_imported(folder: Path) -> None:
    (folder / "never_imported.py").write_text(
        "import os, time\nfrom pathlib import Path\nPath('importing').write_text(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    with started(folder, "map", "never_imported:f", "a", stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["importing"])
        assert interrupt(process, signal.SIGINT) < STOP
        assert process.returncode == 130
        assert_nothing_runs(process)


def test_stuck_idle_worker_does_not_delay_ctrl_c(folder: Path) -> None:
    """Its exit handlers would take for ever; they have the grace period at a normal end, and none at this one."""
    (folder / "stays.py").write_text("import atexit, time\natexit.register(time.sleep, 1000)\nfrom jobs import hold\n")
    arguments = ("map", "stays:hold", "--lines", "-", "--workers", "2")
    with started(folder, *arguments) as process:
        assert process.stdin is not None
        process.stdin.write(b"hold\n")
        wait_for_files(folder, ["started-hold"])
        assert interrupt(process, signal.SIGINT) < STOP + 0.2  # it takes all the time that it has
        assert process.returncode == 130
        assert messages(process)[0] == "interrupted by SIGINT: 0 items finished, at least 1 left"
        assert_nothing_runs(process)


def test_a_second_ctrl_c_changes_nothing(folder: Path) -> None:
    with started(folder, "map", "jobs:hold", "a", "hold", "--workers", "2", stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "a"
        wait_for_files(folder, ["started-hold"])
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
        assert messages(process)[0] == "interrupted by SIGINT: 1 of 2 items finished, 1 left"
        assert process.returncode == 130
        assert_nothing_runs(process)


def test_any_number_of_ctrl_c_changes_nothing(folder: Path) -> None:
    """Also on the last steps of the process, when it watches no signals any more."""
    with started(folder, "map", "jobs:hold", "a", "hold", "--workers", "2", stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "a"
        wait_for_files(folder, ["started-hold"])
        for _ in range(5000):
            os.kill(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
                break
        assert messages(process)[0] == "interrupted by SIGINT: 1 of 2 items finished, 1 left"
        assert process.returncode == 130
        assert_nothing_runs(process)


INTERRUPTED_OFTEN = """
import os, signal, sys
from trio_offload._cli import main

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the script does
stride, events = int(sys.argv.pop(1)), 0


def interrupt(frame, event, argument):
    global events
    if events or frame.f_code.co_name == "stop":
        events += 1
        if events % stride == 0:
            os.kill(os.getpid(), signal.SIGINT)


sys.setprofile(interrupt)
sys.exit(main())
"""


@pytest.mark.parametrize("stride", range(41, 53))
def test_ctrl_c_at_every_step_of_the_end(folder: Path, stride: int) -> None:
    """A signal after each few calls, from the first one on: it finds every place without a handler."""
    command = [sys.executable, "-c", INTERRUPTED_OFTEN, str(stride), "map", "jobs:hold", "a", "hold", "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        assert json.loads(process.stdout.readline())["value"] == "a"
        wait_for_files(folder, ["started-hold"])
        os.kill(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
        assert messages(process)[0] == "interrupted by SIGINT: 1 of 2 items finished, 1 left"
        assert process.returncode == 130
        assert_nothing_runs(process)


LISTENING = """
import os
from pathlib import Path
from trio_offload_worker import from_worker

def listen(item):
    Path(f"started-{item}").write_text("now")
    try:
        from_worker.sleep(1000)
    except from_worker.Cancelled:
        Path(f"told-{item}").touch()
        if item == "finishes":
            return "finished"
        raise
"""


def test_running_items_have_a_grace(folder: Path) -> None:
    (folder / "listening.py").write_text(LISTENING)
    arguments = ("map", "listening:listen", "finishes", "gives-up", "--workers", "2", "--grace", "60")
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-finishes", "started-gives-up"])
        interrupt(process, signal.SIGINT)
        assert process.stdout is not None
        assert [json.loads(line)["value"] for line in process.stdout] == ["finished"]
        assert (folder / "told-gives-up").exists()
        assert messages(process)[0] == "interrupted by SIGINT: 1 of 2 items finished, 1 left"
        assert process.returncode == 130
        assert_nothing_runs(process)


def test_an_ignored_sigint_stays_ignored(folder: Path) -> None:
    """As in ``trio-offload map … &`` in a script: Ctrl+C is meant for what is in the foreground."""
    command = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", *COMMAND)
    arguments = ("map", "jobs:wait_for_file", "a", "wait", "--workers", "1")
    process = subprocess.Popen([*command, *arguments], cwd=folder, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "a"
        os.killpg(process.pid, signal.SIGINT)
        (folder / "go").touch()
        assert json.loads(process.stdout.readline())["value"] == "wait"
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("command", [COMMAND, (str(Path(sys.executable).with_name("trio-offload")),)])
def test_a_reader_that_goes_ends_the_command(folder: Path, command: tuple[str, ...]) -> None:
    """``trio-offload map … | head -1``"""
    (folder / "items").write_text("a\n" * 100_000)
    process = subprocess.Popen(
        [*command, "map", "jobs:echo", "--lines", "items"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["value"] == "a"
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""
        assert_nothing_runs(process)


def test_the_help_without_a_reader(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [*COMMAND, "map", "--help"], cwd=folder, stdout=writing, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
        )
    finally:
        os.close(writing)
    assert ran.stderr == b""
    assert ran.returncode in (0, 141)  # argparse overlooks it where Python's standard output has no buffer


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_told_in_one_line(folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [*COMMAND, "map", "jobs:echo", "a"],
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr == b"trio-offload: error: cannot write to standard output: No space left on device\n"


def test_a_killed_command_takes_its_workers_along(folder: Path) -> None:
    with started(folder, "map", "jobs:hold", "hold", "family", "--workers", "2", stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-hold", "started-family", "child-of-family"])
        child = int((folder / "child-of-family").read_text())
        process.kill()
        process.wait(PATIENCE)
        wait_until(lambda: not in_session(process.pid), "the end of the workers", patience=2)
        wait_until(lambda: not is_running(child), "the end of the job's own child", patience=2)
