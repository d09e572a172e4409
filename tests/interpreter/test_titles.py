"""What a list of processes shows for a worker: whose it is, or the title that a job has given it."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import setproctitle
from kinds import environment_of
from running import run

import trio_offload
from trio_offload import WorkerType
from trio_offload._interpreter import command_line as _command_line

TITLE = "pictures: (17) of 20"


def command_line(pid: int | str = "self") -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")


def name_process() -> int:
    setproctitle.setproctitle(TITLE)
    return os.getpid()


async def test_a_title_is_shown_and_stays(of_any_kind: WorkerType) -> None:
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        pid = await context.run_sync(name_process)
        assert command_line(pid) == [TITLE]
        assert await context.run_sync(os.getpid) == pid
        assert await context.run_sync(command_line) == [TITLE]
        # What the job was told of the program's command line is as before.
        assert await context.run_sync(getattr, sys, "orig_argv") == sys.orig_argv


PROGRAM = """\
import sys, trio, trio_offload
from pathlib import Path
import setproctitle

async def main(kind, *title):
    async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType(kind)) as context:
        if title:
            await context.run_sync(setproctitle.setproctitle, *title)
        print(ascii((await context.run_sync(Path("/proc/self/cmdline").read_bytes)).decode()))

if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("first", ["LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONCOERCECLOCALE", "PYTHONINSPECT"])
def test_title_with_first_variable_changed_for_start(kind: str, first: str, tmp_path: Path) -> None:
    """The command line is looked for in front of the first variable, in memory."""
    script = tmp_path / "service.py"
    script.write_text(PROGRAM)
    environment = {first: "", **{name: value for name, value in environment_of(kind).items() if name != first}}
    ended = run([sys.executable, script, kind.replace("loop", "spawn"), TITLE], environment=environment)
    assert ended.lines() == [ascii(TITLE + "\0" * (len(ast.literal_eval(ended.stdout)) - len(TITLE)))]


def test_without_a_title_the_program_is_named(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "service of mine é.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), kind.replace("loop", "spawn")]
    shown: Any = ast.literal_eval(run(command, environment=environment_of(kind)).stdout).rstrip("\0").split("\0")
    if kind == "fork":
        assert shown == command
    elif kind == "loop":
        code = shown[shown.index("-c") + 1]
        assert code.splitlines()[0] == "# trio-offload worker of service of mine ?.py"
    else:
        extra = ["forkserver"] if kind == "forkserver" else []
        assert shown == ["trio-offload-worker", "serve", "3", "4", "service of mine é.py", *extra]


PYTHON = os.path.basename(sys.executable)


@pytest.mark.parametrize(
    ("first", "label"),
    [
        ("/usr/bin/tool", "tool"),
        ("tool.py", "tool.py"),
        ("/site-packages/package/__main__.py", "package"),
        ("__main__.py", "__main__.py"),
        ("folder/", "folder"),
        ("-c", PYTHON),
        ("", PYTHON),
        (".", PYTHON),
        (Path("/usr/bin/tool"), PYTHON),
        ("two\nlines\x00and\u2028more", "two?lines?and?more"),
        ("\udcff\ud800", "??"),
        ("é" * 100, "é" * 30),
        ("x" * 100, "x" * 60),
    ],
)
def test_the_name_of_a_program(first: Any, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [first])
    assert _command_line.program_label() == label


def test_a_program_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    assert _command_line.program_label() == PYTHON
