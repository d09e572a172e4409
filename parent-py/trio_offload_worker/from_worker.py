"""Functions by which a job talks to its parent: callbacks, progress and cancellation.

::

    from trio_offload_worker import from_worker


    def job(path):
        for number, line in enumerate(open(path)):
            from_worker.check_cancelled()
            if number % 1000 == 0:
                from_worker.run_sync(show_progress, number)

What to use:

==================================  ======================================================
run, run_sync                       call a function of the parent
check_cancelled, cancelled, sleep   end early if the call is cancelled
shielded                            clean up after a cancellation
progress, track                     report how far the job is
channel                             exchange items with the block of ``open_process``
run_async                           run an async function in the job
job                                 let a further thread of the job talk to the parent
==================================  ======================================================

In a thread of Trio's, as of ``trio.to_thread.run_sync``, the functions have the effect of
``trio.from_thread``. So a job can be tried there unchanged. Called anywhere else, :func:`run` and
:func:`run_sync` raise RuntimeError, and :func:`check_cancelled` does nothing. :func:`progress` and
:func:`track` have an effect in a worker only.
"""

from __future__ import annotations

import os
from _thread import _local
from time import sleep as _sleep

from . import import_late
from ._protocol.frames import STEP_AT
from ._requests.errors import (
    AbandonedLockError,
    BrokenBarrierError,
    BrokenResourceError,
    Cancelled,
    ClosedResourceError,
    DeadlockError,
    EndOfChannel,
    JobEndedError,
    RemoteError,
    WouldBlock,
    make_cancelled,
)
from ._requests.line import CANCEL, current_line, is_worker
from ._requests.shields import shield_end, shielded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from typing import Any, Final, TypeVar

    from typing_extensions import TypeVarTuple, Unpack

    from ._requests.processes import channel as channel
    from ._requests.running_job import Job as Job
    from ._requests.running_job import job as job

    ArgumentTypes = TypeVarTuple("ArgumentTypes")
    ItemType = TypeVar("ItemType")
    ResultType = TypeVar("ResultType")

__all__ = [
    "AbandonedLockError",
    "BrokenBarrierError",
    "BrokenResourceError",
    "Cancelled",
    "ClosedResourceError",
    "DeadlockError",
    "EndOfChannel",
    "Job",
    "JobEndedError",
    "RemoteError",
    "WouldBlock",
    "cancelled",
    "channel",
    "check_cancelled",
    "job",
    "progress",
    "run",
    "run_async",
    "run_sync",
    "shielded",
    "sleep",
    "track",
]
# Modules of public names that few jobs need.
_LATE: Final = {"Job": "running_job", "channel": "processes", "job": "running_job"}


def run(afn: Callable[[Unpack[ArgumentTypes]], Awaitable[ResultType]], *args: Unpack[ArgumentTypes]) -> ResultType:
    """Run ``await afn(*args)`` in the parent, inside of the task that called this job.

    ::

        async def look_up(host):
            return await trio.socket.getaddrinfo(host, 443)

        def count_addresses(host):
            return len(from_worker.run(look_up, host))

    Args:
        afn: An async function. It is pickled like a job's function. The parent imports its module
            in the event loop.
        *args: Its arguments.

    Raises:
        BaseException: The function's exception. Its traceback in the parent is a note.
        Cancelled: The job's call is cancelled.
        RuntimeError: This is not a job.
    """
    if is_worker():
        answer: ResultType = _ask("run", (afn, args), None)
        return answer
    from ._requests import trio_threads

    value: ResultType = trio_threads.run(afn, args)
    return value


def run_sync(fn: Callable[[Unpack[ArgumentTypes]], ResultType], *args: Unpack[ArgumentTypes]) -> ResultType:
    """Run ``fn(*args)`` in the parent's event loop. It works in a cancelled job too.

    ::

        def check_sizes(paths):
            for path in paths:
                if os.path.getsize(path) == 0:
                    from_worker.run_sync(print, path, "is empty")

    The event loop waits for the function, so it must be quick.

    Raises:
        BaseException: The function's exception. Its traceback in the parent is a note.
        RuntimeError: This is not a job.
    """
    if is_worker():
        answer: ResultType = _ask("run_sync", (fn, args), True)
        return answer
    from ._requests import trio_threads

    value: ResultType = trio_threads.run_sync(fn, args)
    return value


def run_async(afn: Callable[[Unpack[ArgumentTypes]], Awaitable[ResultType]], *args: Unpack[ArgumentTypes]) -> ResultType:
    """Run ``await afn(*args)`` in this job, in a separate run of Trio.

    ::

        async def fetch_all(urls):
            async with trio.open_nursery() as nursery:
                for url in urls:
                    nursery.start_soon(fetch, url)

        def job(urls):
            from_worker.run_async(fetch_all, urls)

    It is cancelled soon after the job's call. Its threads (:func:`trio.to_thread.run_sync`) can
    talk to the parent, if each begins with ``from_worker.job().adopt()``.

    Raises:
        BaseException: The function's exception.
        Cancelled: The job's call is cancelled, and the function has not returned.
    """
    check_cancelled()
    from ._requests import async_jobs, trio_threads

    try:
        value: ResultType = async_jobs.run(afn, args, cancelled)
    except BaseException as error:
        if is_worker() and cancelled() and trio_threads.is_cancellation(error):
            raise make_cancelled() from None
        raise
    return value


