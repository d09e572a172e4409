"""How fast Trio and Python allow it to be: what a row does, written by hand with nothing beside it.

The workers are trio-offload's own. What is by hand is the parent's side: the least that has to be done for a call, without a
context, a cache, a state, figures, cancellation or errors. So the difference between this and ours is what all of that costs,
and the difference between this and the goal is what no pool under Trio can have.

`ci/bench --bounds [--quick] [ROW ...]` prints a table of ratios; about two minutes.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import attrs
import jobs
import talking_bounds
import trio
from calls import POOL_MAP
from contenders import ECHO, OURS, OURS_MAP, TRIO_PARALLEL, Call, Pools, contenders
from measure import FULL
from starts import BARE_FORK, PYTHON_PROCESS, Forks, calls_per_second, first_result, python_process

import trio_offload
from trio_offload._launch.spawn import SpawnLauncher
from trio_offload._options import ContextOptions
from trio_offload._worker.call_sender import MAX_IN_FLIGHT
from trio_offload_worker._jobs.chunks import run as run_chunk
from trio_offload_worker._protocol.frames import Kind, encode_head

PREFIX = struct.Struct(">4sIQ")
BY_HAND = "by hand"
# How often an answer is looked for before it is waited for, as ours does.
LOOKS = 2


@attrs.frozen
class Scale:
    """How much is done."""

    rounds: int
    seconds: float
    workers: int
    items: int
    starts: int


FULL_SCALE = Scale(rounds=11, seconds=0.3, workers=200, items=200_000, starts=60)
QUICK_SCALE = Scale(rounds=2, seconds=0.02, workers=4, items=1000, starts=2)


@attrs.frozen
class Finding:
    row: str
    yardstick: str
    by_hand: float
    ours: float
    goal: str

    def line(self) -> str:
        return f"| {self.row} | {self.yardstick} | {self.by_hand:.2f} × | {self.ours:.2f} × | {self.goal} |"


class Hand:
    """A worker, and its socket to write to and read from by hand."""

    def __init__(self) -> None:
        self._worker = SpawnLauncher(ContextOptions()).begin()
        # As much as all that can be in flight.
        self.buffer = memoryview(bytearray(1 << 20))
        self._number = 0

    async def start(self) -> None:
        await self._worker.finish(cancellable=False)
        channel = self._worker._channel
        if channel is None:
            raise RuntimeError("the worker has no socket")
        self.socket = channel._socket
        self.record = self._worker.record_identity

    async def end(self) -> None:
        await self._worker.end()

    def call(self, pickled: bytes) -> bytes:
        """The frame of a call."""
        self._number += 1
        return encode_head(Kind.CALL, self._number, (len(pickled),)) + pickled

    async def answers(self) -> list[Any]:
        """What has come, once something has: no look at what else stands in the frames than where they end."""
        for _ in range(LOOKS):
            await trio.lowlevel.cancel_shielded_checkpoint()
            try:
                end = self.socket.recv_into(self.buffer)
                break
            except BlockingIOError:
                pass
        else:
            await trio.lowlevel.wait_readable(self.socket)
            end = self.socket.recv_into(self.buffer)
        at = 0
        values = []
        while at < end:
            if end - at >= PREFIX.size:
                _, header, payload = PREFIX.unpack_from(self.buffer, at)
                begin = at + PREFIX.size + header
                after = begin + payload
                if after <= end:
                    at = after
                    values.append(pickle.loads(self.buffer[begin:at]))
                    continue
            # The rest of the last one has not come yet.
            await trio.lowlevel.wait_readable(self.socket)
            end += self.socket.recv_into(self.buffer[end:])
        return values


@contextlib.asynccontextmanager
async def hands(count: int) -> AsyncIterator[list[Hand]]:
    """So many of them."""
    made = [Hand() for _ in range(count)]
    try:
        for hand in made:
            await hand.start()
        yield made
    finally:
        for hand in made:
            await hand.end()


def caller(free: list[Hand], limiter: trio.CapacityLimiter) -> Call:
    """A pool's `run_sync`, by hand."""

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        # Not by ``async with``, which is a checkpoint more where a token is free.
        if limiter.available_tokens < 1:
            await limiter.acquire()
        else:
            limiter.acquire_nowait()
        try:
            hand = free.pop()
            hand.socket.send(hand.call(pickle.dumps((function, arguments), 5)))
            (value,) = await hand.answers()
            free.append(hand)
            return value
        finally:
            limiter.release()

    return call


async def rates_beside(yardstick: str, workers: int, tasks: int, scale: Scale) -> dict[str, float]:
    """Calls a second: ours, by hand, and the yardstick's, by turns; medians."""
    async with Pools() as stack, hands(workers) as free:
        pools = await stack.opened(FULL, OURS, yardstick, workers=workers)
        calls: dict[str, Call] = {name: pool.call for name, pool in pools.items()}
        calls[BY_HAND] = caller(free, trio.CapacityLimiter(workers))
        rates: dict[str, list[float]] = collections.defaultdict(list)
        for number in range(scale.rounds + 1):
            for name, call in calls.items():
                value = await calls_per_second(call, scale.seconds, tasks)
                if number:
                    rates[name].append(value)
    return {name: statistics.median(values) for name, values in rates.items()}


