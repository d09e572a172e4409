"""End to end: the figures on each line of ``trio-offload map``, ``--retries`` and ``--unordered``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cli_support import JOBS, PATIENCE, Ran, run, started, wait_for_files

MORE_JOBS = (
    JOBS
    + '''

def take(item):
    """Hold so many MB for the time of the call."""
    held = bytearray(b"x") * (int(item) * 1_000_000)
    return len(held)


def fail_at_first(item):
    """Go wrong as the first word says, as often as the second says; then return the number of the call."""
    what, times = item.split()
    with open(f"calls-{what}", "a") as file:
        file.write("x")
    calls = os.path.getsize(f"calls-{what}")
    if calls > int(times):
        return calls
    if what == "_exit":
        os._exit(42)
    if what == "forever":
        time.sleep(1000)
    if what == "memory":
        kept = bytearray(b"x") * 300_000_000
        time.sleep(1000)
    raise ValueError(what)
'''
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a module ``jobs``."""
    (tmp_path / "jobs.py").write_text(MORE_JOBS)
    return tmp_path


def calls(folder: Path, what: str) -> int:
    return (folder / f"calls-{what}").stat().st_size


# --- figures -----------------------------------------------------------------------------------------


def test_each_line_has_its_figures(folder: Path) -> None:
    ran = run(folder, "map", "jobs:pid", "a", "b", "--workers", "1")
    for line, figures in zip(ran.lines, ran.figures, strict=True):
        assert figures["pid"] == line["value"]
        assert 0 < figures["seconds"] < 5
        assert 1_000_000 < figures["peak_rss"] < 200_000_000
        assert figures["tries"] == 1


