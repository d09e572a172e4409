"""A user's type checker sees the installed package as typed, and judges a user's code as it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", ["user_code.py", "wrong_code.py"])
def test_strict_checking_of_user_code(program: str, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="the dependency group lint is not installed")
    # A copy, from which neither this checkout's sources nor its configuration can be found.
    copy = tmp_path / program
    copy.write_text((Path(__file__).with_name(program)).read_text())
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path / "cache", copy],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
