"""Write a run in the Chrome trace-event format: a row per worker, a slice per job, memory counters.

Perfetto (https://ui.perfetto.dev) and the browser's own tracer (chrome://tracing) open it. The
format is described in "Trace Event Format" of the catapult project. This file uses:

* The array form, one event a line. Importers add a missing closing bracket, but reject a trailing
  comma, so a comma is written before each event.
* Each event is written at once, with one write(2) and without a buffer. A file is complete up to
  the moment when the program ends, however it ends. A write takes about 2 us, less than building
  the event.
* Complete events (``X``) for starts and jobs, written at their end. They take one event instead of
  two, in any order. Perfetto cannot show events that overlap in a row; a worker runs one job at a
  time.
* Counters (``C``) belong to the process and are identified by name, so the name contains the
  worker's pid.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import os
import tempfile
import threading
import time
from typing import Any, Final

logger: Final = logging.getLogger("trio_offload")

_MICROSECONDS: Final = 1e6  # per second; three decimals are nanoseconds
# Characters.
_MAX_TEXT: Final = 300
_MAX_STACK: Final = 4000
_WAITS_INTERVAL: Final = 0.005
"""Seconds between two events about calls that wait. Each call would add two."""
WAITS: Final = "waiting calls"
"""Name of these events."""


def shortened(text: str, stack: str) -> tuple[str, str]:
    """Return the start of an error's text, and the end of its stack."""
    return text[:_MAX_TEXT], stack[-_MAX_STACK:]


