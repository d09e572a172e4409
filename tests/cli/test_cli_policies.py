"""End to end: ``trio-offload map`` keeps its workers under ceilings, writes down the run, and sums it up."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_support import JOBS, PATIENCE, Ran, run, started, wait_for_files

JOBS_THAT_TAKE = (
    JOBS
    + '''

import logging

kept = []


def log(item):
    logging.getLogger("work").info("at %s", item)
    logging.getLogger("work").debug("detail of %s", item)
    return item


def take(item):
    """Hold so many MB more for ever, and stay until somebody has noticed; who did it."""
    kept.append(bytearray(b"x") * (int(item) * 1_000_000))
    if int(item) > 200:
        time.sleep(1000)
    return os.getpid()
'''
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a module ``jobs``."""
    (tmp_path / "jobs.py").write_text(JOBS_THAT_TAKE)
    return tmp_path


def summary(ran: Ran) -> list[str]:
    """What follows the program's name on the lines of standard error."""
    lines = ran.stderr.splitlines()
    assert all(line.startswith("trio-offload: ") for line in lines)
    return [line.removeprefix("trio-offload: ") for line in lines]


def trace(folder: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())
    return events


# --- ceilings ----------------------------------------------------------------------------------------


def test_an_item_over_the_limit_is_its_own_failure(folder: Path) -> None:
    ran = run(folder, "map", "jobs:take", "1", "400", "2", "--memory-limit", "200MB", "--workers", "1")
    first, failed, last = ran.lines
    assert first["ok"]
    assert last["ok"]
    assert failed["error"]["type"] == "WorkerMemoryError"
    assert "jobs:take('400')" in failed["error"]["message"]
    assert "memory_limit is 200 MB" in failed["error"]["message"]
    assert re.search(r'File ".*jobs\.py", line \d+ in take', failed["error"]["traceback"])
    assert ran.status == 1


def test_a_limit_under_what_a_worker_needs_is_told(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "a", "--memory-limit", "1MB")
    assert (ran.status, ran.stdout) == (2, "")
    assert ran.stderr.startswith("trio-offload: error: no worker could be started: ")
    # Found when the worker is ready; or earlier, if its import takes longer than the limit's first check.
    assert "memory_limit=1000000 " in ran.stderr or "memory_limit is 1 MB" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_workers_that_have_grown_are_replaced(folder: Path) -> None:
    ran = run(folder, "map", "jobs:take", *["60"] * 6, "--retire-rss", "100MB", "--workers", "1")
    # The second makes it too many, each time.
    assert len(set(ran.values)) == 3
    assert ran.values[0] == ran.values[1] != ran.values[2]
    assert ran.stderr == ""


def test_workers_are_replaced_after_so_many_items(folder: Path) -> None:
    ran = run(folder, "map", "jobs:pid", *"abcdefg", "--retire-jobs", "3", "--workers", "1")
    first, second, third = ran.values[0], ran.values[3], ran.values[6]
    assert ran.values == [first] * 3 + [second] * 3 + [third]
    assert len({first, second, third}) == 3


def test_a_ceiling_under_the_baseline_is_one_line_of_warning(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", *"abcdef", "--retire-rss", "1MB", "--workers", "2")
    assert ran.values == list("abcdef")
    assert ran.stderr.startswith("trio-offload: warning: retire_when(rss=1000000): 1 MB is below the baseline")
    assert ran.stderr.count("\n") == 1


def test_an_import_after_a_retirement_is_not_charged_to_an_item(folder: Path) -> None:
    """Each item finds a fresh worker, which has imported for longer than an item may take."""
    (folder / "slow_import.py").write_text("import time\ntime.sleep(1.5)\nfrom jobs import pid\n")
    arguments = ("slow_import:pid", *"abc", "--retire-jobs", "1", "--timeout", "1", "--workers", "1")
    assert len(set(run(folder, "map", *arguments).values)) == 3


def test_the_memory_of_an_import_is_no_leak(folder: Path) -> None:
    """What a ``retire`` counts begins when the function is there."""
    (folder / "large_import.py").write_text("from jobs import pid\nballast = bytearray(b'x') * 50_000_000\n")
    ran = run(folder, "map", "large_import:pid", *"abcd", "--retire-rss", "40MB", "--workers", "1")
    assert len(set(ran.values)) == 1
    assert "below the baseline" in ran.stderr


# --- usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--memory-limit", "much"], ("--memory-limit", "'much'", "500MiB")),
        (["--memory-limit", "0"], ("--memory-limit", "must be more than zero bytes")),
        (["--memory-limit", "9" * 400], ("--memory-limit", "must be less than 8 EiB")),
        (["--retire-rss", "-5MB"], ("--retire-rss",)),
        (["--retire-rss", "5 XB"], ("--retire-rss", "'5 XB'")),
        (["--retire-jobs", "0"], ("--retire-jobs", "'0'")),
        (["--retire-jobs", "1.5"], ("--retire-jobs", "'1.5'")),
        (["--trace", "nosuch/run.json"], ("cannot write nosuch/run.json: No such file or directory",)),
        (["--trace", "."], ("cannot write .: Is a directory",)),
        (["--trace"], ("--trace",)),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], parts: tuple[str, ...]) -> None:
    ran = run(folder, "map", "jobs:echo", "a", *arguments)
    assert (ran.status, ran.stdout) == (2, "")
    assert ran.stderr.startswith("trio-offload: error: ")
    assert ran.stderr.count("\n") == 1
    for part in parts:
        assert part in ran.stderr


# --- the trace ---------------------------------------------------------------------------------------


