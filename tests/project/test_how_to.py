"""End to end: the sessions in a shell that pages of docs/ show, typed as a reader types them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from running import run, write

DOCS = Path(__file__).parents[2] / "docs"
BIN = Path(sys.executable).parent


def blocks(page: str, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def sessions(page: str) -> list[tuple[str, str]]:
    """For each block: the commands, and all that they print together."""
    found = []
    for block in blocks(page, "console"):
        lines = [line for line in block.splitlines(keepends=True) if "pip install" not in line]
        typed = "".join(line[2:] for line in lines if line.startswith("$ "))
        found.append((typed, "".join(line for line in lines if not line.startswith("$ "))))
    return [session for session in found if session[0]]


def typed(commands: str, folder: Path) -> str:
    """What the commands print, with this environment's programs first."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return run(["bash", "-c", commands], folder=folder, environment=environment, expect=None).stdout


def test_from_a_script(tmp_path: Path) -> None:
    program, without_trio = blocks("scripts.md", "python")
    write(tmp_path / "primes.py", program)
    for commands, shown in sessions("scripts.md"):
        assert typed(commands, tmp_path) == shown
    printed, error, lengths = blocks("scripts.md", "text")
    for command in ("python primes.py", "python -m primes", "python < primes.py", 'python -c "$(cat primes.py)"'):
        assert typed(command, tmp_path) == printed
    write(tmp_path / "lengths.py", without_trio)
    assert typed("python lengths.py", tmp_path) == lengths
    write(tmp_path / "bare.py", program.replace('if __name__ == "__main__":\n    ', ""))
    assert " ".join(error.split()) in run([sys.executable, "bare.py"], folder=tmp_path, expect=1).stderr


@pytest.mark.slow
def test_pyinstaller(tmp_path: Path) -> None:
    """Builds the page's app twice: with options, and with its spec file. The tests' own packages are left out: each takes seconds."""
    pytest.importorskip("PyInstaller")
    program, spec = blocks("pyinstaller.md", "python")
    write(tmp_path / "primes.py", program)
    with_options, with_spec = sessions("pyinstaller.md")
    excluded = ["_pytest", "pytest", "setuptools", "pkg_resources", "rich", "hypothesis", "IPython", "numpy"]
    options = " ".join(f"--exclude-module={name}" for name in excluded)
    assert typed(with_options[0].replace("--onefile", f"--onefile {options}"), tmp_path) == with_options[1]
    write(tmp_path / "primes.spec", spec.replace('["tkinter"]', repr(["tkinter", *excluded])))
    (tmp_path / "dist" / "primes").unlink()
    assert typed(with_spec[0].replace("pyinstaller", "pyinstaller --noconfirm"), tmp_path) == with_spec[1]


def test_sessions_are_found() -> None:
    assert [len(sessions(page)) for page in ("scripts.md", "pyinstaller.md")] == [3, 2]
