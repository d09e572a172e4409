"""A traced run as records, as figures and as a page, through the command line too."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import jobs
import pytest
import report_jobs
import trio
from cli_support import COMMAND, PATIENCE
from traced_runs import large_run

from trio_offload import BrokenWorkerError, WorkerTimeoutError, WorkerType, open_worker_context, retire_when
from trio_offload._report.page import page_of
from trio_offload._report.run import NoTrace, TracedRun, read_run
from trio_offload._trace import TraceWriter


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


async def test_items_of_a_map(tmp_path: Path) -> None:
    """Alone and in chunks: what ran, and which of them failed where."""
    path = tmp_path / "run.json"
    async with open_worker_context(trace=path) as context:
        for size in (1, 4):
            async with context.map(
                report_jobs.parse, ["1", "two", "3", "4"], chunk_size=size, workers=1, return_outcomes=True
            ) as results:
                await results.collect()
    run = read_run(path.read_text())
    *alone, chunk = run.jobs
    assert [job.item for job in alone] == ["item 0: '1'", "item 1: 'two'", "item 2: '3'", "item 3: '4'"]
    assert (chunk.item, chunk.items, chunk.failed, chunk.outcome) == ("items 0 to 3: '1' to '4'", 4, 1, "raised")
    (failure,) = chunk.failures
    assert failure.kind == "ValueError"
    assert failure.place.startswith("report_jobs.parse, item 1: 'two', at ")
    assert "two" in failure.error
    assert "in parse" in failure.stack


async def test_item_of_a_crash_in_a_chunk(of_any_kind: WorkerType, tmp_path: Path) -> None:
    """The stack has the Python line, whatever runs the worker."""
    path = tmp_path / "run.json"
    async with open_worker_context(trace=path, worker_type=of_any_kind) as context:
        async with context.map(report_jobs.die_of, [0, 0, 9, 0], chunk_size=4, workers=1, return_outcomes=True) as results:
            await results.collect()
    crash = read_run(path.read_text()).jobs[0]
    assert (crash.outcome, crash.item) == ("BrokenWorkerError", "item 2: 9")
    (failure,) = crash.failures
    assert failure.kind == "BrokenWorkerError (SIGSEGV)"
    assert 'report_jobs.py", line ' in failure.stack
    assert "in die_of" in failure.stack


async def test_waits_ceilings_and_deaths(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    async with open_worker_context(trace=path, retire=retire_when(rss="1GiB")) as context:
        limiter = trio.CapacityLimiter(1)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(partial(context.run_sync, time.sleep, 0.02, limiter=limiter))
        with pytest.raises(WorkerTimeoutError):
            await context.run_sync(time.sleep, 100, timeout=0.05)
        await context.run_sync(abs, 1)
        (worker,) = context.statistics().workers
        os.kill(worker.pid, signal.SIGKILL)
        while context.statistics().workers:  # noqa: ASYNC110
            await trio.sleep(0.005)
    run = read_run(path.read_text())
    assert max(count for _, count in run.waiting) == 3
    assert run.waiting[-1][1] == 0
    late = next(job for job in run.jobs if job.outcome == "WorkerTimeoutError")
    assert "most recent call first" in late.stack
    assert [failure.kind for failure in late.failures] == ["WorkerTimeoutError"]
    first, last = run.workers.values()
    assert first.ceiling == last.ceiling == 1 << 30
    assert (first.died, last.died) == ("", "died of SIGKILL")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file's name need not be UTF-8. The page is."""
    writer = TraceWriter(str(tmp_path / "run.json"))
    writer.open()
    now = time.monotonic()
    writer.job(1, "f", now, now + 0.1, "ok", {"item": 0, "text": "'\udce9 \U0001f600'"})
    writer.worker_ended(1, now + 0.2)
    writer.close()
    run = read_run((tmp_path / "run.json").read_text())
    assert run.jobs[0].item == "item 0: '\\udce9 \U0001f600'"
    assert page_of(run, "names").encode()


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
    """Each section has a sentence in place of its picture."""
    page = page_of(TracedRun(), "empty")
    assert page.count("No job has ended.") == 3
    assert "No worker has reported its memory." in page
    assert "No call has waited" in page
    assert "<p>None.</p>" in page
    assert 'class="figure"' not in page


def test_names_do_not_end_the_script() -> None:
    run = large_run(1)
    run.jobs.append(attrs.evolve(run.jobs[0], name="</script><b>"))
    page = page_of(run, "names")
    figures = re.findall(r'<script class="figure" type="application/json">(.*?)</script>', page)
    assert len(figures) == 4
    (hover,) = [text for trace in json.loads(figures[0])["data"] for text in trace["customdata"] if "script" in str(text)]
    assert hover.startswith("&lt;/script&gt;&lt;b&gt;<br>")


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
    assert "the items that were read and had not begun" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html"]


def test_report_of_a_map_that_is_interrupted(tmp_path: Path) -> None:
    arguments = ["map", "report_jobs:nap", "0", "1000", "--workers", "2", "--report", "run.html", "--no-progress"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, env=environment) as ran:
        assert ran.stdout is not None
        assert b"0" in ran.stdout.readline()
        ran.send_signal(signal.SIGINT)
        assert ran.wait(PATIENCE) == 130
    page = (tmp_path / "run.html").read_text()
    assert "report_jobs:nap(" in page
    assert "<dt>cancelled</dt><dd>1</dd>" in page


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
