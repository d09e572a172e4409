"""End to end: what multiprocessing gives its children goes on working in a job, and jobs start processes as they like."""

from __future__ import annotations

import multiprocessing
import multiprocessing.managers
import os
import sys
import time
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import pytest
import trio
from programs import multiprocessing_jobs as jobs
from running import PROGRAMS, Ended, run, write

from trio_offload import BrokenWorkerError, WorkerContext, open_worker_context
from trio_offload._interpreter import settings as _settings

METHODS = ["spawn", "fork", "forkserver"]
PATIENCE = 60.0


@pytest.fixture
def manager() -> Iterator[Any]:
    # Python 3.12 and newer warn of a fork where there are threads; Trio's are there.
    with multiprocessing.get_context("spawn").Manager() as manager:
        yield manager
    # pytest keeps the manager until the test's other fixtures are done, and it keeps its process's pipes.
    vars(manager).clear()


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """multiprocessing starts it when it is first needed, and it lives as long as this process."""
    resource_tracker.ensure_running()


def script(folder: Path, text: str, expect: int | None = 0) -> Ended:
    """Programs of their own where it matters what this process has imported already."""
    prelude = f"import sys\nsys.path.insert(0, {str(PROGRAMS)!r})\nimport os, time, trio, trio_offload\nimport multiprocessing_jobs as jobs\n"
    return run([sys.executable, write(folder / "script.py", prelude + text)], expect=expect)


# --- proxies of managers ---------------------------------------------------------------------------------------


async def test_proxies_of_every_kind(context: WorkerContext, manager: Any) -> None:
    numbers, mapping, namespace = manager.list([1]), manager.dict(a=1), manager.Namespace()
    assert await context.run_sync(jobs.append, numbers, 2) == 2
    assert list(numbers) == [1, 2]
    assert await context.run_sync(jobs.put_into, mapping, "b", [5]) == ["a", "b"]
    assert dict(mapping) == {"a": 1, "b": [5]}
    namespace.value = 0
    await context.run_sync(jobs.increment, manager.Lock(), namespace, 3)
    assert namespace.value == 3
    inbox, outbox = manager.Queue(), manager.Queue()
    inbox.put(21)
    await context.run_sync(jobs.through_queues, inbox, outbox)
    assert outbox.get(timeout=PATIENCE) == 42
    structure = await context.run_sync(jobs.nested_proxies, {"list": [numbers]})
    assert list(structure["list"][0]) == list(numbers) == [1, 2, "nested"]


async def test_jobs_meet_in_a_managers_events(context: WorkerContext, manager: Any) -> None:
    one, two = manager.Event(), manager.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.meet, one, two)
        nursery.start_soon(context.run_sync, jobs.meet, two, one)


async def test_a_managers_lock_keeps_workers_apart(context: WorkerContext, manager: Any) -> None:
    lock, namespace = manager.Lock(), manager.Namespace(value=0)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(context.run_sync, jobs.increment, lock, namespace, 10)
    assert namespace.value == 30


def test_what_is_looked_at_before_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of its own import a module has no contents; and each may become another one at any time."""
    for name in ("multiprocessing.process", "multiprocessing.resource_tracker"):
        monkeypatch.delitem(sys.modules, name)
    authkey, descriptor, strays, number, path = _settings.current_snapshot()
    assert (authkey, descriptor, path) == (None, None, tuple(sys.path))
    processes: Any = types.ModuleType("multiprocessing.process")
    trackers: Any = types.ModuleType("multiprocessing.resource_tracker")
    monkeypatch.setitem(sys.modules, "multiprocessing.process", processes)
    monkeypatch.setitem(sys.modules, "multiprocessing.resource_tracker", trackers)
    assert _settings.current_snapshot() == (None, None, strays, number, path)
    processes.current_process = lambda: types.SimpleNamespace(authkey=b"a key")
    assert _settings.current_snapshot() == (b"a key", None, strays, number, path)
    trackers._resource_tracker = types.SimpleNamespace(_fd=7)
    assert _settings.current_snapshot() == (b"a key", 7, strays, number, path)
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert _settings.current_snapshot() == (b"a key", 7, strays, number + 1, path)
    assert _settings.current_snapshot() == (b"a key", 7, strays, number + 1, path)
    monkeypatch.delitem(sys.modules, "__main__")
    assert _settings.current_snapshot() == (b"a key", 7, strays, number + 2, path)
    monkeypatch.undo()
    assert _settings.current_snapshot() == (
        multiprocessing.current_process().authkey,
        resource_tracker._resource_tracker._fd,  # type: ignore[attr-defined]
        strays,
        number + 3,
        path,
    )


ORDERS = {
    "the manager, then the worker": "make_manager(); start_worker()",
    "the worker, then the manager": "start_worker(); make_manager()",
    "the worker imports first": "start_worker(); call(jobs.import_it); make_manager()",
    "the worker before multiprocessing is imported": "assert 'multiprocessing' not in sys.modules; start_worker(); make_manager()",
    "all at once": "make_manager(); start_worker(); call(jobs.import_it)",
    "the key changes": (
        "import multiprocessing; start_worker(); call(jobs.import_it); multiprocessing.current_process().authkey = b'new'; make_manager()"
    ),
    "the key changes before": (
        "import multiprocessing; multiprocessing.current_process().authkey = b'new'; start_worker(); make_manager()"
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_whichever_came_first(tmp_path: Path, order: str) -> None:
    ended = script(
        tmp_path,
        """
