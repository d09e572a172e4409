"""The exceptions of this package. Facts are attributes; the message names the remedy.

.. code-block:: text

    RuntimeError
    ├── BrokenWorkerError         a worker ended before it answered
    │   ├── WorkerMemoryError     it was ended for its memory use
    │   └── WorkerStartError      it did not start; the call was not run
    │       └── LocateError       the executable or libpython was not found
    ├── JobExitError              a job raised SystemExit or KeyboardInterrupt
    ├── RemoteError               replaces an exception of a job that could not be pickled
    ├── BrokenBarrierError        a barrier will not be reached by all
    └── DeadlockError             a wait would never end
    trio.BrokenResourceError
    └── AbandonedLockError        the holder of a lock died, or ended with it
    trio.TooSlowError
    └── WorkerTimeoutError        a job timed out: it took longer than its timeout

An exception of an item of a ``map`` gets ``item`` and ``item_index``. A class whose instances may
be such an exception declares both, for type checkers.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import trio

from ._crash import CrashRecord
from ._documented import DocumentedType, documented

if TYPE_CHECKING:
    from ._process.process import WorkerProcess


@documented
class BrokenWorkerError(RuntimeError, metaclass=DocumentedType):
    """A worker ended, or had to be ended, before it answered.

    ::

        try:
            await trio_offload.run_sync(job)
        except trio_offload.BrokenWorkerError as error:
            print(error.signal, error.crash.stack)

    The usual causes are a crash or a call of :func:`os._exit` in the code that ran in the worker.
    Others are a signal from another process, and an exit that took longer than the
    ``grace_period``. The other workers keep running.

    ``args`` is the message followed by a handle for each process concerned, almost always one. A
    handle has the attributes ``pid`` and ``exitcode``, like a :class:`multiprocessing.Process`.

    If a call was running, a note on the exception (PEP 678) describes the end, with the Python
    stack, and every traceback shows it. :attr:`crash` has the same as data.
    """

    crash: CrashRecord | None = None
    """The facts about the worker's end. None unless a worker died in a call."""
    in_hand: tuple[Any, ...] = ()
    """Items that the job had received last from channels, with a record for each channel."""
    item: Any = None
    """The item, if the error is one of a ``map``."""
    item_index: int | None = None
    """Index of the item among all items, from 0. None means an error of another kind."""

    def __init__(self, message: str, *processes: WorkerProcess) -> None:
        super().__init__(message, *processes)

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def process(self) -> WorkerProcess | None:
        """Handle of the process. None means that it was not started."""
        last: Any = self.args[-1]
        return None if isinstance(last, str) else last

    @property
    def pid(self) -> int | None:
        """Process ID of the worker."""
        return None if self.process is None else self.process.pid

    @property
    def exitcode(self) -> int | None:
        """Exit status of the worker, or the negative number of the signal.

        None means unknown: the process was not started, or another part of the program took the
        status (``SIGCHLD`` ignored, a foreign ``waitpid(-1)``).
        """
        return None if self.process is None else self.process.exitcode

    @property
    def signal(self) -> signal.Signals | None:
        """Signal that ended the worker. None means that it was not a signal."""
        return None if self.process is None else self.process.signal


@documented
class WorkerMemoryError(BrokenWorkerError):
    """A job was ended because its memory use exceeded a limit: the context's, or the system's.

    ::

        async with trio_offload.open_worker_context(memory_limit="2GiB") as context:
            try:
                await context.run_sync(parse, path)
            except trio_offload.WorkerMemoryError as error:
                print(error.limit, error.reached)

    :attr:`~BrokenWorkerError.crash` has the Python stack of that moment, unless the system ended
    the worker.
    """

    limit: int | None = None
    """The context's ``memory_limit`` in bytes. None means that the system's limit was reached."""
    reached: int | None = None
    """Memory of the worker and its child processes in bytes.

    If the system ended it: at its last report.
    """


@documented
class WorkerStartError(BrokenWorkerError):
    """A worker could not be started, and the call was not run.

    ::

        async with trio_offload.open_worker_context(init=connect) as context:
            try:
                await context.run_sync(query, "select 1")
            except trio_offload.WorkerStartError as error:
                print(f"no worker: {error.__cause__!r}")

    If ``init`` raised, or a module of ``forkserver_preload``, the exception is the ``__cause__``.
    """


@documented
class WorkerTimeoutError(trio.TooSlowError, metaclass=DocumentedType):
    """A job timed out: it took longer than its ``timeout``, and its worker was killed.

    ::

        try:
            await trio_offload.run_sync(job, timeout=0.5)
        except trio_offload.WorkerTimeoutError as error:
            print(error.crash.stack)

    A note on the exception (PEP 678) has the Python stack of that moment. :attr:`crash` has the
    same as data.
    """

    crash: CrashRecord | None = None
    """The facts about the worker at that moment. Its ``stack`` tells where the job was."""
    item: Any = None
    """The item, if the error is one of a ``map``."""
    item_index: int | None = None
    """Index of the item among all items, from 0. None means an error of another kind."""

    def __init__(self, message: str, timeout: float) -> None:
        super().__init__(message, timeout)

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def timeout(self) -> float:
        """Seconds that the job was allowed."""
        return float(self.args[1])


