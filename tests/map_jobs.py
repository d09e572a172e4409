"""What the tests of ``map`` run in workers. Importable there, and light: nothing here may import trio."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
from bad_jobs import Boom, ErrorThatFailsToPickle, FailsToPickle, FailsToUnpickle, fail

from trio_offload_worker import from_worker


def double(item: Any) -> Any:
    return 2 * item


def write_down(journal: str, item: Any) -> Any:
    """Leave a line for each time that it is run."""
    jobs.append(journal, str(item))
    return item


def write_down_behind_gate(journal: str, gate: str, last: int, item: int) -> int:
    """The same. One item, and those behind it, wait for a file."""
    while item >= last and not os.path.exists(gate):
        time.sleep(0.01)
    return int(write_down(journal, item))


def write_down_and_fail(journal: str, bad: Any, how: str, item: Any) -> Any:
    jobs.append(journal, str(item))
    if item == bad:
        fail(how)
    return item


def fail_quickly(bad: int, item: int) -> int:
    """Nothing that takes time, until the one that fails."""
    if item == bad:
        fail("SIGKILL")
    return item


def raise_at(bad: int, item: int) -> int:
    if item == bad:
        raise Boom(item)
    return item


def be_odd(item: str) -> Any:
    """What travels badly, each in its own way."""
    if item == "raises":
        raise Boom(item)
    if item == "raises what does not pickle":
        raise ErrorThatFailsToPickle("Exception")
    if item == "does not pickle":
        return threading.Lock()
    if item == "fails to pickle":
        return FailsToPickle("BaseException")
    if item == "fails to unpickle":
        return FailsToUnpickle("Exception")
    if item == "exits":
        raise SystemExit(3)
    if item == "is asynchronous":
        return _coroutine()
    return item


async def _coroutine() -> None: ...


_raised = Boom("the same object each time")


def raise_the_same(item: int) -> int:
    raise _raised


def fork_at(journal: str, bad: int, item: int) -> int:
    """One item leaves a copy of the worker, which must run none of the others."""
    jobs.append(journal, str(item))
    if item == bad:
        pid = os.fork()
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return item


def hold_at(line: str, bad: int, item: int) -> int:
    """Run for ever, with a child, at one item."""
    if item == bad:
        jobs.start_family(line)
    return item


def take_memory_at(bad: int, item: int) -> int:
    if item == bad:
        taken = bytearray(b"x") * 300_000_000
        while taken:
            signal.pause()
    return item


def close_the_record() -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            if "trio-offload-record" in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))
        except OSError:  # the one that lists this folder
            continue


def turn(item: list[int]) -> list[int]:
    item.reverse()
    return item


def pass_named_gate(line: str, item: str) -> str:
    jobs.pass_gate(line, item)
    return item


def pid_and(item: Any) -> tuple[int, Any]:
    return os.getpid(), item


class MadeAtPickling:
    """Arrives as so many bytes of one value. They are made when it is pickled, and nobody else holds them."""

    def __init__(self, value: int, size: int) -> None:
        self._value = value
        self._size = size

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(bytes([self._value]) * self._size),)


def arguments(*given: Any) -> tuple[Any, ...]:
    return given


def write_down_and_fail_if(journal: str, how: str, item: Any, *, text: str) -> Any:
    jobs.append(journal, f"{item} {text}")
    if item == how:
        fail(how)
    return item


class Arrival:
    """Calls a function of the test when it is unpickled there."""

    def __reduce__(self) -> Any:
        return arrive, ()


at_arrival: Callable[[], object] = bool


def arrive() -> None:
    at_arrival()


def numbers(last: int, taken: Path) -> Iterator[int]:
    """Count up. Make the file ``taken`` when the item behind ``last`` is taken, and so sent."""
    for number in itertools.count():
        if number == last + 1:
            taken.touch()
        yield number


def arrive_and_hold(line: str, last: int, taken: Path, item: int) -> Any:
    """Return at once; for ``last`` an :class:`Arrival`, once the item behind it is sent. That one runs until it is told to end."""
    if item < last:
        return item
    if item == last:
        while not taken.exists():
            time.sleep(0.001)
        return Arrival()
    descriptor = jobs.take_line(line)
    try:
        from_worker.sleep_forever()
    finally:
        os.write(descriptor, b"told\n")