async def single_calls(scale: Scale) -> Finding:
    rates = await rates_beside(ECHO, 1, 1, scale)
    echo = rates[ECHO]
    return Finding("warm call", "the time of a bare Trio echo", echo / rates[BY_HAND], echo / rates[OURS], "≤ 1.5 ×")


async def four_over_two(scale: Scale) -> Finding:
    rates = await rates_beside(TRIO_PARALLEL, 2, 4, scale)
    theirs = rates[TRIO_PARALLEL]
    return Finding(
        "4 tasks over 2 workers", "the rate of trio-parallel", rates[BY_HAND] / theirs, rates[OURS] / theirs, "≥ 3 ×"
    )


async def many_over_two(scale: Scale) -> Finding:
    many = scale.workers
    async with Pools() as stack, hands(many) as free:
        pools = await stack.opened(FULL, OURS, workers=many)
        calls: dict[str, Call] = {name: pool.call for name, pool in pools.items()}
        calls[BY_HAND] = caller(free, trio.CapacityLimiter(many))
        # So that all workers are up.
        async with trio.open_nursery() as nursery:
            for _ in range(many):
                nursery.start_soon(calls[OURS], time.sleep, 0.5)
        rates: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
        for number in range(scale.rounds + 1):
            for tasks in (2, many):
                for name, call in calls.items():
                    value = await calls_per_second(call, 2 * scale.seconds, tasks)
                    if number:
                        rates[name, tasks].append(value)
    growth = {name: statistics.median(rates[name, 2]) / statistics.median(rates[name, many]) for name in calls}
    return Finding(
        f"a call over {many} workers", "the time of one over 2 workers", growth[BY_HAND], growth[OURS], "≤ 1.25 ×"
    )