class TraceWriter:
    """Writes events to a file as they happen.

    Thread-safe. Times are from ``time.monotonic()``.
    """

    def __init__(self, path: str | None, memory_limit: int | None = None, *, is_kept: bool = False) -> None:
        """Write to ``path``. None means a temporary file. With ``is_kept`` it can be read back."""
        self._path = path
        self._is_kept = is_kept
        self._memory_limit = memory_limit
        # Events to write; None closes the file. A signal handler may add events during a write.
        self._events: collections.deque[bytes | None] = collections.deque()
        # Held by the thread that writes.
        self._lock = threading.Lock()
        self._origin = time.monotonic()
        self._process = os.getpid()
        self._descriptor = -1
        self._kept = -1  # another descriptor of the file
        # Its length is the number of calls that wait. Each operation on it is one step.
        self._waits: collections.deque[None] = collections.deque()
        self._unwritten_waits: tuple[float, int] | None = None
        self._waits_written = -math.inf

    def open(self) -> None:
        """Create the file, or overwrite it.

        Raises:
            ValueError: the file cannot be written.
        """
        try:
            self._descriptor = self._open()
            if self._is_kept:
                self._kept = os.dup(self._descriptor)
        except OSError as error:
            what = "a temporary file" if self._path is None else f"trace={self._path!r}"
            raise ValueError(f"{what} cannot be written: {error.strerror}") from error
        facts: dict[str, Any] = {"name": "trio-offload"}
        if self._memory_limit is not None:
            facts["memory_limit"] = self._memory_limit
        self._write("[\n" + self._event("process_name", "M", self._process, None, facts))

    def _open(self) -> int:
        if self._path is None:
            with tempfile.TemporaryFile() as file:  # has no name: it ends with the process
                return os.dup(file.fileno())
        mode = os.O_RDWR if self._is_kept else os.O_WRONLY
        return os.open(self._path, mode | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def worker_started(self, pid: int, began: float, ready: float, facts: dict[str, Any]) -> None:
        """Record that a worker became ready for its first job, with facts about it."""
        self._add(self._event("thread_name", "M", pid, None, {"name": f"worker {pid}"}))
        self._add_slice("start", "worker", pid, began, ready, facts)

    def job(self, pid: int, name: str, began: float, ended: float, how: str, facts: dict[str, Any] | None = None) -> None:
        """Record a finished call.

        Args:
            pid: process ID of its worker.
            name: name of the function.
            began: start of the call.
            ended: end of the call.
            how: "ok", "raised", "cancelled", or the name of our exception.
            facts: its items and failures, as in ``docs/runs.md``.
        """
        self._add_slice(name, "job", pid, began, ended, {"outcome": how, **(facts or {})})

    def memory(self, pid: int, when: float, rss: int) -> None:
        """Record a worker's resident memory, in bytes."""
        self._add(self._event(f"memory {pid}", "C", pid, when, {"rss": rss}))

    def worker_ended(self, pid: int, when: float, facts: dict[str, Any] | None = None) -> None:
        """Record the end of a worker's process, with facts about it."""
        self._add(self._event(f"memory {pid}", "C", pid, when, {"rss": 0}))
        self._add(self._event("end", "i", pid, when, facts or {}, s="t"))

    def begin_wait(self) -> float:
        """Record that one call more waits for a token, or for the start of a worker. Return now."""
        self._waits.append(None)
        return self._add_waits()

    def end_wait(self) -> float:
        """Record that one call less waits. Return now."""
        self._waits.pop()
        return self._add_waits()

    def close(self) -> None:
        """Close the file and drop later events. May be called again."""
        self._write_waits()
        self._write("\n]\n", None)

    def read_back(self) -> str:
        """Return the events of a closed trace, once. It must be one that is kept.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self._kept, encoding="ascii") as file:
            self._kept = -1
            file.seek(0)
            return file.read()

    def __del__(self) -> None:
        self._close()
        if self._kept != -1:
            os.close(self._kept)

    def _add_slice(self, name: str, category: str, pid: int, began: float, ended: float, args: dict[str, Any]) -> None:
        duration = max(0.0, round((ended - began) * _MICROSECONDS, 3))
        self._add(self._event(name, "X", pid, began, args, cat=category, dur=duration))

    def _event(self, name: str, phase: str, row: int, when: float | None, args: dict[str, Any], **more: Any) -> str:
        event: dict[str, Any] = {"name": name, "ph": phase, "pid": self._process, "tid": row, "args": args, **more}
        if when is not None:
            event["ts"] = round((when - self._origin) * _MICROSECONDS, 3)
        return json.dumps(event, separators=(",", ":"))

    def _add(self, event: str) -> None:
        if self._unwritten_waits is not None and time.monotonic() - self._waits_written >= _WAITS_INTERVAL:
            self._write_waits()
        self._write(",\n" + event)

    def _add_waits(self) -> float:
        """Record the number of calls that wait. A later number replaces one of the same moment."""
        now = time.monotonic()
        self._unwritten_waits = now, len(self._waits)
        if now - self._waits_written >= _WAITS_INTERVAL:
            self._write_waits()
        return now

    def _write_waits(self) -> None:
        unwritten, self._unwritten_waits = self._unwritten_waits, None
        if unwritten is not None:
            self._waits_written, count = unwritten
            self._write(",\n" + self._event(WAITS, "C", self._process, self._waits_written, {"calls": count}))

    def _write(self, *texts: str | None) -> None:
        if os.getpid() != self._process:
            # A fork of the process shares the open file. Its events are not traced.
            return
        # Pure ASCII: json escapes the rest, lone surrogates too.
        self._events.extend(None if text is None else text.encode("ascii") for text in texts)
        # Only try the lock: its holder writes the events that others add.
        while self._events and self._lock.acquire(blocking=False):
            try:
                self._write_out()
            finally:
                self._lock.release()

    def _write_out(self) -> None:
        while self._events:
            event = self._events.popleft()
            if event is None:
                self._close()
                continue
            rest = memoryview(event)
            try:
                while rest and self._descriptor != -1:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                # A full disk must not break the calls that are traced.
                self._close()
                logger.warning("the trace is incomplete, because it could not be written: %s", error.strerror)

    def _close(self) -> None:
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