def call(*args):
    return trio.run(trio_offload.run_sync, *args)

def make_manager():
    global proxy, manager
    import multiprocessing
    manager = multiprocessing.Manager()
    proxy = manager.list()

def start_worker():
    assert call(jobs.imported) is False
    assert trio_offload.default_context_statistics().idle_workers == 1

if __name__ == "__main__":
    """
        + ORDERS[order]
        + """
    first = call(os.getpid)
    assert call(jobs.append, proxy, "one") == 1
    assert call(jobs.append, proxy, "two") == 2
    assert call(os.getpid) == first
    print(list(proxy))
    manager.shutdown()
""",
    )
    assert ended.lines() == ["['one', 'two']"]
    assert ended.stderr == ""


async def test_a_manager_with_a_key_of_its_own(context: WorkerContext) -> None:
    """Its proxies carry no key when they are pickled, so a job has to be told it, as any process has."""
    manager = multiprocessing.managers.SyncManager(authkey=b"another key", ctx=multiprocessing.get_context("spawn"))
    manager.start()
    try:
        numbers = manager.list()
        with pytest.raises(multiprocessing.AuthenticationError):
            await context.run_sync(jobs.append, numbers, 1)
        assert await context.run_sync(jobs.append, [], 1) == 1
    finally:
        manager.shutdown()


async def test_a_proxy_comes_back(context: WorkerContext, manager: Any) -> None:
    numbers = manager.list([1])
    again = await context.run_sync(jobs.returned, numbers)
    again.append(2)
    assert list(numbers) == [1, 2]


async def test_a_manager_in_a_job(context: WorkerContext) -> None:
    assert await context.run_sync(jobs.with_manager_of_its_own) == [1, 2, 3]


async def test_what_is_shared_by_inheritance_only(context: WorkerContext) -> None:
    """multiprocessing says so itself; it is the caller's error, and no worker's."""
    method = multiprocessing.get_context("spawn")
    for thing in (method.Lock(), method.Event(), method.Semaphore()):
        with pytest.raises(RuntimeError, match="inheritance"):
            await context.run_sync(jobs.returned, thing)
    assert await context.run_sync(jobs.square, 3) == 9


# --- who a worker is ---------------------------------------------------------------------------------------------


async def test_a_worker_is_a_child_of_this_process(context: WorkerContext) -> None:
    found = await context.run_sync(jobs.identity)
    name, pid, daemon, alive = found["current"]
    assert name == f"trio-offload-worker-{found['pid']}"
    # It may have children of its own, which multiprocessing denies its daemons.
    assert (pid, daemon, alive) == (found["pid"], False, True)
    assert found["parent"] == (multiprocessing.current_process().name, os.getpid(), True)
    assert found["children"] == []
    assert found["key"] == multiprocessing.current_process().authkey
    # Here nothing is known of the worker: multiprocessing would join it at exit.
    assert multiprocessing.active_children() == []
    assert multiprocessing.parent_process() is None


def test_a_job_may_import_what_its_parent_has_not(tmp_path: Path) -> None:
    ended = script(
        tmp_path,
        """
