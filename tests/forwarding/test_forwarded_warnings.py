"""Integration: warnings of jobs are shown by this program's filters, once for all workers, with each kind of worker."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import logging_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE

from trio_offload import WorkerType, open_worker_context


@pytest.fixture
def shown() -> Iterator[list[Any]]:
    """The warnings that were shown; each place is shown once."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        yield shown


async def test_each_place_is_shown_once_for_all_workers(of_any_kind: WorkerType, shown: list[Any]) -> None:
    async with open_worker_context(worker_type=of_any_kind, forward_logging=True) as context:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(context.run_sync, jobs.warn, "old")
            await context.run_sync(jobs.warn, "older")
    assert [(str(one.message), one.category, one.filename) for one in shown] == [
        (text, UserWarning, jobs.__file__) for text in ("old", "older")
    ]
    assert {one.lineno for one in shown} == {jobs.warn.__code__.co_firstlineno + 1}


async def test_filters_of_the_program_decide(of_any_kind: WorkerType, shown: list[Any]) -> None:
    warnings.filterwarnings("always", message="loud")
    warnings.filterwarnings("ignore", module="logging_jobs", category=FutureWarning)
    async with open_worker_context(worker_type=of_any_kind, forward_logging=True) as context:
        for text in ("loud", "loud", "quiet", "quiet"):
            await context.run_sync(jobs.warn, text)
        await context.run_sync(jobs.warn, "ignored", FutureWarning)
        # The worker has the filters of its start; the program's own are asked too.
        warnings.filterwarnings("ignore", module="logging_jobs", message="new")
        await context.run_sync(jobs.warn, "new")
    assert [str(one.message) for one in shown] == ["loud", "loud", "quiet"]


async def test_categories(of_any_kind: WorkerType, shown: list[Any]) -> None:
    async with open_worker_context(worker_type=of_any_kind, forward_logging="ERROR") as context:
        await context.run_sync(jobs.warn, "own", jobs.OwnWarning)
        await context.run_sync(jobs.warn_of_module)
    own, unknown = shown
    assert (str(own.message), own.category) == ("own", jobs.OwnWarning)
    # The program does not import a module for its category.
    if of_any_kind is not WorkerType.FORK:
        assert "sqlalchemy_of_jobs" not in sys.modules
    assert (str(unknown.message), unknown.category) == ("MovedWarning: moved", DeprecationWarning)


async def test_recorded_in_the_job(of_any_kind: WorkerType, shown: list[Any]) -> None:
    async with open_worker_context(worker_type=of_any_kind, forward_logging=True) as context:
        assert await context.run_sync(jobs.record_warning) == ["recorded"]
    assert shown == []


async def test_without_the_option(of_any_kind: WorkerType, shown: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        await context.run_sync(jobs.warn, "old")
    assert shown == []
    if of_any_kind is not WorkerType.FORK:  # which records them in its own copy of the list
        assert "UserWarning: old" in capfd.readouterr().err


async def test_warning_that_is_an_error_here(
    of_any_kind: WorkerType, shown: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_worker_context(worker_type=of_any_kind, forward_logging=True) as context:
        await context.run_sync(jobs.warn, "first")
        warnings.simplefilter("error")
        await context.run_sync(jobs.warn, "second")
    assert [str(one.message) for one in shown] == ["first"]
    assert "UserWarning: second" in capsys.readouterr().err
