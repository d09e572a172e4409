"""A worker that is a fork passes the contract of the worker executable.

Contract: tests of other files once more, with workers that are forks (see :func:`by_forks`); left out is what a fork is meant to
be different in. ``test_worker_side.py`` drives one by the protocol's table, ``test_fork.py`` has what is its own.
"""

from __future__ import annotations

import os
from typing import Any

import attrs
import pytest
import test_crash
import test_death
import test_descriptors
import test_faults
import test_memory
import test_multiprocessing
import test_orphans
import test_output
import test_prewarm
import test_signals
import test_trace
import test_worker
import workers
from lifeline import Gate, Lifeline
from running import PROGRAMS

from trio_offload import WorkerType, _context
from trio_offload._launch.fork import ForkLauncher
from trio_offload._launch.select import launcher_for
from trio_offload._options import ContextOptions
from trio_offload._process import start as _process
from trio_offload._worker.launcher import Launcher
from trio_offload._worker.worker import Worker

BY_FORKS = str(PROGRAMS / "by_forks")
MODULES = (
    test_crash,
    test_death,
    test_descriptors,
    test_faults,
    test_memory,
    test_multiprocessing,
    test_orphans,
    test_output,
    test_prewarm,
    test_signals,
    test_trace,
    test_worker,
)


def fork_launcher(options: ContextOptions) -> Launcher:
    forks = attrs.evolve(options, worker_type=WorkerType.FORK, forkserver_preload=(), forkserver_threads=())
    return launcher_for(forks)


@pytest.fixture(autouse=True)
def by_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers are forks: here, whatever type a test asks for, and in the programs that these tests start."""
    for module in (_context, workers):
        monkeypatch.setattr(module, "launcher_for", fork_launcher)
    for module in MODULES:
        environment = getattr(module, "ENVIRONMENT", None)
        if environment is not None:
            path = environment.get("PYTHONPATH")
            monkeypatch.setitem(environment, "PYTHONPATH", os.pathsep.join(filter(None, [BY_FORKS, path])))


@pytest.fixture
def starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the file of the test has under this name: the process ids, or the workers, that were started."""
    started: list[Any] = []
    if request.function.__module__ == "test_faults":
        fork = _process.fork

        def forking(child: Any) -> Any:
            process, *rest = fork(child)
            started.append(process.pid)
            return process, *rest

        monkeypatch.setattr(_process, "fork", forking)
        return started

    begin = ForkLauncher.begin

    def noting(launcher: ForkLauncher, *call: Any) -> Worker:
        started.append(begin(launcher, *call))
        return started[-1]

    monkeypatch.setattr(ForkLauncher, "begin", noting)
    return started


@pytest.fixture
def side(line: Lifeline, gate: Gate) -> Any:
    return test_worker.RealSide(line, gate)


def reuse(module: Any, *names: str) -> None:
    """Collect tests of another file here too, all of them if none is named, and the fixtures that they use."""
    for name, value in vars(module).items():
        if name.startswith("test_") and callable(value) and name not in LEFT_OUT and (not names or name in names):
            # Some files have tests of the same name.
            own = f"{name}_of_{module.__name__.removeprefix('test_')}" if name in globals() else name
            globals()[own] = value
        elif type(value).__name__ == "FixtureFunctionDefinition" and name not in globals():
            globals()[name] = value


LEFT_OUT = {
    # These look at descriptors that can be inherited. A fork has all that there are, and so has what it starts.
    "test_a_worker_has_its_streams_and_its_own",
    "test_what_a_job_starts_has_the_streams_only",
    # The fork's standard error is pytest's, which writes to a descriptor that the job closes. See test_fork.py.
    "test_job_that_closes_socket_writes_no_frame_into_file",
    # With a fatal error of Python's too, which in a loop says its stack on standard error.
    "test_a_fault_is_told_with_the_line_of_python",
    # What lives on has all of this process's descriptors, the pipes of the test runner too, and keeps that one waiting.
    "test_a_death_is_seen_whatever_lives_on",
    # What it wants not to be found or pickled is inherited.
    "test_a_function_that_the_worker_does_not_find",
    "test_an_init_that_cannot_be_pickled_or_found",
}
# A fork holds what this process holds, which may be more than the others' ceilings. See test_fork.py.
reuse(
    test_memory,
    "test_an_idle_worker_has_told_what_it_holds",
    "test_a_running_job_is_reported_on_although_it_holds_the_gil",
    "test_without_reports_only_results_tell",
    "test_each_worker_has_its_own_record",
    "test_a_job_asks_what_it_holds",
    "test_replaced_after_so_many_jobs",
    "test_replaced_after_some_time",
    "test_any_condition_is_enough",
    "test_a_ceiling_under_the_baseline_replaces_nobody_for_ever",
    "test_a_ceiling_under_the_baseline_is_an_error",
    "test_the_warning_as_an_error_leaves_nothing",
)
reuse(test_trace, "test_one_row_a_worker_a_slice_a_job_a_curve_of_memory", "test_how_a_job_ended")
reuse(
    test_signals,
    "test_ctrl_c_in_a_call_that_may_be_cancelled",
    "test_ctrl_c_in_a_call_that_may_not_be_cancelled",
    "test_ctrl_c_beside_idle_workers",
    "test_ctrl_c_many_times",
    "test_ctrl_c_reaches_a_python_that_a_job_starts",
    "test_ctrl_c_while_a_worker_starts",
    "test_a_job_that_takes_interrupts_back",
    "test_all_are_told_to_end",
    "test_jobs_use_signals_as_a_main_thread_may",
    "test_what_a_job_starts_is_started_as_from_here",
    "test_signals_that_the_program_has_ignored_or_blocked",
)
for module in MODULES:
    if module not in (test_memory, test_trace, test_signals):
        reuse(module)
del module
