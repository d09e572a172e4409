"""End to end: spans of maps, streams, actors, processes and callbacks, and spans that workers export themselves."""

from __future__ import annotations

import functools
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jobs
import map_jobs
import outcome
import pytest
import telemetry_jobs
import trio
from kinds import type_of
from lifeline import PATIENCE, Lifeline
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from running import run_script
from telemetry_support import Spans, parent_id, span_id

import trio_offload
from trio_offload import open_worker_context
from trio_offload._map import pace
from trio_offload._map.lane import MAX_UNINTERRUPTED

# --- maps ----------------------------------------------------------------------------------------


async def test_each_chunk_of_a_map_is_a_call(kind: str, spans: Spans) -> None:
    async with open_worker_context(worker_type=type_of(kind)) as pool:
        with spans.tracer.start_as_current_span("user") as user:
            async with pool.map(telemetry_jobs.current_span_of, range(40), workers=2) as results:
                seen = [result async for result in results]
    calls, runs = (spans.named(f"{word} telemetry_jobs.current_span_of") for word in ("call", "run"))
    assert {parent_id(call) for call in calls} == {format(user.get_span_context().span_id, "016x")}
    assert sorted(seen) == sorted(map(span_id, calls)) == sorted(map(parent_id, runs))
    assert {(call.attributes or {})["trio_offload.item.count"] for call in calls} == {1}
    # A worker runs one call at a time, although it may have got several.
    for pid in {(run.attributes or {})["process.pid"] for run in runs}:
        own = sorted((run.start_time, run.end_time) for run in runs if (run.attributes or {})["process.pid"] == pid)
        assert all(ended <= begun for (_, ended), (begun, _) in pairwise(own))


async def test_items_that_fail_are_events_of_their_chunk(spans: Spans) -> None:
    async with open_worker_context() as pool:
        async with pool.map(telemetry_jobs.invert, [2, 0, 4, 0, 8], chunk_size=5, return_outcomes=True) as results:
            assert [isinstance(result, outcome.Value) async for result in results] == [True, False, True, False, True]
    call = spans.one("call telemetry_jobs.invert")
    attributes = call.attributes or {}
    assert (attributes["trio_offload.item.count"], attributes["trio_offload.item.failed"]) == (5, 2)
    assert attributes["error.type"] == "ZeroDivisionError"
    assert call.status.description == "2 of 5 items failed"
    events = [dict(event.attributes or {}) for event in call.events]
    assert [event["trio_offload.item.index"] for event in events] == [1, 3]
    assert "in invert" in str(events[0]["exception.stacktrace"])


async def test_an_item_that_kills_its_worker_ends_its_span(spans: Spans) -> None:
    async with open_worker_context() as pool:
        async with pool.map(jobs.call, [jobs.kill_self], return_outcomes=True) as results:
            (result,) = [result async for result in results]
    assert isinstance(result, outcome.Error)
    call, run = spans.one("call jobs.call"), spans.one("run jobs.call")
    assert (call.attributes or {})["trio_offload.outcome"] == "died"
    assert parent_id(run) == span_id(call)


@pytest.mark.parametrize("limit", [None, 0.05])
async def test_an_item_that_is_ended_ends_its_span(limit: float | None, line: Lifeline, spans: Spans) -> None:
    async with open_worker_context() as pool:
        async with pool.map(jobs.hold_for_ever, [line.path], timeout=limit, return_outcomes=True) as results:
            await line.pid()
            if limit is not None:
                assert [isinstance(result, outcome.Error) async for result in results] == [True]
    call = spans.one("call jobs.hold_for_ever")
    assert (call.attributes or {})["trio_offload.outcome"] == ("cancelled" if limit is None else "timed_out")
    assert parent_id(spans.one("run jobs.hold_for_ever")) == span_id(call)


