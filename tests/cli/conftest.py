"""Fixtures for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import JOBS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a module ``jobs``."""
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path
