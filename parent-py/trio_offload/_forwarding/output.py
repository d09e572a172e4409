"""Receivers of the output of workers: a function of the program, or the logger of lines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .._process.output import OutputPipes
    from .._worker.talker import Receiver

_MAX_LINE: Final = 2**16  # bytes
_LEVELS: Final = {"stdout": logging.INFO, "stderr": logging.WARNING}
logger: Final = logging.getLogger("trio_offload").getChild("output")


class FunctionReceiver:
    """Passes the bytes to a function, as they come."""

    def __init__(self, function: Callable[[str | None, str, bytes], object]) -> None:
        self._function = function

    def take(self, pipes: OutputPipes, pid: int, stream: str, data: bytes) -> None:
        self._function(pipes.job, stream, data)

    def finish(self, pipes: OutputPipes, pid: int) -> None:
        pass


class LineReceiver:
    """Logs each line. The end of a job ends a line."""

    def take(self, pipes: OutputPipes, pid: int, stream: str, data: bytes) -> None:
        begun = pipes.begun[stream]
        begun += data
        *lines, rest = begun.split(b"\n")
        # A line that does not end must not take all memory.
        while len(rest) >= _MAX_LINE:
            lines.append(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        begun[:] = rest
        for line in lines:
            self._log(pipes, pid, stream, bytes(line))

    def finish(self, pipes: OutputPipes, pid: int) -> None:
        for stream, begun in pipes.begun.items():
            if begun:
                line = bytes(begun)
                begun.clear()
                self._log(pipes, pid, stream, line)

    def _log(self, pipes: OutputPipes, pid: int, stream: str, line: bytes) -> None:
        text = line.decode(errors="backslashreplace")
        logger.log(_LEVELS[stream], "%s", text, extra={"worker": pid, "job": pipes.job, "stream": stream})


def receiver_for(output: object) -> Receiver:
    """Return the receiver for this value of the option ``output``, which is not "inherit"."""
    return FunctionReceiver(output) if callable(output) else LineReceiver()
