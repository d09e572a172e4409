"""Integration: what workers write to descriptors 1 and 2 comes to the program, told by job, with each kind of worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import output_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline
from records import kept_records

from trio_offload import BrokenWorkerError, WorkerType, open_worker_context


class Output:
    """Takes the output of a context."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str | None, str, bytes]] = []

    def __call__(self, job: str | None, stream: str, data: bytes) -> None:
        self.chunks.append((job, stream, data))

    def take(self) -> dict[tuple[str | None, str], bytes]:
        """The output so far, by job and stream. The next call begins with none."""
        joined: dict[tuple[str | None, str], bytes] = {}
        for job, stream, data in self.chunks:
            joined[job, stream] = joined.get((job, stream), b"") + data
        self.chunks.clear()
        return joined


@pytest.fixture
def output() -> Output:
    return Output()


async def test_told_by_job_before_the_result(of_any_kind: WorkerType, output: Output) -> None:
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        await context.run_sync(jobs.write, "one\n", "bad")
        assert output.take() == {
            ("output_jobs.write", "stdout"): b"one\n",
            ("output_jobs.write", "stderr"): b"bad",
        }
        await context.run_sync(jobs.write_item, 7)
        assert output.take() == {("output_jobs.write_item", "stdout"): b"item 7\n"}


async def test_every_way_to_write(of_any_kind: WorkerType, output: Output, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        await context.run_sync(jobs.write_in_every_way)
    name = "output_jobs.write_in_every_way"
    assert output.take() == {(name, "stdout"): b"python\nsystem\nc code\nprogram\n", (name, "stderr"): b"error\n"}
    assert capfd.readouterr() == ("", "")


async def test_much_without_a_newline(of_any_kind: WorkerType, output: Output) -> None:
    size = 5 * 2**20
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        with trio.fail_after(PATIENCE):
            assert await context.run_sync(jobs.write_much, size) == size
    ((_, data),) = output.take().items()
    assert data == b"x" * size


async def test_while_the_job_runs(of_any_kind: WorkerType, output: Output, line: Lifeline, gate: Gate) -> None:
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, jobs.write_at_gate, line.path, gate.path)
            await line.pid()
            assert await line.line() == "said"
            await trio.testing.wait_all_tasks_blocked()
            assert output.take() == {("output_jobs.write_at_gate", "stdout"): b"early\n"}
            gate.open()


async def test_outside_of_jobs(of_any_kind: WorkerType, output: Output, line: Lifeline, gate: Gate) -> None:
    async with open_worker_context(init=_write_in_init, worker_type=of_any_kind, output=output) as context:
        await context.run_sync(jobs.leave_writer, line.path, gate.path)
        assert output.take() == {(None, "stdout"): b"from init\n"}
        await line.pid()
        gate.open()
        assert await line.line() == "said"
        # A program that outlives its job belongs to no job.
        await context.run_sync(jobs.write)
        assert output.take() == {(None, "stdout"): b"late\n", ("output_jobs.write", "stdout"): b"out\n"}


def _write_in_init() -> None:
    print("from init")


async def test_init_that_writes_much(of_any_kind: WorkerType, output: Output) -> None:
    async with open_worker_context(init=_write_much_in_init, worker_type=of_any_kind, output=output) as context:
        with trio.fail_after(PATIENCE):
            await context.run_sync(jobs.write)
    assert output.take()[None, "stdout"] == b"x" * (3 * 2**20)


def _write_much_in_init() -> None:
    jobs.write_much(3 * 2**20)


async def test_exit_that_writes_much(of_any_kind: WorkerType, output: Output) -> None:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind, output=output) as context:
            await context.run_sync(jobs.write_at_exit, 3 * 2**20)
    assert output.take() == {(None, "stdout"): b"x" * (3 * 2**20)}


async def test_items_of_a_map(of_any_kind: WorkerType, output: Output) -> None:
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        async with context.map(jobs.write_item, range(20), workers=2) as results:
            assert [result async for result in results] == list(range(20))
    ((where, data),) = output.take().items()
    assert where == ("output_jobs.write_item", "stdout")
    assert sorted(data.split(b"\n")) == sorted([b"", *(b"item %d" % item for item in range(20))])


