"""End to end, with faults injected: what can go wrong in each stage of a worker's life, and what comes of it.

The stages are the columns of the table that loky tests by, and three more; the failures are its rows. For each cell the
test tells what the caller gets, whether the worker lived on (the same process answers the next call) or how it ended,
and how many processes were started on the way.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Final

import bad_jobs
import jobs
import pytest
import trio
from lifeline import PATIENCE, wait_for_end

from trio_offload import (
    BrokenWorkerError,
    JobExitError,
    RemoteError,
    WorkerContextStatistics,
    WorkerStartError,
    open_worker_context,
)
from trio_offload._process import start as _process

# What a raising failure raises.
RAISES: Final[dict[str, type[BaseException]]] = {
    "Exception": bad_jobs.Boom,
    "BaseException": bad_jobs.BaseBoom,
    "SystemExit": SystemExit,
    "sys.exit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
}
# What a deadly one ends the process with.
ENDS: Final[dict[str, int]] = {
    "os._exit": 42,
    "os.abort": -signal.SIGABRT,
    "segfault": -signal.SIGSEGV,
    "SIGKILL": -signal.SIGKILL,
    "SIGTERM": -signal.SIGTERM,
}


def the_jobs(error: BaseException) -> BaseException:
    """The exception of the job, for which a JobExitError may stand in."""
    if isinstance(error, JobExitError):
        error = error.__cause__ or error
        assert isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit))
    return error


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were started."""
    pids: list[int] = []
    real_start = _process.spawn

    def start(*arguments: Any) -> Any:
        process, *rest = real_start(*arguments)
        pids.append(process.pid)
        return process, *rest

    monkeypatch.setattr(_process, "spawn", start)
    return pids


@asynccontextmanager
async def opened(**settings: Any) -> Any:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(**settings) as context:
            yield context


async def caught(operation: Callable[[], Any]) -> BaseException:
    """What an operation raises, be it of a kind that one had better not catch."""
    try:
        value = await operation()
    except trio.Cancelled:
        raise
    except BaseException as error:
        return error
    raise AssertionError(f"it returned {value!r}")


