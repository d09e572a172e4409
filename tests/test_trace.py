"""Contract and end to end: what a context writes with ``trace=``, event by event, and that it can be read however the program ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from lifeline import PATIENCE, Lifeline
from running import in_fork
from scripted_peer import Peer, frame, pickled, scripted_peer, welcome

from trio_offload import BrokenWorkerError, open_worker_context, retire_when
from trio_offload._trace import TraceWriter
from trio_offload_worker._protocol.frames import Kind

# What «Trace Event Format» asks of each phase, beside the name.
FIELDS = {
    "M": {"pid", "tid", "args"},
    "X": {"pid", "tid", "args", "ts", "dur", "cat"},
    "C": {"pid", "tid", "args", "ts"},
    "i": {"pid", "tid", "args", "ts", "s"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a trace that was closed. Fails if one is not of the format."""
    return check(json.loads(path.read_text()))


def read_without_end(path: Path) -> list[dict[str, Any]]:
    """The events of a trace that nobody closed, as the importers read it: with the bracket that is missing."""
    return check(json.loads(path.read_text() + "]"))


def count(path: Path, text: str) -> int:
    return path.read_text().count(text)


def check(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for event in events:
        assert set(event) == FIELDS[event["ph"]] | {"name", "ph"}, event
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event.get("ts", 0) >= 0
    for row in {event["tid"] for event in events}:
        # Perfetto cannot show slices of one row that overlap.
        ends = 0.0
        for one in sorted((event for event in events if event["ph"] == "X" and event["tid"] == row), key=lambda e: e["ts"]):
            assert one["ts"] >= ends - 0.001
            ends = one["ts"] + one["dur"]
        # What happens in the course of a run is written in its course.
        when = [event["ts"] for event in events if event["ph"] in "Ci" and event["tid"] == row]
        assert when == sorted(when)
    return events


def slices(events: list[dict[str, Any]], category: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["cat"] == category]


def rows(events: list[dict[str, Any]]) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}


async def test_one_row_a_worker_a_slice_a_job_a_curve_of_memory(path: Path) -> None:
    async with open_worker_context(trace=path) as context:
        pids = [await context.run_sync(os.getpid) for _ in range(3)]
        # Long enough for its result to bring figures: a worker reads them once a millisecond at most.
        await context.run_sync(time.sleep, 0.01)
    (pid,) = set(pids)
    events = read(path)
    (process,) = [event for event in events if event["name"] == "process_name"]
    assert process["args"] == {"name": "trio-offload"}
    assert {event["pid"] for event in events} == {os.getpid()}
    assert rows(events) == {pid: f"worker {pid}"}
    (start,) = slices(events, "worker")
    done = slices(events, "job")
    names = ["posix.getpid"] * 3 + ["time.sleep"]
    assert [(one["name"], one["tid"], one["args"]) for one in done] == [(name, pid, {"outcome": "ok"}) for name in names]
    assert done[0]["ts"] >= start["ts"] + start["dur"] - 0.001
    curve = [event["args"]["rss"] for event in events if event["name"] == f"memory {pid}"]
    # When it was ready, after the long job, when there was nothing left; the short jobs may have brought figures or not.
    assert len(curve) >= 3
    assert all(size > 1_000_000 for size in curve[:-1])
    assert curve[-1] == 0
    (end,) = [event for event in events if event["ph"] == "i"]
    assert (end["name"], end["tid"], end["s"]) == ("end", pid, "t")


async def test_how_a_job_ended(path: Path, line: Lifeline) -> None:
    async with open_worker_context(trace=path) as context:
        await context.run_sync(bool)
        with pytest.raises(ValueError, match="no"):
            await context.run_sync(jobs.raise_it, ValueError("no"))
        async with trio.open_nursery() as nursery:

            async def run_for_ever() -> None:
                await context.run_sync(jobs.hold_for_ever, line.path, kill_on_cancel=True)

            nursery.start_soon(run_for_ever)
            killed = await line.pid()
            nursery.cancel_scope.cancel()
        with pytest.raises(BrokenWorkerError) as told:
            await context.run_sync(jobs.segfault)
    events = read(path)
    assert [(one["name"], one["args"]["outcome"]) for one in slices(events, "job")] == [
        ("bool", "ok"),
        ("jobs.raise_it", "raised"),
        ("jobs.hold_for_ever", "cancelled"),
        ("jobs.segfault", "BrokenWorkerError"),
    ]
    # Three jobs in the first worker, which was killed, and one in the next.
    assert [one["tid"] for one in slices(events, "job")] == [killed, killed, killed, told.value.pid]
    assert len(rows(events)) == 2
    assert len([event for event in events if event["ph"] == "i"]) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda number: b"garbage" * 9, id="bytes"),
        pytest.param(lambda number: frame(Kind.RETIRE), id="kind"),
        pytest.param(lambda number: frame(Kind.RESULT, number + 1, (pickled(5),)), id="number"),
        pytest.param(lambda number: frame(Kind.ABORTED, body={"code": "why", "message": "it gave up"}), id="refusal"),
    ],
)
async def test_a_job_whose_worker_violates_the_protocol(
    wrong: Callable[[int], bytes], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(peer: Peer) -> None:
        for kind in (Kind.HELLO, Kind.SETUP):
            await peer.hear(kind)
        peer.say(welcome())
        call = await peer.hear(Kind.CALL)
        peer.say(frame(Kind.READY) + wrong(call.id))

    async with open_worker_context(trace=path) as context:
        with monkeypatch.context() as patches, scripted_peer(tmp_path, patches) as peer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, peer)
                with pytest.raises(BrokenWorkerError) as raised:
                    await context.run_sync(abs, -5)
    (job,) = slices(read(path), "job")
    assert (job["name"], job["tid"], job["args"]["outcome"]) == ("abs", raised.value.pid, "BrokenWorkerError")
    assert job["args"]["error"] == f"BrokenWorkerError: {raised.value}"


