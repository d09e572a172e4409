"""The row about connections: a message of 100 bytes to a plain Python process, and back."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import trio
from contenders import OURS
from measure import Samples, Settings

IN_A_THREAD = "multiprocessing.connection in a Trio thread"
# As code that awaits each operation does it, and aioprocessing.
IN_TWO_THREADS = "the same, a thread for each operation"
BLOCKING = "multiprocessing.connection, blocking"
MESSAGE = bytes(100)
_ECHO = Path(__file__).with_name("connection_echo.py")

Trips = Callable[[int], Awaitable[float]]


def _start(address: Any, key: bytes) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, _ECHO, str(address), key.hex()])


@contextlib.asynccontextmanager
async def _echo() -> AsyncIterator[Connection]:
    """A plain process, and a blocking connection with it."""
    key = os.urandom(20)
    with Listener(authkey=key) as listener:
        process = _start(listener.address, key)
        with listener.accept() as connection:
            yield connection
        await trio.to_thread.run_sync(process.wait)


def _there_and_back(connection: Connection) -> None:
    connection.send_bytes(MESSAGE)
    connection.recv_bytes()


def _blocking(connection: Connection, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        _there_and_back(connection)
    return (time.perf_counter() - began) / times


async def _all_blocking(connection: Connection, times: int) -> float:
    return await trio.to_thread.run_sync(_blocking, connection, times)


async def _in_a_thread(connection: Connection, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await trio.to_thread.run_sync(_there_and_back, connection)
    return (time.perf_counter() - began) / times


async def _in_two_threads(connection: Connection, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await trio.to_thread.run_sync(connection.send_bytes, MESSAGE)
        await trio.to_thread.run_sync(connection.recv_bytes)
    return (time.perf_counter() - began) / times


async def _ours(connection: Any, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await connection.send_bytes(MESSAGE)
        await connection.receive_bytes()
    return (time.perf_counter() - began) / times


async def round_trip(settings: Settings) -> Samples:
    """Seconds of a message there and back."""
    samples: Samples = defaultdict(list)
    # Any: a version without connections is type-checked, and measured, without this row.
    adopt: Any = importlib.import_module("trio_offload.connection").adopt
    async with contextlib.AsyncExitStack() as stack:
        trips: dict[str, Trips] = {}
        ours = adopt(await stack.enter_async_context(_echo()))
        trips[OURS] = functools.partial(_ours, await stack.enter_async_context(ours))
        if settings.peers:
            theirs = {IN_A_THREAD: _in_a_thread, IN_TWO_THREADS: _in_two_threads, BLOCKING: _all_blocking}
            for name, run in theirs.items():
                trips[name] = functools.partial(run, await stack.enter_async_context(_echo()))
        for number in range(2 * settings.rounds + 1):
            for name, trip in trips.items():
                taken = await trip(settings.calls)
                if number:
                    samples[name].append(taken)
    return samples
