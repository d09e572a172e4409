"""The jobs of the soak. Each leaves two marks in a file: when it begins, and when it has done its part.

The marks are appended by one write each, so they survive whatever ends the worker. The worker imports no more than this.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MARKS = "SOAK_MARKS"
BEGAN, ENDED = "B", "E"
# A program that a job starts has the number of the call in its environment.
CALL = "SOAK_CALL"


def mark(kind: str, number: int) -> None:
    descriptor = os.open(os.environ[MARKS], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{kind} {number}\n".encode())
    finally:
        os.close(descriptor)


def marked(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run the function between its two marks."""
    mark(BEGAN, number)
    try:
        return function(*arguments)
    finally:
        mark(ENDED, number)


def marked_item(item: tuple[int, Callable[..., Any], tuple[Any, ...]]) -> tuple[int, Any]:
    """The same for `map`; the result says which item it is of."""
    number, function, arguments = item
    return number, marked(number, function, *arguments)


# --- ordinary work -------------------------------------------------------------------------------


def double(number: int) -> int:
    return 2 * number


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def hold_the_gil(count: int) -> int:
    return sum(range(count))


def sleep_for_ever() -> NoReturn:
    while True:
        time.sleep(600)


def spin_for_ever() -> NoReturn:
    while True:
        pass


def sometimes() -> bool:
    """A `retire` function."""
    return random.random() < 0.2


# --- payloads ------------------------------------------------------------------------------------


def payload(kind: str, size: int, seed: int) -> Any:
    """An object of that kind, of about that size, always the same for one seed."""
    block = random.Random(seed).randbytes(min(size, 65_536))
    data = (block * (size // max(len(block), 1) + 1))[:size]
    if kind == "bytes":
        return data
    if kind == "bytearray":
        return bytearray(data)
    if kind == "list":
        return [data[start : start + 100_000] for start in range(0, size, 100_000)]
    if kind == "text":
        return data.hex()[:size]
    import numpy

    return numpy.frombuffer(data, "u1").copy()


def digest(value: Any) -> tuple[str, int, int]:
    """What tells an object from another one."""
    pieces = value if isinstance(value, list) else [value]
    check = 0
    for piece in pieces:
        check = zlib.crc32(piece.encode() if isinstance(piece, str) else memoryview(piece), check)
    return type(value).__name__, sum(map(len, pieces)), check


def same(value: Any) -> Any:
    return value


# --- odd endings ---------------------------------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("it holds a function that has no name")
        self.held = lambda: None


def raise_odd(name: str) -> NoReturn:
    if name == "TwoArguments":
        raise TwoArguments(1, 2)
    if name == "Unpicklable":
        raise Unpicklable
    if name == "RecursionError":
        raise_odd_deeply(0)
    if name == "ZeroDivisionError":
        try:
            raise_odd("KeyError")
        except KeyError as error:
            raise ZeroDivisionError("with a cause") from error
    kinds: dict[str, type[BaseException]] = {
        "KeyError": KeyError,
        "ValueError": ValueError,
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "MemoryError": MemoryError,
        "GeneratorExit": GeneratorExit,
    }
    raise kinds[name](name)


def raise_odd_deeply(depth: int) -> NoReturn:
    raise_odd_deeply(depth + 1)


def end_worker(way: str) -> NoReturn:
    """The job is the end of its worker."""
    if way == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, way))
    sleep_for_ever()


def grow(limit: int) -> str:
    """Take more memory than the limit, slowly enough to be caught, and not without bound."""
    held = []
    for _ in range(limit // 10_000_000 + 40):
        held.append(b"\1" * 10_000_000)
        time.sleep(0.02)
    return "nobody ended this"


# --- programs that jobs start --------------------------------------------------------------------


def run_program() -> int:
    return subprocess.run(["sh", "-c", "exit 3"], stdin=subprocess.DEVNULL).returncode


def leave_program(number: int, daemonised: bool) -> int:
    """Leave a program behind that lives on; its number, or 0 if it was killed before it had told that."""
    return _start_daemon(number) if daemonised else _start_sleeper(number)


def start_family_and_sleep(number: int, file: str) -> NoReturn:
    """Programs of several kinds, told in the file, and no end."""
    pids = [_start_sleeper(number), _start_daemon(number)]
    Path(f"{file}.new").write_text("".join(f"{pid} {started_at(pid)}\n" for pid in pids))
    Path(f"{file}.new").rename(file)
    sleep_for_ever()


def _start_sleeper(number: int) -> int:
    # A program without a warning that it still runs.
    command = ["sleep", "300"]
    return os.posix_spawnp(command[0], command, _environment(number), file_actions=_SILENT)


def _start_daemon(number: int) -> int:
    """Forked twice, in a session of its own; a program, so that it holds nothing of this process."""
    read, write = os.pipe()
    program = (
        "import os, sys\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        f"os.write({write}, b'%d' % os.getpid())\n"
        f"os.close({write})\n"
        "os.execvp('sleep', ['sleep', '300'])\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    try:
        subprocess.run(
            command,
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=_environment(number),
        )
        os.close(write)
        write = -1
        return int(os.read(read, 20) or 0)
    finally:
        os.close(read)
        if write != -1:
            os.close(write)


def _environment(number: int) -> dict[str, str]:
    return {**os.environ, CALL: str(number)}


_SILENT = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]


def started_at(pid: int) -> int:
    """When a process was started, in the system's ticks; 0 if there is none. With the number it names a process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
