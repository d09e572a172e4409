"""Jobs that talk, for a scripted parent."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from trio_offload_worker import from_worker
from trio_offload_worker._requests.handles import attach
from trio_offload_worker._requests.pickles import dumps, loads, result
from trio_offload_worker._requests.requests import hand_over, post, request


def ask(*args: Any, **kwargs: Any) -> Any:
    return result(request(*args, **kwargs))


def echo(count: int, size: int = 0) -> list[Any]:
    return [from_worker.run_sync(len, "x" * size) for _ in range(count)]


def until_cancelled() -> None:
    while True:
        from_worker.check_cancelled()


def receive_one() -> Any:
    reply = request("receive", 9)
    item = loads(reply.segments)
    hand_over(reply)
    return item


def post_two() -> None:
    post("set", 9)
    post("release", 9, count=2)


def in_threads(count: int, rounds: int) -> list[int]:
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(number for number in range(rounds) if ask("wait") != threading.get_native_id())

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


left: list[Any] = []


def leave_a_thread(asks: int) -> None:
    """Return while a thread of this job waits for a reply, or before it asks for the second time."""

    def work() -> None:
        try:
            for number in range(asks):
                ask("wait", number + 1)
                go.wait()
            left.append("replied")
        except from_worker.JobEndedError as error:
            left.append(type(error).__name__)

    go = threading.Event()
    thread = threading.Thread(target=work)
    left[:] = [thread, go]
    thread.start()
    # The parent replies when the thread has asked too.
    ask("wait", 7)


def end_of_thread() -> Any:
    thread, go, *_ = left
    go.set()
    thread.join(30)
    return left[2:]


class Alarm(Exception):
    pass


def interrupted() -> str:
    """A signal handler raises while a request waits."""

    def handler(*args: Any) -> None:
        raise Alarm

    signal.signal(signal.SIGUSR1, handler)
    try:
        request("receive", 9, give_back="return")
    except Alarm:
        return "interrupted"
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    return "received"


def counted_signals() -> tuple[Any, int]:
    """A signal handler that returns does not end the wait."""
    seen = []
    signal.signal(signal.SIGUSR1, lambda *args: seen.append(1))
    try:
        return ask("wait"), len(seen)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def forked_copy() -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            from_worker.run_sync(int)
        except RuntimeError as error:
            code = 7 if "forked off a job" in str(error) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def returned_handle(deep: bool) -> Any:
    handle: Any = attach("callback", 77, "f")
    return {"handle": [handle]} if deep else handle


def ask_with(data: bytes) -> tuple[bool, int]:
    answer = result(request("send", 9, dumps(data)))
    return answer == b"y" * len(data), len(answer)


def shield_and_escape() -> None:
    try:
        from_worker.sleep(1000)
    except from_worker.Cancelled:
        with from_worker.shielded():
            from_worker.run(os.getpid)
        raise


def post_large(count: int, size: int) -> None:
    """The numbers between two messages take the time of a report."""
    for _ in range(count):
        post("send", 9, dumps(b"x" * size))
        sum(range(100_000))


class Retire:
    """Returns False if it was refused to talk."""

    def __call__(self) -> bool:
        try:
            talk()
        except RuntimeError as error:
            return "init, retire and exit handlers" not in str(error)
        return True


def talk() -> None:
    from_worker.run_sync(int)
