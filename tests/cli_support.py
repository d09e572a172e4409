"""For the tests of the command line: run the real command, look at what it prints and at what it leaves running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

COMMAND = (sys.executable, "-m", "trio_offload")
FIGURES = ("seconds", "peak_rss", "pid", "tries")
"""The fields at the end of each line of ``map``."""
PATIENCE = 60.0
"""Seconds after which something that should have happened never will."""

JOBS = '''\
"""What the tests let the command call."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

Path("imported-by").open("a").write(f"{os.getpid()}\\n")


class Group:
    @staticmethod
    def echo(item):
        return item


not_a_function = {}


async def asynchronous(item):
    return item


def echo(item):
    return item


def size(item):
    return len(item)


def pid(item):
    return os.getpid()


def odd(item):
    """A value that JSON cannot hold, by name."""
    circular = []
    circular.append(circular)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return {
        "nan": float("nan"),
        "infinity in a list": [float("-inf")],
        "keys that are no text": {1: 2},
        "keys that are no text, deep": [{"a": ({None: 1},)}],
        "set": {1},
        "bytes": b"x",
        "circular": circular,
        "deep": deep,
        "hostile": Hostile(),
    }[item]


def plain(item):
    """A value that JSON can hold, by name."""
    return {
        "large integer": 2**200,
        "larger than Python likes to print": 10**5000,
        "lone surrogate": "\\udc80",
        "tuple": (1, 2),
        "unicode": "é\\u2028\\n",
        "nested": {"a": [{"b": None}, True, 1.5]},
    }[item]


class Hostile:
    def __repr__(self):
        raise SystemExit("no")


class HostileError(Exception):
    def __str__(self):
        raise RuntimeError("no")


def trouble(item):
    """Go wrong as the item says; anything else comes back."""
    if item == "raise":
        raise ValueError("no\\ngood")
    if item == "exit":
        sys.exit(3)
    if item == "interrupt":
        raise KeyboardInterrupt
    if item == "hostile":
        raise HostileError
    if item == "segfault":
        ctypes.string_at(0)
    if item == "_exit":
        os._exit(42)
    if item == "forever":
        Path("started-forever").write_text(str(os.getpid()))
        while True:
            pass
    return item


def noisy(item):
    print("said by the job")
    subprocess.run(["echo", "said by its child"], check=True)
    return item


def read_input(item):
    return sys.stdin.read()


def hold(item):
    """Say that it has started and by whom; an item "hold…" then never ends, "family…" has a child that never ends."""
    if item.startswith("family"):
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        Path(f"child-of-{item}").write_text(str(child.pid))
    Path(f"started-{item}").write_text(str(os.getpid()))
    if item.startswith(("hold", "family")):
        while True:
            time.sleep(1000)
    return item


def wait_for_file(item):
    """An item "wait" comes back when the file "go" is there; any other at once."""
    while item.startswith("wait") and not os.path.exists("go"):
        time.sleep(0.01)
    return item
'''


@attrs.frozen
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects on the lines of standard output, without their figures.

        Fails on a line that is not one, or that is not whole.
        """
        return [{name: value for name, value in line.items() if name not in FIGURES} for line in self._whole_lines]

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The figures of each line."""
        return [{name: line[name] for name in FIGURES} for line in self._whole_lines]

    @property
    def _whole_lines(self) -> list[dict[str, Any]]:
        assert not self.stdout or self.stdout.endswith("\n")
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def values(self) -> list[Any]:
        """The values of the lines; fails if an item did."""
        assert all(line["ok"] for line in self.lines), self.stdout
        return [line["value"] for line in self.lines]


def run(folder: Path, *arguments: str, given: bytes = b"", env: dict[str, str] | None = None) -> Ran:
    """Run ``trio-offload`` with ``arguments`` in ``folder``, and ``given`` on its standard input.

    Fails if anything of it still runs when it has ended.
    """
    with started(folder, *arguments, env={**os.environ, **(env or {})}) as process:
        stdout, stderr = process.communicate(given, PATIENCE)
        wait_until(lambda: not in_session(process.pid), "the end of the session's processes", patience=2)
    return Ran(process.returncode, stdout.decode(), stderr.decode())


@contextlib.contextmanager
def started(folder: Path, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``trio-offload`` while it runs, in a session of its own. Nothing of it is left afterwards, whatever the test finds."""
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, start_new_session=True, bufsize=0, **{**streams, **options}
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *in_session(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait(PATIENCE)


def in_session(session: int) -> list[int]:
    """The processes of a session that still run (zombies do not), its leader included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # After the name, which is in parentheses: state, parent, group, session.
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(its_session) == session and state not in "ZX":
                    found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process with this number is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Look at another process's doings until ``condition`` is true; fail after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience:g} s"
        time.sleep(0.005)


def wait_for_files(folder: Path, names: Sequence[str]) -> None:
    """Wait until files of these names are in ``folder``, with something in them."""
    for name in names:
        path = folder / name
        wait_until(lambda path=path: path.exists() and path.stat().st_size, f"the file {name}")  # type: ignore[misc]


def peak_memory(pid: int) -> int:
    """The most resident memory that a process has had, in bytes."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
