"""Handles in threads of Trio's: a job that runs there is the same as in a worker.

``trio.to_thread.run_sync(job, lock.handle)`` calls the job with an object that blocks. It waits in
the task that awaits the thread, so this task is the holder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import attrs
import trio

from trio_offload_worker._requests import errors, trio_threads
from trio_offload_worker._requests.messages import deadline_after
from trio_offload_worker._requests.queues import FailedItemsError as FailedItemsOfJob
from trio_offload_worker._requests.records import Record

from .. import _clock
from .._exceptions import AbandonedLockError, BrokenBarrierError, DeadlockError
from .replies import facts

# Operations that wait, and the number of their own arguments. The next one is the timeout.
_WAITS: Final = {
    "acquire": 0,
    "acquire_on_behalf_of": 1,
    "get": 0,
    "join": 0,
    "put": 1,
    "receive": 0,
    "receive_many": 1,
    "send": 1,
    "send_many": 1,
    "wait": 0,
}
_OPENING: Final = frozenset(("clone", "get", "get_nowait"))
"""Operations whose value is used like a handle."""


class _WouldBlock(errors.WouldBlock, trio.WouldBlock):
    pass


class _EndOfChannel(errors.EndOfChannel, trio.EndOfChannel):
    pass


class _AbandonedLockError(errors.AbandonedLockError, AbandonedLockError):
    pass


class _BrokenResourceError(errors.BrokenResourceError, trio.BrokenResourceError):
    pass


class _ClosedResourceError(errors.ClosedResourceError, trio.ClosedResourceError):
    pass


class _DeadlockError(errors.DeadlockError, DeadlockError):
    pass


class _BrokenBarrierError(errors.BrokenBarrierError, BrokenBarrierError):
    pass


_TWINS: Final[dict[type[BaseException], type[BaseException]]] = {
    trio.WouldBlock: _WouldBlock,
    trio.EndOfChannel: _EndOfChannel,
    AbandonedLockError: _AbandonedLockError,
    trio.BrokenResourceError: _BrokenResourceError,
    trio.ClosedResourceError: _ClosedResourceError,
    DeadlockError: _DeadlockError,
    BrokenBarrierError: _BrokenBarrierError,
}
"""Errors of this program, and subclasses of these and of a job's errors, under the same names."""
for _error, _twin in _TWINS.items():
    _twin.__name__ = _twin.__qualname__ = _error.__name__


class InThread:
    """A handle, or a lease, as a job has it that runs in a thread of Trio's."""

    __slots__ = ("_handle",)

    _handle: Any

    def __init__(self, handle: Any) -> None:
        object.__setattr__(self, "_handle", handle)

    def __getattr__(self, name: str) -> Any:
        handle = self._handle
        if name.startswith("_") or not hasattr(type(handle), name):
            raise AttributeError(f"a {type(handle).__name__} has no {name!r} in a job")
        if name in _WAITS:
            return partial(self._wait, name)
        if callable(getattr(type(handle), name)):
            return partial(self._call, name)
        return translated(trio_threads.run_sync, getattr, (handle, name))

    def __setattr__(self, name: str, value: object) -> None:
        translated(trio_threads.run_sync, setattr, (self._handle, name, value))

    def statistics(self) -> Any:
        """Return the statistics: a record like the parent's, with texts for owners."""
        found = translated(trio_threads.run_sync, self._handle.statistics, ())
        # As the two kinds of statistics in a worker's job.
        return SimpleNamespace(**attrs.asdict(found)) if hasattr(self._handle, "close") else Record(facts(found))

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = partial(getattr(self._handle, name), *args, **kwargs)
        return _opened(name, translated(trio_threads.run_sync, method, ()))

    def _wait(self, name: str, *args: Any, timeout: float | None = None) -> Any:
        own = _WAITS[name]
        if len(args) > own:
            *args, timeout = args  # type: ignore[assignment]
        if name == "send_many":
            args = ([*args[0]],)
        method = getattr(self._handle, name)
        return _opened(name, translated(trio_threads.run, _within, (timeout, method, *args)))

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until the predicate, which is called in this thread, is true. Return its value."""
        deadline = deadline_after(timeout)
        while not (value := predicate()):
            self._wait("wait", timeout=deadline - time.monotonic())
        return value

    def __enter__(self) -> Any:
        if hasattr(self._handle, "acquire"):
            return self._wait("acquire")
        return self  # an end of a channel, or a lease

    def __exit__(self, *error: object) -> None:
        if hasattr(self._handle, "acquire"):
            self._call("release")
        else:
            self._call("__exit__", *error)

    def __iter__(self) -> Any:
        if not hasattr(self._handle, "__aiter__"):
            raise TypeError(f"a {type(self._handle).__name__} is not iterable")
        return self

    def __next__(self) -> Any:
        try:
            return self._wait("receive" if hasattr(self._handle, "receive") else "get")
        except errors.EndOfChannel:
            raise StopIteration from None

    def __bool__(self) -> bool:
        return bool(self._handle)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InThread) and other._handle is self._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    def __repr__(self) -> str:
        return repr(self._handle)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._handle.__reduce_ex__(protocol)


async def _within(seconds: float | None, method: Callable[..., Any], *args: Any) -> Any:
    if seconds is None:
        return await method(*args)
    deadline_after(seconds)  # refuses what is no number
    with trio.CancelScope() if seconds <= 0 else _clock.move_on_after(seconds) as scope:
        if seconds <= 0:
            # It takes effect with the first wait, so there is one attempt, as in a worker.
            scope.deadline = trio.current_time()
        return await method(*args)
    raise TimeoutError("the request has timed out")


def _opened(name: str, value: Any) -> Any:
    # An item may be a handle. Its class imports this module.
    return InThread(value) if name in _OPENING or hasattr(type(value), "grant_of_copy") else value


def translated(run: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function in the event loop. Its error is a twin, see :data:`_TWINS`."""
    try:
        return run(function, args)
    except tuple(_TWINS) as error:
        twin = next(twin for cls, twin in _TWINS.items() if isinstance(error, cls))
        new = twin.__new__(twin)
        new.args = error.args
        vars(new).update(vars(error))
        raise new from error
    except RuntimeError as error:
        failed: Any = getattr(error, "failed", None)  # of a FailedItemsError
        if failed is None:
            raise
        raise FailedItemsOfJob([item.reason for item in failed]) from error
