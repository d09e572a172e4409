"""End to end: ``WorkerType.FORK``, what only a fork of the parent can do, and what of the parent must not be in it.

That it also does what every worker does, ``test_fork_contract.py`` and ``test_worker_side.py`` show.
"""

from __future__ import annotations

import contextvars
import errno
import gc
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jobs
import memory_jobs
import pytest
import trio
from kinds import environment_of
from lifeline import PATIENCE, Lifeline
from running import plain_environment, run, run_script, write

import trio_offload
from trio_offload import BrokenWorkerError, WorkerMemoryError, WorkerStartError, WorkerType, open_worker_context
from trio_offload._interpreter import locate as _locate
from trio_offload_worker import resident_memory

ENVIRONMENT = environment_of()
MIB = 2**20


@asynccontextmanager
async def forking(**settings: Any) -> Any:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=WorkerType.FORK, **settings) as context:
            yield context


class Shelf:
    """How tests get at objects of theirs from a job: what this module has, the fork has too."""

    def __init__(self) -> None:
        self.value: Any = None

    def call(self, *args: Any) -> Any:
        return self.value(*args)


SHELF = Shelf()


def on_shelf(*args: Any) -> Any:
    return SHELF.call(*args)


@pytest.fixture
def shelf() -> Iterator[Callable[[Any], Any]]:
    """Puts something where ``on_shelf`` calls it in workers that are forked from then on, without a pickle."""

    def put(value: Any) -> Any:
        SHELF.value = value
        return on_shelf

    yield put
    SHELF.value = None


# --- what is inherited ---------------------------------------------------------------------------


class Counter:
    """Does not pickle, and does its work in the worker."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.jobs = 0

    def begin(self) -> None:
        with self.lock:
            self.jobs = 10

    def is_enough(self) -> bool:
        with self.lock:
            self.jobs += 1
            return self.jobs == 13


async def test_init_and_retire_are_inherited_objects() -> None:
    counter = Counter()
    async with forking(init=counter.begin, retire=counter.is_enough) as context:
        pids = [await context.run_sync(os.getpid) for _ in range(7)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    assert counter.jobs == 0, "each worker has counted on a copy"


async def test_closures_and_lambdas_count_for_themselves(shelf: Any) -> None:
    done = 0

    def count() -> int:
        nonlocal done
        done += 1
        return done

    async with forking(init=lambda: count(), retire=lambda: count() > 5) as context:
        assert [await context.run_sync(shelf(count)) for _ in range(2)] == [2, 4]
        # `retire` has counted 3 and 5; after this one it counts 7.
        assert await context.run_sync(on_shelf) == 6
        assert await context.run_sync(on_shelf) == 2
    assert done == 0


async def test_an_init_that_raises_has_its_cause() -> None:
    def fail() -> None:
        raise LookupError("on purpose")

    async with forking(init=fail) as context:
        with pytest.raises(WorkerStartError, match=r"its init, .*fail, raised LookupError") as caught:
            await context.run_sync(bool)
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.exitcode == 4


async def test_retire_when_counts_anew_in_each_worker() -> None:
    retire = trio_offload.retire_when(seconds=3600, jobs=2)
    async with forking(retire=retire) as context:
        pids = [await context.run_sync(os.getpid) for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


async def test_thread_local_values_and_locks_of_the_forking_thread(shelf: Any) -> None:
    local, lock = threading.local(), threading.RLock()
    local.value = 5
    with lock:
        async with forking() as context:
            assert await context.run_sync(shelf(lambda: (local.value, lock.acquire(timeout=1))))


async def test_changes_of_this_process_after_the_fork_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with forking() as context:
        monkeypatch.setenv("TRIO_OFFLOAD_TEST", "before")
        assert await context.run_sync(os.getenv, "TRIO_OFFLOAD_TEST") == "before"
        monkeypatch.setenv("TRIO_OFFLOAD_TEST", "after")
        assert await context.run_sync(os.getenv, "TRIO_OFFLOAD_TEST") == "before"


TYPED_IN = """
import os, pickle, sys, threading, trio, trio_offload
sys.modules["cloudpickle"] = None
lock = threading.Lock()
def f(value):
    with lock:
        return value, "first", os.getpid()

