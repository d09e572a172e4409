"""A job's SystemExit and KeyboardInterrupt do not end the program that runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bad_jobs
import pytest
from kinds import type_of, use_loops
from running import run_script

from trio_offload import JobExitError, RemoteError, open_worker_context


def raise_of_another_kind() -> None:
    raise bad_jobs.BaseBoom("not for this process alone")


def raise_unpicklable_exit() -> None:
    sys.exit(lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [0, 3, None, "why"])
async def test_it_is_an_error_of_the_call(kind: str, code: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "loop":
        use_loops(monkeypatch)
    async with open_worker_context(worker_type=type_of(kind)) as context:
        for _ in range(2):
            with pytest.raises(JobExitError, match="the job raised SystemExit") as told:
                await context.run_sync(sys.exit, code)
            assert isinstance(told.value.__cause__, SystemExit)
            assert told.value.code == told.value.__cause__.code == code
        statistics = context.statistics()
        assert statistics.counters.workers_started == 1, "the worker lives on"
        assert statistics.counters.calls_raised == 2


@pytest.mark.parametrize("chunk_size", [1, 3])
async def test_it_is_an_error_of_its_item(chunk_size: int) -> None:
    async with open_worker_context() as context:
        async with context.map(sys.exit, [1, 2, 3], chunk_size=chunk_size, return_outcomes=True) as results:
            errors = [result.error async for result in results]  # type: ignore[union-attr]
        assert [(type(error), error.code) for error in errors] == [(JobExitError, 1), (JobExitError, 2), (JobExitError, 3)]
        async with context.map(sys.exit, [1, 2, 3], chunk_size=chunk_size) as results:
            with pytest.raises(JobExitError):
                await results.__anext__()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
async def test_a_group_with_one() -> None:
    async with open_worker_context() as context:
        with pytest.raises(JobExitError) as told:
            await context.run_sync(bad_jobs.raise_group)
        assert type(told.value.__cause__).__name__ == "BaseExceptionGroup"
        assert told.value.code is None


async def test_others_outside_of_exception_arrive_as_they_are() -> None:
    async with open_worker_context() as context:
        with pytest.raises(bad_jobs.BaseBoom):
            await context.run_sync(raise_of_another_kind)


async def test_one_that_cannot_be_pickled() -> None:
    async with open_worker_context() as context:
        with pytest.raises((JobExitError, RemoteError)):
            await context.run_sync(raise_unpicklable_exit)


@pytest.mark.parametrize("exit", ["sys.exit()", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_the_program_goes_on(tmp_path: Path, exit: str) -> None:
    text = f"""
    import sys
    import trio, trio_offload

    def job():
        {exit}

    async def main():
        try:
            await trio_offload.run_sync(job)
        except Exception as error:
            print(type(error).__name__)
        print("goes on")

    if __name__ == "__main__":
        trio.run(main)
    """
    assert run_script(tmp_path, text).lines() == ["JobExitError", "goes on"]


def test_a_program_that_does_not_expect_it_shows_where(tmp_path: Path) -> None:
    text = """
    import sys
    import trio, trio_offload

    def job():
        sys.exit(3)

    if __name__ == "__main__":
        trio.run(trio_offload.run_sync, job)
    """
    ended = run_script(tmp_path, text, expect=1)
    assert "sys.exit(3)" in ended.stderr
    assert ended.stderr.endswith("trio_offload.JobExitError: the job raised SystemExit: 3\n")
