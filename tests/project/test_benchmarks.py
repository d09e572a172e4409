"""Contract: what docs/speed.md quotes from the benchmarks is what was measured, and two runs can be compared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def results(median: float) -> dict[str, Any]:
    """Those of a run with one row."""

    def entry(value: float) -> dict[str, Any]:
        return {"median": value, "quartiles": [value, value], "rounds": [value, value]}

    contenders = {
        "trio-offload": entry(median),
        "trio-parallel": entry(150.0),
        "bare Trio echo": entry(40.0),
        "loky": entry(600.0),
    }
    goals = [{"yardstick": "trio-parallel", "ratio": median / 150, "limit": 0.34, "met": median <= 51}]
    row = {"row": "warm call", "unit": "µs", "better": "less", "contenders": contenders, "goals": goals}
    return {"machine": {"processor": "one", "cores": 2, "python": "CPython 3.11.7, GCC"}, "rows": [row]}


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A project with the page that quotes ratios and the program that writes them."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(repository / "benchmarks" / "ratios.py", tmp_path / "benchmarks")
    (tmp_path / "docs").mkdir()
    shutil.copy(repository / "docs" / "speed.md", tmp_path / "docs")
    return tmp_path


def test_ratios_of_the_page_are_those_that_were_measured(repository: Path) -> None:
    answer = run(repository / "benchmarks" / "ratios.py", "--check")
    assert (answer.returncode, answer.stderr) == (0, "")


def test_ratios_are_written_and_checked(checkout: Path) -> None:
    program = checkout / "benchmarks" / "ratios.py"
    measured = checkout / "benchmarks" / "results" / "bench.json"
    measured.parent.mkdir()
    measured.write_text(json.dumps(results(50.0)))
    assert run(program, "--check").returncode == 1
    assert run(program).returncode == 0
    assert run(program, "--check").returncode == 0
    assert "| warm call | 3.0 × | 12 × | 0.80 × `bare Trio echo` |" in (checkout / "docs" / "speed.md").read_text()

    measured.write_text(json.dumps(results(75.0)))
    stale = run(program, "--check")
    assert stale.returncode == 1
    assert "run python benchmarks/ratios.py" in stale.stderr


def test_a_page_without_the_place_for_the_ratios(checkout: Path) -> None:
    page = checkout / "docs" / "speed.md"
    page.write_text("# Speed\n")
    answer = run(checkout / "benchmarks" / "ratios.py")
    assert answer.returncode == 1
    assert "speed.md lacks the marks" in answer.stderr
    assert page.read_text() == "# Speed\n"


def test_two_versions_side_by_side(tmp_path: Path, repository: Path) -> None:
    for name, median in (("a", 100.0), ("b", 120.0), ("c", 55.0)):
        (tmp_path / name).write_text(json.dumps(results(median)))
    answer = run(
        repository / "benchmarks" / "compare.py", "--before", tmp_path / "a", tmp_path / "b", "--after", tmp_path / "c"
    )
    assert answer.stderr == ""
    (line,) = (line for line in answer.stdout.splitlines() if line.startswith("| warm call"))
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells == [
        "warm call, µs",
        "110 (100–120)",
        "55 (55–55)",
        "0.5 ×",
        "trio-parallel",
        "0.733 ×",
        "0.367 ×",
        "≤ 0.34 ×",
    ]


@pytest.mark.parametrize(("name", "tools"), [("instructions", "valgrind, cc, taskset"), ("imports", "valgrind")])
def test_instructions_without_valgrind(tmp_path: Path, repository: Path, name: str, tools: str) -> None:
    program = repository / "benchmarks" / f"{name}.py"
    answer = subprocess.run(
        [sys.executable, program], env={"PATH": str(tmp_path)}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"not on this machine: {tools} (Debian: apt-get install valgrind")
