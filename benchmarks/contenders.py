"""Those that are compared: ours, the peers, and what is not a pool at all but bounds what a pool can reach.

To add a peer, write an async context manager that yields a `Pool` and put it into `CONTENDERS`. One that this environment
or this version lacks is left out of the run, which says so.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import importlib.util
import inspect
import math
import multiprocessing
import multiprocessing.pool
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import outcome
import trio
from measure import Settings

Call = Callable[..., Awaitable[Any]]
# Called with a function, the items, and how many of them travel together (None: it decides). Gives the number of results.
Map = Callable[[Callable[[Any], Any], Sequence[Any], "int | None"], Awaitable[int]]


@attrs.frozen
class Pool:
    """A contender that is up."""

    # Called with a function and its arguments; so is `killable`.
    call: Call
    # May be cancelled, and then ends the function; None where there is no such thing.
    killable: Call | None = None
    # All that it has of `map`, by name: most have one.
    maps: dict[str, Map] = attrs.field(factory=dict)
    # `map` whose results come as one list.
    list_map: Map | None = None


Open = Callable[[int], AbstractAsyncContextManager[Pool]]
# A pool, or what the rows about jobs that talk compare (`talkers.py`).
Opened = TypeVar("Opened")


@attrs.frozen
class Contender(Generic[Opened]):
    name: str
    # Called with the number of calls that may run at once.
    open: Callable[[int], AbstractAsyncContextManager[Opened]]
    package: str | None = None
    # What it is a part of, for what a version may lack; `there` says whether it does.
    feature: str | None = None
    there: Callable[[], bool] = bool

    @property
    def is_peer(self) -> bool:
        """What a user would pick instead; neither ours nor a bound."""
        return not self.name.startswith(OURS) and self.name != ECHO

    def lacking(self) -> str | None:
        """Why it cannot take part; None if it can."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.feature is not None and not self.there():
            return f"the installed version has no {self.feature}"
        return None


def _ours(**options: Any) -> Open:
    @contextlib.asynccontextmanager
    async def open_context(workers: int) -> AsyncIterator[Pool]:
        import trio_offload

        limiter = trio.CapacityLimiter(workers)
        if "worker_type" in options:
            options["worker_type"] = trio_offload.WorkerType(options["worker_type"])
        async with trio_offload.open_worker_context(**options) as context:
            call = functools.partial(context.run_sync, limiter=limiter)
            yield Pool(call=call, killable=functools.partial(call, kill_on_cancel=True))

    return open_context