async def test_an_item_that_is_ended_between_two_answers_ends_its_span(
    line: Lifeline, tmp_path: Path, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_PIPELINE_CUTOFF", math.inf)
    last, taken = MAX_UNINTERRUPTED - 1, tmp_path / "taken"
    job = functools.partial(map_jobs.arrive_and_hold, line.path, last, taken)
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        monkeypatch.setattr(map_jobs, "at_arrival", scope.cancel)
        async with open_worker_context() as pool:
            async with pool.map(job, map_jobs.numbers(last, taken), workers=1, chunk_size=1, window=100) as results:
                async for _ in results:
                    pass
    calls = spans.named("call map_jobs.arrive_and_hold")
    outcomes = [(call.attributes or {})["trio_offload.outcome"] for call in calls]
    assert outcomes == ["returned"] * MAX_UNINTERRUPTED + ["cancelled"]
    assert list(map(parent_id, spans.named("run map_jobs.arrive_and_hold"))) == list(map(span_id, calls))


# --- work that lives ------------------------------------------------------------------------------


async def test_a_stream_is_a_call(spans: Spans) -> None:
    async with open_worker_context() as pool:
        with spans.tracer.start_as_current_span("user") as user:
            async with pool.stream(telemetry_jobs.count_to, 3) as values:
                assert [value async for value in values] == [0, 1, 2]
    call = spans.one("call telemetry_jobs.count_to")
    assert parent_id(call) == format(user.get_span_context().span_id, "016x")
    assert parent_id(spans.one("run telemetry_jobs.count_to")) == span_id(call)


async def test_a_process_is_a_call(spans: Spans) -> None:
    async with trio_offload.open_process(telemetry_jobs.current_span) as process:
        _, seen, _ = await process.wait()
    assert seen == span_id(spans.one("call telemetry_jobs.current_span"))


async def test_a_method_of_an_actor_is_a_call_of_its_task(spans: Spans) -> None:
    async with trio_offload.open_actor(telemetry_jobs.Adder) as adder:
        spans.exporter.clear()
        parents: dict[str, str] = {}

        async def add(name: str) -> None:
            with spans.tracer.start_as_current_span(name) as span:
                parents[name] = format(span.get_span_context().span_id, "016x")
                await adder.add(1)

        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(add, name)
        assert await adder.add(0) == 3
    calls = spans.named("call telemetry_jobs.Adder.add")
    # The end of one call sends the next, which belongs to another task.
    assert sorted(map(parent_id, calls)) == sorted([*parents.values(), ""])
    assert sorted(map(parent_id, spans.named("run telemetry_jobs.Adder.add"))) == sorted(map(span_id, calls))


async def test_a_method_that_a_job_calls_belongs_to_the_job(spans: Spans) -> None:
    async with trio_offload.open_actor(telemetry_jobs.Adder) as adder, open_worker_context() as pool:
        assert await pool.run_sync(telemetry_jobs.add_in, adder, 7) == 7
    outer, inner = spans.one("call telemetry_jobs.add_in"), spans.one("call telemetry_jobs.Adder.add")
    assert parent_id(inner) == span_id(outer)
    assert parent_id(spans.one("run telemetry_jobs.Adder.add")) == span_id(inner)


async def test_a_generator_method_that_a_job_calls_belongs_to_the_job(spans: Spans) -> None:
    async with trio_offload.open_actor(telemetry_jobs.Adder) as adder, open_worker_context() as pool:
        assert await pool.run_sync(telemetry_jobs.count_in, adder, 3) == [0, 1, 2]
    outer, inner = spans.one("call telemetry_jobs.count_in"), spans.one("call telemetry_jobs.Adder.count_to")
    assert parent_id(inner) == span_id(outer)
    assert parent_id(spans.one("run telemetry_jobs.Adder.count_to")) == span_id(inner)


# --- callbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("waits", [True, False])
async def test_a_callback_belongs_to_the_job(is_async: bool, waits: bool, spans: Spans) -> None:
    def say() -> None:
        spans.tracer.start_span("within").end()

    async def say_later() -> None:
        say()
        # The end of the job cancels a callback for which it does not wait.
        await trio.lowlevel.checkpoint()

    function = say_later if is_async else say
    async with open_worker_context() as pool:
        await pool.run_sync(telemetry_jobs.ask, trio_offload.callback(function, wait=waits))
    callback = spans.one(f"callback {__name__}.{function.__qualname__}")
    assert parent_id(callback) == span_id(spans.one("call telemetry_jobs.ask"))
    assert parent_id(spans.one("within")) == span_id(callback)
    assert callback.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_callback_that_raises_says_so(is_async: bool, spans: Spans) -> None:
    def fail() -> None:
        raise ZeroDivisionError("not here")

    async def fail_later() -> None:
        fail()

    function = fail_later if is_async else fail
    async with open_worker_context() as pool:
        assert await pool.run_sync(telemetry_jobs.ask_and_forgive, trio_offload.callback(function)) == "not here"
    callback = spans.one(f"callback {__name__}.{function.__qualname__}")
    assert (callback.attributes or {})["error.type"] == "ZeroDivisionError"
    assert spans.one("call telemetry_jobs.ask_and_forgive").status.status_code is StatusCode.UNSET


async def test_calls_in_a_callback_are_its_children(spans: Spans) -> None:
    async with open_worker_context() as pool:

        async def call_more() -> int:
            async with pool.map(abs, [-1], workers=1) as results:
                first = [result async for result in results]
            return sum(first) + await pool.run_sync(abs, -2, limiter=trio.CapacityLimiter(1))

        assert await pool.run_sync(telemetry_jobs.ask, trio_offload.callback(call_more)) == 3
    (callback,) = [span for span in spans.exporter.get_finished_spans() if span.name.startswith("callback ")]
    assert {parent_id(call) for call in spans.named("call abs")} == {span_id(callback)}


# --- workers that export --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "loop"], indirect=True)
async def test_a_worker_with_a_provider_makes_the_span_of_the_job(kind: str, tmp_path: Path, spans: Spans) -> None:
    path = tmp_path / "spans"
    init = exporting_to(path)
    async with open_worker_context(init=init, worker_type=type_of(kind)) as pool:
        inner = await pool.run_sync(telemetry_jobs.make_span, "within")
        with pytest.raises(ZeroDivisionError):
            await pool.run_sync(telemetry_jobs.invert, 0)

        def say() -> None:
            spans.tracer.start_span("here").end()

        await pool.run_sync(telemetry_jobs.ask, trio_offload.callback(say))
        (worker,) = pool.statistics().workers
    exported = {span["name"]: span for span in map(json.loads, path.read_text().splitlines())}
    within, job = exported["within"], exported["run telemetry_jobs.make_span"]
    call = spans.one("call telemetry_jobs.make_span")
    assert within["context"]["span_id"] == f"0x{inner}"
    assert within["parent_id"] == job["context"]["span_id"]
    assert job["parent_id"] == f"0x{span_id(call)}"
    assert call.context is not None
    assert job["context"]["trace_id"] == within["context"]["trace_id"] == f"0x{call.context.trace_id:032x}"
    assert job["attributes"] == {"code.function.name": "telemetry_jobs.make_span", "process.pid": worker.pid}
    failed = exported["run telemetry_jobs.invert"]
    assert failed["attributes"]["error.type"] == "ZeroDivisionError"
    assert failed["status"]["status_code"] == "ERROR"
    assert [event["name"] for event in failed["events"]] == ["exception"]
    (callback,) = [span for span in spans.exporter.get_finished_spans() if span.name.startswith("callback ")]
    assert f"0x{parent_id(callback)}" == exported["run telemetry_jobs.ask"]["context"]["span_id"]
    # Here the same spans are not made again.
    assert not [name for name in spans.names() if name.startswith("run ")]


async def test_the_span_of_a_dead_worker_is_made_here(tmp_path: Path, spans: Spans) -> None:
    async with open_worker_context(init=exporting_to(tmp_path / "spans")) as pool:
        with pytest.raises(trio_offload.BrokenWorkerError):
            await pool.run_sync(jobs.kill_self)
    assert parent_id(spans.one("run jobs.kill_self")) == span_id(spans.one("call jobs.kill_self"))


async def test_a_fork_leaves_the_span_to_the_program(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fork inherits the provider of this program, whose exporter has no thread there.
    monkeypatch.setattr(trace, "get_tracer", lambda *args, **options: spans.tracer)
    async with open_worker_context(worker_type="fork") as pool:
        await pool.run_sync(telemetry_jobs.current_span)
    assert spans.names() == ["call telemetry_jobs.current_span", "run telemetry_jobs.current_span", "start worker"]


def exporting_to(path: Path) -> Any:
    return functools.partial(telemetry_jobs.export_to, str(path))


# --- without telemetry ----------------------------------------------------------------------------

UNASKED = """
import sys
import trio, trio_offload

def loaded():
    return [name for name in sys.modules if "telemetry" in name]

async def main():
    print(await trio_offload.run_sync(loaded), loaded())

if __name__ == "__main__":
    trio.run(main)
"""


def test_nothing_is_imported_unless_asked_for(tmp_path: Path) -> None:
    ended = run_script(tmp_path, UNASKED)
    assert (ended.stdout, ended.stderr) == ("[] []\n", "")


def test_without_the_package_the_message_names_the_remedy(tmp_path: Path) -> None:
    ended = run_script(tmp_path, 'import sys; sys.modules["opentelemetry"] = None; import trio_offload.telemetry', expect=1)
    assert 'opentelemetry-api: pip install "trio-offload[otel]"' in ended.stderr.splitlines()[-1]
