"""The exceptions of this package. Facts are attributes; the message names the remedy.

.. code-block:: text

    RuntimeError
    ├── BrokenWorkerError         a worker ended before it answered
    │   ├── WorkerMemoryError     it was ended for its memory use
    │   └── WorkerStartError      it did not start; the call was not run
    │       └── LocateError       the executable or libpython was not found
    └── RemoteError               replaces an exception of a job that could not be pickled
    trio.TooSlowError
    └── WorkerTimeoutError        an item of a map took longer than its timeout
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import trio

from ._crash import CrashRecord

if TYPE_CHECKING:
    from ._process.process import WorkerProcess


class BrokenWorkerError(RuntimeError):
    """A worker ended, or had to be ended, before it had answered.

    The usual causes are in the code that ran in the worker: a crash, a call of :func:`os._exit`, a
    signal from somebody else, a worker that did not leave within the ``grace_period``. The other
    workers live on.

    ``args`` is the message followed by a handle for each process concerned (almost always one). A
    handle has the attributes ``pid`` and ``exitcode``, as a :class:`multiprocessing.Process` has.

    If a call was running, a note on the exception (PEP 678) says what is known of the death, the
    Python stack above all, so that it stands in every traceback; the same as data is in
    :attr:`crash`.
    """

    crash: CrashRecord | None = None
    """What is known of the death; None where no worker died in a call."""

    def __init__(self, message: str, *processes: WorkerProcess) -> None:
        super().__init__(message, *processes)

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def process(self) -> WorkerProcess | None:
        """The handle of the process that the error is about; None if there was none yet."""
        last: Any = self.args[-1]
        return None if isinstance(last, str) else last

    @property
    def pid(self) -> int | None:
        """The id that the worker had."""
        return None if self.process is None else self.process.pid

    @property
    def exitcode(self) -> int | None:
        """What the worker ended with: its exit status, or the number of the signal made negative.

        None if it is not known: nothing was started, or somebody else took the status (``SIGCHLD``
        ignored, a foreign ``waitpid(-1)``).
        """
        return None if self.process is None else self.process.exitcode

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended the worker; None if it was none."""
        return None if self.process is None else self.process.signal


class WorkerMemoryError(BrokenWorkerError):
    """A job was ended because it held too much memory: more than the context's ``memory_limit``, or than the system has.

    :attr:`~BrokenWorkerError.crash` has the Python stack at that moment, unless it was the system
    that ended the worker.
    """

    limit: int | None = None
    """The context's ``memory_limit`` in bytes;

    None if it has none, and the system's own limit was reached.
    """
    reached: int | None = None
    """What the worker and its child processes held, in bytes;

    if the system ended it, what the worker told of last.
    """


class WorkerStartError(BrokenWorkerError):
    """A worker could not be started, so the call was not run.

    If ``init`` raised, or a module of ``forkserver_preload``, the exception is the ``__cause__``.
    """


class WorkerTimeoutError(trio.TooSlowError):
    """An item of a ``map`` took longer than its ``timeout``, and the worker that ran it was killed."""

    def __init__(self, message: str, timeout: float) -> None:
        super().__init__(message, timeout)

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def timeout(self) -> float:
        """The seconds that it had."""
        return float(self.args[1])


class LocateError(WorkerStartError):
    """The worker executable or the right libpython was not found.

    The message lists every place looked at.
    """


class RemoteError(RuntimeError):
    """Stands in for an exception of a job that could not make the journey to the parent.

    It could not be pickled in the worker, or what was pickled could not be unpickled here; in the
    latter case the error that unpickling raised is the ``__cause__``.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str) -> None:
        super().__init__(type_name, message, traceback_text)

    @property
    def type_name(self) -> str:
        """The qualified name of the original exception's class."""
        return str(self.args[0])

    @property
    def message(self) -> str:
        """What ``str()`` of the original exception gave."""
        return str(self.args[1])

    @property
    def traceback_text(self) -> str:
        """The original traceback, as Python prints it."""
        return str(self.args[2])

    def __str__(self) -> str:
        return (
            f"a job raised {self.type_name}: {self.message}\n"
            "(the exception itself could not be pickled and unpickled; its traceback in the worker was)\n"
            f"{self.traceback_text}"
        )