def test_a_trace_of_the_run(folder: Path) -> None:
    ran = run(folder, "map", "jobs:trouble", "a", "segfault", "b", "--trace", "run.json", "--workers", "1")
    assert ran.status == 1
    jobs = [event for event in trace(folder) if event.get("cat") == "job"]
    assert [(job["name"], job["args"]["outcome"]) for job in jobs] == [
        ("jobs:trouble('a')", "ok"),
        ("jobs:trouble('segfault')", "BrokenWorkerError"),
        ("jobs:trouble('b')", "ok"),
    ]
    assert len({job["tid"] for job in jobs}) == 2


def test_the_trace_of_a_command_that_is_killed(folder: Path) -> None:
    """Every event is there up to the end, as somebody wants to know who asks why it was killed."""
    arguments = ("jobs:hold", "a", "b", "hold", "--trace", "run.json", "--workers", "1")
    with started(folder, "map", *arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-hold"])
        process.kill()
        process.wait(PATIENCE)
        events = json.loads((folder / "run.json").read_text() + "]")
    assert [event["name"] for event in events if event.get("cat") == "job"] == ["jobs:hold('a')", "jobs:hold('b')"]


# --- the summary -------------------------------------------------------------------------------------


def test_no_summary_in_a_pipe_unless_it_is_wanted(folder: Path) -> None:
    assert run(folder, "map", "jobs:echo", "a").stderr == ""
    assert len(summary(run(folder, "map", "jobs:echo", "a", "--summary"))) == 3


def test_failures_by_kind(folder: Path) -> None:
    items = ["a", "raise", "raise", "raise", "segfault", "segfault", "_exit", "exit"]
    said = summary(run(folder, "map", "jobs:trouble", *items, "--summary", "--workers", "1"))
    assert said[0] == "8 jobs, 7 failed: 3 ValueError, 2 SIGSEGV, 1 exit status 42, 1 SystemExit"
    # One died in the first segfault, one in the second, one of its _exit, and one is left.
    assert said[1].startswith("4 workers, the largest used ")
    assert re.fullmatch(r"\d+\.\d s, \d+\.\d s of processor time in workers", said[2])


def test_what_ends_workers_from_outside_is_a_kind_too(folder: Path) -> None:
    items = ["1", "300", "2"]
    arguments = ("jobs:take", *items, "--memory-limit", "200MB", "--workers", "1", "--summary")
    said = summary(run(folder, "map", *arguments))
    assert said[0] == "3 jobs, 1 failed: 1 out of memory"
    assert said[1].startswith("2 workers, the largest used ")
    # It was ended at 200 MB (190.7 MiB) or soon after.
    assert largest(said[1]) > 150


def test_worker_over_time_is_counted_without_report(folder: Path) -> None:
    arguments = ("jobs:trouble", "forever", "forever", "--timeout", "0.5", "--workers", "1", "--summary")
    said = summary(run(folder, "map", *arguments))
    assert said[0] == "2 jobs, 2 failed: 2 timeout"
    assert said[1].startswith("2 workers, ")
    # They did nothing but compute, and were killed for it.
    assert float(said[2].split()[2]) > 0


def test_the_largest_may_have_left_long_ago(folder: Path) -> None:
    items = ["190", "1", "1"]
    said = summary(run(folder, "map", "jobs:take", *items, "--retire-jobs", "1", "--workers", "1", "--summary"))
    assert said[1].startswith("3 workers, the largest used ")
    assert largest(said[1]) > 190_000_000 / 2**20


def largest(line: str) -> float:
    found = re.search(r"([\d.]+) MiB$", line)
    assert found is not None
    return float(found[1])


def test_a_run_that_is_interrupted_is_summed_up(folder: Path) -> None:
    arguments = ("jobs:hold", "a", "b", "hold", "--workers", "1", "--summary")
    with started(folder, "map", *arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_files(folder, ["started-hold"])
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert stderr.decode().startswith("trio-offload: 2 jobs, 0 failed\n")


def test_a_worker_that_ends_badly_after_its_work_is_a_warning(folder: Path) -> None:
    (folder / "ends_badly.py").write_text("import atexit, os\natexit.register(os._exit, 3)\nfrom jobs import echo\n")
    ran = run(folder, "map", "ends_badly:echo", "a")
    assert (ran.status, ran.values) == (0, ["a"])
    assert ran.stderr.startswith("trio-offload: warning: not all workers exited cleanly: 1 ended with exit code 3")
    assert ran.stderr.count("\n") == 1


def test_nobody_reads_the_error(folder: Path) -> None:
    with started(folder, "map", "no_such_module:echo", "a", stdin=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(PATIENCE) == 2


def test_nobody_reads_the_summary(folder: Path) -> None:
    with started(folder, "map", "jobs:echo", "a", "--summary", stdin=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr.close()
        assert json.loads(process.stdout.readline())["value"] == "a"
        assert process.wait(PATIENCE) == 0


# --- logs -----------------------------------------------------------------------------------------


def test_log_records_are_shown_on_standard_error(folder: Path) -> None:
    ran = run(folder, "map", "jobs:log", "1", "2", "--log-level", "info", "--workers", "1")
    pids = [json.loads(line)["pid"] for line in ran.stdout.splitlines()]
    shown = [line.split(maxsplit=2)[2] for line in ran.stderr.splitlines()]
    assert shown == [f"INFO work[{pid}]: at {item}" for pid, item in zip(pids, (1, 2), strict=True)]


def test_log_level_names_and_numbers(folder: Path) -> None:
    ran = run(folder, "map", "jobs:log", "1", "--log-level", "10")
    assert "DEBUG work[" in ran.stderr
    assert run(folder, "map", "jobs:log", "1").stderr == ""
    wrong = run(folder, "map", "jobs:log", "1", "--log-level", "loud")
    assert wrong.status == 2
    assert "argument --log-level: must be a level such as info, got 'loud'" in wrong.stderr
