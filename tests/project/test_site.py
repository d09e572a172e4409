"""The reference has the names of the public interface, and README.md can be shown where the tree is not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import trio_offload
import trio_offload_worker
from trio_offload import connection, telemetry
from trio_offload_worker import from_worker

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
_DIRECTIVE = re.compile(r"^\.\. (currentmodule|autofunction|autoclass|autoexception|autodata):: (\S+)$", re.MULTILINE)


def documented() -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for page in sorted(REFERENCE.glob("*.md")):
        module = ""
        for directive, name in _DIRECTIVE.findall(page.read_text()):
            if directive == "currentmodule":
                module = name
            else:
                names.setdefault(module, []).append(name)
    return names


def test_reference_has_each_public_name_once() -> None:
    names = documented()
    assert sorted(names["trio_offload"]) == sorted(trio_offload.__all__)
    assert sorted(names["trio_offload.connection"]) == sorted(connection.__all__)
    assert sorted(names["trio_offload.telemetry"]) == sorted(telemetry.__all__)
    assert sorted(names["trio_offload_worker.from_worker"]) == sorted(from_worker.__all__)
    assert set(names["trio_offload_worker"]) <= set(dir(trio_offload_worker))


def test_picture_of_the_readme() -> None:
    """It has a light and a dark form, and loads nothing."""
    (name,) = re.findall(r"!\[.*\]\((.*)\)", (ROOT / "README.md").read_text())
    text = (ROOT / name).read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "@media (prefers-color-scheme: dark)" in text
    assert set(re.findall(r'href="(.)', text)) == {"#"}


def test_addresses_of_a_release(tmp_path: Path) -> None:
    """No link of README.md is relative any more, and all lead to files of the tree."""
    (tmp_path / "ci").mkdir()
    for name in ("README.md", "pyproject.toml", "ci/addresses.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    page = "https://example.org/project"
    places = [page, f"{page}/blob/main/", f"{page}/raw/main/", f"{page}/issues"]
    subprocess.run([sys.executable, tmp_path / "ci" / "addresses.py", *places], check=True)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    assert [target for _, target in links if not target.startswith("https://")] == []
    for picture, target in links:
        if target.startswith(page):
            path = target.removeprefix(places[2] if picture else places[1]).partition("#")[0]
            assert (ROOT / path).exists(), target
    urls = (tmp_path / "pyproject.toml").read_text().partition("[project.urls]\n")[2].partition("\n\n")[0].splitlines()
    assert [line.partition(" = ")[0] for line in urls] == ["Documentation", "Source", "Issues", "Changelog"]


def test_release_without_addresses_is_refused(tmp_path: Path) -> None:
    """Nothing is built that would be uploaded."""
    shutil.copytree(ROOT / "ci", tmp_path / "ci")
    (tmp_path / "README.md").write_text("[Pages](docs/index.md) ![A run](docs/run.svg) [Trio](https://trio.readthedocs.io)")
    (tmp_path / "pyproject.toml").write_text("[project.optional-dependencies]\n")
    ended = subprocess.run([tmp_path / "ci" / "wheels"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "a release needs the project's public addresses, but 2 links of README.md are relative and pyproject.toml has no "
        "[project.urls]: run python ci/addresses.py SOURCE FILES RAW ISSUES (docs/release.md)\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "ci", "pyproject.toml"]
    addresses = [sys.executable, tmp_path / "ci" / "addresses.py"]
    subprocess.run([*addresses, *["https://example.org/"] * 4], check=True)
    subprocess.run([*addresses, "--check"], check=True)