async def main():
    async with trio_offload.open_worker_context(worker_type="fork") as context:
        *told, first = await context.run_sync(f, 1)
        print(*told)
        *told, again = await context.run_sync(f, 2)
        print(*told, again == first)
        exec("def f(value):\\n    return value, 'second', os.getpid()", globals())
        *told, other = await context.run_sync(f, 3)
        print(*told, other == first)
        exec("def g(value):\\n    return value, __name__", globals())
        print(*await context.run_sync(g, 4))
        print(await context.run_sync(abs, -5))
        try:
            await context.run_sync(lambda: 5)
        except Exception as error:
            print("cannot be pickled", isinstance(error, (AttributeError, pickle.PicklingError)))

trio.run(main)
"""


def test_what_was_typed_in_is_found_by_its_name(tmp_path: Path) -> None:
    """Without cloudpickle, and with globals that none could pickle. What is defined later, or anew, gets a worker that has it."""
    ended = run([sys.executable, "-"], stdin=TYPED_IN.encode())
    assert ended.lines() == [
        "1 first",
        "2 first True",
        "3 second False",
        "4 __main__",
        "5",
        "cannot be pickled True",
    ]


MAPPED = """
import trio, trio_offload

def first(item):
    return item, "second" in globals()

def items():
    yield from range(3)
    exec("def second(item): return -item", globals())
    yield from range(3, 6)

async def main():
    async with trio_offload.open_worker_context(worker_type="fork") as context:
        await context.run_sync(first, 0)
        async with context.map(first, items(), workers=1) as results:
            seen = [result async for result in results]
        print(seen[0], *seen[3:])
        exec("def third(item): return -item", globals())
        for chunk_size in 1, 2:
            async with context.map(third, range(3), workers=1, chunk_size=chunk_size) as results:
                print(*[result async for result in results])

trio.run(main)
"""


def test_map_finds_what_was_defined_after_the_fork(tmp_path: Path) -> None:
    """Before it, and while calls are in flight: a worker from before gets no call that names `__main__`."""
    ended = run([sys.executable, "-"], stdin=MAPPED.encode())
    assert ended.lines() == ["(0, False) (3, True) (4, True) (5, True)", "0 -1 -2", "0 -1 -2"]


MAIN = """
import os, sys, trio, trio_offload

with open(sys.argv[1], "a") as runs:
    runs.write(__name__ + "\\n")

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    return Point(2 * point.x), __name__, "__mp_main__" in sys.modules

async def main():
    async with trio_offload.open_worker_context(worker_type="fork") as context:
        point, *told = await context.run_sync(double, Point(5))
        print(type(point) is Point, point.x, *told)

trio.run(main)
"""


def test_the_main_script_is_there_and_not_run_again(tmp_path: Path) -> None:
    """It needs no guard either."""
    runs = tmp_path / "runs"
    assert run_script(tmp_path, MAIN, str(runs)).lines() == ["True 10 __main__ False"]
    assert runs.read_text().split() == ["__main__"]


# --- what is not ---------------------------------------------------------------------------------


def is_in_trio() -> bool:
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


def look_round() -> dict[str, Any]:
    import sniffio

    library: Any
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        library = None
    wakeup = signal.set_wakeup_fd(-1)
    return {
        "in trio": is_in_trio(),
        "library": library,
        "wakeup descriptor": wakeup,
        "hooks": tuple(sys.get_asyncgen_hooks()),
        "variables": len(contextvars.copy_context()),
        "main thread": threading.current_thread() is threading.main_thread(),
        "threads": threading.active_count(),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "blocked": jobs.own_mask(),
        "epoll": [name for name in descriptors() if "eventpoll" in name],
        "sockets": len([name for name in descriptors() if name.startswith("socket:")]),
        "trio's thread": trio.run(trio.to_thread.run_sync, abs, -5),
        "children": len(multiprocessing.active_children()),
    }


def descriptors() -> list[str]:
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return names


async def test_nothing_of_trio_and_of_this_process_is_left(shelf: Any) -> None:
    """The sockets of other workers, and those of this run of Trio, neither."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(5)
    # So that there are threads, and one that waits for work.
    await trio.to_thread.run_sync(time.sleep, 0)
    ours = len([name for name in descriptors() if name.startswith("socket:")])
    try:
        async with forking() as context:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(context.run_sync, time.sleep, 0.2)
            assert context.statistics().idle_workers >= 2
        async with forking() as others, forking() as context:
            await others.run_sync(bool)
            found = await context.run_sync(look_round)
            # Trio's own, two pairs of sockets to wake itself, are closed there; the worker has one of its own.
            assert found.pop("sockets") == ours - 4 + 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == {
        "in trio": False,
        "library": None,
        "wakeup descriptor": -1,
        "hooks": (None, None),
        "variables": 0,
        "main thread": True,
        "threads": 1,
        "SIGTERM": signal.SIG_DFL,
        "blocked": "0" * 16,
        "epoll": [],
        "trio's thread": 5,
        "children": 0,
    }


