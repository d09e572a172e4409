"""What bounds the rows about jobs that talk: the same by hand, as `bounds.py` has it for calls.

The other side is a plain Python that does nothing else. The parent's side is one Trio task, without handles, fairness, deadlines or
the deaths of jobs.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import attrs
import living
import trio
from contenders import OURS, OURS_TALKING
from measure import FULL, QUICK, Samples, Settings
from talkers import LOCK, MANAGER_LOCK, Rounds, talkers
from talking import MOST_OF_A_JOB, Parked

_MESSAGE = bytes(40)
_FEW = 10
# Of all threads, and of descriptors.
_ROOM = 4

# Two jobs and a lock: each is handed it, and hands it back with the wish to have it again.
_HOLDER = """
import socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
while received := line.recv(100):
    line.send(received)
"""

# A job that sets and gets a key: each is a message and its answer.
_USER = """
import pickle, socket, statistics, sys, time
line = socket.socket(fileno=int(sys.argv[1]))
def ask(*operation):
    line.send(pickle.dumps(operation, 5))
    return pickle.loads(line.recv(100))
while times := line.recv(100):
    durations = []
    for number in range(int(times)):
        began = time.perf_counter()
        ask("set", "key", number)
        ask("get", "key")
        durations.append(time.perf_counter() - began)
    line.send(pickle.dumps(("end", statistics.median(durations)), 5))
"""

# Threads that wait, each for its pipe. Each that is woken says so, and waits again.
_WAITING = """
import os, sys, threading
answers, *pipes = map(int, sys.argv[1:])
def wait(pipe):
    while os.read(pipe, 1):
        os.write(answers, b".")
threading.stack_size(256 * 1024)
for pipe in pipes:
    threading.Thread(target=wait, args=(pipe,)).start()
"""


@attrs.frozen
class Bound:
    """Seconds of each; a growth if it has no yardstick."""

    by_hand: float
    ours: float
    yardstick: float


def settings_for(rounds: int) -> Settings:
    return QUICK if rounds <= QUICK.rounds else attrs.evolve(FULL, rounds=rounds)


@contextlib.contextmanager
def _plain(program: str, *numbers: int) -> Iterator[None]:
    command = [sys.executable, "-I", "-S", "-c", program, *map(str, numbers)]
    process = subprocess.Popen(command, pass_fds=numbers)
    try:
        yield
    finally:
        process.wait()


@contextlib.contextmanager
def _process(program: str) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_plain(program, theirs.fileno()))
        theirs.close()
        stack.enter_context(ours)
        yield ours


async def _receive(line: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(line)
    return line.recv(100)


async def _hand_over(lines: tuple[socket.socket, socket.socket], seconds: float) -> float:
    """Seconds of an acquisition of a lock that goes from one to the other."""
    count = 0
    began = time.perf_counter()
    lines[0].send(_MESSAGE)
    while time.perf_counter() - began < seconds:
        for holder, waiter in (lines, lines[::-1]):
            waiter.send(await _receive(holder))
            count += 1
    await _receive(lines[0])
    return (time.perf_counter() - began) / count


def _hand_over_without_trio(lines: tuple[socket.socket, socket.socket], seconds: float) -> float:
    """The same by a loop that only waits and passes on: what any process in the middle costs."""
    count = 0
    with select.epoll() as ready:
        for line in lines:
            ready.register(line, select.EPOLLIN)
        began = time.perf_counter()
        lines[0].send(_MESSAGE)
        while time.perf_counter() - began < seconds:
            for holder, waiter in (lines, lines[::-1]):
                ready.poll()
                waiter.send(holder.recv(100))
                count += 1
        ready.poll()
        lines[0].recv(100)
        return (time.perf_counter() - began) / count


async def lock(rounds: int, *, under_trio: bool = True) -> Bound:
    settings = settings_for(rounds)
    samples: Samples = {OURS_TALKING: [], MANAGER_LOCK: [], "": []}
    async with contextlib.AsyncExitStack() as stack:
        up: dict[str, Rounds] = {}
        for contender in talkers(settings, OURS_TALKING, MANAGER_LOCK):
            up[contender.name] = await stack.enter_async_context(contender.open(2))
        lines = stack.enter_context(_process(_HOLDER)), stack.enter_context(_process(_HOLDER))
        for number in range(rounds + 1):
            for name in samples:
                if name:
                    taken = await up[name][LOCK](settings)
                elif under_trio:
                    taken = await _hand_over(lines, settings.seconds / 2)
                else:
                    taken = _hand_over_without_trio(lines, settings.seconds / 2)
                if number:
                    samples[name].append(taken)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return Bound(medians[""], medians[OURS_TALKING], medians[MANAGER_LOCK])


async def _serve(line: socket.socket, times: int) -> float:
    """Seconds of a set and a get, as the user has measured them."""
    hosted: dict[str, Any] = {}
    line.send(str(times).encode())
    while True:
        what, *arguments = pickle.loads(await _receive(line))
        if what == "end":
            duration: float = arguments[0]
            return duration
        value = hosted.__setitem__(*arguments) if what == "set" else hosted[arguments[0]]
        line.send(pickle.dumps(value, 5))


async def hosted_dict(rounds: int) -> Bound:
    settings = settings_for(rounds)
    with _process(_USER) as line:
        by_hand = [await _serve(line, settings.calls) for _ in range(rounds + 1)]
        samples = await living.hosted_dict(settings)
        by_hand += [await _serve(line, settings.calls) for _ in range(rounds + 1)]
    ours = min(statistics.median(samples[name]) for name in (OURS, living.SHARED))
    return Bound(statistics.median(by_hand), ours, statistics.median(samples[living.MANAGER]))


def _wake_all(count: int, rounds: int) -> float:
    """Seconds of a thread's answer, if so many are woken at once."""
    answers, theirs = os.pipe()
    pipes = [os.pipe() for _ in range(count)]
    durations = []
    with _plain(_WAITING, theirs, *(reader for reader, _ in pipes)):
        for number in range(rounds + 1):
            began = time.perf_counter()
            for _, writer in pipes:
                os.write(writer, b".")
            missing = count
            while missing:
                missing -= len(os.read(answers, missing))
            if number:
                durations.append((time.perf_counter() - began) / count)
        for _, writer in pipes:
            os.close(writer)
    for descriptor in (answers, theirs, *(reader for reader, _ in pipes)):
        os.close(descriptor)
    return statistics.median(durations)


async def wakes(rounds: int) -> Bound:
    settings = settings_for(rounds)
    many = min(settings.parked[-1], MOST_OF_A_JOB)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _ROOM * many + 1000), hard))
    places = (await Parked(wakes=True)(settings))[OURS]
    medians = {size: statistics.median(values) for size, values in places.items()}
    by_hand = _wake_all(many, rounds) / _wake_all(_FEW, 30 * rounds)
    return Bound(by_hand, medians[settings.parked[-1]] / medians[settings.parked[0]], 1.0)
