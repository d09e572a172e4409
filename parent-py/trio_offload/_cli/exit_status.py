"""The exit statuses of the command, and the error that is one line on standard error."""

from __future__ import annotations

import enum


class ExitStatus(enum.IntEnum):
    """The exit status of ``trio-offload``. From 128 on: 128 plus a signal's number."""

    OK = 0
    FAILED = 1
    """An item failed (``map``), or a problem was found (``doctor``)."""
    USAGE = 2
    """The command could not run: bad arguments, an unknown function, an unreadable file."""
    INTERRUPTED = 130
    """SIGINT: Ctrl+C."""
    OUTPUT_CLOSED = 141
    """The reader closed standard output. Shells show this status for a death by SIGPIPE."""
    TERMINATED = 143
    """SIGTERM."""


class CommandError(Exception):
    """Ends the command with :attr:`ExitStatus.USAGE` and one line on standard error."""
