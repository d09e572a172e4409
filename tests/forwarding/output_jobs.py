"""Jobs that write to standard output and standard error."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

from jobs import take_line


def write(text: str = "out\n", error: str = "") -> None:
    print(text, end="")
    print(error, end="", file=sys.stderr)


def write_in_every_way() -> None:
    """By Python, the system, C code and another program."""
    print("python")
    os.write(1, b"system\n")
    library = ctypes.CDLL(None)
    library.printf(b"%s\n", b"c code")
    subprocess.run([sys.executable, "-S", "-c", "print('program')"], check=True)
    os.write(2, b"error\n")


def write_much(size: int) -> int:
    """Write this many bytes without a newline."""
    data = memoryview(b"x" * size)
    while data:
        data = data[os.write(1, data) :]
    return size


def write_and_die(size: int) -> None:
    write_much(size)
    os.write(2, b"the end")
    os.kill(os.getpid(), 9)


def leave_writer(line: str, gate: str) -> None:
    """Leave a program that writes when the gate is open, and says when it has."""
    descriptor = take_line(line)
    code = f"open({gate!r}, 'rb', buffering=0).read(1); print('late', flush=True); import os; os.write({descriptor}, b'said\\n')"
    os.set_inheritable(descriptor, True)
    os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], os.environ)


def write_at_gate(line: str, gate: str) -> None:
    """Write, say so, and wait; the job still runs when its output is there."""
    print("early")
    os.write(take_line(line), b"said\n")
    with open(gate, "rb", buffering=0) as waiting:
        waiting.read(1)


def write_item(item: Any) -> Any:
    os.write(1, b"item %d\n" % item)
    return item


def write_at_exit(size: int) -> None:
    import atexit

    atexit.register(write_much, size)


def write_much_at_gate(line: str, gate: str, size: int) -> int:
    take_line(line)
    with open(gate, "rb", buffering=0) as waiting:
        waiting.read(1)
    return write_much(size)