def notes_of(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def assert_explained(error: BaseException, end: int, pid: int) -> None:
    """A death is told with its pid and with how the process ended, in attributes and in words."""
    assert type(error) is BrokenWorkerError
    assert (error.pid, error.exitcode) == (pid, end)
    assert error.signal == (-end if end < 0 else None)
    assert error.process is error.args[-1]
    assert str(pid) in str(error)
    assert (f"status {end}" if end >= 0 else signal.Signals(-end).name) in str(error)


# --- the stages of a call ------------------------------------------------------------------------

# How a call is made to fail in a stage, and what the exception's note says of it.
STAGES: Final[dict[str, tuple[Callable[[str], tuple[Any, ...]], str | None]]] = {
    "unpickle the call": (
        lambda how: (jobs.echo, bad_jobs.FailsToUnpickle(how)),
        "(while the worker unpickled the function and its arguments)",
    ),
    "run": (lambda how: (bad_jobs.fail, how), None),
    "pickle the result": (
        lambda how: (bad_jobs.return_what_fails_to_pickle, how),
        "(while the worker pickled the result)",
    ),
}


@pytest.mark.parametrize("how", RAISES)
@pytest.mark.parametrize("stage", STAGES)
async def test_exception_reaches_caller_and_worker_survives(stage: str, how: str, starts: list[int]) -> None:
    make, note = STAGES[stage]
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        error = the_jobs(await caught(lambda: context.run_sync(*make(how))))
        assert type(error) is RAISES[how]
        assert note is None or note in notes_of(error)
        assert note is not None or not any(known in notes_of(error) for _, known in STAGES.values())
        assert await context.run_sync(os.getpid) == pid
    assert starts == [pid]


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("stage", [*STAGES, "pickle the exception"])
async def test_a_death_is_explained_and_the_next_call_has_a_new_worker(stage: str, how: str, starts: list[int]) -> None:
    make = STAGES[stage][0] if stage in STAGES else lambda how: (bad_jobs.raise_what_fails_to_pickle, how)
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        error = await caught(lambda: context.run_sync(*make(how)))
        assert_explained(error, ENDS[how], pid)
        assert context.statistics() == WorkerContextStatistics(idle_workers=0, running_workers=0)
        another = await context.run_sync(os.getpid)
    assert starts == [pid, another]


@pytest.mark.parametrize("how", RAISES)
async def test_unpickle_the_result_in_the_parent(how: str, starts: list[int]) -> None:
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        error = the_jobs(await caught(lambda: context.run_sync(bad_jobs.return_what_fails_to_unpickle, how)))
        assert type(error) is RAISES[how]
        assert "(while unpickling the result of a job)" in notes_of(error)
        assert await context.run_sync(os.getpid) == pid
    assert starts == [pid]


@pytest.mark.parametrize("how", RAISES)
async def test_unpickle_the_exception_in_the_parent(how: str, starts: list[int]) -> None:
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        error = await caught(lambda: context.run_sync(bad_jobs.raise_what_fails_to_unpickle, how))
        assert type(error) is RemoteError
        assert type(error.__cause__) is RAISES[how]
        assert error.type_name == "bad_jobs.ErrorThatFailsToUnpickle"
        assert error.message == how
        assert "raise_what_fails_to_unpickle" in error.traceback_text
        assert await context.run_sync(os.getpid) == pid
    assert starts == [pid]


@pytest.mark.parametrize("how", RAISES)
async def test_pickle_the_exception(how: str, starts: list[int]) -> None:
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        error = await caught(lambda: context.run_sync(bad_jobs.raise_what_fails_to_pickle, how))
        assert type(error) is RemoteError
        assert error.__cause__ is None
        assert error.type_name == "bad_jobs.ErrorThatFailsToPickle"
        assert "raise_what_fails_to_pickle" in str(error)
        assert RAISES[how].__name__ in error.traceback_text, "it says why it could not be pickled"
        assert await context.run_sync(os.getpid) == pid
    assert starts == [pid]


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (bad_jobs.return_depth, RecursionError, "recursion"),
        (bad_jobs.return_lock, TypeError, "pickle"),
        (bad_jobs.return_generator, TypeError, "pickle"),
        (bad_jobs.generator_function, TypeError, "pickle"),
        (bad_jobs.coroutine_function, TypeError, "bad_jobs.coroutine_function|coroutine_function"),
        (bad_jobs.async_generator_function, TypeError, "async_generator_function"),
    ],
)
async def test_a_result_that_cannot_travel(job: Callable[[], Any], kind: type, words: str, starts: list[int]) -> None:
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        with pytest.raises(kind, match=words):
            await context.run_sync(job)
        assert await context.run_sync(os.getpid) == pid
    assert starts == [pid]


async def test_unpicklable_arguments_fail_before_start(starts: list[int]) -> None:
    import threading

    async with opened() as context:
        with pytest.raises(TypeError, match="pickle") as told:
            await context.run_sync(jobs.echo, threading.Lock())
        assert any("jobs.echo" in note for note in notes_of(told.value))
        with pytest.raises(bad_jobs.Boom):
            await context.run_sync(jobs.echo, bad_jobs.FailsToPickle("Exception"))
        assert context.statistics() == WorkerContextStatistics(idle_workers=0, running_workers=0)
    assert not starts


