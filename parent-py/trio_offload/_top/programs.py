"""Programs with workers, and the records that they hold, as ``/proc`` shows them.

Only root and the user of a process may look into ``/proc/PID/fd``, the one way to a record.
"""

from __future__ import annotations

import os
from typing import Final

import attrs

from trio_offload_worker._protocol.frames import FRONT_SIZE
from trio_offload_worker._system.linux import stat_fields

from .._process.proc import read_file
from .._process.record import OPT_OUT, RECORD_NAME, Step, read_step
from .entry import Entry, Hidden, NoEntry, read_entry

_LINK: Final = f"/memfd:{RECORD_NAME}"
_MAX_READS: Final = 50


class NoProgram(Exception):
    """The process cannot be watched. The message says why."""


@attrs.frozen
class Listing:
    """A worker as its record shows it."""

    pid: int
    """Process ID, as this process has it."""
    entry: Entry
    step: Step | None
    """The progress of its running job."""


@attrs.frozen
class Program:
    """A process that has workers, or had some."""

    pid: int
    since: bytes
    """Its start, in clock ticks: another process may get the number later."""

    @property
    def command(self) -> str:
        """Its command line."""
        return printable(read_file(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip())

    def is_running(self) -> bool:
        """Return False once it has ended."""
        return _start_of(self.pid) == self.since

    def listings(self) -> list[Listing]:
        """Return its workers, the oldest first. After its end the list is empty.

        Raises:
            NoProgram: it may not be watched, or this version can show only other programs' workers.
        """
        found = []
        problem: NoEntry | None = None
        own = _numbers_of(self.pid)
        others = _numbers_within(self.pid) if len(own) > 1 else {}
        for path in _record_paths(self.pid):
            try:
                read = _read_record(path)
            except NoEntry as error:
                problem = error
                continue
            # A worker has a record too: its own.
            if read is not None and read[0].program in own:
                entry, step = read
                found.append(Listing(others.get(entry.pid, entry.pid), entry, step))
        if problem is not None and not found:
            raise NoProgram(_explain(self.pid, problem))
        return sorted(found, key=lambda listing: listing.entry.started)


def find_program(pid: int) -> Program:
    """Return the program with this process ID.

    Raises:
        NoProgram: it does not exist, lacks workers, or may not be watched.
    """
    since = _start_of(pid)
    if since is None:
        raise NoProgram(f"there is no process {pid}")
    program = Program(pid, since)
    if not program.listings():
        owner = _owner_of(pid)
        if owner is not None:
            raise NoProgram(f"process {pid} is a worker of process {owner}: watch that one")
        raise NoProgram(f"process {pid} has no workers of trio-offload")
    return program


def find_programs() -> list[Program]:
    """Return all programs of this user that have workers to show, in the order of their IDs."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.geteuid():
                found.append(find_program(int(name)))
        except (OSError, NoProgram):
            continue
    return sorted(found, key=lambda program: program.pid)


def printable(text: str) -> str:
    """Return a text that cannot move the cursor of a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _explain(pid: int, problem: NoEntry) -> str:
    if isinstance(problem, Hidden):
        return f"process {pid} does not show its workers: it has set {OPT_OUT}=0"
    return (
        f"process {pid} uses another version of trio-offload, whose workers this version cannot show. Run the command "
        "of that version"
    )


def _start_of(pid: int) -> bytes | None:
    """Return when a process was started. None means that it has ended."""
    fields = stat_fields(pid)
    # Fields 3 and 22 of proc(5).
    return None if fields is None or fields[0] in (b"Z", b"X") else fields[19]


def _owner_of(pid: int) -> int | None:
    """Return the program of a worker. None means that this is another process."""
    own = _numbers_of(pid)
    for path in _record_paths(pid):
        try:
            read = _read_record(path)
        except NoEntry:
            continue
        if read is not None and read[0].pid in own:
            return read[0].program
    return None


def _record_paths(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except PermissionError:
        raise NoProgram(f"process {pid} belongs to another user, or cannot be inspected") from None
    except OSError:
        return []  # it has ended
    paths = []
    for number in numbers:
        path = f"{folder}/{number}"
        try:
            if os.readlink(path).startswith(_LINK):
                paths.append(path)
        except OSError:
            continue  # closed since
    return paths


def _read_record(path: str) -> tuple[Entry, Step | None] | None:
    """Return the contents of a record. None means a process that is starting.

    Raises:
        NoEntry: as for :func:`read_entry`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # closed since
    try:
        entry = read_entry(os.pread(descriptor, FRONT_SIZE, 0))
        for _ in range(_MAX_READS):
            step = read_step(descriptor)
            before, entry = entry, read_entry(os.pread(descriptor, FRONT_SIZE, 0))
            if entry is None:
                return None
            # The function of the next call may be written before the number of that call. So two
            # equal readings are needed.
            if (
                before is not None
                and (before.call, before.function) == (entry.call, entry.function)
                and entry.function is not None
            ):
                return entry, step if step is not None and step.call == entry.call else None
        return None if entry is None else (attrs.evolve(entry, function=None), None)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _numbers_of(pid: int) -> list[int]:
    """Return the IDs of a process, from the PID namespace of ``/proc`` to its own."""
    for line in read_file(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return [*map(int, line.split()[1:])]
    return [pid]


def _numbers_within(pid: int) -> dict[int, int]:
    """Return the processes in the PID namespace of one: their IDs there, and those here."""
    namespace = _namespace_of(pid)
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {_numbers_of(number)[-1]: number for number in numbers if namespace and _namespace_of(number) == namespace}


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
