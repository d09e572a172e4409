"""End to end: what a newcomer types wrong, and the examples of ``--help``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import COMMAND, JOBS, PATIENCE, run

FUNCTIONS = """

import functools


def two(first, second):
    return first


def none():
    return 1


def keyword(item, *, option):
    return item


def optional(item, second=1, *more, option=2, **others):
    return item


def decorator(function):
    @functools.wraps(function)
    def wrapper(item):
        return function(item, 1)
    return wrapper


@decorator
def decorated(first, second):
    return first


@functools.cache
def cached(first, second):
    return first


class Two:
    def __init__(self, first, second): ...

    def method(self, item):
        return item


instance = Two(1, 2)
bound = functools.partial(two, second=1)
half_bound = functools.partial(two, 1, 2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a module ``jobs``."""
    (tmp_path / "jobs.py").write_text(JOBS + FUNCTIONS)
    return tmp_path


# --- the function's parameters -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("jobs:two", "(first, second)"),
        ("jobs:none", "()"),
        ("jobs:keyword", "(item, *, option)"),
        ("jobs:cached", "(first, second)"),
        ("jobs:Two", "(first, second)"),
        ("jobs:Two.method", "(self, item)"),
        ("jobs:half_bound", "()"),
        ("builtins:divmod", "(x, y, /)"),
    ],
)
def test_a_function_of_other_arguments_is_wrong_usage(folder: Path, function: str, parameters: str) -> None:
    ran = run(folder, "map", function, "a")
    message = f"trio-offload: error: {function} must take one argument, the item; its parameters are {parameters}\n"
    assert (ran.status, ran.stdout, ran.stderr) == (2, "", message)


@pytest.mark.parametrize(
    "function",
    ["jobs:optional", "jobs:decorated", "jobs:instance.method", "jobs:bound", "builtins:str", "builtins:max", "math:hypot"],
)
def test_a_function_that_takes_one_argument(folder: Path, function: str) -> None:
    assert run(folder, "map", function, "--json-lines", "-", given=b"[1]\n").lines[0]["item"] == [1]


# --- items from a pipe -------------------------------------------------------------------------------


@pytest.mark.parametrize("standard_input", ["| {}", "{} < jobs.py"])
def test_items_from_a_pipe_without_lines(folder: Path, standard_input: str) -> None:
    command = standard_input.format('"$@"')
    script = f"ls {command}" if command.startswith("|") else command
    ran = shell(folder, script, *COMMAND, "map", "jobs:echo")
    assert ran.returncode == 2
    assert ran.stderr == (
        "trio-offload: error: items are missing. To take them from the lines of standard input, add --lines -\n"
    )


def test_a_single_dash_is_pointed_out(folder: Path) -> None:
    ran = shell(folder, 'ls | "$@"', *COMMAND, "map", "jobs:echo", "-")
    assert ran.returncode == 2
    assert "Use --lines - for the lines of standard input, and -- - for that text" in ran.stderr
    assert run(folder, "map", "jobs:echo", "--", "-").values == ["-"]
    assert run(folder, "map", "jobs:echo", "-", "a").values == ["-", "a"]


def test_no_items_and_no_pipe(folder: Path) -> None:
    ran = shell(folder, '"$@" < /dev/null', *COMMAND, "map", "jobs:echo")
    assert "items are missing: give them as arguments, or use --lines FILE or --json-lines FILE\n" in ran.stderr


@pytest.mark.parametrize("option", ["--lines", "--json-lines"])
def test_lines_without_a_file(folder: Path, option: str) -> None:
    ran = shell(folder, 'ls | "$@"', *COMMAND, "map", "jobs:echo", option)
    assert ran.returncode == 2
    assert f"argument {option}: expected one argument: a file, or - for standard input" in ran.stderr


# --- help --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("map",)])
def test_examples_of_the_help_run_anywhere(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In an empty folder, one after the other."""
    text = run(tmp_path, *arguments, "--help").stdout
    examples = re.findall(r"^  (.+)$", text[text.index("\nexamples:\n") :], re.MULTILINE)
    assert len(examples) >= 3
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for example in examples:
        ran = shell(tmp_path, example, env={**os.environ, "PATH": path})
        assert (example, ran.returncode) == (example, 0), ran.stderr
        assert "error" not in ran.stderr
        assert '"ok": false' not in ran.stdout or "--help" in example


def test_help_fits_a_terminal_and_names_each_option_of_the_docs(tmp_path: Path) -> None:
    text = run(tmp_path, "map", "--help", env={"COLUMNS": "100"}).stdout
    assert max(map(len, text.splitlines())) <= 100
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    options = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", text)) - {"--help", "--workers", "--timeout", "--memory-limit"}
    assert {option for option in options if f"`{option}" not in page} == set()


def shell(folder: Path, script: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script, "sh", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