async def test_death_has_the_end_of_the_output(of_any_kind: WorkerType, output: Output) -> None:
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        await context.run_sync(jobs.write, "of another call")
        with pytest.raises(BrokenWorkerError) as caught:
            await context.run_sync(jobs.write_and_die, 100_000)
    crash = caught.value.crash
    assert crash is not None
    assert crash.output is not None
    assert len(crash.output) == 2**16
    assert set(crash.output.replace("the end", "")) == {"x"}
    assert output.take()["output_jobs.write_and_die", "stderr"] == b"the end"


async def test_cancelled_call(of_any_kind: WorkerType, output: Output, line: Lifeline, gate: Gate) -> None:
    async with open_worker_context(worker_type=of_any_kind, output=output) as context:
        async with trio.open_nursery() as nursery:
            run = context.run_sync
            nursery.start_soon(lambda: run(jobs.write_at_gate, line.path, gate.path, kill_on_cancel=True))
            await line.pid()
            assert await line.line() == "said"
            nursery.cancel_scope.cancel()
    assert output.take() == {("output_jobs.write_at_gate", "stdout"): b"early\n"}


async def test_call_that_outlasts_its_cancellation(
    of_any_kind: WorkerType, output: Output, line: Lifeline, gate: Gate
) -> None:
    """The pipes are read although the caller is cancelled: a job that is not killed may write on."""
    results: list[int] = []

    async def call() -> None:
        results.append(await context.run_sync(jobs.write_much_at_gate, line.path, gate.path, 5 * 2**20))

    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind, output=output) as context:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await line.pid()
                nursery.cancel_scope.cancel()
                gate.open()
    assert results == [5 * 2**20]


async def test_function_that_raises(of_any_kind: WorkerType, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(job: str | None, stream: str, data: bytes) -> None:
        raise LookupError(stream)

    async with open_worker_context(worker_type=of_any_kind, output=refuse) as context:
        await context.run_sync(jobs.write)
    assert "LookupError: stdout" in capsys.readouterr().err


async def test_lines(of_any_kind: WorkerType) -> None:
    with kept_records() as records:
        async with open_worker_context(worker_type=of_any_kind, output="lines") as context:
            await context.run_sync(jobs.write, "one\ntwo\nthr", "bad\n")
            await context.run_sync(jobs.write, "\xe4\n")
            pid = await context.run_sync(os.getpid)
    lines = [
        (
            record.name,
            record.levelno,
            record.getMessage(),
            vars(record)["stream"],
            vars(record)["job"],
            vars(record)["worker"],
        )
        for record in records.records
    ]
    logger, job = logging.getLogger("trio_offload").getChild("output").name, "output_jobs.write"
    expected = [(logger, logging.INFO, text, "stdout", job, pid) for text in ("one", "two", "thr", "\xe4")]
    assert sorted(lines) == sorted([*expected, (logger, logging.WARNING, "bad", "stderr", job, pid)])


async def test_line_that_does_not_end(of_any_kind: WorkerType) -> None:
    with kept_records() as records:
        async with open_worker_context(worker_type=of_any_kind, output="lines") as context:
            await context.run_sync(jobs.write_much, 2**20)
    assert "".join(records.take()) == "x" * 2**20


async def test_inherit_is_the_default(of_any_kind: WorkerType, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        assert context.output == "inherit"
        await context.run_sync(jobs.write)
    assert capfd.readouterr().out == "out\n"


@pytest.mark.parametrize("value", [None, "file", 7])
def test_wrong_values(value: Any) -> None:
    with pytest.raises(ValueError, match="output must be 'inherit', 'lines' or a function, got"):
        open_worker_context(output=value)


async def test_prewarmed_and_retired_workers(of_any_kind: WorkerType, output: Output) -> None:
    """Each start and each end leaves nothing behind: the fixture of each test looks for descriptors."""
    retire: Callable[[], Any] = object
    async with open_worker_context(retire=retire, worker_type=of_any_kind, output=output) as context:
        await context.prewarm(2)
        for index in range(3):
            await context.run_sync(jobs.write, f"{index}")
    assert output.take() == {("output_jobs.write", "stdout"): b"012"}
