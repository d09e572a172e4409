"""A map that is cancelled after one answer, before its lane waits for the next."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import map_jobs
import pytest
import trio
from lifeline import PATIENCE, Lifeline

from trio_offload import WorkerContext, open_worker_context
from trio_offload._map import pace
from trio_offload._map.lane import MAX_UNINTERRUPTED


@pytest.fixture(autouse=True)
def _always_pipelined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine not keep the map from sending the next item before the answer."""
    monkeypatch.setattr(pace, "_PIPELINE_CUTOFF", math.inf)


async def cancel_between(
    context: WorkerContext, line: Lifeline, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """Cancel a map when its lane is about to pass a checkpoint with an item in flight."""
    last, taken = MAX_UNINTERRUPTED - 1, folder / "taken"
    job = functools.partial(map_jobs.arrive_and_hold, line.path, last, taken)
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        monkeypatch.setattr(map_jobs, "at_arrival", scope.cancel)
        async with context.map(
            job, map_jobs.numbers(last, taken), workers=1, chunk_size=1, window=100, **options
        ) as results:
            async for _ in results:
                pass
    assert scope.cancelled_caught


async def test_item_in_flight_is_counted_and_traced(line: Lifeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker_context(trace=tmp_path / "run.json") as context:
        await cancel_between(context, line, tmp_path, monkeypatch)
        counters = context.statistics().counters
    assert (counters.calls_cancelled, counters.workers_killed, counters.workers_died) == (1, 1, 0)
    events = json.loads((tmp_path / "run.json").read_text())
    outcomes = [event["args"]["outcome"] for event in events if event.get("cat") == "job"]
    assert outcomes == ["ok"] * MAX_UNINTERRUPTED + ["cancelled"]


async def test_item_in_flight_has_its_grace(line: Lifeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker_context() as context:
        await cancel_between(context, line, tmp_path, monkeypatch, grace=PATIENCE)
    # The item behind it may begin, before its worker is killed.
    assert (await line.ended())[1:2] == ["told"]