async def map_by_hand(free: list[Hand], count: int, size: int) -> AsyncGenerator[Any, None]:
    """`map`, by hand: so many chunks on their way to each worker, results in the order in which the items came."""
    chunks = iter(range(-(-count // size)))
    done: dict[int, list[Any]] = {}
    changed = trio.lowlevel.ParkingLot()

    async def lane(hand: Hand) -> None:
        begun: collections.deque[int] = collections.deque()
        while True:
            calls = []
            for index in itertools.islice(chunks, MAX_IN_FLIGHT - len(begun)):
                # A range travels as three numbers.
                what = (index * size, min((index + 1) * size, count), 1), None, index + 1, hand.record, None
                calls.append(hand.call(pickle.dumps((run_chunk, (jobs.same, what)), 5)))
                begun.append(index)
            if calls:
                hand.socket.send(b"".join(calls))
            if not begun:
                return
            for answer in await hand.answers():
                done[begun.popleft()] = answer[0]
            changed.unpark_all()

    async with trio.open_nursery() as nursery:
        for hand in free:
            nursery.start_soon(lane, hand)
        for due in range(-(-count // size)):
            while due not in done:
                await changed.park()
            for value in done.pop(due):
                yield value


async def chunks(scale: Scale, size: int = 100) -> Finding:
    rates: dict[str, list[float]] = collections.defaultdict(list)
    count = scale.items
    pool = multiprocessing.get_context("spawn").Pool(2)
    async with Pools() as stack, hands(2) as free:
        ours = (await stack.opened(FULL, OURS_MAP, workers=2))[OURS_MAP].maps[""]
        for number in range(scale.rounds + 1):
            found = 0
            began = time.perf_counter()
            async with contextlib.aclosing(map_by_hand(free, count, size)) as results:
                async for _ in results:
                    found += 1
            durations = {BY_HAND: time.perf_counter() - began}
            began = time.perf_counter()
            found += await ours(jobs.same, range(count), size)
            durations[OURS] = time.perf_counter() - began
            began = time.perf_counter()
            found += len(pool.map(jobs.same, range(count), size))
            durations[POOL_MAP] = time.perf_counter() - began
            if found != 3 * count:
                raise AssertionError(f"{found} results")
            for name, duration in durations.items():
                if number:
                    rates[name].append(count / duration)
    pool.terminate()
    pool.join()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    theirs = medians[POOL_MAP]
    return Finding(
        f"map, chunks of {size}", "the rate of Pool.map", medians[BY_HAND] / theirs, medians[OURS] / theirs, "≥ 0.8 ×"
    )


# The least that forks a worker and runs a call in it: no check for threads, no handlers, no settings, nobody who watches the
# parent, no figures, nothing flushed, and no knowledge of how the worker ended.
TEMPLATE = """
import _pickle, _socket, array, os, sys
requests = _socket.socket(fileno=0)
while True:
    _, ancillary, _, _ = requests.recvmsg(1, _socket.CMSG_SPACE(4))
    if not ancillary:
        break
    descriptor = array.array("i", ancillary[0][2])[0]
    if os.fork() == 0:
        line = _socket.socket(fileno=descriptor)
        function, arguments = _pickle.loads(line.recv(65536))
        line.send(_pickle.dumps(function(*arguments), 5))
        os._exit(0)
    os.close(descriptor)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


class TemplateByHand:
    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair()
        self._process = subprocess.Popen([sys.executable, "-I", "-S", "-c", TEMPLATE], stdin=theirs)
        theirs.close()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a call in a process that is forked for it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        socket.send_fds(self._requests, [b"."], [theirs.fileno()])
        ours.send(pickle.dumps((function, arguments), 5))
        theirs.close()
        await trio.lowlevel.wait_readable(ours)
        value = pickle.loads(ours.recv(65536))
        ours.close()
        return value

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


async def forked(scale: Scale) -> Finding:
    """Each after a pause, as in the table: what a process has in the processor's caches is gone by then."""
    durations: dict[str, list[float]] = collections.defaultdict(list)
    with contextlib.closing(TemplateByHand()) as template, Forks() as forks:
        async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType.FORKSERVER) as context:
            await context.run_sync(bool)
            for _ in range(scale.starts):
                with trio.move_on_after(0.2):
                    # The worker that is there goes.
                    await context.run_sync(jobs.wait, 1000.0, kill_on_cancel=True)
                for name, call in {OURS: context.run_sync, BY_HAND: template.call}.items():
                    await trio.sleep(0.1)
                    began = time.perf_counter()
                    await call(bool)
                    durations[name].append(time.perf_counter() - began)
                await trio.sleep(0.1)
                durations[BARE_FORK].append(forks.one())
    medians = {name: statistics.median(values) for name, values in durations.items()}
    bare = medians[BARE_FORK]
    return Finding(
        "a worker from a template", "the time of a bare fork", medians[BY_HAND] / bare, medians[OURS] / bare, "≤ 2.5 ×"
    )


# No trio-offload, nothing imported, nothing understood: a Python that has started says so.
FIRST_BYTE = "import os; os.write(1, b'.')"


async def cold(scale: Scale) -> Finding:
    """By hand is the user's own Python until its first line runs; its end is nobody's business."""
    durations: dict[str, list[float]] = collections.defaultdict(list)
    (ours,) = contenders(FULL, OURS)
    for number in range(scale.starts + 1):
        first = {OURS: await first_result(ours), BY_HAND: _first_byte(), PYTHON_PROCESS: python_process()}
        for name, duration in first.items():
            if number:
                durations[name].append(duration)
    medians = {name: statistics.median(values) for name, values in durations.items()}
    yardstick = medians[PYTHON_PROCESS]
    return Finding(
        "cold start", "the time of `python -c pass`", medians[BY_HAND] / yardstick, medians[OURS] / yardstick, "≤ 0.75 ×"
    )


def _first_byte() -> float:
    began = time.perf_counter()
    ours, theirs = socket.socketpair()
    redirected = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 1)]
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", FIRST_BYTE], os.environ, file_actions=redirected)
    theirs.close()
    ours.recv(1)
    duration = time.perf_counter() - began
    os.waitpid(pid, 0)
    ours.close()
    return duration


async def contended_lock(scale: Scale, *, under_trio: bool = True) -> Finding:
    row = "a lock that two jobs contend for" + ("" if under_trio else "; by hand without Trio")
    bound = await talking_bounds.lock(scale.rounds, under_trio=under_trio)
    return _finding(row, "the time of a Manager's lock", bound, 0.2)


async def hosted_dict(scale: Scale) -> Finding:
    bound = await talking_bounds.hosted_dict(scale.rounds)
    return _finding("set and get of a hosted dict", "the time of a Manager's dict", bound, 0.5)


async def wakes(scale: Scale) -> Finding:
    bound = await talking_bounds.wakes(scale.rounds)
    return _finding("a request answered and made again, thousands of threads", "the time with 10 threads", bound, 1.25)


def _finding(row: str, yardstick: str, bound: talking_bounds.Bound, limit: float) -> Finding:
    return Finding(row, yardstick, bound.by_hand / bound.yardstick, bound.ours / bound.yardstick, f"≤ {limit} ×")


ROWS = {
    "cold": cold,
    "single": single_calls,
    "four": four_over_two,
    "many": many_over_two,
    "chunks": chunks,
    "large chunks": functools.partial(chunks, size=1000),
    "forked": forked,
    "lock": contended_lock,
    "lock without trio": functools.partial(contended_lock, under_trio=False),
    "dict": hosted_dict,
    "wakes": wakes,
}


async def main() -> None:
    arguments = sys.argv[1:]
    scale = QUICK_SCALE if "--quick" in arguments else FULL_SCALE
    print("| | beside | by hand | ours | goal |\n|---|---|---|---|---|")
    for name in [name for name in arguments if name != "--quick"] or ROWS:
        print((await ROWS[name](scale)).line(), flush=True)


if __name__ == "__main__":
    trio.run(main)