async def test_a_function_that_the_worker_does_not_find(starts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    def here_only() -> None: ...

    module = types.ModuleType("a_module_of_this_process")
    here_only.__module__, here_only.__qualname__ = module.__name__, "here_only"
    module.here_only = here_only  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        with pytest.raises(ModuleNotFoundError, match="a_module_of_this_process") as told:
            await context.run_sync(here_only)
        assert any("unpickled the function" in note for note in notes_of(told.value))
        assert await context.run_sync(os.getpid) == pid
    assert starts == [pid]


async def test_callable_with_every_attribute_is_refused() -> None:
    from unittest.mock import Mock

    async with opened() as context:
        error = await caught(lambda: context.run_sync(Mock()))
        assert "pickl" in " ".join([str(error), *notes_of(error)])
        assert await context.run_sync(jobs.echo, 5) == 5


# --- init ----------------------------------------------------------------------------------------


def make_settings(how: str) -> Callable[[], Any]:
    return functools.partial(bad_jobs.fail, how)


@pytest.mark.parametrize("how", RAISES)
async def test_an_init_that_raises(how: str, starts: list[int]) -> None:
    async with opened(init=make_settings(how)) as context:
        for number in (1, 2):
            error = await caught(lambda: context.run_sync(jobs.echo, 5))
            assert type(error) is WorkerStartError
            assert type(error.__cause__) is RAISES[how]
            assert "bad_jobs.fail" in str(error)
            assert error.exitcode == 4
            assert len(starts) == number, "each call starts one worker, and none is started for another try"
            assert context.statistics() == WorkerContextStatistics(idle_workers=0, running_workers=0)


@pytest.mark.parametrize("how", ENDS)
async def test_an_init_that_ends_the_process(how: str, starts: list[int]) -> None:
    async with opened(init=make_settings(how)) as context:
        for number in (1, 2):
            error = await caught(lambda: context.run_sync(jobs.echo, 5))
            assert type(error) is WorkerStartError
            assert error.__cause__ is None
            assert (error.pid, error.exitcode) == (starts[-1], ENDS[how])
            assert "before it was ready" in str(error)
            assert len(starts) == number


@pytest.mark.parametrize("stage", ["init", "retire"])
@pytest.mark.parametrize("function", [bad_jobs.coroutine_function, bad_jobs.async_generator_function])
async def test_an_asynchronous_init_or_retire_is_refused(stage: str, function: Any) -> None:
    if stage == "init":
        async with opened(init=function) as context:
            error = await caught(lambda: context.run_sync(jobs.echo, 5))
            assert type(error) is WorkerStartError
            assert type(error.__cause__) is TypeError
            assert "asynchronous" in str(error.__cause__)
        return
    with pytest.raises(BrokenWorkerError):
        async with opened(retire=function) as context:
            pid = await context.run_sync(os.getpid)
            wait_for_end(pid)
            error = await caught(lambda: context.run_sync(jobs.echo, 5))
            assert type(error) is BrokenWorkerError
            assert "asynchronous" in str(error)
            assert await context.run_sync(jobs.echo, 6) == 6


async def test_an_init_that_cannot_be_pickled_or_found(starts: list[int]) -> None:
    import threading

    async with opened(init=threading.Lock().acquire) as context:
        with pytest.raises(TypeError, match="pickle"):
            await context.run_sync(jobs.echo, 5)
    assert not starts


# --- retire --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", RAISES)
async def test_a_retire_that_raises_breaks_a_later_call(how: str, starts: list[int]) -> None:
    """The result was on its way by then. At the end of the block the last worker's end is told, too."""
    with pytest.raises(BrokenWorkerError) as at_the_end:
        async with opened(retire=make_settings(how)) as context:
            pid = await context.run_sync(os.getpid)
            wait_for_end(pid)
            error = await caught(lambda: context.run_sync(jobs.echo, 5))
            assert type(error) is BrokenWorkerError
            assert (error.pid, error.exitcode) == (pid, 5)
            assert "retire" in str(error)
            assert RAISES[how].__name__ in str(error)
            another = await context.run_sync(os.getpid)
            wait_for_end(another)
    assert (at_the_end.value.pid, at_the_end.value.exitcode) == (another, 5)
    assert starts == [pid, another]


@pytest.mark.parametrize("how", ENDS)
async def test_a_retire_that_ends_the_process(how: str, starts: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """It died while it was idle: the next call goes to another worker, and the log says why."""
    # A service manager may well end the whole group with SIGTERM.
    with pytest.raises(BrokenWorkerError) if how != "SIGTERM" else nullcontext() as at_the_end:
        async with opened(retire=make_settings(how)) as context:
            pid = await context.run_sync(os.getpid)
            wait_for_end(pid)
            another = await context.run_sync(os.getpid)
            assert another != pid
            wait_for_end(another)
            assert str(pid) in caplog.text
    if how != "SIGTERM":
        assert (at_the_end.value.pid, at_the_end.value.exitcode) == (another, ENDS[how])
    assert starts == [pid, another]


async def test_retire_with_undecidable_result_breaks_worker() -> None:
    with pytest.raises(BrokenWorkerError):
        async with opened(retire=bad_jobs.Undecided) as context:
            pid = await context.run_sync(os.getpid)
            wait_for_end(pid)
            with pytest.raises(BrokenWorkerError, match="undecided"):
                await context.run_sync(jobs.echo, 5)
            wait_for_end(await context.run_sync(os.getpid))
