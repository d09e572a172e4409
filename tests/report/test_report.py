"""A traced run as records, as figures and as a page, through the command line too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
from cli_support import COMMAND, PATIENCE

from trio_offload import BrokenWorkerError, open_worker_context
from trio_offload._report.figures import COLUMNS, MAX_BARS, durations, lanes, load, memory
from trio_offload._report.page import page_of
from trio_offload._report.run import NoTrace, TracedJob, TracedRun, TracedWorker, read_run

WORKERS = 4


def large_run(count: int = 100_000) -> TracedRun:
    """Four workers that are busy half of the time; every hundredth job raises, and one dies."""
    run = TracedRun(memory_limit=1 << 30)
    for pid in range(WORKERS):
        run.workers[pid] = TracedWorker(pid, 0.0, 0.1, None, [(0.1, 1 << 20), (50.0, 3 << 20)])
    for number in range(count):
        began = number // WORKERS * 0.002
        outcome = "raised" if number % 100 == 1 else "ok"
        error = "ValueError: no" if outcome == "raised" else ""
        run.jobs.append(TracedJob(number % WORKERS, "jobs.work", began, began + 0.001, outcome, error))
    run.jobs.append(TracedJob(0, "jobs.die", 50.0, 50.1, "BrokenWorkerError", "BrokenWorkerError: gone", "in die"))
    return run


async def traced(path: Path) -> TracedRun:
    async with open_worker_context(trace=path, memory_limit="1GiB") as context:
        assert await context.run_sync(int, "5") == 5
        with pytest.raises(ValueError, match="no"):
            await context.run_sync(jobs.raise_it, ValueError("no"))
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(jobs.segfault)
    return read_run(path.read_text())  # noqa: ASYNC240


async def test_records_of_a_run(tmp_path: Path) -> None:
    run = await traced(tmp_path / "run.json")
    assert [(job.name, job.outcome, job.has_failed) for job in run.jobs] == [
        ("int", "ok", False),
        ("jobs.raise_it", "raised", True),
        ("jobs.segfault", "BrokenWorkerError", True),
    ]
    _, raised, died = run.jobs
    assert raised.error == "ValueError: no"
    assert "raise_it" in raised.stack
    assert died.error.startswith("BrokenWorkerError: ")
    assert "segfault" in died.stack
    assert run.memory_limit == 1 << 30
    (worker,) = run.workers.values()
    assert 0 <= worker.started < worker.ready <= run.jobs[0].ended <= run.seconds
    assert worker.ended is not None
    assert worker.memory[0][1] > 1_000_000


async def test_trace_that_ends_early(tmp_path: Path) -> None:
    """As that of a program that was killed: in the middle of a line too."""
    await traced(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    for end in range(2, len(text), 7):
        assert len(read_run(text[:end]).jobs) <= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'first line is not "\\["'),
        ("{}", 'first line is not "\\["'),
        ("[\n{}\n]", "event 1 is not one"),
        ("[\n1\n]", "event 1 is not one"),
        ('[\n{"ph": "X", "tid": 1, "cat": "job"}\n]', "event 1 is not one"),
        ("[\nnonsense\n{}\n]", "line 2 is no event"),
    ],
)
def test_other_files(text: str, message: str) -> None:
    with pytest.raises(NoTrace, match=message):
        read_run(text)


def test_few_jobs_are_bars() -> None:
    run = large_run(MAX_BARS - 1)
    bars = [trace for trace in lanes(run).data if trace.type == "bar"]
    assert sorted(trace.name for trace in bars) == ["BrokenWorkerError", "ok", "raised"]
    assert sum(len(trace.x) for trace in bars) == len(run.jobs)


def test_many_jobs_are_aggregated() -> None:
    run = large_run()
    heat, failures = lanes(run).data
    assert [len(row) for row in heat.z] == [COLUMNS] * WORKERS
    # Each worker is busy half of the time.
    middle = heat.z[1][COLUMNS // 2]
    assert middle == pytest.approx(0.5, abs=0.05)
    assert len(failures.x) <= 1001
    (running,) = load(run).data
    assert running.y[COLUMNS // 2] == pytest.approx(WORKERS / 2, rel=0.1)
    (histogram,) = durations(run).data
    assert sum(histogram.y) == len(run.jobs)
    *curves, deaths = memory(run).data
    assert len(curves) == WORKERS
    assert list(deaths.y) == [3.0]


def test_page_needs_no_network() -> None:
    page = page_of(large_run(), "a <run>")
    assert "<title>a &lt;run&gt;</title>" in page
    # Outside of Plotly's own code nothing is loaded.
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", ours)
    assert "100,001" in page
    assert "ValueError: 1,000" in page
    # Plotly's code has about 4.8 MB. A hundred thousand jobs add little.
    assert len(page) < 8_000_000


def test_page_without_jobs() -> None:
    assert "None." in page_of(TracedRun(), "empty")


def run_command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


async def test_command(tmp_path: Path) -> None:
    await traced(tmp_path / "run.json")
    ran = run_command("report", "run.json", folder=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "run.html\n", "")
    assert "jobs.segfault" in (tmp_path / "run.html").read_text()
    ran = run_command("report", "run.json", "-o", "other.html", folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "other.html\n")


def test_report_of_a_map(tmp_path: Path) -> None:
    ran = run_command("map", "json:loads", "1", "x", "--report", "run.html", "--no-progress", folder=tmp_path)
    assert ran.returncode == 1
    page = (tmp_path / "run.html").read_text()
    assert "json:loads(" in page
    assert "<summary>JSONDecodeError: 1</summary>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "none.json"], "cannot read none.json: No such file or directory"),
        (["report", "other.json"], "other.json is no trace of trio-offload: its first line"),
        (["report", "run.json", "-o", "none/run.html"], "cannot write none/run.html: No such file or directory"),
        (["map", "json:loads", "1", "--report", "none/run.html"], "cannot write none/run.html: No such file or directory"),
        (["map", "json:loads", "1", "--report", "."], "cannot write .: Is a directory"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({}))
    (tmp_path / "run.json").write_text("[\n]\n")
    ran = run_command(*arguments, folder=tmp_path)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_without_plotly(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[\n]\n")
    program = "import sys; sys.modules['plotly'] = None; from trio_offload._cli import main; sys.exit(main())"
    ran: Any = subprocess.run(
        [sys.executable, "-c", program, "report", "run.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "pip install 'trio-offload[report]'" in ran.stderr
