"""Programs in processes of their own, started as a user starts them, with the proof that nothing of them is left.

Each gets a session of its own. A worker never leaves its parent's session, so what is still in it once the program has
ended was left behind, whoever its parent is by then.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from trio_offload import WorkerType, open_worker_context
from trio_offload_worker import resident_memory

PROGRAMS = Path(__file__).resolve().parent / "programs"
PACKAGES = list(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
# The interpreter that this environment was made from. (Before 3.11 sys._base_executable is the environment's own.)
BASE = os.path.join(sys.base_exec_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
TIMEOUT = 120.0  # seconds until something has certainly gone wrong, on a busy machine too
LEAVING_TIME = 10.0  # seconds that what a program left gets to see that it has ended
# Packages of the tests' environment that an app of PyInstaller would collect, in seconds each.
TEST_PACKAGES = (
    "_pytest",
    "pytest",
    "setuptools",
    "pkg_resources",
    "rich",
    "hypothesis",
    "IPython",
    "opentelemetry",
    "plotly",
    "PIL",
)


async def ceiling(kind: WorkerType, size: int) -> int:
    """A `memory_limit` that leaves so many bytes. A fork begins with some of what this process holds, which depends on earlier tests."""
    if kind is not WorkerType.FORK:
        return size
    async with open_worker_context(worker_type=kind) as context:
        held: int = await context.run_sync(resident_memory)
    return size + held


def in_fork(function: Callable[[], int | None]) -> int:
    """The exit status of a copy of this process that calls the function: what it returns, and 99 if it raises."""
    with warnings.catch_warnings():
        # Trio keeps threads for a while, after another test; here they do nothing. Python 3.12 and newer warn of them.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = function() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


Command = Sequence["str | bytes | Path"]


@attrs.frozen
class Ended:
    """What a program left: its exit status, or the number of the ending signal made negative, and what it said."""

    status: int
    stdout: str
    stderr: str

    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    def __str__(self) -> str:
        return f"status {self.status}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}\n---"


def plain_environment(**changes: str | None) -> dict[str, str]:
    """What a user's shell would have: nothing of this run of the tests. ``None`` takes a variable away."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "LC_")) and name not in ("LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANGUAGE")
    }
    environment["LANG"] = "C.UTF-8"
    environment.update({name: value for name, value in changes.items() if value is not None})
    return {name: value for name, value in environment.items() if changes.get(name, "") is not None}


@contextmanager
def started(
    command: Command, *, environment: Any = None, folder: Path | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs. At the end of the block it must have ended, or is ended; then nothing of it may be left."""
    process = subprocess.Popen(
        command,
        env=plain_environment() if environment is None else environment,
        cwd=folder,
        start_new_session=True,
        **options,
    )
    try:
        with process:
            try:
                yield process
            except BaseException:
                end_session(process.pid)
                raise
            process.wait(TIMEOUT)
    finally:
        left = left_in_session(process.pid)
        if left:
            end_session(process.pid)
    assert not left, f"{command} left behind: {left}"


def run(
    command: Command,
    *,
    environment: Any = None,
    folder: Path | None = None,
    stdin: bytes | int = b"",
    expect: int | None = 0,
    timeout: float = TIMEOUT,
    **options: Any,
) -> Ended:
    """Run a program to its end. ``expect`` is the exit status that it has to have; ``None``: any."""
    if isinstance(stdin, bytes):
        options["stdin"] = subprocess.PIPE
    else:
        options["stdin"], stdin = stdin, b""
    with started(
        command, environment=environment, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as process:
        try:
            # To the end of both pipes: whoever holds one of them is waited for too.
            stdout, stderr = process.communicate(stdin if options["stdin"] == subprocess.PIPE else None, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            end_session(process.pid)
            stdout, stderr = process.communicate()
            raise AssertionError(f"{command} did not end\n{Ended(0, *map(_text, (stdout, stderr)))}") from error
    ended = Ended(process.returncode, _text(stdout), _text(stderr))
    assert expect is None or ended.status == expect, f"{command} ended with {ended}"
    return ended


def run_script(folder: Path, text: str, *arguments: str, name: str = "script.py", **options: Any) -> Ended:
    """Write a script into the folder and run it."""
    return run([sys.executable, write(folder / name, text), *arguments], **options)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def make_environment(folder: Path, *arguments: str, python: str | None = None) -> Path:
    """A virtual environment without pip that finds the packages of this one; the path of its python."""
    run([python or BASE, "-m", "venv", "--without-pip", *arguments, folder])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "packages_of_the_tests.pth").write_text("\n".join(PACKAGES) + "\n")
    return folder / "bin" / "python"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# --- sessions ------------------------------------------------------------------------------------


def left_in_session(session: int) -> list[str]:
    """Who is still in the session once everybody had time to leave it."""
    deadline = time.monotonic() + LEAVING_TIME
    while (members := in_session(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [f"{pid}: {name}" for pid, name in members.items()]


def in_session(session: int) -> dict[int, str]:
    """The living members of a session, with their command lines."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        # The state, the parent, the group, the session (proc(5)). Nobody but its parent can do anything about a zombie.
        if int(stat[3]) == session and stat[0] != b"Z":
            found[int(entry)] = command.strip()
    return found


def end_session(session: int) -> None:
    for pid in in_session(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


# --- at a terminal -----------------------------------------------------------------------------


def typed_in(command: Command, text: str, *prompts: str, environment: Any = None, folder: Path | None = None) -> str:
    """Run a program at a terminal of its own and answer each of its prompts with a line of the text. All that it showed."""
    ours, theirs = os.openpty()
    shown = bytearray()
    lines = text.encode().splitlines(keepends=True)
    try:
        with started(command, environment=environment, folder=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            theirs = -1
            answered = 0
            while True:
                readable, _, _ = select.select([ours], [], [], TIMEOUT)
                if not readable:
                    end_session(process.pid)
                    raise AssertionError(f"{command} says nothing any more:\n{_text(bytes(shown))}")
                try:
                    data = os.read(ours, 65536)
                except OSError:  # how a terminal says that nobody is at its other side any more
                    break
                shown += data
                # A line for each prompt, so nothing depends on how much a terminal keeps.
                while answered < min(len(lines), sum(shown.count(prompt.encode()) for prompt in prompts)):
                    os.write(ours, lines[answered])
                    answered += 1
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    return _text(bytes(shown)).replace("\r\n", "\n")
