"""How a test knows, without sleeping, that a job has begun and that a process has ended.

A lifeline is a fifo that a job opens for writing and hands on to whatever it starts. The kernel closes it in each of
them however it ends, so the end of the file is the proof that the last one is gone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio_offload import WorkerContext

PATIENCE = 60.0
"""Seconds after which something that should have happened never will. The machine may be busy."""


class Lifeline:
    """The test's end: what the processes say, and their end."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        # Opening a fifo to read from it waits for a writer, unless it may not block.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._unread = b""

    async def line(self) -> str:
        """The next line that somebody said."""
        while b"\n" not in self._unread:
            if not await self._fill():
                raise EOFError(f"they all ended; unread: {self._unread!r}")
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    async def pid(self) -> int:
        return int(await self.line())

    async def ended(self) -> list[str]:
        """Wait until all who held the line are gone; what they said and nobody read."""
        while await self._fill():
            pass
        lines, self._unread = self._unread.decode().splitlines(), b""
        return lines

    def held(self) -> bool:
        """Whether anybody holds the line now. What was said is kept."""
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return True
        self._unread += data
        return bool(data) and self.held()

    async def _fill(self) -> bool:
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(self._descriptor)
        data = os.read(self._descriptor, 65536)
        self._unread += data
        return bool(data)

    def close(self) -> None:
        os.close(self._descriptor)


class Gate:
    """A fifo that a job waits at until the test opens it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        # Open for both, so that a job neither waits for a writer nor sees an end.
        self._descriptor = os.open(path, os.O_RDWR)

    def open(self, times: int = 1) -> None:
        os.write(self._descriptor, b"x" * times)

    def close(self) -> None:
        os.close(self._descriptor)


def process_state(pid: int) -> str | None:
    """The state of a process as one letter (proc(5)); None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return None


def count_descriptors(context: WorkerContext | None = None) -> int:
    """How many descriptors are open here, without the three of the worker that the context has forked ahead."""
    template = None
    if context is not None:
        # Not at the top: tests of the vectors use this module without the package.
        from workers import template_of

        template = template_of(context)
    ahead = 0 if template is None or template._standby is None else 3
    return len(os.listdir("/proc/self/fd")) - ahead


def wait_for_end(pid: int) -> None:
    """Block until a child has ended, and leave it to be reaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def until_stopped(pid: int) -> None:
    """Wait until a process that was sent SIGSTOP has stopped; nothing tells of that but its state."""
    with trio.fail_after(PATIENCE):
        while process_state(pid) not in ("T", "t"):  # noqa: ASYNC110
            await trio.sleep(0.001)
