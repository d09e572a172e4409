"""Guarantees: what several threads, and signal handlers, use at the same time stays whole.

The default context is shared by every ``trio.run`` in every thread, and anybody may ask for its statistics at any moment. What
is forced here is the moment: one side is stopped in the middle, and the other comes.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from kinds import use_loops
from lifeline import PATIENCE, wait_for_end
from programs import descriptor_jobs
from running import in_fork, run_script
from workers import start_worker

import trio_offload
from trio_offload import WorkerType, _at_exit, open_worker_context, retire_when
from trio_offload._interpreter import file_modules
from trio_offload._options import ContextOptions
from trio_offload._pool.cache import WorkerCache
from trio_offload._pool.tracker import Counters
from trio_offload._process import process as process_module
from trio_offload._process import start as _process
from trio_offload._trace import TraceWriter
from trio_offload._worker.worker import Worker

TYPES = list(WorkerType)


@contextmanager
def on_signal(handler: Callable[[], Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def let_leave(workers: list[Worker]) -> None:
    """Wait until their processes have ended, and leave it to others to reap them."""
    for worker in workers:
        if not worker.process.ended:
            wait_for_end(worker.process.pid)


# --- workers on their way out ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("how", ["run_sync", "map"])
async def test_workers_that_have_left_are_reaped_by_the_next_call(kind: WorkerType, how: str) -> None:
    """With a spare for each call there never is an idle worker; who has left is reaped all the same."""
    async with open_worker_context(retire=retire_when(jobs=1), worker_type=kind) as context:
        for number in range(12):
            if how == "run_sync":
                assert await context.run_sync(abs, -number) == number
            else:
                async with context.map(abs, [-number]) as results:
                    assert [result async for result in results] == [number]
            leaving = list(context._cache._leaving)
            # This call's, which may take its time; those before it have ended.
            assert len(leaving) <= 1
            let_leave(leaving)


async def test_a_context_that_was_replaced_has_its_workers_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    default = trio_offload._default.DefaultContext()
    try:
        await default.context().run_sync(bool)
        (worker,) = default.context()._cache._idle
        with pytest.warns(UserWarning, match="replaces a default context that still has workers"):
            default.replace(trio_offload.WorkerContext._create(ContextOptions()))
        let_leave([worker])
        default.context().statistics()
        assert worker.process.ended
    finally:
        default.shutdown()
        atexit.unregister(default.shutdown)
        _at_exit.handlers.remove(default.shutdown)


class Slow:
    """Stops whoever calls a function in the middle of it, once, until the test lets it go on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, *args: Any) -> Any:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
        return self._function(*args)


async def test_two_threads_may_see_off_the_same_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = WorkerCache(Counters())
    worker = await start_worker()
    worker.ask_to_retire()
    cache.push(worker)
    let_leave([worker])
    slow = Slow(worker._let_go)
    monkeypatch.setattr(Worker, "_let_go", lambda _: slow())
    problems: list[BaseException] = []

    def see_off() -> None:
        try:
            cache.prune()
        except BaseException as problem:
            problems.append(problem)

    first = threading.Thread(target=see_off)
    first.start()
    assert slow.reached.wait(PATIENCE)
    second = threading.Thread(target=see_off)
    second.start()
    second.join(PATIENCE)
    assert not second.is_alive()
    slow.go_on.set()
    first.join(PATIENCE)
    assert not problems
    assert worker.process.ended
    assert not cache._leaving


async def test_one_that_was_killed_by_us_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has killed it says why; another thread may be the one that reaps it."""
    cache = WorkerCache(Counters())
    worker = await start_worker()
    worker.ask_to_retire()
    cache.push(worker)
    worker.kill()
    let_leave([worker])
    cache.prune()
    assert worker.process.ended
    assert not caplog.records


# --- signal handlers ------------------------------------------------------------------------------


async def test_a_handler_may_look_at_a_worker_that_is_being_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def end_family(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)
        original(*arguments)

    original = process_module.end_family
    monkeypatch.setattr(process_module, "end_family", end_family)
    worker = await start_worker()
    with on_signal(lambda: seen.append((worker.process.is_alive(), worker.process.kill()))):
        worker.kill()
    with trio.fail_after(PATIENCE):
        await worker.wait()
    # What the handler wanted was done by who was at it.
    assert seen[0] == (True, None)
    assert worker.process.exitcode == -signal.SIGKILL


async def test_handler_reads_statistics_during_reaping(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        (worker,) = context._cache._idle
        worker.ask_to_retire()
        context._cache._idle.clear()
        context._cache.push(worker)
        let_leave([worker])
        original = worker._let_go
        monkeypatch.setattr(Worker, "_let_go", lambda _: (signal.raise_signal(signal.SIGUSR1), original()))
        idle: list[int] = []
        with on_signal(lambda: idle.append(context.statistics().idle_workers)):
            context.statistics()
        assert idle == [0]
        assert not context._cache._leaving


def test_handler_writes_trace_during_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(TraceWriter(str(tmp_path / "trace.json"))) as trace:
        trace.open()
        original = os.write

        def write(descriptor: int, data: Any) -> int:
            monkeypatch.setattr(os, "write", original)
            signal.raise_signal(signal.SIGUSR1)
            return original(descriptor, data)

        with on_signal(lambda: trace.memory(2, time.monotonic(), 2)):
            monkeypatch.setattr(os, "write", write)
            trace.memory(1, time.monotonic(), 1)
    first, second, third = (tmp_path / "trace.json").read_text().split(",\n")[-3:]
    assert ('"memory 1"' in second, '"memory 2"' in third, third.endswith("\n]\n")) == (True, True, True), first


# --- forks by another thread ----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["pidfd", "record"])
async def test_a_fork_in_the_middle_of_a_closing_closes_nothing_else(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the copy the number may be that of something else by then."""
    original = os.close
    victim, report = os.pipe(), os.pipe()
    process, ours, record = _process.spawn("/bin/true", os.environb, ["true"])
    number = process._pidfd if what == "pidfd" else record.fileno()
    if number is None:
        pytest.skip("there are no pidfds here")

    def close(descriptor: int) -> None:
        original(descriptor)
        if descriptor == number:
            monkeypatch.setattr(os, "close", original)
            # Something else has the number, and another thread forks.
            os.dup2(victim[0], number)
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
            original(number)

    def fork() -> None:
        in_fork(look)

    def look() -> None:
        os.fstat(number)
        os.write(report[1], b"open")

    try:
        monkeypatch.setattr(os, "close", close)
        with trio.fail_after(PATIENCE):
            await process.wait()
        record.close()
        original(report[1])
        assert os.read(report[0], 10) == b"open"
    finally:
        ours.close()
        for descriptor in (*victim, report[0]):
            original(descriptor)