found = trio.run(trio_offload.run_sync, jobs.identity)
assert "multiprocessing" not in sys.modules
assert found["parent"] == ("MainProcess", os.getpid(), True), found
print(found["current"][0] == f"trio-offload-worker-{found['pid']}")
""",
    )
    assert ended.lines() == ["True"]


async def test_log_records_name_the_worker(context: WorkerContext) -> None:
    await context.run_sync(jobs.import_it)
    pid = await context.run_sync(os.getpid)
    assert await context.run_sync(jobs.log) == (f"trio-offload-worker-{pid}", pid)


# --- what a job starts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_a_process_in_a_job(context: WorkerContext, method: str) -> None:
    (pid, parent, key), process, code, worker = await context.run_sync(jobs.with_process, method)
    assert (process, code) == (pid, 0)
    assert parent == worker
    assert key == multiprocessing.current_process().authkey


@pytest.mark.parametrize("method", METHODS)
async def test_pools_in_a_job(context: WorkerContext, method: str) -> None:
    assert await context.run_sync(jobs.with_pool, method) == ([0, 1, 4, 9, 16], (3, 1))
    assert await context.run_sync(jobs.with_executor, method) == [0, 1, 4, 9, 16]


async def test_threads_pipes_and_programs_in_a_job(context: WorkerContext) -> None:
    assert await context.run_sync(jobs.with_threads) == [0, 1, 4, 9, 16]
    assert await context.run_sync(jobs.with_pipe) == "through the pipe"
    assert await context.run_sync(jobs.with_subprocess) == (True, 7, b"5\n", b"echoed")
    assert await context.run_sync(jobs.with_fork) == 7
    assert await context.run_sync(jobs.fail_in_child) == 1


@pytest.mark.parametrize("daemon", [False, True])
async def test_a_process_that_a_job_leaves(daemon: bool) -> None:
    """At the worker's end it is joined or terminated, as multiprocessing does at any process's end."""
    with trio.fail_after(PATIENCE):
        async with open_worker_context() as context:
            await context.run_sync(jobs.leave_process, 1000 if daemon else 0.5, daemon)


async def test_a_fork_that_returns_from_its_job_gives_no_second_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(PATIENCE):
        async with open_worker_context() as context:
            for _ in range(3):
                assert await context.run_sync(jobs.fork_and_return) == "parent"
                assert await context.run_sync(jobs.fork_and_raise) == "parent"
            assert await context.run_sync(jobs.square, 3) == 9
    assert capfd.readouterr().err.count("ValueError: in the copy") == 3


# --- shared memory ---------------------------------------------------------------------------------------------------


def test_shared_memory_outlives_the_worker_that_used_it(tmp_path: Path) -> None:
    """Neither is it destroyed with the worker nor does a resource tracker complain of it."""
    ended = script(
        tmp_path,
        """
from multiprocessing import resource_tracker, shared_memory

async def main():
    block = shared_memory.SharedMemory(create=True, size=100)
    async with trio_offload.open_worker_context() as context:
        await context.run_sync(jobs.write_shared, block.name, b"from a job")
    assert bytes(block.buf[:10]) == b"from a job"
    async with trio_offload.open_worker_context() as context:
        await context.run_sync(jobs.write_shared, block.name, b"once more!")
    assert bytes(block.buf[:10]) == b"once more!"
    block.close()
    block.unlink()
    async with trio_offload.open_worker_context() as context:
        name = await context.run_sync(jobs.make_shared, b"made by a job")
    block = shared_memory.SharedMemory(name)
    print(bytes(block.buf[:13]))
    block.close()
    block.unlink()

trio.run(main)
""",
    )
    assert ended.lines() == ["b'made by a job'"]
    assert ended.stderr == ""


async def test_shared_memory_of_a_worker_that_is_killed(context: WorkerContext) -> None:
    """The parent's tracker keeps it, so that it can be looked at and is not left behind."""
    block = shared_memory.SharedMemory(create=True, size=10)
    try:
        await context.run_sync(jobs.write_shared, block.name, b"before")
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(os._exit, 7)
        assert bytes(block.buf[:6]) == b"before"
        await context.run_sync(jobs.write_shared, block.name, b"after!")
        assert bytes(block.buf[:6]) == b"after!"
    finally:
        block.close()
        block.unlink()


# --- trio_offload in a job ---------------------------------------------------------------------------------------------


async def test_a_job_has_workers_of_its_own(context: WorkerContext) -> None:
    """And they have theirs; at the worker's end they leave with it."""
    pids = await context.run_sync(jobs.nested_chain, 3)
    assert len(set(pids)) == 4
    assert os.getpid() not in pids
    assert await context.run_sync(jobs.nested, jobs.square, 5) == 25
    with pytest.raises(ZeroDivisionError) as caught:
        await context.run_sync(jobs.nested, divmod, 1, 0)
    assert "nested" in [entry.name for entry in traceback_of(caught.value)]
    assert await context.run_sync(jobs.nested_and_cancelled) == (True, 9)
    assert await context.run_sync(jobs.nested_at_once) == "done"


def lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}/root")  # a zombie has none


def traceback_of(error: BaseException) -> Any:
    import traceback

    return traceback.extract_tb(error.__traceback__)


@pytest.mark.parametrize("kill", [False, True])
def test_nested_workers_end_with_the_one_above(tmp_path: Path, kill: bool) -> None:
    """Also one in an endless loop, whether the worker leaves or is killed."""
    path = str(tmp_path / "nested")

    async def main() -> int:
        async with open_worker_context() as context:
            nested: int = await context.run_sync(jobs.nested_and_leave, path)
            assert lives(nested)
            if kill:
                with trio.move_on_after(0.01):
                    await context.run_sync(jobs.spin, path + "2", kill_on_cancel=True)
        return nested

    nested = trio.run(main)
    deadline = time.monotonic() + PATIENCE
    while lives(nested):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_proxies_pass_through_nested_workers(context: WorkerContext, manager: Any) -> None:
    numbers = manager.list()
    assert await context.run_sync(jobs.nested, jobs.nested, jobs.append, numbers, 1) == 1
    assert list(numbers) == [1]