def run_trio_in_a_job() -> Any:
    async def main() -> Any:
        async with open_worker_context(worker_type=WorkerType.FORK) as context:
            inner = await context.run_sync(os.getppid)
        default = await trio_offload.run_sync(os.getppid)
        return inner, default, os.getpid()

    return trio.run(main)


async def test_a_job_may_run_trio_and_fork_workers_of_its_own() -> None:
    async with forking() as context:
        inner, default, worker = await context.run_sync(run_trio_in_a_job)
        assert inner == default == worker == await context.run_sync(os.getpid)


def fail_plainly() -> Any:
    {}["of the job"]


async def test_what_is_handled_here_is_no_context_of_what_a_job_raises() -> None:
    async with forking() as context:
        try:
            {}["of the parent"]
        except KeyError:
            with pytest.raises(KeyError, match="of the job") as caught:
                await context.run_sync(fail_plainly)
    # It has that of the place where it is raised again, as any exception has.
    chain, error = [], caught.value
    while error.__context__ is not None:
        error = error.__context__  # type: ignore[assignment]
        chain.append(str(error))
    assert len(chain) <= 1


async def test_a_crash_is_told_without_the_frames_of_this_process() -> None:
    async with forking() as context:
        with pytest.raises(BrokenWorkerError) as caught:
            await context.run_sync(jobs.segfault)
    crash = caught.value.crash
    assert crash is not None
    assert "in segfault" in crash.stack
    # From Python 3.14 on there is a C stack too, whose binary xdist gives the name of the test.
    frames = [line for line in crash.stack.splitlines() if line.startswith("  File ")]
    assert frames
    assert not [line for line in frames if "trio/_core" in line or "test_fork.py" in line]


class Falls:
    """Its end is told to a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.itself = self

    def __del__(self) -> None:
        os.write(self.descriptor, b"%d " % os.getpid())


async def test_garbage_of_this_process_is_not_collected_there() -> None:
    """Else its finalizers would run twice, and all memory be copied by the collector's own marks."""
    reader, writer = os.pipe()
    gc.collect()
    Falls(writer)
    async with forking() as context:
        await context.run_sync(gc.collect)
    gc.collect()
    assert os.read(reader, 100).split() == [b"%d" % os.getpid()]
    os.close(reader)
    os.close(writer)


def draw() -> float:
    return random.random()


async def test_numbers_at_random_differ() -> None:
    random.seed(1)
    async with forking(retire=object) as context:
        drawn = [await context.run_sync(draw) for _ in range(3)]
    assert len({*drawn, random.random()}) == 4


async def test_a_default_timeout_of_sockets_does_not_concern_ours() -> None:
    socket.setdefaulttimeout(0.01)
    try:
        async with forking() as context:
            pid = await context.run_sync(os.getpid)
            await trio.sleep(0.1)
            assert await context.run_sync(os.getpid) == pid
    finally:
        socket.setdefaulttimeout(None)


# --- multiprocessing -----------------------------------------------------------------------------


def describe_process() -> tuple[Any, ...]:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent.pid, parent.name, multiprocessing.current_process().name, len(multiprocessing.active_children())


async def test_children_of_multiprocessing_are_the_parents(shelf: Any) -> None:
    """A worker that leaves does not end them, as it would its own daemons; and what is shared with them is shared."""
    fork = multiprocessing.get_context("fork")
    queue: Any = fork.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork.Process(target=signal.pause, daemon=True)
        child.start()
    try:
        async with forking(init=lambda: queue.put("from init")) as context:
            pid = await context.run_sync(os.getpid)
            assert await context.run_sync(describe_process) == (os.getpid(), "MainProcess", f"trio-offload-worker-{pid}", 0)
        assert queue.get() == "from init"
        assert child.is_alive()
    finally:
        child.kill()
        child.join()
        child.close()
        queue.close()


# --- the end -------------------------------------------------------------------------------------

