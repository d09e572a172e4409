"""The fault matrix of log records: a worker ends at each moment, with each kind of worker.

| moment | the record |
|---|---|
| before the write | is not made |
| in the middle of it | is dropped, not torn |
| written, the parent has not read it | is handled |
| the last words of a process that ends itself | are handled, before the error is raised |
| the call is cancelled, or times out | what was written is handled |
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
from pathlib import Path

import logging_jobs as jobs
import outcome
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline, wait_for_end
from records import Records
from scripted_peer import frame, pickled, scripted_peer, welcome
from workers import make_launcher

from trio_offload import BrokenWorkerError, WorkerContext, WorkerTimeoutError
from trio_offload._forwarding.logs import LogForwarder
from trio_offload._pickling.calls import dump_call
from trio_offload_worker._protocol.frames import Kind


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit"])
async def test_last_words(context: WorkerContext, records: Records, how: str) -> None:
    with pytest.raises(BrokenWorkerError):
        await context.run_sync(jobs.end_by, how)
    assert records.take() == ["first", "last words"]


async def test_written_and_unread(context: WorkerContext, records: Records, line: Lifeline, gate: Gate) -> None:
    with pytest.RaisesGroup(BrokenWorkerError, flatten_subgroups=True, allow_unwrapped=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.say_behind_gate, line.path, gate.path)
            pid = await line.pid()
            # From here on the parent reads nothing: the event loop stands still.
            gate.open()
            os.set_blocking(line._descriptor, True)
            assert os.read(line._descriptor, 100) == b"said\n"
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            os.set_blocking(line._descriptor, False)
            assert records.take() == []
    assert records.take() == ["written"]


async def test_cancelled_call(context: WorkerContext, records: Records, line: Lifeline, gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        run = context.run_sync
        nursery.start_soon(lambda: run(jobs.say_behind_gate, line.path, gate.path, kill_on_cancel=True))
        await line.pid()
        gate.open()
        os.set_blocking(line._descriptor, True)
        assert os.read(line._descriptor, 100) == b"said\n"
        os.set_blocking(line._descriptor, False)
        nursery.cancel_scope.cancel()
    assert records.take() == ["written"]


async def test_call_that_times_out(context: WorkerContext, records: Records, line: Lifeline) -> None:
    with pytest.raises(WorkerTimeoutError):
        await context.run_sync(jobs.end_by, "", line.path, timeout=0.5)
    assert records.take() == ["first", "last words"]


async def test_error_of_the_job(context: WorkerContext, records: Records) -> None:
    with pytest.raises(AttributeError):
        await context.run_sync(jobs.end_by, "no signal")
    assert records.take() == ["first", "last words"]


async def test_conversation_cut_after_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: Records) -> None:
    """A record is handled if all of it was written, else dropped."""
    origin = ("library", "library", logging.INFO, "INFO", "/a/b.py", 7, "say", 1, "MainThread", 2, "worker")
    posts = [
        frame(
            Kind.POST,
            1,
            (pickled((1, text, 1.5, 500.0, origin if text == "one" else None, None, None)) + bytes(3),),
            {"op": "log", "thread": 0},
        )
        for text in ("one", "two")
    ]
    data = b"".join([*posts, frame(Kind.RESULT, 1, (pickle.dumps("done"),))])
    lengths = list(itertools.accumulate(map(len, posts)))
    for place in range(len(data) + 1):
        folder = tmp_path / str(place)
        folder.mkdir()
        with trio.fail_after(PATIENCE), scripted_peer(folder, monkeypatch) as peer:
            launcher = make_launcher(forward_logging=True)
            launcher.forwarder = LogForwarder({"": 0})
            worker = launcher.begin()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda worker=worker: worker.finish(cancellable=True))
                await peer.hear(Kind.HELLO)
                await peer.hear(Kind.SETUP)
                peer.say(welcome() + frame(Kind.READY))
            worker.submit(dump_call(print, ()))
            results: list[outcome.Outcome[object]] = []

            async def answer(worker=worker, results=results) -> None:  # type: ignore[no-untyped-def]
                results.append(await outcome.acapture(worker.answer))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                await peer.hear(Kind.CALL)
                peer.say(data[:place])
                peer.end()
            await worker.end()
        whole = [text for text, length in zip(("one", "two"), lengths, strict=True) if place >= length]
        assert records.take() == whole, place
        if place == len(data):
            assert results[0] == outcome.Value(("done", None))
        else:
            assert isinstance(results[0], outcome.Error)
            assert isinstance(results[0].error, BrokenWorkerError)