@documented
class JobExitError(RuntimeError, metaclass=DocumentedType):
    """A job raised an exception that controls the process in which it is raised.

    ::

        try:
            await trio_offload.run_sync(sys.exit, 3)
        except trio_offload.JobExitError as error:
            print(error.code)

    These are :exc:`SystemExit`, :exc:`KeyboardInterrupt`, :exc:`GeneratorExit`,
    :exc:`trio.Cancelled`, and groups with one of them. Raised here, ``sys.exit()`` in a job would
    end this program without a word. The exception itself is the ``__cause__``, with its traceback.
    The worker lives on.
    """

    item: Any = None
    """The item, if the error is one of a ``map``."""
    item_index: int | None = None
    """Index of the item among all items, from 0. None means an error of another kind."""

    @property
    def code(self) -> object:
        """The argument of :func:`sys.exit`. None also means that it was another exception."""
        return self.__cause__.code if isinstance(self.__cause__, SystemExit) else None


@documented
class LocateError(WorkerStartError):
    """The worker executable or the right libpython was not found.

    ::

        try:
            await trio_offload.prewarm(4)
        except trio_offload.LocateError as error:
            print(f"no workers, so threads: {error}")
            run_job = trio.to_thread.run_sync

    The message lists every searched place.
    """


@documented
class RemoteError(RuntimeError, metaclass=DocumentedType):
    """Replaces an exception of a job that could not be sent to the parent.

    ::

        try:
            await trio_offload.run_sync(fetch, "users")
        except trio_offload.RemoteError as error:
            if not error.type_name.endswith("NoSuchTable"):
                raise
            print(f"nothing to fetch: {error.message}")

    It could not be pickled in the worker, or it could not be unpickled here. In the latter case the
    error of unpickling is the ``__cause__``.
    """

    item: Any = None
    """The item, if the error is one of a ``map``."""
    item_index: int | None = None
    """Index of the item among all items, from 0. None means an error of another kind."""

    def __init__(self, type_name: str, message: str, traceback_text: str) -> None:
        super().__init__(type_name, message, traceback_text)

    @property
    def type_name(self) -> str:
        """Qualified name of the original exception's class."""
        return str(self.args[0])

    @property
    def message(self) -> str:
        """``str()`` of the original exception."""
        return str(self.args[1])

    @property
    def traceback_text(self) -> str:
        """The original traceback, as Python prints it."""
        return str(self.args[2])

    def __str__(self) -> str:
        return (
            f"a job raised {self.type_name}: {self.message}\n"
            "(the exception could not be pickled and unpickled; its traceback in the worker follows)\n"
            f"{self.traceback_text}"
        )


@documented
class AbandonedLockError(trio.BrokenResourceError, metaclass=DocumentedType):
    """The holder of a lock died with it, or ended without its release.

    ::

        try:
            await lock.acquire()
        except trio_offload.AbandonedLockError as error:
            print(f"{error.function} was ended by {error.signal!r}")
            restore_backup()
            lock.recover()

    The data that the lock guards may be half changed. Repair the data, then call ``recover()`` of
    the lock, so that it can be acquired again.
    """

    pid: int | None = None
    """Process ID of the worker whose job held the lock. None means a task of this program."""
    function: str | None = None
    """Name of the function that held the lock."""
    signal: signal.Signals | None = None
    """Signal that ended the worker. None means that it was not a signal."""


@documented
class DeadlockError(RuntimeError, metaclass=DocumentedType):
    """A wait would never end: its end depends on the task or the job that wants to wait.

    ::

        async with lock:
            try:
                await trio_offload.run_sync(append, lock)  # the job waits for the same lock
            except trio_offload.DeadlockError as error:
                print(error)

    The message names the chain. Nothing was taken.
    """


@documented
class BrokenBarrierError(RuntimeError, metaclass=DocumentedType):
    """A barrier will not be reached by all its parties: one of them died, or it was aborted.

    ::

        try:
            await barrier.wait()
        except trio_offload.BrokenBarrierError:
            print(f"{barrier.parties} parties, but not all have come")
            barrier.reset()
    """


def is_interrupt(error: BaseException) -> bool:
    """Return True for KeyboardInterrupt, and for a group of it alone, as nurseries raise it.

    Python 3.10 lacks a class for groups, but Trio's backport has the same attribute.
    """
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return isinstance(error, KeyboardInterrupt) or (bool(inner) and all(map(is_interrupt, inner)))


def is_cancelled(error: BaseException) -> bool:
    """Return True for :exc:`trio.Cancelled`, and for a group of it alone."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return isinstance(error, trio.Cancelled) or (bool(inner) and all(map(is_cancelled, inner)))
