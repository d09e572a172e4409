"""The record of a worker that died: as data, as text, as a file in ``crash_dir``."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import time
from typing import Any, Final

import attrs

from ._sizes import readable_size

logger: Final = logging.getLogger("trio_offload")

_TAIL: Final = 4096  # bytes


@attrs.frozen
class CrashRecord:
    """What is known of a worker that ended before it had answered. May be pickled."""

    pid: int
    """The process id that it had."""
    exitcode: int | None
    """Its exit status, or the number of the signal made negative; None if it is not known."""
    signal: signal.Signals | None
    """The signal that ended it, if one did."""
    function: str | None
    """The function that it ran; None if it had not begun with one."""
    age: float
    """Seconds from the beginning of the call until the death was seen;

    of the worker, if it had not begun with a call.
    """
    stack: str
    """The Python stacks of all threads at the fault, as :mod:`faulthandler` writes them; a panic's message in front of them.

    Empty where nothing could be written: after SIGKILL, or :func:`os._exit`.
    """
    rss: int | None = None
    """Resident memory when it was told last, in bytes:

    at most a ``report_interval`` before the death.
    """
    peak_rss: int | None = None
    """The most that was ever resident by then, in bytes."""
    vms: int | None = None
    """The size of its address space then, in bytes."""
    cpu_time: float | None = None
    """Processor time until then, in seconds."""
    stderr: str | None = None
    """The end of what was written to standard error since the worker's start, by whomever, if that goes to a file.

    None where it goes to a terminal or a pipe: it belongs to the user, and nothing of it can be had
    twice.
    """
    time: float = attrs.field(factory=time.time)
    """When the death was seen, in seconds since the epoch."""

    def note(self) -> str:
        """The record as a traceback shows it."""
        lines = [f"The worker had run {self.function} for {self.age:.2f} s." if self.function else ""]
        if self.rss is not None and self.peak_rss is not None:
            lines.append(f"It held {readable_size(self.rss)} when it was told last, at most {readable_size(self.peak_rss)}.")
        if self.stack:
            lines.append("What it left behind:\n" + "\n".join(f"  {line}".rstrip() for line in self.stack.splitlines()))
        elif self.signal is not None:
            lines.append(f"There is no Python stack: {self.signal.name} leaves no time to write one.")
        return "\n".join(filter(None, lines))

    def as_dict(self) -> dict[str, Any]:
        """The record as what JSON can hold; the signal by its name."""
        return attrs.asdict(self) | {"signal": None if self.signal is None else self.signal.name}


def keep(record: CrashRecord, directory: str) -> None:
    """Write the record into the directory as a JSON file of its own, whole or not at all.

    Failing is only logged.
    """
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(record.time))
    target = os.path.join(directory, f"trio-offload-crash-{moment}-{record.pid}.json")
    temporary = f"{target}.{os.getpid()}.part"
    try:
        os.makedirs(directory, exist_ok=True)
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                json.dump(record.as_dict(), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass
            raise
    except OSError as error:
        logger.warning("the record of a worker's death could not be kept in %s: %s", directory, error.strerror or error)


def stderr_size() -> int | None:
    """How long the file is that standard error goes to, in bytes; None if it goes to no file."""
    try:
        status = os.fstat(2)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def stderr_since(size: int | None) -> str | None:
    """The end of what was written there since it was so long;

    None if it is no file that can be read.
    """
    now = stderr_size()
    if size is None or now is None:
        return None
    try:
        # The descriptor itself is open for writing, and its place in the file is the user's.
        with open("/proc/self/fd/2", "rb") as file:
            # A file that has become shorter has been begun anew.
            file.seek(max(size if size <= now else 0, now - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError:
        return None
