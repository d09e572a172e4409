"""The exit statuses of the command, and the error that is one line on standard error."""

from __future__ import annotations

import enum


class ExitStatus(enum.IntEnum):
    """The exit status of ``trio-offload``. From 128 on, 128 and the number of a signal, as shells count."""

    OK = 0
    FAILED = 1
    """An item failed (``map``), or a problem was found (``doctor``)."""
    USAGE = 2
    """The command could not do its work: bad arguments, no such function, an unreadable file."""
    INTERRUPTED = 130
    """SIGINT: Ctrl+C."""
    OUTPUT_CLOSED = 141
    """The reader closed standard output. A shell shows this status for a program that SIGPIPE killed."""
    TERMINATED = 143
    """SIGTERM."""


class CommandError(Exception):
    """Ends the command with :attr:`ExitStatus.USAGE` and its message as one line on standard error."""
