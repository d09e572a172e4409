"""Functions for jobs where no worker runs: in threads of Trio's, and outside of any job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import talking_jobs as jobs
import trio
import trio.lowlevel

from trio_offload import callback
from trio_offload_worker import from_worker

NO_JOB = "this is no job: neither a worker of trio-offload nor a thread of trio.to_thread.run_sync runs it"
TALKS: list[Callable[[], Any]] = [
    lambda: from_worker.run(trio.sleep, 0),
    lambda: from_worker.run_sync(len, "abc"),
    from_worker.job,
    callback(len, wait=True),
]


@pytest.mark.parametrize("talk", TALKS)
async def test_in_the_event_loop(talk: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=NO_JOB):
        talk()


@pytest.mark.parametrize("talk", TALKS)
def test_without_a_run(talk: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=NO_JOB):
        talk()


@pytest.mark.parametrize("talk", TALKS)
async def test_in_another_thread(talk: Callable[[], Any]) -> None:
    errors: list[str] = []

    def try_it() -> None:
        try:
            talk()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=try_it)
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert errors == [NO_JOB]


async def test_callback_that_returns_an_awaitable() -> None:
    """Its value decides, as in a worker."""

    async def double(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number

    assert await trio.to_thread.run_sync(jobs.call_back, callback(lambda number: double(number)), 4) == 8


async def test_callback_without_a_wait_returns_none() -> None:
    seen: list[int] = []

    def note(number: int) -> int:
        seen.append(number)
        return number

    assert await trio.to_thread.run_sync(jobs.call_back_often, callback(note, wait=False), 3) == [None] * 3
    assert seen == [0, 1, 2]
