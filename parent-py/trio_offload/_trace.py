"""A run as a file in the Chrome trace-event format: one row a worker, a slice a job, a counter for the memory.

Perfetto (https://ui.perfetto.dev) and the browser's own tracer (chrome://tracing) open it. The format is described in «Trace
Event Format» of the catapult project; the array form is used, whose closing bracket may be missing, so that the trace of a
program that died can be read as well.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Final


class TraceWriter:
    """Writes events to a file as they happen. Safe to use from several threads. Times are those of ``time.monotonic()``.

    Raises:
        ValueError: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._origin = time.monotonic()
        self._process = os.getpid()
        try:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"trace={path!r} cannot be written: {error.strerror}") from error
        self._separator = "[\n"
        self._event("process_name", "M", self._process, None, {"name": "trio-offload"})

    def worker_started(self, pid: int, began: float, ready: float) -> None:
        """A worker was started, and took its first job or could have."""
        self._event("thread_name", "M", pid, None, {"name": f"worker {pid}"})
        self._slice("start", "worker", pid, began, ready, {})

    def job(self, pid: int, name: str, began: float, ended: float, how: str) -> None:
        """A call has come to its end: ``how`` is "ok", "raised", "cancelled" or the name of our exception."""
        self._slice(name, "job", pid, began, ended, {"outcome": how})

    def memory(self, pid: int, when: float, rss: int) -> None:
        """A worker has told how much memory is resident, in bytes."""
        self._event(f"memory {pid}", "C", pid, when, {"rss": rss})

    def worker_ended(self, pid: int, when: float) -> None:
        """A worker's process has ended."""
        self._event(f"memory {pid}", "C", pid, when, {"rss": 0})
        self._event("end", "i", pid, when, {}, s="t")

    def close(self) -> None:
        """Write what is outstanding and close the file; events that come later are dropped."""
        with self._lock:
            if not self._file.closed:
                try:
                    self._file.write("\n]\n")
                    self._file.close()
                except OSError as error:
                    self._give_up(error)

    def _slice(self, name: str, category: str, pid: int, began: float, ended: float, args: dict[str, Any]) -> None:
        self._event(name, "X", pid, began, args, cat=category, dur=max(0.0, (ended - began) * _MICROSECONDS))

    def _event(self, name: str, phase: str, row: int, when: float | None, args: dict[str, Any], **more: Any) -> None:
        event: dict[str, Any] = {"name": name, "ph": phase, "pid": self._process, "tid": row, "args": args, **more}
        if when is not None:
            event["ts"] = (when - self._origin) * _MICROSECONDS
        text = json.dumps(event, separators=(",", ":"))
        with self._lock:
            if not self._file.closed:
                try:
                    self._file.write(self._separator + text)
                    self._separator = ",\n"
                except OSError as error:
                    self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A full disk must not break the calls that are traced."""
        from ._worker import logger

        logger.warning("the trace is cut short, because it could not be written: %s", error.strerror)
        try:
            self._file.close()
        except OSError:
            # It tries to write the rest once more; the descriptor is closed all the same (Modules/_io/bufferedio.c).
            pass


_MICROSECONDS: Final = 1e6
