"""The running job's line to its parent: whole frames on the worker's socket, and the record.

Each kind of worker offers it as a module of the same name and with the same functions: the
executable as a builtin module, the loop in Python as an object in ``sys.modules``. So this module
belongs to neither.
"""

from __future__ import annotations

import os

from .._protocol.frames import CANCEL_AT, FRONT_SIZE, HANDED_ALL, HANDED_AT, HANDED_SLOTS
from .._system.linux import map_for_life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, Protocol

    from .._protocol.frames import Buffer

    class LineModule(Protocol):
        """The functions that a worker offers as the module ``_trio_offload_line``."""

        def call(self) -> int:
            """Return the number of the running call. 0 means: between two jobs."""

        def pid(self) -> int:
            """Return the process ID of the worker. A copy that a job has forked has another."""

        def record(self) -> int:
            """Return the record's descriptor, or -1 if a job has closed it."""

        def write(self, parts: Sequence[Buffer], call: int, sent: list[bool], /) -> None:
            """Write the parts of one frame, and append True to ``sent``.

            If another call runs, this returns without a write.
            """

        def read(self, timeout: float, inbox: list[tuple[int, int, dict[str, Any], list[Any]]], /) -> None:
            """Append the next REPLY or CREDIT of the running call to ``inbox``.

            It returns without one if the time is over, a signal came, or the call has ended.
            """

        def open_carried(self) -> None:
            """Receive the descriptors that come with replies from now on.

            ``read`` puts objects with a method ``take`` into the body, as ``descriptors``. They are
            fewer than the reply had if this process had no room for all.
            """


class Line:
    """The line of one worker process.

    Signal handlers run before or after an action of ``write`` and ``read`` together with its trace
    in the caller's list. So a handler that raises leaves the caller certain.

    Attributes:
        pid: Process ID of the worker.
        call, read, write: The functions of :class:`LineModule`.
        words: The front of the record, as integers of eight bytes.
    """

    __slots__ = ("call", "pid", "read", "words", "write")

    def __init__(self, module: LineModule) -> None:
        self.pid = module.pid()
        self.call = module.call
        self.read = module.read
        self.write = module.write
        self.words = _map_front(module.record())

    def is_cancelled(self) -> bool:
        """Return True if the parent has cancelled the running call."""
        word: int = self.words[CANCEL]
        return word != 0 and word == self.call()

    def hand_over(self, request: int, count: int = HANDED_ALL) -> None:
        """Record that the first ``count`` items of a request are about to reach the job's code."""
        slot = _HANDED + request % HANDED_SLOTS
        # Another thread may be 64 requests ahead.
        value = request * (HANDED_ALL + 1) + count
        if self.words[slot] < value:
            self.words[slot] = value


def current_line() -> Line:
    """Return the line of the worker that runs this job.

    Raises:
        RuntimeError: this process is not a worker of trio-offload, or a copy of one.
    """
    pid = os.getpid()
    # One step on a dictionary, so that the threads of a job share one object.
    return _lines.get(pid) or _lines.setdefault(pid, _find_line())


def open_carried() -> None:
    """Receive the descriptors that come with replies from now on. Until then they are closed.

    Raises:
        RuntimeError: as :func:`current_line`.
    """
    current_line()
    module = _find_module()
    if module is not None:
        module.open_carried()


def is_worker() -> bool:
    """Return True if this process is a worker, or a copy of one that a job has forked."""
    return os.getpid() in _lines or _find_module() is not None


def _find_line() -> Line:
    module = _find_module()
    if module is None:
        raise RuntimeError("this is no job of trio-offload: only a job in a worker can talk to a parent")
    if module.pid() != os.getpid():
        raise RuntimeError("this process was forked off a job of trio-offload; only the job itself can talk to its parent")
    return Line(module)


def _find_module() -> LineModule | None:
    # After a fork, this process may be a worker.
    global _missing_in
    if _missing_in != os.getpid():
        try:
            module: LineModule = __import__("_trio_offload_line")
            return module
        except ImportError:
            _missing_in = os.getpid()
    return None


def _map_front(record: int) -> memoryview:
    """Map the front of the record.

    If a job has closed the record, the job does not notice a cancellation until it waits.
    """
    try:
        return map_for_life(record, FRONT_SIZE)
    except (ImportError, OSError, ValueError):
        return memoryview(bytearray(FRONT_SIZE)).cast("Q")


CANCEL: Final = CANCEL_AT // 8
_HANDED: Final = HANDED_AT // 8

# The line of each process. A fork inherits the lines of its origins.
_lines: Final[dict[int, Line]] = {}
# A process that has been found not to be a worker.
_missing_in = 0