AT_EXIT = """
import atexit, os, sys, tempfile, threading, weakref
import trio, trio_offload

parent = os.getpid()
def who():
    return "parent" if os.getpid() == parent else "worker"

class Thing:
    pass

thing = Thing()
weakref.finalize(thing, lambda: print("finalize", who()))
folder = tempfile.TemporaryDirectory()
atexit.register(lambda: print("atexit", who()))
atexit.register(tempfile.TemporaryDirectory().cleanup)
kept = []

def job():
    atexit.register(lambda: print("atexit of the job", who(), os.path.isdir(folder.name)))
    kept.append(tempfile.TemporaryDirectory())
    threading.Thread(target=lambda: (gate.wait(), print("thread of the job", who()))).start()
    atexit.register(print, "second")
    return kept[0].name

gate = threading.Event()

async def main():
    async with trio_offload.open_worker_context(worker_type="fork", retire=gate.set) as context:
        theirs = await context.run_sync(job)
        assert os.path.isdir(theirs)
    assert not os.path.exists(theirs), "as at the end of any process"
    assert os.path.isdir(folder.name)
    print("closed")

trio.run(main)
"""


def test_exit_handlers_are_those_of_the_jobs(tmp_path: Path) -> None:
    ended = run_script(tmp_path, AT_EXIT)
    assert ended.lines() == [
        "thread of the job worker",
        "second",
        "atexit of the job worker True",
        "closed",
        "atexit parent",
        "finalize parent",
    ]
    assert ended.stderr == ""


async def test_exit_codes_are_exact() -> None:
    async def end_of(job: Any, *args: Any, **settings: Any) -> int | None:
        with pytest.raises((BrokenWorkerError, WorkerStartError)) as caught:
            async with forking(**settings) as context:
                for _ in range(2):
                    await context.run_sync(job, *args)
        return caught.value.exitcode

    assert await end_of(jobs.exit_quietly) == 42
    assert await end_of(jobs.kill_self) == -signal.SIGKILL
    assert await end_of(bool, init=lambda: {}["x"]) == 4
    assert await end_of(bool, retire=lambda: {}["x"]) == 5


LEAVES = """
import os, sys, trio, trio_offload
import trio_offload._launch.fork
from trio_offload._options import ContextOptions
from trio_offload._pickling.calls import dump_call

async def main():
    worker = trio_offload._launch.fork.ForkLauncher(ContextOptions()).begin()
    await worker.finish(cancellable=False)
    if sys.argv[1] == "printed to nobody":
        # What is written at the exit finds no reader: Python's own word for that is 120.
        worker.submit(dump_call(exec, (CODE, {})))
        await worker.answer(cancellable=False)
    worker.ask_to_retire()
    await worker.wait()
    print(worker.process.exitcode, file=sys.stderr)

CODE = '''
import atexit, os, sys
reader, writer = os.pipe()
os.close(reader)
sys.stdout.flush()
os.dup2(writer, 1)
atexit.register(sys.stdout.write, "x")
'''
trio.run(main)
"""


@pytest.mark.parametrize(("how", "code"), [("in order", "0"), ("printed to nobody", "120")])
def test_the_exit_code_of_one_that_leaves(tmp_path: Path, how: str, code: str) -> None:
    *report, last = run_script(tmp_path, LEAVES, how).stderr.splitlines()
    assert last == code
    assert ("BrokenPipeError: [Errno 32] Broken pipe" in report) is (code == "120")


UNFLUSHED = """
import ctypes, os, sys, trio, trio_offload

libc = ctypes.CDLL(None)
sys.stdout.write("printed, ")
sys.stderr.write("complained, ")
libc.printf(b"by C, ")

def job():
    sys.stdout.write("in the job, ")
    libc.printf(b"by C in the job, ")
    libc.fflush(None)

async def main():
    async with trio_offload.open_worker_context(worker_type="fork") as context:
        for _ in range(2):
            await context.run_sync(job)
    sys.stdout.write("afterwards")

trio.run(main)
"""


def test_what_was_printed_and_not_written_comes_out_once(tmp_path: Path) -> None:
    ended = run_script(tmp_path, UNFLUSHED, environment=plain_environment())
    parts = ["printed", "by C", *["by C in the job", "in the job"] * 2, "afterwards"]
    assert ended.stdout.split(", ") == parts
    assert ended.stderr == "complained, "


EXECUTOR = """
import concurrent.futures, multiprocessing, os, trio, trio_offload

def job():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(abs, -5).result()
    kept.append(concurrent.futures.ThreadPoolExecutor(1))
    return kept[0].submit(abs, -5).result()

kept = []

async def main():
    threads = concurrent.futures.ThreadPoolExecutor(2)
    processes = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    threads.submit(abs, -1).result(), processes.submit(abs, -1).result()
    async with trio_offload.open_worker_context(worker_type="fork") as context:
        print(await context.run_sync(job))
    print(threads.submit(abs, -1).result(), processes.submit(abs, -1).result())
    threads.shutdown(), processes.shutdown()

if __name__ == "__main__":
    trio.run(main)
"""


