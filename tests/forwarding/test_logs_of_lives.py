"""Integration: actors and processes log here too, and their output is read, with each kind of worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import lives_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE
from records import Records

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, open_actor, open_process


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    with trio.fail_after(PATIENCE):
        yield


def names_of(records: Records) -> list[object]:
    return [vars(record)["job"] for record in records.records]


async def test_each_call_of_an_actor(of_any_kind: WorkerType, context: WorkerContext, records: Records) -> None:
    async with open_actor(jobs.Talkative, worker_type=of_any_kind, forward_logging=True) as actor:
        assert names_of(records) == ["lives_jobs.Talkative"]
        assert records.take() == ["made"]
        await actor.say("for a task")
        assert names_of(records) == ["lives_jobs.Talkative.say"]
        await context.run_sync(jobs.say_for, actor, "for a job")
        assert records.take() == ["for a task", "for a job"]
        async with actor.stream.steps(3) as steps:
            assert [step async for step in steps] == [0, 1, 2]
        assert records.take() == ["step 0", "step 1", "step 2"]
        with pytest.raises(BrokenWorkerError):
            await actor.die()
        assert records.take() == ["last words"]


async def test_output_of_an_actor(of_any_kind: WorkerType, records: Records) -> None:
    async with open_actor(jobs.Talkative, worker_type=of_any_kind, output="lines", restart="fresh") as actor:
        await actor.write()
        assert names_of(records) == ["lives_jobs.Talkative.write"]
        assert records.take() == ["printed"]
        with pytest.raises(BrokenWorkerError) as caught:
            await actor.die()
        assert caught.value.crash is not None
        assert caught.value.crash.output == "last text"
        records.take()
        await actor.write()
        assert records.take() == ["printed"]


async def test_levels_of_a_process(of_any_kind: WorkerType, records: Records) -> None:
    text: list[tuple[str | None, str, bytes]] = []
    async with open_process(
        jobs.say_and_die,
        worker_type=of_any_kind,
        forward_logging={"library": "WARNING"},
        output=lambda *parts: text.append(parts),
    ) as process:
        with pytest.raises(BrokenWorkerError):
            await process.wait()
    assert names_of(records) == ["lives_jobs.say_and_die"]
    assert records.take() == ["begun"]
    assert {part[:2] for part in text} == {("lives_jobs.say_and_die", "stdout")}
    assert b"".join(data for *_, data in text).endswith(b"last text")
    assert process.crash is not None
    assert process.crash.output == b"".join(data for *_, data in text).decode()


async def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"forward_logging must have a level that logging knows, .* got 'loud'"):
        trio_offload.open_process(jobs.say_and_die, forward_logging="loud")
    with pytest.raises(ValueError, match="output must be 'inherit', 'lines' or a function, got 5"):
        trio_offload.open_process(jobs.say_and_die, output=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep_handlers must be empty without forward_logging"):
        async with open_actor(jobs.Talkative, keep_handlers=["file"]):
            pass
