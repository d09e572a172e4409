"""The launcher of a context. Only this module asks for the type of its workers."""

from __future__ import annotations

from .._crash import prepare_crash_dir
from .._options import ContextOptions, WorkerType
from .._worker.launcher import Launcher
from .spawn import SpawnLauncher


def launcher_for(options: ContextOptions) -> Launcher:
    """Return a new launcher for workers with these options.

    Raises:
        ValueError: the trace, the report or the crash records cannot be written.
        ModuleNotFoundError: a report needs a package that is missing.
    """
    if options.crash_dir is not None:
        prepare_crash_dir(options.crash_dir)
    # Modules for some contexts only. They are imported here, before the first call.
    trace = report = None
    if options.report is not None:
        from .._report.file import check_packages, check_path

        check_packages()
        check_path(options.report, options.trace)
    if options.trace is not None or options.report is not None:
        from .._trace import TraceWriter

        trace = TraceWriter(options.trace, options.memory_limit, is_kept=options.report is not None)
        trace.open()
    if options.report is not None and trace is not None:
        from .._report.file import ReportFile

        report = ReportFile(options.report, trace)
    launcher = _kind_for(options.worker_type)(options, trace)
    launcher.report = report
    return launcher


def _kind_for(worker_type: WorkerType) -> type[Launcher]:
    if worker_type is WorkerType.FORKSERVER:
        from .forkserver import ForkserverLauncher

        return ForkserverLauncher
    if worker_type is WorkerType.FORK:
        from .fork import ForkLauncher

        return ForkLauncher
    return SpawnLauncher