async def test_a_worker_that_takes_anothers_place_has_a_row_of_its_own(path: Path) -> None:
    async with open_worker_context(trace=path, retire=retire_when(jobs=1)) as context:
        pids = [await context.run_sync(os.getpid) for _ in range(3)]
    events = read(path)
    assert len(set(pids)) == 3
    assert [one["tid"] for one in slices(events, "job")] == pids
    assert set(pids) <= set(rows(events))
    # Every row that was begun has its end.
    assert {event["tid"] for event in events if event["ph"] == "i"} >= set(pids)


async def test_workers_that_were_warmed_have_their_rows_and_no_jobs(path: Path) -> None:
    async with open_worker_context(trace=path) as context:
        await context.prewarm(2)
        pids = {worker.pid for worker in context.statistics().workers}
    events = read(path)
    assert set(rows(events)) == pids
    assert slices(events, "job") == []
    assert len(slices(events, "worker")) == 2


async def test_a_running_job_has_a_curve(path: Path, line: Lifeline) -> None:
    async with open_worker_context(trace=path, report_interval=0.01) as context:
        async with trio.open_nursery() as nursery:

            async def run_for_ever() -> None:
                await context.run_sync(jobs.hold_for_ever, line.path, kill_on_cancel=True)

            nursery.start_soon(run_for_ever)
            pid = await line.pid()
            with trio.fail_after(PATIENCE):
                # Each is in the file as soon as it was heard.
                while count(path, f"memory {pid}") < 5:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            assert slices(read_without_end(path), "job") == []
            nursery.cancel_scope.cancel()
    assert len(slices(read(path), "job")) == 1


def test_the_trace_of_a_program_that_was_killed(tmp_path: Path) -> None:
    """All that had happened is there, though nothing was closed and nobody had a moment for it."""
    (tmp_path / "program.py").write_text(
        "import os, signal, trio, trio_offload\n"
        "async def main():\n"
        "    async with trio_offload.open_worker_context(trace='run.json') as context:\n"
        "        for number in range(20):\n"
        "            await context.run_sync(abs, -number)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    ran = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, timeout=PATIENCE, check=False)
    assert ran.returncode == -signal.SIGKILL
    events = read_without_end(tmp_path / "run.json")
    assert [one["name"] for one in slices(events, "job")] == ["abs"] * 20


def test_a_fork_of_the_program_writes_nothing(path: Path) -> None:
    """Neither its events nor, at its end, the closing bracket."""
    writer = TraceWriter(str(path))
    writer.open()

    def write() -> None:
        writer.memory(1, 0.0, 1)
        writer.close()

    assert in_fork(write) == 0
    writer.job(1, "f", 0.0, 0.0, "ok")
    writer.close()
    assert [event["name"] for event in json.loads(path.read_text())] == ["process_name", "f"]


def test_closing_twice_and_events_afterwards(path: Path) -> None:
    writer = TraceWriter(str(path))
    writer.open()
    writer.close()
    text = path.read_text()
    writer.memory(1, 0.0, 1)
    writer.close()
    assert path.read_text() == text
    assert len(json.loads(text)) == 1


def test_names_that_are_no_text_for_everyone(path: Path) -> None:
    """A file's name that is no UTF-8 is in the name of an item, and so is what would end a string."""
    writer = TraceWriter(str(path))
    writer.open()
    writer.job(1, 'f("\udce9\n")', 0.0, 0.0, "ok")
    writer.close()
    text = path.read_bytes()
    assert text.isascii()
    assert json.loads(text)[1]["name"] == 'f("\udce9\n")'


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
async def test_a_full_disk_cuts_the_trace_short_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with open_worker_context(trace="/dev/full") as context:
        assert [await context.run_sync(abs, -number) for number in range(3)] == [0, 1, 2]
    (record,) = caplog.records
    assert record.getMessage() == f"the trace is incomplete, because it could not be written: {os.strerror(errno.ENOSPC)}"


async def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trace='.*/run\.json' cannot be written: No such file or directory"):
        async with open_worker_context(trace=tmp_path / "nosuch" / "run.json"):
            pass


def test_a_context_that_is_refused_overwrites_nothing(path: Path) -> None:
    async def open_it() -> None:
        async with open_worker_context(idle_timeout=-1, trace=path):
            pass

    path.write_text("precious")
    with pytest.raises(ValueError, match="idle_timeout"):
        trio.run(open_it)
    assert path.read_text() == "precious"
