"""Those that are compared: ours, the peers, and what is not a pool at all but bounds what a pool can reach.

To add a peer, write an async context manager that yields a `Pool` and put it into `CONTENDERS`. One whose package is
not installed is left out of the run, which says so.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import trio

Call = Callable[..., Awaitable[Any]]


@attrs.frozen
class Pool:
    """A contender that is up. Both are called with a function and its arguments."""

    call: Call
    # May be cancelled, and then ends the function; None where there is no such thing.
    killable: Call | None = None
    # At most two calls at once, the others wait: None where that cannot be said.
    two_at_once: Call | None = None


@attrs.frozen
class Contender:
    name: str
    open: Callable[[], AbstractAsyncContextManager[Pool]]
    package: str | None = None

    def is_there(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def _pool_of(context: Any) -> Pool:
    limiter = trio.CapacityLimiter(2)
    return Pool(
        call=context.run_sync,
        killable=functools.partial(context.run_sync, kill_on_cancel=True),
        two_at_once=functools.partial(context.run_sync, limiter=limiter),
    )


@contextlib.asynccontextmanager
async def _trio_offload() -> AsyncIterator[Pool]:
    import trio_offload

    async with trio_offload.open_worker_context() as context:
        yield _pool_of(context)


@contextlib.asynccontextmanager
async def _without_reports() -> AsyncIterator[Pool]:
    import trio_offload

    async with trio_offload.open_worker_context(report_interval=math.inf) as context:
        yield _pool_of(context)


@contextlib.asynccontextmanager
async def _trio_parallel() -> AsyncIterator[Pool]:
    import trio_parallel

    async with trio_parallel.open_worker_context() as context:
        yield _pool_of(context)


@contextlib.asynccontextmanager
async def _anyio_process() -> AsyncIterator[Pool]:
    import anyio
    import anyio.to_process

    limiter = anyio.CapacityLimiter(2)
    yield Pool(
        call=anyio.to_process.run_sync,
        killable=functools.partial(anyio.to_process.run_sync, cancellable=True),
        two_at_once=functools.partial(anyio.to_process.run_sync, limiter=limiter),
    )


@contextlib.asynccontextmanager
async def _trio_thread() -> AsyncIterator[Pool]:
    limiter = trio.CapacityLimiter(2)
    yield Pool(
        call=trio.to_thread.run_sync,
        two_at_once=functools.partial(trio.to_thread.run_sync, limiter=limiter),
    )


@contextlib.asynccontextmanager
async def _echo() -> AsyncIterator[Pool]:
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


OURS = "trio-offload"
WITHOUT_REPORTS = "trio-offload, no reports"
TRIO_PARALLEL = "trio-parallel"
ANYIO = "anyio.to_process"
TRIO_THREAD = "Trio thread"
ECHO = "bare Trio echo"

CONTENDERS = [
    Contender(OURS, _trio_offload, "trio_offload"),
    Contender(WITHOUT_REPORTS, _without_reports, "trio_offload"),
    Contender(TRIO_PARALLEL, _trio_parallel, "trio_parallel"),
    Contender(ANYIO, _anyio_process, "anyio"),
    Contender(TRIO_THREAD, _trio_thread),
    Contender(ECHO, _echo),
]


def contenders(*names: str) -> list[Contender]:
    """Those of these names that are installed."""
    return [contender for contender in CONTENDERS if contender.name in names and contender.is_there()]
