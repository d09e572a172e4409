"""A run as a file in the Chrome trace-event format: one row a worker, a slice a job, a counter for the memory.

Perfetto (https://ui.perfetto.dev) and the browser's own tracer (chrome://tracing) open it. The format is described in «Trace
Event Format» of the catapult project. What of it is used here, and why:

* The array form, one event a line. Its closing bracket may be missing, but not a comma stand before the end (the importers add
  the bracket and no more): so commas are written in front of events.
* Each event goes to the file at once, in one write(2), and nothing waits in a buffer: whatever ends this program, what happened
  until then can be read. A write to a file takes about two microseconds, which is less than the making of the event.
* Complete events (``X``) for starts and jobs, written at their end: one event instead of two, and their order in the file does
  not matter. Those of one row never overlap, which Perfetto could not show; a worker runs one job at a time.
* A counter (``C``) belongs to a process and is known by its name, which therefore has the worker's pid in it.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import threading
import time
from typing import Any, Final

logger: Final = logging.getLogger("trio_offload")


class TraceWriter:
    """Writes events to a file as they happen. Safe to use from several threads. Times are those of ``time.monotonic()``."""

    def __init__(self, path: str) -> None:
        self._path = path
        # What is to be written, None for the end of it; and the lock of whoever writes. A signal handler may ask for statistics in the middle of a write.
        self._events: collections.deque[bytes | None] = collections.deque()
        self._lock = threading.Lock()
        self._origin = time.monotonic()
        self._process = os.getpid()
        self._descriptor = -1

    def open(self) -> None:
        """Begin the file; one that is there is overwritten.

        Raises:
            ValueError: it cannot be written.
        """
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ValueError(f"trace={self._path!r} cannot be written: {error.strerror}") from error
        self._write("[\n" + self._event("process_name", "M", self._process, None, {"name": "trio-offload"}))

    def worker_started(self, pid: int, began: float, ready: float) -> None:
        """A worker was started, and took its first job or could have."""
        self._add(self._event("thread_name", "M", pid, None, {"name": f"worker {pid}"}))
        self._add_slice("start", "worker", pid, began, ready, {})

    def job(self, pid: int, name: str, began: float, ended: float, how: str) -> None:
        """A call has come to its end: ``how`` is "ok", "raised", "cancelled" or the name of our exception."""
        self._add_slice(name, "job", pid, began, ended, {"outcome": how})

    def memory(self, pid: int, when: float, rss: int) -> None:
        """A worker has told how much memory is resident, in bytes."""
        self._add(self._event(f"memory {pid}", "C", pid, when, {"rss": rss}))

    def worker_ended(self, pid: int, when: float) -> None:
        """A worker's process has ended."""
        self._add(self._event(f"memory {pid}", "C", pid, when, {"rss": 0}))
        self._add(self._event("end", "i", pid, when, {}, s="t"))

    def close(self) -> None:
        """Close the file; events that come later are dropped. May be done again."""
        self._write("\n]\n", None)

    def __del__(self) -> None:
        self._let_go()

    def _add_slice(self, name: str, category: str, pid: int, began: float, ended: float, args: dict[str, Any]) -> None:
        duration = max(0.0, round((ended - began) * _MICROSECONDS, 3))
        self._add(self._event(name, "X", pid, began, args, cat=category, dur=duration))

    def _event(self, name: str, phase: str, row: int, when: float | None, args: dict[str, Any], **more: Any) -> str:
        event: dict[str, Any] = {"name": name, "ph": phase, "pid": self._process, "tid": row, "args": args, **more}
        if when is not None:
            event["ts"] = round((when - self._origin) * _MICROSECONDS, 3)
        return json.dumps(event, separators=(",", ":"))

    def _add(self, event: str) -> None:
        self._write(",\n" + event)

    def _write(self, *texts: str | None) -> None:
        if os.getpid() != self._process:
            # A fork of that process has the same open file, and a story of its own.
            return
        # Pure ASCII: json escapes the rest, lone surrogates too.
        self._events.extend(None if text is None else text.encode("ascii") for text in texts)
        # Nobody waits for the lock: who has it writes out what others have added meanwhile.
        while self._events and self._lock.acquire(blocking=False):
            try:
                self._write_out()
            finally:
                self._lock.release()

    def _write_out(self) -> None:
        while self._events:
            event = self._events.popleft()
            if event is None:
                self._let_go()
                continue
            rest = memoryview(event)
            try:
                while rest and self._descriptor != -1:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                # A full disk must not break the calls that are traced.
                self._let_go()
                logger.warning("the trace is cut short, because it could not be written: %s", error.strerror)

    def _let_go(self) -> None:
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


_MICROSECONDS: Final = 1e6  # in a second; three places after the point are nanoseconds
