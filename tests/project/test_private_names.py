"""Contract: what the code relies on that Python and Trio do not promise. A version that lacks a name is told by that name here.

Each is used where nothing public does the same. What the code does without it, if it can, is said beside it; the rest fails, so a
new version has to be looked at before it is claimed to work.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import pytest
import trio
import trio.testing
from trio._core._run import GLOBAL_RUN_CONTEXT

# module, name, what needs it
NAMES = [
    ("threading", "_shutdown", "the end of a forked worker: threads are joined (template.rs, _loop/fork)"),
    ("atexit", "_run_exitfuncs", "the end of a forked worker: exit handlers run"),
    ("functools", "_lru_cache_wrapper", "functions with a cache, by value (_cloud)"),
    ("sys", "_xoptions", "a worker has the program's -X options (_interpreter, _hello)"),
    ("sys", "_getframe", "the frames of a job in its traceback (_exceptions)"),
    ("_pickle", "Pickler", "a loop imports the pickler without its package (_executor)"),
    ("_functools", "partial", "the same"),
    ("multiprocessing.process", "_children", "a fork has no processes of its parent's (_multiprocessing)"),
    ("multiprocessing.process", "_process_counter", "a fork counts its own from one"),
    ("multiprocessing.process", "_parent_process", "parent_process() in a worker"),
    ("multiprocessing.process", "_ParentProcess", "the same"),
    (
        "multiprocessing.resource_tracker",
        "_resource_tracker",
        "workers share the program's tracker (_interpreter, _multiprocessing)",
    ),
    ("multiprocessing.util", "_finalizer_registry", "a fork does not run its parent's finalizers"),
    ("multiprocessing.util", "_run_after_forkers", "what registered for forks runs in one"),
    ("warnings", "_showwarnmsg_impl", "warnings of jobs are shown by the program (_jobs/warnings)"),
    ("warnings", "_showwarning_orig", "the same, in a fork of a program that captures warnings"),
    ("logging", "_showwarning", "the same"),
    ("multiprocessing.util", "_exit_function", "a fork ends the processes that its jobs left"),
    ("trio._core._run", "GLOBAL_RUN_CONTEXT", "a fork is not in trio.run any more (_launch/fork)"),
    ("trio._core._thread_cache", "THREAD_CACHE", "a fork has no idle threads of Trio's"),
]


@pytest.mark.parametrize(("module", "name", "use"), NAMES, ids=[f"{module}.{name}" for module, name, _ in NAMES])
def test_a_private_name_is_there(module: str, name: str, use: str) -> None:
    assert hasattr(importlib.import_module(module), name), use


def test_the_lock_of_warnings_comes_with_what_needs_it() -> None:
    """From Python 3.14 on a change of the filters is told under a lock (_settings)."""
    warnings: Any = importlib.import_module("_warnings")
    held = hasattr(warnings, "_filters_mutated_lock_held")
    assert held == (sys.version_info >= (3, 14))
    assert held == hasattr(warnings, "_acquire_lock") == hasattr(warnings, "_release_lock")
    assert held != hasattr(warnings, "_filters_mutated")


def test_attributes_of_objects() -> None:
    # Emptied by each change of a level (_forwarding/levels).
    assert isinstance(logging.root._cache, dict)  # type: ignore[attr-defined]
    processes: Any = importlib.import_module("multiprocessing.process")
    trackers: Any = importlib.import_module("multiprocessing.resource_tracker")
    assert hasattr(processes.current_process(), "_name")
    assert hasattr(trackers._resource_tracker, "_fd")
    # Copied in one step; `dict(os.environb)` where it is none (_hello.environment).
    assert type(os.environb._data) is dict  # type: ignore[attr-defined]


async def test_tasks_that_wait_for_a_token() -> None:
    """A callback that needs a token may be one that nobody can give (_worker/loans)."""
    limiter: Any = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("somebody")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limiter.acquire)
        await trio.testing.wait_all_tasks_blocked()
        assert list(limiter._pending_borrowers) == list(nursery.child_tasks)
        nursery.cancel_scope.cancel()


async def test_what_a_fork_lets_go_of_in_trio() -> None:
    runner: Any = GLOBAL_RUN_CONTEXT.runner
    assert callable(runner.io_manager.close)
    assert callable(runner.entry_queue.wakeup.close)
