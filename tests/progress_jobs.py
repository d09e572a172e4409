"""Jobs that tell their progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import trio
from jobs import take_line

import trio_offload
from trio_offload_worker import from_worker

Step = tuple[Any, ...]


def tell(steps: Sequence[Step]) -> int:
    """Tell each step, one directly after the other."""
    for step in steps:
        from_worker.progress(*step)
    return len(steps)


def tell_and_wait(steps: Sequence[Step], event: Any) -> str:
    """Tell the steps, and wait until the program has seen the last of them."""
    tell(steps)
    event.wait()
    return "seen"


def tell_each_and_wait(steps: Sequence[Step], wait: Callable[[], Any]) -> None:
    """Tell each step, and wait for the program before the next."""
    for step in steps:
        from_worker.progress(*step)
        wait()


def tell_and_raise(steps: Sequence[Step]) -> None:
    tell(steps)
    raise LookupError("after the steps")


def tell_and_die(steps: Sequence[Step]) -> None:
    tell(steps)
    os.kill(os.getpid(), signal.SIGKILL)


def tell_and_hang(steps: Sequence[Step], path: str) -> None:
    """Tell the steps and wait for ever. The lifeline shows the end."""
    descriptor = take_line(path)
    tell(steps)
    os.write(descriptor, b"told\n")
    while True:
        time.sleep(1000)


def tell_until_cancelled(steps: Sequence[Step], path: str, event: Any) -> str:
    """Tell a first step, and the others once it is cancelled. Then wait for the program."""
    descriptor = take_line(path)
    from_worker.progress(0, len(steps))
    while not from_worker.cancelled():
        time.sleep(0.001)
    tell(steps)
    with from_worker.shielded():
        event.wait()
    os.close(descriptor)
    return "finished"


def tell_related_numbers(path: str) -> None:
    """Tell steps whose parts belong together, as fast as possible and for ever."""
    take_line(path)
    number = 0
    while True:
        number += 1
        from_worker.progress(number, 2 * number, str(3 * number))


def track_all(number: int) -> int:
    return sum(from_worker.track(range(number)))


def yield_and_tell(number: int) -> Iterator[int]:
    yield from from_worker.track(range(number))


def tell_in_a_copy(steps: Sequence[Step]) -> int:
    """Tell the first step here, and the others in a copy of the worker."""
    tell(steps[:1])
    pid = os.fork()
    if not pid:
        tell(steps[1:])
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pass_on(steps: Sequence[Step]) -> Any:
    """Run a job of this job, and tell its progress as the own one."""

    async def main() -> Any:
        async with trio_offload.open_worker_context() as context:
            return await context.run_sync(tell, steps, progress=from_worker.progress)

    return trio.run(main)


_left: list[threading.Event] = []


def leave_a_thread() -> None:
    """Leave a thread that tells its progress, and tells another when it is allowed to."""
    told, may_tell = threading.Event(), threading.Event()

    def run() -> None:
        from_worker.progress(1, 2)
        told.set()
        may_tell.wait(60)
        from_worker.progress(2, 2, "by a thread of an earlier job")
        told.set()

    threading.Thread(target=run, daemon=True).start()
    told.wait(60)
    told.clear()
    _left[:] = [told, may_tell]


def tell_beside_the_thread() -> None:
    """Tell a step, and let the thread that the job before has left tell another."""
    from_worker.progress(5, 10)
    told, may_tell = _left
    may_tell.set()
    told.wait(60)


def item_and_wait(steps: Sequence[Step], event: Any) -> int:
    tell(steps)
    event.wait()
    return len(steps)
