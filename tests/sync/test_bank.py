"""The bank of tests/soak for some seconds: no money and no item is lost that is not told, in every kind of worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BANK = Path(__file__).resolve().parents[1] / "soak" / "bank.py"
TIMEOUT = 120.0  # seconds: a program that hangs fails


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "fork", "loop"])
def test_bank(kind: str) -> None:
    options = ["--loop"] if kind == "loop" else ["--type", kind]
    ran = subprocess.run(
        [sys.executable, BANK, "2", "seed", *options], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = {name: int(number) for name, number in re.findall(r"([a-z ,]+): (\d+)", ran.stdout.replace(", ", "\n"))}
    assert counts["rounds"] >= 1
    assert counts["killed"] > 0
    assert counts["transfers"] > 0
