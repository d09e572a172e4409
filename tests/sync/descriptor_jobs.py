"""Jobs that fetch the descriptors of handles."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import threading
from typing import Any


def read(handle: Any, count: int = 1) -> list[tuple[bytes, bool]]:
    """Fetch, and return what the file has, and whether the descriptor is close-on-exec."""
    found = []
    for _ in range(count):
        descriptor = handle.fetch().take()
        found.append((os.pread(descriptor, 100, 0), bool(fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)))
        os.close(descriptor)
    return found


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def read_often(handle: Any, count: int) -> int:
    """Fetch often, and return how many descriptors are left of it."""
    read(handle)
    before = open_count()
    read(handle, count)
    return open_count() - before


def read_in_threads(handles: list[Any], threads: int, count: int) -> set[tuple[int, bytes]]:
    """Fetch different handles in several threads. Return the number of each handle with its contents."""
    found: set[tuple[int, bytes]] = set()

    def work(place: int) -> None:
        found.update((place, data) for data, _ in read(handles[place], count))

    workers = [threading.Thread(target=work, args=(number % len(handles),)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def fetch_without_room(handle: Any) -> tuple[str, bytes]:
    """Fetch while this process may open no more, then while it may."""
    read(handle)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    full = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        while True:
            try:
                full.append(os.dup(0))
            except OSError:
                break
        try:
            handle.fetch()
            outcome = "fetched"
        except OSError as error:
            outcome = os.strerror(error.errno or 0)
    finally:
        for descriptor in full:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return outcome, read(handle)[0][0]


class Interrupted(Exception):
    pass


def fetch_in_a_storm(handle: Any, count: int) -> int:
    """Fetch while a signal handler raises all the time. Return how many descriptors are left of it."""

    def interrupt(*_: Any) -> None:
        raise Interrupted

    read(handle)
    before = open_count()
    done = interrupted = 0
    while done < count or interrupted < count:
        descriptor = None
        signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0002 if interrupted < count else 0)
            descriptor = handle.fetch()
            done += 1
        except Interrupted:
            interrupted += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        except Interrupted:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        del descriptor
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return open_count() - before


def fetch_and_die(handle: Any, how: str) -> None:
    handle.fetch()
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_fetching(handle: Any) -> None:
    def fetch() -> None:
        while True:
            handle.fetch()

    threading.Thread(target=fetch, daemon=True).start()
    handle.fetch()
    os.kill(os.getpid(), signal.SIGKILL)


def fetch_and_error(handle: Any) -> str:
    try:
        handle.fetch()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fetched"


def keep_for_later(handle: Any) -> None:
    """Leave a thread behind that fetches all the time."""

    def fetch() -> None:
        try:
            while True:
                os.close(handle.fetch().take())
        except Exception:
            pass  # the job has ended

    threading.Thread(target=fetch, daemon=True).start()
    os.close(handle.fetch().take())


def receive_and_fetch(channel: Any, handle: Any) -> tuple[list[int], bytes]:
    """Fetch while large items arrive."""
    sizes = []
    contents = b""
    for item in channel:
        sizes.append(len(item))
        contents = read(handle)[0][0]
    return sizes, contents


def tell_and_fetch(tell: Any, handle: Any) -> None:
    tell(os.getpid())
    handle.fetch()