def check_cancelled() -> None:
    """Raise :exc:`Cancelled` if the job's call is cancelled. Takes 0.1 µs.

    ::

        for path in paths:
            from_worker.check_cancelled()
            convert(path)

    A ``shielded`` block hides the cancellation.
    """
    # An integer of the record's front, which the parent writes to. A number that belongs to an
    # ended call stays there.
    if _words[_CANCEL] != _ended:
        _look()


def cancelled() -> bool:
    """Return True if :func:`check_cancelled` would raise.

    ::

        def estimate_pi():
            inside = total = 0
            while not from_worker.cancelled():
                total += 1
                inside += random.random() ** 2 + random.random() ** 2 < 1
            return 4 * inside / total

        with trio.move_on_after(1):
            print(await trio_offload.run_sync(estimate_pi))
    """
    try:
        check_cancelled()
    except BaseException as error:
        from ._requests.trio_threads import is_cancellation

        if not isinstance(error, Cancelled) and not is_cancellation(error):
            raise
        return True
    return False


def sleep(seconds: float) -> None:
    """Sleep, but end early if the job's call is cancelled.

    ::

        def wait_for_file(path):
            while not os.path.exists(path):
                from_worker.sleep(0.5)

    Args:
        seconds: Seconds to sleep.

    Raises:
        Cancelled: The call is cancelled.
        ValueError: ``seconds`` is negative.
    """
    if not seconds >= 0:
        raise ValueError(f"seconds must be 0 or more, got {seconds!r}")
    check_cancelled()
    if is_worker():
        if seconds > 0:
            from ._requests.requests import request

            try:
                request("sleep", timeout=seconds)
            except TimeoutError:
                pass
        return
    from ._requests import trio_threads

    if not trio_threads.sleep(seconds):
        _sleep(seconds)


def progress(done: float, total: float | None = None, note: str | None = None) -> None:
    """Report how far the job is. Takes 0.1 µs, without a message.

    ::

        def checksum(path):
            size, value = os.path.getsize(path), 0
            with open(path, "rb") as file:
                while block := file.read(1_000_000):
                    value = zlib.crc32(block, value)
                    from_worker.progress(file.tell(), size)
            return value

    ``run_sync(…, progress=fn)``, ``map(…, progress=fn)`` and ``statistics()`` read it. Outside of a
    worker this does nothing, so the function is still an ordinary one.

    Args:
        done: The amount of work that is done: items, bytes, or any other unit.
        total: The amount of all work, if it is known.
        note: Text about this moment, up to 240 bytes of UTF-8. It stays until the next note.

    Raises:
        TypeError: An argument has the wrong type.
    """
    if note is None and total == _total and _mine.call == _running() and _steps_words[0] == _item:
        # Most steps change this number only, which takes one store.
        _steps[_DONE] = done
    else:
        _step(done, total, note)


def track(iterable: Iterable[ItemType], total: float | None = None) -> Iterator[ItemType]:
    """Iterate over something, and show the progress after each item.

    ::

        for path in from_worker.track(paths):
            ...

    Args:
        iterable: Anything that ``for`` takes.
        total: Number of its items, in place of its length or length hint.
    """
    from ._requests.progress import track as track_with

    return track_with(iterable, total, progress)


def __getattr__(name: str) -> Any:
    return import_late(globals(), _LATE, name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _ask(op: str, call: tuple[Any, Any], shield: bool | None) -> Any:
    global _talk
    if _talk is None:
        from ._requests.pickles import ask

        _talk = ask
    return _talk(op, 0, call, shield)


def _look() -> None:
    global _words, _ended
    if not is_worker():
        from ._requests import trio_threads

        trio_threads.check_cancelled()
        return
    line = current_line()
    if _words is not line.words:
        _words, _ended = line.words, 0
    word, call = _words[_CANCEL], line.call()
    if word == call:
        if call and shield_end() is None:
            raise make_cancelled()
    elif word < call:
        _ended = word


def _step(done: float, total: float | None, note: str | None) -> None:
    """Write a step of another job or item, with another total, or with a note."""
    global _steps, _steps_words, _running, _item, _total
    from ._requests.progress import find_place

    place = find_place()
    if place is not None:
        item = place.words[0]
        place.write(item, done, total, note)
        _steps, _steps_words, _running, _item, _total = place.numbers, place.words, place.running, item, total
        _mine.call = place.call


def _forget() -> None:
    """Forget the worker, in a fork of this process."""
    global _words, _ended, _running, _steps, _steps_words
    _words, _ended, _running = _UNKNOWN, 0, _no_call
    _steps = _steps_words = None


def _no_call() -> int:
    """Stands for the line's function in a process that may not be a worker."""
    return -1


class _Mine(_local):
    """The call whose progress this thread writes."""

    call = 0


_DONE: Final = STEP_AT // 8 + 3
_mine: Final = _Mine()
# The last step's place, its item of a chunk, and its total.
_steps: Any = None
_steps_words: Any = None
_running: Callable[[], int] = _no_call
_item = 0
_total: float | None = None


_CANCEL: Final = CANCEL
# Leads to `_look`, which finds the front of the record.
_UNKNOWN: Final[Any] = (1,) * (CANCEL + 1)
_words = _UNKNOWN
# Imported with the first use, because a job may only look for its cancellation.
_talk: Callable[[str, int, Any, bool | None], Any] | None = None
_ended = 0
os.register_at_fork(after_in_child=_forget)