@contextlib.asynccontextmanager
async def _ours_with_map(workers: int) -> AsyncIterator[Pool]:
    # Any: a version that has no map is type-checked, and measured, without these rows.
    trio_offload: Any = importlib.import_module("trio_offload")

    async def run_map(function: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> int:
        count = 0
        size = "auto" if chunk is None else chunk
        async with trio_offload.map(function, items, workers=workers, chunk_size=size) as results:
            async for _ in results:
                count += 1
        return count

    async def list_map(function: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> int:
        size = "auto" if chunk is None else chunk
        async with trio_offload.map(function, items, workers=workers, chunk_size=size) as results:
            return len(await results.collect())

    # Its workers are those of the calls around it.
    async with trio_offload.cache_scope():
        yield Pool(call=trio_offload.run_sync, maps={"": run_map}, list_map=list_map)


def _trio_parallel(**options: Any) -> Open:
    @contextlib.asynccontextmanager
    async def open_context(workers: int) -> AsyncIterator[Pool]:
        import trio_parallel

        limiter = trio.CapacityLimiter(workers)
        if "worker_type" in options:
            options["worker_type"] = trio_parallel.WorkerType(options["worker_type"])
        async with trio_parallel.open_worker_context(**options) as context:
            call = functools.partial(context.run_sync, limiter=limiter)
            yield Pool(call=call, killable=functools.partial(call, kill_on_cancel=True))

    return open_context


@contextlib.asynccontextmanager
async def _anyio_process(workers: int) -> AsyncIterator[Pool]:
    import anyio
    import anyio.to_process

    limiter = anyio.CapacityLimiter(workers)
    call = functools.partial(anyio.to_process.run_sync, limiter=limiter)
    yield Pool(call=call, killable=functools.partial(call, cancellable=True))


@contextlib.asynccontextmanager
async def _trio_thread(workers: int) -> AsyncIterator[Pool]:
    yield Pool(call=functools.partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(workers)))


class _Answer:
    """The way from a pool's own thread back into Trio: one callback through the TrioToken.

    The other way, a Trio thread that waits for the future, is another thread and costs every call some tens of
    microseconds more, so this one shows those peers at their best.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._arrived = trio.Event()
        self._outcome: outcome.Outcome[Any] = outcome.Value(None)

    def give(self, result: outcome.Outcome[Any]) -> None:
        self._outcome = result
        self._token.run_sync_soon(self._arrived.set)

    async def wait(self) -> Any:
        await self._arrived.wait()
        return self._outcome.unwrap()


def _executor(make: Callable[[int], Executor]) -> Open:
    @contextlib.asynccontextmanager
    async def open_executor(workers: int) -> AsyncIterator[Pool]:
        with make(workers) as executor:

            async def call(function: Callable[..., Any], *arguments: Any) -> Any:
                answer = _Answer()

                def done(future: Future[Any]) -> None:
                    answer.give(outcome.capture(future.result))

                executor.submit(function, *arguments).add_done_callback(done)
                return await answer.wait()

            yield Pool(call=call, maps={"map": _in_a_thread(executor.map)})

    return open_executor


def _process_pool(start_method: str) -> Callable[[int], Executor]:
    def make(workers: int) -> Executor:
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(start_method))

    return make


def _interpreters(workers: int) -> Executor:
    # Python 3.14 has it; the type hints are those of 3.10.
    executor: Executor = getattr(concurrent.futures, INTERPRETERS)(workers)
    return executor


def _loky(workers: int) -> Executor:
    import loky

    executor: Executor = loky.ProcessPoolExecutor(workers)
    return executor


def _pool(start_method: str, **options: Any) -> Open:
    @contextlib.asynccontextmanager
    async def open_pool(workers: int) -> AsyncIterator[Pool]:
        pool = multiprocessing.get_context(start_method).Pool(workers, **options)

        async def call(function: Callable[..., Any], *arguments: Any) -> Any:
            answer = _Answer()
            pool.apply_async(
                function,
                arguments,
                callback=lambda value: answer.give(outcome.Value(value)),
                error_callback=lambda error: answer.give(outcome.Error(error)),
            )
            return await answer.wait()

        try:
            maps = {"map": _in_a_thread(pool.map), "imap": _in_a_thread(pool.imap)}
            yield Pool(call=call, maps=maps, list_map=_in_a_thread(pool.map, len))
        finally:
            pool.close()
            pool.join()

    return open_pool


def _count(results: Iterable[Any]) -> int:
    """Take each result by itself."""
    return sum(1 for _ in results)


def _in_a_thread(run_map: Callable[..., Any], count: Callable[[Any], int] = _count) -> Map:
    """A map as a Trio program uses a blocking one: the whole of it in one thread."""

    def consume(function: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> int:
        options = {} if chunk is None else {"chunksize": chunk}
        return count(run_map(function, items, **options))

    async def run(function: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> int:
        return await trio.to_thread.run_sync(consume, function, items, chunk)

    return run


@contextlib.asynccontextmanager
async def _echo(workers: int) -> AsyncIterator[Pool]:
    """The least that a round trip to another process costs a Trio program: one write, one wait, one read."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            echoing = _start_echoing(theirs.fileno())
        ours.setblocking(False)
        message = bytes(40)

        async def call(*_: object) -> bytes:
            ours.send(message)
            await trio.lowlevel.wait_readable(ours)
            return ours.recv(65536)

        yield Pool(call=call)
    await trio.to_thread.run_sync(echoing.wait)


def _start_echoing(descriptor: int) -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("echo.py")
    return subprocess.Popen([sys.executable, "-I", "-S", program, str(descriptor)], pass_fds=[descriptor])


def _has_forkserver() -> bool:
    import trio_offload

    return "forkserver_preload" in inspect.signature(trio_offload.open_worker_context).parameters


def _has_interpreters() -> bool:
    return hasattr(concurrent.futures, INTERPRETERS)


def _has(name: str) -> Callable[[], bool]:
    def is_there() -> bool:
        return hasattr(importlib.import_module("trio_offload"), name)

    return is_there


def _has_connections() -> bool:
    return importlib.util.find_spec("trio_offload.connection") is not None


OURS = "trio-offload"
OURS_FORKSERVER = "trio-offload, forkserver"
OURS_MAP = "trio-offload, map"
OURS_PROGRESS = "trio-offload, progress"
OURS_TALKING = "trio-offload, jobs that talk"
OURS_CONNECTION = "trio-offload, connections"
OURS_ACTORS = "trio-offload, actors"
OURS_STREAM = "trio-offload, streams"
OURS_SHARED = "trio-offload, shared memory"
ONE_JOB = ", one job each"
WITHOUT_REPORTS = "trio-offload, no reports"
TRIO_PARALLEL = "trio-parallel"
TRIO_PARALLEL_FORKSERVER = "trio-parallel, forkserver"
ANYIO = "anyio.to_process"
EXECUTOR = "ProcessPoolExecutor"
EXECUTOR_FORKSERVER = "ProcessPoolExecutor, forkserver"
INTERPRETERS = "InterpreterPoolExecutor"
POOL = "multiprocessing.Pool"
POOL_FORKSERVER = "multiprocessing.Pool, forkserver"
LOKY = "loky"
TRIO_THREAD = "Trio thread"
ECHO = "bare Trio echo"

# An object is true, so each worker retires after its first job.
_RETIRING = {"retire": object}
_PACKAGE, _PEER = "trio_offload", "trio_parallel"
_FORKSERVER, _MAP = ("forkserver_preload", _has_forkserver), ("map", _has("map"))

CONTENDERS: list[Contender[Pool]] = [
    Contender(OURS, _ours(), _PACKAGE),
    Contender(OURS_FORKSERVER, _ours(worker_type="forkserver"), _PACKAGE, *_FORKSERVER),
    Contender(OURS_MAP, _ours_with_map, _PACKAGE, *_MAP),
    Contender(OURS_PROGRESS, _ours_with_map, _PACKAGE, "progress", _has("JobProgress")),
    Contender(OURS_TALKING, _ours(), _PACKAGE, "open_channel", _has("open_channel")),
    Contender(OURS_STREAM, _ours(), _PACKAGE, "stream", _has("stream")),
    Contender(OURS_ACTORS, _ours(), _PACKAGE, "open_actor", _has("open_actor")),
    Contender(OURS_SHARED, _ours(), _PACKAGE, "SharedArray", _has("SharedArray")),
    Contender(OURS_CONNECTION, _ours(), _PACKAGE, "connection", _has_connections),
    Contender(OURS + ONE_JOB, _ours(**_RETIRING), _PACKAGE),
    Contender(OURS_FORKSERVER + ONE_JOB, _ours(worker_type="forkserver", **_RETIRING), _PACKAGE, *_FORKSERVER),
    Contender(WITHOUT_REPORTS, _ours(report_interval=math.inf), _PACKAGE),
    Contender(TRIO_PARALLEL, _trio_parallel(), _PEER),
    Contender(TRIO_PARALLEL_FORKSERVER, _trio_parallel(worker_type="forkserver"), _PEER),
    Contender(TRIO_PARALLEL + ONE_JOB, _trio_parallel(**_RETIRING), _PEER),
    Contender(TRIO_PARALLEL_FORKSERVER + ONE_JOB, _trio_parallel(worker_type="forkserver", **_RETIRING), _PEER),
    Contender(ANYIO, _anyio_process, "anyio"),
    # Not the method that is the default on some Pythons: that forks a process that may have threads, as a Trio program has.
    Contender(EXECUTOR, _executor(_process_pool("spawn"))),
    Contender(EXECUTOR_FORKSERVER, _executor(_process_pool("forkserver"))),
    Contender(INTERPRETERS, _executor(_interpreters), None, INTERPRETERS, _has_interpreters),
    Contender(POOL, _pool("spawn")),
    Contender(POOL_FORKSERVER, _pool("forkserver")),
    # An executor can be told the same, and then stops for ever (python/cpython#115634).
    Contender(POOL + ONE_JOB, _pool("spawn", maxtasksperchild=1)),
    Contender(POOL_FORKSERVER + ONE_JOB, _pool("forkserver", maxtasksperchild=1)),
    Contender(LOKY, _executor(_loky), "loky"),
    Contender(TRIO_THREAD, _trio_thread),
    Contender(ECHO, _echo),
]


def contenders(settings: Settings, *names: str) -> list[Contender[Pool]]:
    """Those of these names that take part, in the order of the names."""
    by_name = {contender.name: contender for contender in CONTENDERS}
    chosen = [by_name[name] for name in names]
    return [contender for contender in chosen if contender.lacking() is None and (settings.peers or not contender.is_peer)]


class Pools(contextlib.AsyncExitStack):
    """Several contenders up at once, each warm."""

    async def opened(self, settings: Settings, *names: str, workers: int = 1) -> dict[str, Pool]:
        pools = {}
        for contender in contenders(settings, *names):
            pools[contender.name] = await self.enter_async_context(contender.open(workers))
            await pools[contender.name].call(bool)
        return pools
