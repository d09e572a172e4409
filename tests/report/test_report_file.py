"""The `report` of a context: checked when the context opens, written when it closes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import trio
from cli_support import PATIENCE
from running import in_fork

from trio_offload import cache_scope, configure_default_context, open_worker_context, run_sync
from trio_offload._report.file import ReportFile
from trio_offload._report.run import read_run
from trio_offload._trace import TraceWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.html"


def shown(path: Path, job: str) -> bool:
    """True if the file is a page with this job."""
    page = path.read_text(encoding="utf-8")
    return page.startswith("<!doctype html>") and page.endswith("</html>") and job in page


def files_beside(path: Path) -> list[str]:
    return os.listdir(path.parent)


async def test_written_at_the_end(path: Path) -> None:
    async with open_worker_context(report=path) as context:
        assert context.report == str(path)
        assert await context.run_sync(abs, -5) == 5
        with pytest.raises(ValueError, match="no"):
            await context.run_sync(jobs.raise_it, ValueError("no"))
        assert files_beside(path) == []
    assert shown(path, "jobs.raise_it")
    assert files_beside(path) == [path.name]


async def test_written_if_the_block_raises(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_worker_context(report=path) as context:
            await context.run_sync(abs, -5)
            raise ZeroDivisionError
    assert shown(path, "abs")


async def test_written_if_the_block_is_cancelled(path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_worker_context(report=path) as context:
            await context.run_sync(abs, -5)
            scope.cancel()
            await trio.sleep_forever()
    assert shown(path, "abs")


async def test_with_a_trace(path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "run.json"
    async with open_worker_context(report=path, trace=trace) as context:
        await context.run_sync(abs, -5)
    assert shown(path, "abs")
    assert [job.name for job in read_run(trace.read_text()).jobs] == ["abs"]


async def test_of_a_scope(path: Path) -> None:
    async with cache_scope(report=path):
        await run_sync(abs, -5)
    assert shown(path, "abs")


def run_program(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(code)
    return subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_of_the_default_context(tmp_path: Path) -> None:
    """It is written when the interpreter exits. A context that was replaced has its own."""
    ran = run_program(
        "import trio, trio_offload\n"
        "trio_offload.configure_default_context(report='none.html')\n"
        "trio_offload.configure_default_context(report='run.html')\n"
        "for number in (1, 2):\n"
        "    trio.run(trio_offload.run_sync, abs, number)\n",
        tmp_path,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert shown(tmp_path / "run.html", "abs")
    assert "<title>program.py</title>" in (tmp_path / "run.html").read_text()
    assert shown(tmp_path / "none.html", "<dd>0</dd>")


def test_own_exception_of_a_program(tmp_path: Path) -> None:
    """Nothing but its traceback is on standard error, although the report cannot be written."""
    ran = run_program(
        "import os, trio, trio_offload\n"
        "async def main():\n"
        "    async with trio_offload.open_worker_context(report='folder/run.html') as context:\n"
        "        await context.run_sync(abs, -5)\n"
        "        os.rmdir('folder')\n"
        "        raise LookupError('mine')\n"
        "os.mkdir('folder')\n"
        "trio.run(main)\n",
        tmp_path,
    )
    assert ran.returncode == 1
    warning, *_, last = ran.stderr.splitlines()
    assert last == "LookupError: mine"
    assert warning.startswith("the report ")
    assert "could not be written: FileNotFoundError" in warning


async def test_failure_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_worker_context(report=path) as context:
        assert await context.run_sync(abs, -5) == 5
        path.mkdir()  # noqa: ASYNC240
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("trio_offload", logging.WARNING)
    assert record.getMessage().startswith(f"the report {path} could not be written: IsADirectoryError: ")


@pytest.mark.parametrize("place", ["none/run.html", "."])
async def test_unwritable_path_is_refused_at_once(place: str, tmp_path: Path) -> None:
    trace = tmp_path / "run.json"
    trace.write_text("precious")
    with pytest.raises(ValueError, match=r"report='.*' cannot be written: (No such file|Is a dir)"):
        async with open_worker_context(report=tmp_path / place, trace=trace):
            pytest.fail("the block ran")
    assert trace.read_text() == "precious"


async def test_trace_and_report_are_two_files(path: Path) -> None:
    with pytest.raises(ValueError, match=r"report and trace must be two files, got '.*run\.html' for both"):
        async with open_worker_context(report=path, trace=path):
            pytest.fail("the block ran")
    assert files_beside(path) == []


async def test_earlier_page_stays_until_the_end(path: Path) -> None:
    path.write_text("earlier")  # noqa: ASYNC240
    async with open_worker_context(report=path):
        assert path.read_text() == "earlier"  # noqa: ASYNC240
    assert shown(path, "<dd>0</dd>")


async def test_missing_plotly_is_told_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'trio-offload\[report\]'"):
        async with open_worker_context(report=path):
            pytest.fail("the block ran")
    with pytest.raises(ModuleNotFoundError, match="plotly"):
        configure_default_context(report=path)
    assert files_beside(path) == []


def test_a_fork_of_the_program_writes_nothing(path: Path) -> None:
    trace = TraceWriter(None, is_kept=True)
    trace.open()
    report = ReportFile(str(path), trace)

    def close() -> None:
        trace.close()
        report.write()

    assert in_fork(close) == 0
    assert not path.exists()
    close()
    assert shown(path, "<dd>0</dd>")
    path.unlink()
    close()
    assert not path.exists()