def test_a_fork_of_this_process_has_no_workers_of_ours(tmp_path: Path) -> None:
    """Whatever other threads were doing at that moment: it counts from nothing, and can start workers of its own."""
    ended = run_script(
        tmp_path,
        """
        import os, threading, trio, trio_offload

        async def main():
            await trio_offload.run_sync(bool)
            context = trio_offload._default.default_context.context()
            locks = [context._launcher.buffer_pool._lock, context._cache._idle[0]._closing, context._cache._idle[0].process._lock]
            for lock in locks:
                lock.acquire()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio_offload.run_sync, bool)
                await trio.testing.wait_all_tasks_blocked()
                pid = os.fork()
                if pid == 0:
                    statistics = trio_offload.default_context_statistics()
                    os._exit(10 + statistics.idle_workers + statistics.running_workers)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            for lock in locks:
                lock.release()

        if __name__ == "__main__":
            import trio.testing
            trio.run(main)
        """,
    )
    assert ended.lines() == ["10"], ended


# --- what the program closes under us --------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_descriptors_of_a_worker_that_the_program_has_closed(
    kind: WorkerType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go to another worker, and what has the numbers by then is neither written to nor closed."""
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    async with open_worker_context(worker_type=kind) as context:
        await context.run_sync(bool)
        (worker,) = context._cache._idle
        assert worker._channel is not None
        assert worker._record is not None
        numbers = [worker._channel._descriptor, worker._record.fileno()]
        if worker.process._pidfd is not None:
            numbers.append(worker.process._pidfd)
        for number in numbers:
            os.dup2(file, number, inheritable=False)
        assert await context.run_sync(abs, -5) == 5
        assert list(context._cache._idle) != [worker]
    for number in (*numbers, file):
        os.close(number)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("is_loop", [False, True])
async def test_exit_of_a_worker_whose_record_a_job_has_closed(
    is_loop: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the job have the numbers by then. Python's end writes their data."""
    if is_loop:
        use_loops(monkeypatch)
    async with open_worker_context() as context:
        async with context.map(abs, range(100), workers=1, chunk_size=10) as results:
            assert [result async for result in results] == [*range(100)]
        numbers = await context.run_sync(descriptor_jobs.replace_record, str(tmp_path))
    assert len(numbers) >= 2
    assert [(tmp_path / str(number)).read_text() for number in numbers] == ["data"] * len(numbers)


# --- what is remembered between calls -------------------------------------------------------------


def test_nested_module_snapshot_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    search = file_modules.FileModules()
    search.find(sys.path)
    module = types.ModuleType("a_module_from_nowhere")
    module.__file__ = "/nowhere/at/all.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    slow = Slow(file_modules._source)
    monkeypatch.setattr(file_modules, "_source", slow)
    found: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: found.append(search.find(sys.path)))
    first.start()
    assert slow.reached.wait(PATIENCE)
    found.append(search.find(sys.path))
    slow.go_on.set()
    first.join(PATIENCE)
    found.append(search.find(sys.path))
    assert [module.__name__ in each for each in found] == [True, True, True]


@pytest.mark.parametrize("kind", TYPES)
async def test_a_workers_start_leaves_no_class_behind(kind: WorkerType) -> None:
    """Those that ctypes makes are never given back as a whole; one for each start was hundreds of megabytes in some minutes."""

    def count_classes() -> int:
        return sum(isinstance(thing, type) for thing in gc.get_objects())

    async with open_worker_context(retire=object, worker_type=kind) as context:
        for _ in range(2):
            await context.run_sync(bool)
        gc.collect()
        before = count_classes()
        for _ in range(5):
            await context.run_sync(bool)
        assert count_classes() == before
