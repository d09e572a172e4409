"""End to end: blocks of docs/ that `test_blocks.py` cannot run by itself: services, builds, several programs, confinement."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import PROGRAMS, TEST_PACKAGES, plain_environment, run, started, write

DOCS = Path(__file__).parents[2] / "docs"
BIN = Path(sys.executable).parent


def blocks(page: str, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def sessions(page: str) -> list[tuple[str, str]]:
    """For each block: the commands, and all that they print together. Installers are left out."""
    found = []
    for block in blocks(page, "console"):
        lines = [line for line in block.splitlines(keepends=True) if "pip install" not in line]
        commands = "".join(line[2:] for line in lines if line.startswith("$ "))
        found.append((commands, "".join(line for line in lines if not line.startswith("$ "))))
    return found


def typed(commands: str, folder: Path) -> str:
    """What the commands print, with this environment's programs first."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return run(["bash", "-c", commands], folder=folder, environment=environment, expect=None).stdout


def test_from_a_script(tmp_path: Path) -> None:
    """Each way to start it that the page names, and the error without a guard."""
    program, _ = blocks("scripts.md", "python")
    write(tmp_path / "primes.py", program)
    printed, error, _ = blocks("scripts.md", "text")
    for command in ("python primes.py", "python -m primes", "python < primes.py", 'python -c "$(cat primes.py)"'):
        assert typed(command, tmp_path) == printed
    write(tmp_path / "bare.py", program.replace('if __name__ == "__main__":\n    ', ""))
    assert " ".join(error.split()) in run([sys.executable, "bare.py"], folder=tmp_path, expect=1).stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["options", "spec"])
def test_pyinstaller(tmp_path: Path, way: str) -> None:
    """Builds the page's app, by options or by its spec file. The tests' own packages are left out: each takes seconds."""
    pytest.importorskip("PyInstaller")
    excluded = [*TEST_PACKAGES, "numpy"]
    program, spec = blocks("pyinstaller.md", "python")
    write(tmp_path / "primes.py", program)
    with_options, with_spec = sessions("pyinstaller.md")
    if way == "options":
        options = " ".join(f"--exclude-module={name}" for name in excluded)
        commands, shown = with_options[0].replace("--onefile", f"--onefile {options}"), with_options[1]
    else:
        write(tmp_path / "primes.spec", re.sub(r"excludes=\[.*?\]", f"excludes={excluded}", spec))
        commands, shown = with_spec
    assert typed(commands, tmp_path) == shown


CONFINE = """
mount --make-rprivate /
mount -t proc -o hidepid=2,subset=pid proc /proc
mount -o remount,bind,ro /
for place in $(awk '$2 !~ "^/(proc|sys|dev)" && $2 != "/" { print $2 }' /proc/mounts); do
    mount -o remount,bind,ro "$place" || exit 1
done
! touch "$PWD/file" 2>/dev/null || exit 2
exec "$@"
"""


@pytest.fixture
def confined(tmp_path: Path) -> list[str]:
    """Begins a command that runs a program as PID 1, with a part of /proc, on file systems that are read-only."""
    namespaces = ["unshare", "--mount", "--pid", "--fork", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    command = [*namespaces, "sh", "-c", CONFINE, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, cwd=tmp_path, check=False).returncode != 0:
        pytest.skip("this system gives no namespaces, or its root is no mount point (chroot)")
    return [*command, sys.executable]


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "fork"])
def test_a_program_that_is_confined(tmp_path: Path, confined: list[str], kind: str) -> None:
    assert run([*confined, PROGRAMS / "confined.py", kind], folder=tmp_path).lines() == [
        "job",
        "crash",
        "timeout",
        "ceiling",
    ]


def test_a_service_as_pid_1(tmp_path: Path, confined: list[str]) -> None:
    (program,) = blocks("containers.md", "python")
    script = write(tmp_path / "service.py", program)
    with started([*confined, script], folder=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1229\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert process.stdout.read().splitlines()[-1] == "stopped"
    assert process.returncode == 0


def test_unit_file() -> None:
    """The limits in it are those that the page computes."""
    (unit,) = blocks("containers.md", "ini")
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(unit)
    service = parser["Service"]
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
    (program,) = blocks("containers.md", "python")
    limit, idle = re.search(r'memory_limit="(\d+)MiB", min_idle=(\d)', program).groups()  # type: ignore[union-attr]
    workers = int(service["CPUQuota"].removesuffix("%")) // 100 + int(idle)
    assert int(service["MemoryMax"].removesuffix("G")) * 1024 > 200 + workers * int(limit)


def test_parts_of_the_input(tmp_path: Path) -> None:
    """By the page's commands, and by its script for Slurm with an ``srun`` that starts one task after the other."""
    function, _ = blocks("cluster.md", "python")
    write(tmp_path / "primes.py", function)
    ((commands, shown),) = sessions("cluster.md")
    assert typed(commands, tmp_path) == shown
    lines = [path.read_text() for path in sorted(tmp_path.glob("done.*"))]
    for path in tmp_path.glob("done.*"):
        path.write_text("")
    tasks = 'while [[ $1 == --* ]]; do shift; done; for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; done'
    (script,) = blocks("cluster.md", "bash")
    typed(f"srun() {{ {tasks}; }}\n{script}", tmp_path)
    again = [path.read_text() for path in sorted(tmp_path.glob("done.*"))]
    assert [items_of(text) for text in again] == [items_of(text) for text in lines]
    assert [len(items) for items in map(items_of, again)] == [2, 2]


def items_of(lines: str) -> list[tuple[int, int]]:
    return [(line["item"], line["value"]) for line in map(json.loads, lines.splitlines())]


def test_programs_that_talk(tmp_path: Path) -> None:
    """A node that is killed loses the item in hand, and another node does the rest."""
    _, program = blocks("cluster.md", "python")
    script = write(tmp_path / "nodes.py", program)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["127.0.0.1", str(free.getsockname()[1])]
    options: dict[str, Any] = {"folder": tmp_path, "stdout": subprocess.PIPE, "text": True}
    options["environment"] = plain_environment(NODES_KEY="secret")
    begin = [sys.executable, script]
    endless, limits = "1000000000", ["1000", "2000", "3000", "4000"]
    with started([*begin, "coordinate", *address, "100", endless, *limits], **options) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == "listening\n"
        # One processor, so one lane: the endless item is the only one in hand.
        one = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
        with started([*one, *begin, "work", *address], **options) as node:
            assert coordinator.stdout.readline() == "100 25\n"
            node.kill()
        assert coordinator.stdout.readline() == f"{endless} lost: its node is gone\n"
        with started([*begin, "work", *address], **options):
            assert sorted(coordinator.stdout.read().splitlines()) == ["1000 168", "2000 303", "3000 430", "4000 550"]
    assert coordinator.returncode == 0


@pytest.mark.parametrize("library", ["pandas", "torch"])
def test_programs_with_a_library(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    (program,) = (block for block in blocks("numpy.md", "python") if f"import {library}\n" in block)
    text = (DOCS / "numpy.md").read_text()
    printed = text.partition(program)[2].partition("```text\n")[2].partition("```")[0]
    write(tmp_path / "program.py", program)
    assert typed("python program.py", tmp_path) == printed
