"""The entry of a worker in its record, read by another program.

``_process/record.py`` and the worker write it. PROTOCOL.md ("The record") has the layout.
"""

from __future__ import annotations

import binascii

import attrs

from trio_offload_worker._protocol.frames import ENTRY_AT, FRONT_SIZE, FUNCTION_AT

from .._process.record import ENTRY, ENTRY_MARK, FUNCTION, HIDDEN, LAYOUT


class NoEntry(Exception):
    """A record whose entry cannot be read."""


class Hidden(NoEntry):
    """The program has opted out."""


class OtherLayout(NoEntry):
    """Another version of this package has written the record."""


@attrs.frozen
class Entry:
    """The facts about a worker."""

    pid: int
    """Process ID, as the worker's program has it."""
    program: int
    """The same of the program."""
    context: int
    """Number of the context, from 1 in the order in which the program made them."""
    started: float
    """Start of the worker, on the clock of time.monotonic()."""
    call: int
    """Number of the running call. 0 means idle."""
    jobs: int
    """Number of completed jobs."""
    function: str | None
    """Name of the function that runs, or has run last. None if it was being written."""


def read_entry(front: bytes) -> Entry | None:
    """Return the entry in the front of a record. None means a process that is starting.

    Raises:
        Hidden, OtherLayout: the entry cannot be read.
    """
    if len(front) < FRONT_SIZE:
        raise OtherLayout
    mark, layout, pid, program, context, started, call, jobs = ENTRY.unpack_from(front, ENTRY_AT)
    if not any(mark):
        return None
    if mark != ENTRY_MARK or layout not in (HIDDEN, LAYOUT):
        raise OtherLayout
    if layout == HIDDEN:
        raise Hidden
    checksum, length, text = FUNCTION.unpack_from(front, FUNCTION_AT)
    text = text[:length]
    # The cut may be in the middle of a character.
    function = text.decode(errors="ignore") if binascii.crc32(text) == checksum else None
    return Entry(pid, program, context, started, call, jobs, function)
