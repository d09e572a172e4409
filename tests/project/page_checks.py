"""Run the blocks of a page: each check yields a text for each failure."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import attrs
from page_blocks import Block
from page_output import matches
from running import Command, Ended, plain_environment, run

PATIENCE = 80.0
"""Seconds for a program, the commands of a block, and all fragments of a page."""
SESSION = Path(__file__).with_name("page_session.py")
END_OF_COMMAND = "---- end of a command: "
INSTALLERS = ("apt-get", "conda", "pip", "pipx", "uv")
"""Commands that change the machine, so no test runs them."""


@attrs.define
class Page:
    """A page while it is tested."""

    folder: Path
    """The working directory of its commands and fragments: its files, and the examples."""
    fragments: list[Block] = attrs.field(factory=list)

    def check(self, block: Block) -> Iterator[str]:
        """Run one block. A fragment waits for :meth:`run_fragments`."""
        if block.reason_not_to_run is not None:
            return
        if "file" in block.marks:
            (self.folder / block.marks["file"]).write_text(block.text)
        if block.language == "python":
            yield from self._check_python(block)
        elif block.language == "console":
            yield from self._check_commands(block)
        elif (check := CHECKS.get(block.language)) is not None:
            try:
                check(block.text)
            except Exception as error:
                yield f"{block.place}: {error}"
        else:
            yield f"{block.place}: a block of «{block.language}» is not run; a comment must give the reason"

    def _check_python(self, block: Block) -> Iterator[str]:
        name = block.marks.get("file")
        if name is None:
            # A program runs by itself; fragments use its functions.
            self.fragments.append(block)
        elif is_program(block):
            yield from check_program(block, self.folder, name)
        else:
            ast.parse(block.text)

    def _check_commands(self, block: Block) -> Iterator[str]:
        typed = [(command, shown) for command, shown in commands(block) if not is_installer(command)]
        # One shell for the block; each command finds the status of the one before it.
        script = "".join(
            f"{command}\nstatus=$?; printf '\\n{END_OF_COMMAND}%s\\n' $status; (exit $status)\n" for command, _ in typed
        )
        ran = run_as_typed(["bash", "-c", "exec 2>&1\n" + script], self.folder)
        parts = re.split(rf"\n{END_OF_COMMAND}(\d+)\n", ran.stdout)
        statuses = block.marks.get("exit status", "0").split()
        for (command, shown), printed, status, expected in zip_longest(
            typed, parts[: 2 * len(typed) : 2], parts[1::2], statuses[: len(typed)]
        ):
            if status != (expected or statuses[-1]):
                yield f"{block.place}: {command}: exit status {status}\n{printed}"
            elif shown and not matches_block(block, shown, printed):
                yield f"{block.place}: {command}\n{difference(shown, printed)}"

    def run_fragments(self) -> Iterator[str]:
        """Run the fragments, and the definitions of whole programs, in the order of the page."""
        if all(is_program(block) for block in self.fragments):
            return
        tasks, results, output = (self.folder.parent / name for name in ("tasks.json", "results", "output"))
        tasks.write_text(json.dumps([attrs.asdict(block) for block in self.fragments]))
        ran = run_as_typed([sys.executable, "-c", SESSION.read_text(), tasks, results, output], self.folder)
        if ran.status or ran.stderr:
            yield f"{self.fragments[0].page}: exit status {ran.status} of the fragments\n{ran.stderr}"
        printed = output.read_bytes()
        for block, line in zip(self.fragments, results.read_text().splitlines(), strict=False):
            result = json.loads(line)
            text = printed[result["begin"] : result["end"]].decode()
            if result["error"] is not None:
                yield f"{block.place}: {result['error']}"
            elif block.output is not None and not is_program(block) and not matches_block(block, block.output, text):
                yield f"{block.place}:\n{difference(block.output, text)}"


def is_program(block: Block) -> bool:
    """Return True for a whole program, False for a fragment of one."""
    return (
        block.language == "python" and "import " in block.text and ("trio.run(" in block.text or "__name__ ==" in block.text)
    )


def is_installer(command: str) -> bool:
    return command.split()[0] in INSTALLERS


def check_program(block: Block, folder: Path, name: str) -> Iterator[str]:
    ran = run_as_typed([sys.executable, name], folder)
    if (ran.status, ran.stderr) != (0, ""):
        yield f"{block.place}: exit status {ran.status}\n{ran.stdout}{ran.stderr}"
    elif block.output is not None and not matches_block(block, block.output, ran.stdout):
        yield f"{block.place}:\n{difference(block.output, ran.stdout)}"
    elif not ran.stdout:
        yield f"{block.place}: this program prints nothing"


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a block, each with the output that the block shows."""
    prompt, *sessions = ("\n" + block.text).split("\n$ ")
    if prompt:
        raise ValueError(f"{block.place}: a console block begins with «$ »")
    for session in sessions:
        command, _, shown = session.partition("\n")
        while command.endswith("\\"):
            line, _, shown = shown.partition("\n")
            command += f"\n{line}"
        yield command, shown


def run_as_typed(command: Command, folder: Path) -> Ended:
    """Run a command as a user's terminal would, with the programs of this environment."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    return run(command, environment=plain_environment(PATH=path), folder=folder, expect=None, timeout=PATIENCE)


def matches_block(block: Block, shown: str, printed: str) -> bool:
    return matches(shown, printed, numbers_vary=block.marks.get("numbers") == "vary")


def difference(shown: str, printed: str) -> str:
    return f"--- the page shows\n{shown}--- printed\n{printed}"


def _check_json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():
            json.loads(line)


def _check_toml(text: str) -> None:
    # Python 3.10 has no tomllib; pip carries one.
    from pip._vendor import tomli

    tomli.loads(text)


def _check_ini(text: str) -> None:
    # A unit of systemd repeats keys.
    configparser.ConfigParser(strict=False, interpolation=None).read_string(text)


def _check_dockerfile(text: str) -> None:
    known = (
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "RUN",
        "STOPSIGNAL",
        "USER",
        "WORKDIR",
    )
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            instruction, *arguments = line.split(None, 1)
            if instruction not in known or not arguments:
                raise ValueError(f"not an instruction: {line}")


def _check_shell(text: str) -> None:
    subprocess.run(["bash", "-n", "-c", text], check=True, capture_output=True)


CHECKS: dict[str, Callable[[str], object]] = {
    "file": str,
    "json": _check_json,
    "toml": _check_toml,
    "ini": _check_ini,
    "dockerfile": _check_dockerfile,
    "bash": _check_shell,
}
"""Languages that are read instead of run."""
