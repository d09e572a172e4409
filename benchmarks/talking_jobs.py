"""What runs in workers, and in processes of multiprocessing's, for the rows about jobs that talk."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import jobs


def median_call(function: Any, times: int) -> float:
    """Seconds that a call of a callback takes: the median of many."""
    clock = time.perf_counter
    durations = []
    for _ in range(times):
        began = clock()
        function()
        durations.append(clock() - began)
    return statistics.median(durations)


def call_often(function: Any, times: int) -> None:
    for _ in range(times):
        function()


def produce(send: Any, count: int, together: int) -> None:
    if together == 1:
        for number in range(count):
            send.send(number)
    else:
        for first in range(0, count, together):
            send.send_many(range(first, min(first + together, count)))


def consume(receive: Any, together: int) -> int:
    """Receive all, and return their number."""
    if together == 1:
        return sum(1 for _ in receive)
    from trio_offload_worker import from_worker

    count = 0
    try:
        while True:
            count += len(receive.receive_many(together))
    except from_worker.EndOfChannel:
        return count


def acquire(lock: Any, begin: float, end: float) -> int:
    """Acquire and release a lock between two moments, at least once, and return how often."""
    while time.monotonic() < begin:
        pass
    count = 0
    while True:
        with lock:
            count += 1
        if time.monotonic() >= end:
            return count


def set_and_get(hosted: Any, times: int) -> float:
    """Seconds of a set and a get of one key of a dict: the median of many."""
    clock = time.perf_counter
    durations = []
    for number in range(times):
        began = clock()
        hosted["key"] = number
        got = hosted["key"]
        durations.append(clock() - began)
        if got != number:
            raise AssertionError(f"{got} instead of {number}")
    return statistics.median(durations)


def serve_dict(commands: Any, hosted: Any) -> None:
    """Be a process of multiprocessing's that uses a Manager's dict as often as it is told."""
    while times := commands.recv():
        commands.send(set_and_get(hosted, times))


def serve(commands: Any, queue: Any, lock: Any) -> None:
    """Be a process of multiprocessing's that does what it is told, and says when it has."""
    while True:
        what, *arguments = commands.recv()
        if what == "put":
            for number in range(*arguments):
                queue.put(number)
            commands.send(None)
        elif what == "get":
            for _ in range(*arguments):
                queue.get()
            commands.send(None)
        elif what == "acquire":
            commands.send(acquire(lock, *arguments))
        else:
            return


def send_kept(send: Any, kind: str, size: int) -> None:
    send.send(jobs.kept(kind, size))


def size_of_next(receive: Any) -> int:
    return jobs.size_of(receive.receive())


def cost_of_check(times: int) -> tuple[float, float]:
    """Seconds that `check_cancelled` takes, and an empty function, without the loop around."""
    from trio_offload_worker import from_worker

    check = from_worker.check_cancelled
    loop = _timed_loop(times)
    return (_timed_calls(check, times) - loop) / times, (_timed_calls(_nothing, times) - loop) / times


def cost_of_step(times: int) -> tuple[float, float]:
    """The same for a step of `from_worker.progress`."""
    from trio_offload_worker import from_worker

    def step() -> None:
        from_worker.progress(5, 100)

    step()
    loop = _timed_loop(times)
    # The function around it takes as long as an empty one.
    empty = (_timed_calls(_nothing, times) - loop) / times
    return (_timed_calls(step, times) - loop) / times - empty, empty


def _nothing() -> None:
    pass


def _timed_loop(times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        pass
    return time.perf_counter() - began


def _timed_calls(function: Any, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - began


def park(count: int, wake: Any, woken: Any, commands: Any, callback: Any, answers: Any) -> None:
    """Have so many threads wait for a semaphore of the parent's, again and again, until one is told to stop.

    Meanwhile this thread measures calls of a callback, when it is told how many.
    """
    stopped = False

    def waits() -> None:
        while True:
            wake.acquire()
            if stopped:
                return
            woken.release()

    threading.stack_size(128 * 1024)
    threads = [threading.Thread(target=waits) for _ in range(count)]
    for thread in threads:
        thread.start()
    for times in commands:
        answers.send(median_call(callback, times))
    stopped = True
    for _ in threads:
        wake.release()
    for thread in threads:
        thread.join()
