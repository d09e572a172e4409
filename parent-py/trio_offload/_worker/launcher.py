"""The interface of the ways to start a worker. The ways themselves are in ``_launch``."""

from __future__ import annotations

import abc
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from trio_offload_worker._system.linux import has_proc

from .._exceptions import WorkerStartError
from .._transport.buffer_pool import BufferPool
from .worker import Worker

if TYPE_CHECKING:
    from .._options import ContextOptions
    from .._pickling.payload import Payload
    from .._process.process import WorkerProcess
    from .._report.file import ReportFile
    from .._trace import TraceWriter
    from .peer import Peer
    from .talker import Forwarder, Receiver


_numbers: Final = itertools.count(1)


class Launcher(abc.ABC):
    """One way to start workers, and the state that it needs. Each context has one.

    Everything in which the ways differ is in subclasses, so other code never asks for the type of a
    worker. Thread-safe, also for signal handlers.
    """

    inherits_main: ClassVar[bool] = False
    """True if workers have this process's ``__main__``, so its objects pickle by reference."""

    outlives_run: bool = False
    """True if its context, the default one, may have workers when a run of Trio ends."""

    def __init__(self, options: ContextOptions, trace: TraceWriter | None = None) -> None:
        self.options: Final = options
        self.trace: Final = trace
        # The page that is written when the context closes.
        self.report: ReportFile | None = None
        # The number of its context in this program.
        self.number: Final = next(_numbers)
        self.buffer_pool: Final = BufferPool()
        # Set before the first start, if the context forwards messages of jobs.
        self.forwarder: Forwarder | None = None
        # The same for their output.
        self.receiver: Receiver | None = None

    def begin(self, call: Payload | None = None) -> Worker:
        """Start a process and send it the greeting, without waiting. :meth:`Worker.finish` follows.

        Where the process cannot be started yet, `finish` does all of this.

        Args:
            call: the worker's first call. It may be sent with the greeting. Then the worker runs it
                when `finish` returns, and :meth:`Worker.answer` must follow. Otherwise the worker
                is idle then.

        Raises:
            WorkerStartError: the process could not be started.
            RuntimeError: this process is a worker that loads a main script without a guard.
        """
        _refuse_while_main_loads()
        if self.options.memory_limit is not None and not has_proc():
            raise WorkerStartError(
                "memory_limit cannot be enforced here, because /proc cannot be read. Mount /proc, or leave memory_limit out"
            )
        return self._begin(call)

    def _new_worker(self, kind: type[Worker] = Worker) -> Worker:
        """Return a worker whose process is about to start."""
        if self.forwarder is not None:
            from .following import following  # few programs need it

            kind = following(kind)
        if self.receiver is not None:
            from .captured import captured

            kind = captured(kind)
        worker = kind(self.options, self.trace, self.buffer_pool)
        worker.forwarder, worker.receiver = self.forwarder, self.receiver
        worker.context_number = self.number
        return worker

    @abc.abstractmethod
    def _begin(self, call: Payload | None) -> Worker:
        """As :meth:`begin`."""

    def prepare_next(self) -> None:  # noqa: B027  # optional
        """Start the process of the next worker ahead of time, if this way can. Does not wait."""

    def failed_start_hint(self, process: WorkerProcess) -> str:
        """Return the end of the message for a process that ended before it was ready, or ""."""
        return ""

    def close(self) -> Sequence[Peer]:
        """Ask helper processes to exit. Return those that must be waited for.

        A later :meth:`begin` starts new ones.
        """
        return ()

    def forget(self) -> None:
        """Release what belongs to the parent, in a fork of this process."""
        self.buffer_pool.forget()


def _refuse_while_main_loads() -> None:
    """Raise RuntimeError in a worker that is loading the main script: the script has no guard."""
    loader = sys.modules.get("trio_offload_worker._jobs.main_module")
    if loader is not None and loader.loading:
        raise RuntimeError(
            "this program uses trio_offload while a worker only loads it, to find a function of the main script. Each "
            "worker would run that code again. Put the code that starts the program behind the guard, which only the main "
            "process passes:\n\n"
            '    if __name__ == "__main__":\n'
            "        trio.run(main)\n"
        )