def test_seconds_are_the_calls_own(folder: Path) -> None:
    (folder / "slow_import.py").write_text("import time\ntime.sleep(0.5)\ndef f(item):\n    time.sleep(float(item))\n")
    first, second = run(folder, "map", "slow_import:f", "0.2", "0", "--workers", "1").figures
    assert 0.2 <= first["seconds"] < 0.5
    assert second["seconds"] < 0.2


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel cannot reset the peak")
def test_peak_memory_is_the_items_own(folder: Path) -> None:
    ran = run(folder, "map", "jobs:take", "1", "200", "1", "100", "1", "--workers", "1", "--summary")
    peaks = [figures["peak_rss"] // 1_000_000 for figures in ran.figures]
    assert len({figures["pid"] for figures in ran.figures}) == 1
    for peak, low in zip(peaks, (1, 200, 1, 100, 1), strict=True):
        assert low <= peak < low + 60
    # The largest is not forgotten when the peak is reset.
    assert float(ran.stderr.split("the largest used ")[1].split(" MiB")[0]) > 190


def test_figures_of_failed_items(folder: Path) -> None:
    ran = run(folder, "map", "jobs:trouble", "raise", "_exit", "forever", "--timeout", "1", "--workers", "1")
    raised, died, late = ran.figures
    assert raised["seconds"] < 1
    assert raised["peak_rss"] > 1_000_000
    assert raised["pid"] == died["pid"] != late["pid"]
    assert str(died["pid"]) in ran.lines[1]["error"]["message"]
    assert late["seconds"] >= 1
    assert late["pid"] == int((folder / "started-forever").read_text())
    assert [figures["tries"] for figures in ran.figures] == [1, 1, 1]


def test_figures_of_an_item_that_did_not_run(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "--json-lines", "-", given=b"{\n")
    (figures,) = ran.figures
    assert (figures["seconds"], figures["peak_rss"], figures["tries"]) == (None, None, 1)
    assert ran.status == 1


def test_a_worker_does_not_import_trio(folder: Path) -> None:
    """It would take longer to start, and more memory; with a timeout, too, whose call imports its class first."""
    (folder / "loaded.py").write_text(
        "import sys\ndef f(item):\n    return [n for n in sys.modules if n.startswith('trio')]\n"
    )
    for options in ((), ("--timeout", "10")):
        (modules,) = run(folder, "map", "loaded:f", "a", *options).values
        assert {name.partition(".")[0] for name in modules} == {"trio_offload_worker"}


# --- retries -----------------------------------------------------------------------------------------


def retried(folder: Path, item: str, *options: str) -> Ran:
    return run(folder, "map", "jobs:fail_at_first", item, "--retries", "2", "--summary", "--workers", "1", *options)


@pytest.mark.parametrize(
    ("what", "options"), [("_exit", ()), ("forever", ("--timeout", "0.7")), ("memory", ("--memory-limit", "200MB"))]
)
def test_an_item_is_tried_again(folder: Path, what: str, options: tuple[str, ...]) -> None:
    ran = retried(folder, f"{what} 2", *options)
    assert (ran.status, ran.values) == (0, [3])
    assert ran.figures[0]["tries"] == 3
    assert ran.stderr.startswith("trio-offload: 1 job, 0 failed; 2 retries\ntrio-offload: 3 workers")


@pytest.mark.parametrize(
    ("what", "options", "kind"),
    [
        ("_exit", (), "exit status 42"),
        ("forever", ("--timeout", "0.7"), "timeout"),
        ("memory", ("--memory-limit", "200MB"), "out of memory"),
    ],
)
def test_an_item_that_fails_each_time(folder: Path, what: str, options: tuple[str, ...], kind: str) -> None:
    ran = retried(folder, f"{what} 9", *options)
    assert ran.status == 1
    assert ran.figures[0]["tries"] == calls(folder, what) == 3
    assert ran.stderr.startswith(f"trio-offload: 1 job, 1 failed: 1 {kind}; 2 retries\n")


def test_an_exception_is_not_retried(folder: Path) -> None:
    ran = retried(folder, "raise 1")
    assert ran.status == 1
    assert ran.figures[0]["tries"] == calls(folder, "raise") == 1
    assert "retr" not in ran.stderr


def test_fail_fast_waits_for_the_last_try(folder: Path) -> None:
    ran = retried(folder, "_exit 1", "--fail-fast")
    assert (ran.status, ran.values) == (0, [2])
    ran = retried(folder, "_exit 9", "--fail-fast")
    assert ran.status == 1
    assert ran.stderr.endswith("stopped at the first failure: 1 of 1 item finished, 0 left\n")


def test_no_retries_without_the_option(folder: Path) -> None:
    assert run(folder, "map", "jobs:fail_at_first", "_exit 1").figures[0]["tries"] == 1
    assert calls(folder, "_exit") == 1


@pytest.mark.parametrize("number", ["-1", "1.5", "many"])
def test_a_number_of_retries(folder: Path, number: str) -> None:
    ran = run(folder, "map", "jobs:echo", "a", f"--retries={number}")
    assert ran.status == 2
    assert f"argument --retries: must be a number of retries, 0 or more, got '{number}'" in ran.stderr


def test_workers_that_cannot_start_end_the_run_with_retries_too(folder: Path) -> None:
    (folder / "spoilt.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "if Path('spoilt').exists(): os._exit(9)\n"
        "def f(item):\n    Path('spoilt').touch()\n    os._exit(8)\n"
    )
    ran = run(folder, "map", "spoilt:f", *"abcdef", "--workers", "1", "--retries", "1000")
    assert ran.status == 2
    assert "workers cannot be started any more: cannot import spoilt: " in ran.stderr
    assert [figures["tries"] for figures in ran.figures] == [6]


# --- order -------------------------------------------------------------------------------------------


def test_unordered_lines_do_not_wait(folder: Path) -> None:
    arguments = ("map", "jobs:wait_for_file", "wait", "a", "b", "--workers", "2", "--unordered")
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["value"] for _ in range(2)] == ["a", "b"]
        (folder / "go").touch()
        assert [json.loads(line)["value"] for line in process.stdout] == ["wait"]
        assert process.wait(PATIENCE) == 0


def test_unordered_with_many_items_and_a_summary(folder: Path) -> None:
    (folder / "items").write_text("".join(f"{number}\n" for number in range(30_000)))
    ran = run(folder, "map", "jobs:size", "--lines", "items", "--workers", "2", "--unordered", "--summary")
    assert sorted(int(line["item"]) for line in ran.lines) == list(range(30_000))
    assert ran.stderr.startswith("trio-offload: 30000 jobs, 0 failed\n")


def test_unordered_lines_survive_a_kill(folder: Path) -> None:
    """Each is written when its item is finished, also behind an item that never ends."""
    with (folder / "results").open("wb") as results:
        arguments = ("map", "jobs:hold", "hold-first", "a", "b", "hold-last", "--workers", "2", "--unordered")
        with started(folder, *arguments, stdin=subprocess.DEVNULL, stdout=results) as process:
            wait_for_files(folder, ["started-hold-last"])
            wait_for_files(folder, ["results"])
            process.kill()
            process.wait(PATIENCE)
    assert '"item": "a"' in (folder / "results").read_text()


def test_unordered_output_that_nobody_reads(folder: Path) -> None:
    (folder / "items").write_text("a\n" * 50_000)
    arguments = ("map", "jobs:echo", "--lines", "items", "--unordered")
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "a"
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
