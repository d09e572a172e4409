"""The launcher of a context. Only this module asks for the type of its workers."""

from __future__ import annotations

from .._crash import prepare_crash_dir
from .._options import ContextOptions, WorkerType
from .._worker.launcher import Launcher
from .spawn import SpawnLauncher


def launcher_for(options: ContextOptions) -> Launcher:
    """Return a new launcher for workers with these options.

    Raises:
        ValueError: the trace file or the crash records cannot be written.
    """
    if options.crash_dir is not None:
        prepare_crash_dir(options.crash_dir)
    # Modules for some contexts only. They are imported here, before the first call.
    trace = None
    if options.trace is not None:
        from .._trace import TraceWriter

        trace = TraceWriter(options.trace, options.memory_limit)
        trace.open()
    if options.worker_type is WorkerType.FORKSERVER:
        from .forkserver import ForkserverLauncher

        return ForkserverLauncher(options, trace)
    if options.worker_type is WorkerType.FORK:
        from .fork import ForkLauncher

        return ForkLauncher(options, trace)
    return SpawnLauncher(options, trace)