def test_executors_here_and_there_do_not_hinder_the_end(tmp_path: Path) -> None:
    assert run_script(tmp_path, EXECUTOR).lines() == ["5", "1 1"]


# --- the fork itself -----------------------------------------------------------------------------


HOOKS = """
import os, sys, threading, trio, trio_offload, warnings

seen = []
os.register_at_fork(
    before=lambda: seen.append("before"), after_in_parent=lambda: seen.append("parent"), after_in_child=lambda: seen.append("child")
)
def look():
    return seen, sys.flags.dev_mode, [str(entry) for entry in warnings.filters]

async def main():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    filters = [str(entry) for entry in warnings.filters]
    async with trio_offload.open_worker_context(worker_type="fork") as context:
        theirs, _, their_filters = await context.run_sync(look)
    stop.set()
    thread.join()
    print(*seen, "|", *theirs)
    assert [str(entry) for entry in warnings.filters] == filters == their_filters

trio.run(main)
"""


@pytest.mark.parametrize("switches", [["-W", "error"], ["-W", "always"], []], ids=" ".join)
def test_fork_hooks_run_without_thread_warning(tmp_path: Path, switches: list[str]) -> None:
    """Python 3.12 warns of a fork beside other threads; who asks for forks by name has been told."""
    ended = run([sys.executable, *switches, write(tmp_path / "script.py", HOOKS)])
    assert ended.lines() == ["before parent | before child"]
    assert ended.stderr == ""


async def test_no_executable_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise trio_offload.LocateError("there is none")

    monkeypatch.setattr(_locate, "runtime", none)
    async with forking() as context:
        assert await context.run_sync(abs, -5) == 5
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(jobs.exit_quietly)
    async with forking(init=jobs.exit_quietly) as context:
        with pytest.raises(WorkerStartError, match="exited with status 42 before it was ready"):
            await context.run_sync(bool)


async def test_a_fork_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with forking() as context:
        with monkeypatch.context() as patch:

            def refuse() -> int:
                raise OSError(errno.EAGAIN, "no")

            patch.setattr(os, "fork", refuse)
            with pytest.raises(WorkerStartError, match=r"could not be forked: .*limit of processes"):
                await context.run_sync(bool)
        assert await context.run_sync(abs, -5) == 5


def test_from_a_thread_that_is_not_the_main_one() -> None:
    """It is the main thread of the worker, which may have handlers of signals."""
    found: list[Any] = []

    async def main() -> None:
        async with forking() as context:
            found.append(await context.run_sync(take_main_thread))

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    assert found == [True]


def take_main_thread() -> bool:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    return threading.current_thread() is threading.main_thread()


def test_in_a_scope_and_as_the_default(tmp_path: Path) -> None:
    program = """
    import os, trio, trio_offload

    async def main():
        trio_offload.configure_default_context(worker_type=trio_offload.WorkerType.FORK, init=lambda: None)
        assert await trio_offload.prewarm(2) == 2
        print(await trio_offload.run_sync(os.getppid) == os.getpid(), trio_offload.default_context_statistics().idle_workers)
        async with trio_offload.cache_scope(worker_type=trio_offload.WorkerType.FORK, retire=lambda: True):
            print(await trio_offload.run_sync(os.getppid) == os.getpid())

    trio.run(main)
    """
    assert run_script(tmp_path, program).lines() == ["True 2", "True"]


def test_a_job_that_closes_the_socket_is_told_its_number(tmp_path: Path) -> None:
    program = """
    import os, trio, trio_offload

    async def main():
        async with trio_offload.open_worker_context(worker_type="fork") as context:
            try:
                await context.run_sync(os.closerange, 3, 1000)
            except trio_offload.BrokenWorkerError as error:
                print(error.exitcode)

    trio.run(main)
    """
    ended = run_script(tmp_path, program)
    assert ended.lines() == ["5"]
    assert "a job has closed descriptor " in ended.stderr


async def test_a_ceiling_counts_what_is_inherited(line: Lifeline) -> None:
    held = resident_memory()
    async with forking(memory_limit=held + 150 * MIB) as context:
        assert await context.run_sync(abs, -5) == 5
        with pytest.raises(WorkerMemoryError) as caught:
            await context.run_sync(memory_jobs.grow_for_ever)
        assert caught.value.reached is not None
        assert caught.value.reached > held
        assert "in grow_for_ever" in (caught.value.crash.stack if caught.value.crash else "")
        assert await context.run_sync(abs, -5) == 5
