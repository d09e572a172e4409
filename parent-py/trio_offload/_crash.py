"""The record of a worker that died, or timed out: as data, as text, as a file in ``crash_dir``."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import time
from typing import Any, Final

import attrs

from trio_offload_worker import PublicType

from ._documented import documented
from ._sizes import readable_size

logger: Final = logging.getLogger("trio_offload")

_TAIL: Final = 4096  # bytes


@documented
@attrs.frozen
class CrashRecord(metaclass=PublicType):
    """The facts about a worker that ended before it answered. May be pickled.

    ::

        try:
            await trio_offload.run_sync(decode, "film.mkv")
        except trio_offload.BrokenWorkerError as error:
            record = error.crash
            print(f"{record.function} died after {record.age:.1f} s with {record.peak_rss} bytes")
            Path("crash.json").write_text(json.dumps(record.as_dict()))
    """

    pid: int
    """Process ID."""
    exitcode: int | None
    """Exit status, or the negative number of the signal. None means unknown."""
    signal: signal.Signals | None
    """Signal that ended it. None means that there was none."""
    function: str | None
    """Name of the function that it ran. None means that it ran none."""
    age: float
    """Seconds from the start of the call until the end was noticed.

    Without a call: from the start of the worker.
    """
    stack: str
    """Python stacks of all threads in the format of :mod:`faulthandler`, after a panic's message.

    Empty after SIGKILL and :func:`os._exit`, which leave no time to write them. A job that timed
    out writes them before its worker is killed; ``stack_problem`` tells why they are missing.
    """
    rss: int | None = None
    """Resident memory in bytes, at most one ``report_interval`` before the end."""
    peak_rss: int | None = None
    """Peak of resident memory until then, in bytes."""
    vms: int | None = None
    """Size of its address space then, in bytes."""
    cpu_time: float | None = None
    """Processor time until then, in seconds."""
    stderr: str | None = None
    """End of the text on standard error since the worker's start, from any process.

    None means that it is not a file. Text in a terminal or a pipe cannot be read twice.
    """
    output: str | None = None
    """End of its output in that call, at most 64 KiB. None unless the context reads output."""
    time: float = attrs.field(factory=time.time)
    """When the end was noticed, in seconds since the epoch."""
    item_index: int | None = None
    """Index of the item of a ``map`` that it ran. None means another call, or unknown."""
    item: str | None = None
    """Start of the ``repr`` of that item."""
    timeout: float | None = None
    """Seconds that the job was allowed. None unless it timed out."""
    stack_problem: str = ""
    """Why the stack of a job that timed out is missing. Otherwise empty."""

    def note(self) -> str:
        """Return the text that a traceback shows."""
        lines = [f"The worker had run {self.function} for {self.age:.2f} s." if self.function else ""]
        if self.rss is not None and self.peak_rss is not None:
            lines.append(f"Memory at last report: {readable_size(self.rss)} (peak {readable_size(self.peak_rss)}).")
        if self.stack:
            title = "Python stack at the end" if self.timeout is None else "Python stack at the timeout"
            lines.append(f"{title}:\n" + "\n".join(f"  {line}".rstrip() for line in self.stack.splitlines()))
        elif self.stack_problem:
            lines.append(f"No Python stack: {self.stack_problem}.")
        elif self.signal is not None:
            lines.append(f"No Python stack: {self.signal.name} ends a process at once.")
        return "\n".join(filter(None, lines))

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON types, with the signal's name."""
        return attrs.asdict(self) | {"signal": None if self.signal is None else self.signal.name}


def prepare_crash_dir(directory: str) -> None:
    """Create the directory for records, if necessary.

    Raises:
        ValueError: no file can be written there.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"crash_dir={directory!r} cannot be written: {error.strerror}. Name a directory that this program may write to"
        ) from error


def save_crash_record(record: CrashRecord, directory: str) -> None:
    """Write the record into the directory as a JSON file, atomically.

    A failure is logged, also one of the import.
    """
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(record.time))
    target = os.path.join(directory, f"trio-offload-crash-{moment}-{record.pid}.json")
    temporary = f"{target}.{os.getpid()}.part"
    try:
        # Takes a millisecond, and few programs need it.
        import json

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
        logger.warning("the crash record could not be saved in %s: %s", directory, error.strerror or error)


def stderr_size() -> int | None:
    """Return the size of standard error's file in bytes; None if it is not a file."""
    try:
        status = os.fstat(2)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def stderr_since(size: int | None) -> str | None:
    """Return the end of the text written to standard error since it had this size.

    None means that it is not a file.
    """
    now = stderr_size()
    if size is None or now is None:
        return None
    try:
        # Open it anew: the descriptor is open for writing, and its position belongs to the user.
        with open("/proc/self/fd/2", "rb") as file:
            # A shorter file was truncated.
            file.seek(max(size if size <= now else 0, now - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError:
        return None
