"""Jobs of ``worker_side/test_line.py``: they speak to a scripted parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from trio_offload_worker._protocol.frames import FRONT_SIZE
from trio_offload_worker._requests.errors import JobEndedError
from trio_offload_worker._requests.messages import Segments
from trio_offload_worker._requests.requests import post, request


def ask(op: str, timeout: float | None = None) -> tuple[str, list[Any]]:
    reply = request(op, timeout=timeout)
    return reply.status, [(type(segment).__name__, bytes(segment)) for segment in reply.segments]


def ask_of_sizes(op: str) -> list[tuple[str, int, bool]]:
    """The type, the length, and whether it can be written to."""
    return [(type(segment).__name__, len(segment), not memoryview(segment).readonly) for segment in request(op).segments]


def say(*sizes: int) -> None:
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    post("set", 2**63, Segments(data, list(sizes)))


def ask_until_time_is_over() -> str:
    try:
        request("sleep", timeout=0.01)
    except TimeoutError:
        return "over"
    return "answered"


class Alarm(Exception):
    pass


def ask_with_handler(raises: bool) -> str:
    """A signal handler of Python's runs while the request waits."""

    def handle(*_: object) -> None:
        post("handled")
        if raises:
            raise Alarm

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        return request("sleep", give_back="return").status
    except Alarm:
        return "raised"
    finally:
        signal.signal(signal.SIGUSR1, before)


def ask_in_threads(threads: int, requests: int) -> int:
    answers: list[bytes] = []

    def work(thread: int) -> None:
        for number in range(requests):
            name = b"%d %d" % (thread, number)
            reply = request("echo", segments=Segments((name,), (len(name),)))
            if bytes(reply.segments[0]) != name:
                raise AssertionError(name, reply.segments)
            answers.append(name)

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return len(set(answers))


_left_behind: list[str] = []
_thread: threading.Thread | None = None


def leave_a_thread_behind(daemon: bool = False) -> None:
    """Return while a thread of this job waits for an answer."""

    def wait() -> None:
        try:
            _left_behind.append(request("sleep").status)
        except JobEndedError:
            _left_behind.append("ended")

    global _thread
    _thread = threading.Thread(target=wait, daemon=daemon)
    _thread.start()
    # The scripted parent answers this one once it has the other.
    request("answer me")


def join_it() -> list[str]:
    assert _thread is not None
    _thread.join()
    return _left_behind


def ask_in_a_fork() -> str:
    """The copy has no line. What it finds comes through a pipe."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import _trio_offload_line as line

            problems = []
            for use in (lambda: request("sleep"), lambda: line.read(1.0, []), lambda: line.write((b"x",), line.call(), [])):
                try:
                    use()
                except RuntimeError as error:
                    problems.append(str(error)[:31])
            os.write(theirs, repr(problems).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return os.read(ours, 1000).decode()


def facts() -> tuple[bool, bool, bool, bool]:
    """The builtin module is there, and ``sys`` does not show it."""
    import _trio_offload_line as line

    is_hidden = "_trio_offload_line" not in sys.builtin_module_names
    return line.call() > 0, line.pid() == os.getpid(), os.fstat(line.record()).st_size >= FRONT_SIZE, is_hidden


def read_twice() -> str:
    """Two threads must not read at once."""
    import _trio_offload_line as line

    first = threading.Thread(target=line.read, args=(1.0, []))
    first.start()
    try:
        while True:
            line.read(0.0, [])
    except RuntimeError as error:
        return str(error)
    finally:
        first.join()


def close_the_socket() -> str:
    os.close(3)
    try:
        request("sleep")
    except OSError as error:
        return str(error)
    return "answered"
