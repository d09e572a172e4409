"""Jobs that use the locks and the like of the test."""

from __future__ import annotations

import os
import signal
import threading
from random import Random
from typing import Any

Outcome = tuple[str, Any]


def do(handle: Any, *steps: tuple[Any, ...]) -> list[Outcome]:
    """Call methods, one after the other, and read attributes; say what came of each."""
    return [outcome(handle, *step) for step in steps]


def outcome(handle: Any, name: str, *args: Any, **kwargs: Any) -> Outcome:
    try:
        found = getattr(handle, name)
        if not callable(found):
            return "value", found
        value = found(*args, **kwargs)
        return "value", vars(value) if type(value).__name__ == "Record" else value
    except Exception as error:
        return type(error).__name__, str(error)


def identity(value: Any) -> Any:
    return value


def kind_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def hold(lock: Any, how: str = "return", said: Any = None) -> None:
    """Acquire the lock and end with it."""
    lock.acquire()
    end(how)


def end(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "raise":
        raise LookupError("the job raises")


def acquire_many(limiter: Any, number: int, how: str) -> None:
    for _ in range(number):
        limiter.acquire()
    end(how)


def borrow(limiter: Any, how: str) -> None:
    limiter.acquire()
    limiter.acquire_on_behalf_of("an object")
    limiter.acquire_on_behalf_of("another")
    limiter.release_on_behalf_of("another")
    end(how)


def with_lock(lock: Any, function: Any, *args: Any) -> Any:
    with lock:
        return function(*args)


def append_pid(lock: Any, path: str, number: int) -> None:
    """Read a file and write it again, longer: two at once would lose one."""
    for _ in range(number):
        with lock:
            with open(path) as file:
                count = int(file.read())
            with open(path, "w") as file:
                file.write(str(count + 1))


def acquire_then(first: Any, second: Any, ready: Any) -> str:
    """Hold one lock and wait for another."""
    with first:
        ready.set()
        try:
            second.acquire()
        except Exception as error:
            return type(error).__name__ + ": " + str(error)
        second.release()
        return "acquired"


def wait_for_notification(condition: Any, ready: Any, timeout: float | None = None) -> str:
    with condition:
        ready.release()
        condition.wait(timeout)
    return "notified"


def wait_for_items(condition: Any, event: Any) -> bool:
    with condition:
        return bool(condition.wait_for(event.is_set))


def notify(condition: Any, number: int | None) -> None:
    with condition:
        if number is None:
            condition.notify_all()
        else:
            condition.notify(number)


def nested(lock: Any) -> list[bool]:
    """Acquire a reentrant lock in itself."""
    seen = []
    with lock:
        with lock:
            lock.acquire_nowait()
            seen.append(lock.locked())
            lock.release()
        seen.append(lock.locked())
    seen.append(lock.locked())
    return seen


def wait_nested(condition: Any, lock: Any, ready: Any) -> bool:
    """Wait with an RLock that is acquired twice: it is held twice again."""
    with condition, lock:
        ready.set()
        condition.wait()
        lock.release()
        still = bool(lock.locked())
        lock.acquire()
    return still


def in_threads(lock: Any, number: int) -> list[int]:
    """Threads of one job exclude each other."""
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(10):
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


def hold_in_item(lock: Any, item: int) -> str:
    """An item that keeps the lock, if it is the first."""
    try:
        lock.acquire()
    except Exception as error:
        return type(error).__name__
    if item:
        lock.release()
    return "acquired"


def meet(barrier: Any, how: str = "wait") -> Any:
    if how == "wait":
        return barrier.wait()
    return outcome(barrier, how)


def wait_and_die(barrier: Any, started: Any) -> None:
    """Wait at a barrier in a thread, and die there."""
    thread = threading.Thread(target=barrier.wait, daemon=True)
    thread.start()
    started.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def wait_blocked(handle: Any, ready: Any, method: str) -> str:
    """Wait in one method until something ends the wait."""
    ready.set()
    try:
        getattr(handle, method)()
    except BaseException as error:
        if type(error).__name__ == "Cancelled":
            return "cancelled"
        raise
    return "done"


def wait_to_be_killed(handle: Any, ready: Any, method: str) -> None:
    ready.set()
    getattr(handle, method)()


class Interrupt(Exception):
    """A signal handler raises it."""


def interrupted(handle: Any, method: str, said: Any) -> str:
    """Wait until a signal handler raises."""

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupt

    signal.signal(signal.SIGUSR1, interrupt)
    said(os.getpid())
    try:
        getattr(handle, method)()
    except Interrupt:
        return "interrupted"
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    return "done"


def interrupted_condition(condition: Any, said: Any) -> list[str]:
    """After the exception of a signal handler, the lock is held again."""
    with condition:
        found = [interrupted(condition, "wait", said)]
        condition.notify()
    try:
        condition.release()
    except RuntimeError as error:
        found.append(str(error))
    return found


def set_all(events: list[Any]) -> None:
    for event in events:
        event.set()


def call_with_lock(lock: Any, callback: Any) -> str:
    """Call back while the lock is held."""
    with lock:
        try:
            callback()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "called"


def run_with_lock(lock: Any, afn: Any) -> str:
    from trio_offload_worker import from_worker

    with lock:
        return str(from_worker.run(afn, lock))


def poll(event: Any, ready: Any) -> int:
    """Look at an event until it is set, without a request."""
    from trio_offload_worker._requests import meetings

    def request(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the job has asked")

    original, meetings.request = meetings.request, request
    looks = 1
    try:
        ready.set()
        while not event.is_set():
            looks += 1
    finally:
        meetings.request = original
    return looks


def toggle(event: Any) -> list[bool]:
    """A job sees its own changes at once."""
    seen = []
    for _ in range(3):
        event.set()
        seen += [event.is_set(), event.is_set()]
        event.clear()
        seen += [event.is_set(), event.is_set()]
    return seen


def are_set(events: list[Any]) -> list[bool]:
    return [event.is_set() for event in events]


def race(lock: Any, number: int, seed: int) -> int:
    """Acquire with timeouts that pass about when the lock is free; say how often it was there."""
    random = Random(seed)
    successes = 0
    for _ in range(number):
        try:
            lock.acquire(random.random() * 0.002)
        except TimeoutError:
            continue
        successes += 1
        lock.release()
    return successes


def last_words(lock: Any, semaphore: Any, event: Any, limiter: Any) -> None:
    """Release all and set the event with the last breath."""
    lock.acquire()
    limiter.acquire()
    semaphore.acquire()
    lock.release()
    limiter.release()
    semaphore.release()
    event.set()
    os.kill(os.getpid(), signal.SIGKILL)


def hold_until_killed(lock: Any, held: Any) -> None:
    with lock:
        held.set()
        while True:  # also behind the signal that asks for stacks
            signal.pause()


def move(locks: list[Any], path: str, first: int, second: int, amount: int) -> None:
    """Move money between two accounts: files, each behind a lock."""
    for number in sorted((first, second)):
        locks[number].acquire()
    for number, change in ((first, -amount), (second, amount)):
        with open(f"{path}/{number}", "r+") as file:
            balance = int(file.read()) + change
            file.seek(0)
            file.truncate()
            file.write(str(balance))
    for number in (first, second):
        locks[number].release()
