"""A partial of a map, with the objects that it binds, is sent once to each worker.

The worker holds it until the map ends. Chunks name it by a number. A worker holds one function at a
time: another map may replace it between two time slices, so each lane looks first.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_offload_worker._jobs import chunks as _worker_side

from .. import _clock
from .._exceptions import BrokenWorkerError
from .._pickling import calls as _calls
from .._pickling.payload import Payload, function_name
from .._worker.states import CallNotRun

if TYPE_CHECKING:
    from .._pool.pool import WorkerPool
    from .._worker.worker import Worker

_RELEASE_TIME: Final = 1.0  # seconds


class Held:
    """A function that workers hold. Its pickle is the number of the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.number = next(_numbers)
        # For messages.
        self.__qualname__ = function_name(function)
        self.__module__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _worker_side.held, (self.number,)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def is_in(self, worker: Worker) -> bool:
        """Return True if the worker holds it."""
        return _holders.get(worker) == self.number

    def note(self, worker: Worker) -> None:
        """Note that the worker holds it."""
        _holders[worker] = self.number

    def dump(self, *, to_fork: bool) -> Payload:
        """Return the call that lets a worker hold it."""
        return _calls.dump_chunk(_worker_side.hold, self.function, (self.number,), to_fork=to_fork)

    async def release(self, pool: WorkerPool, workers: Iterable[Worker]) -> None:
        """Let the idle ones of these workers drop it. Takes a second at most."""
        try:
            key = pool.calls.enter(object(), counted=False)
        except trio.ClosedResourceError:
            # The workers are leaving.
            return
        try:
            for worker in workers:
                if self.is_in(worker) and pool.cache.take(worker):
                    await self._release(pool, worker)
        finally:
            pool.calls.leave(key)

    async def _release(self, pool: WorkerPool, worker: Worker) -> None:
        del _holders[worker]
        try:
            with trio.CancelScope(shield=True), _clock.move_on_after(_RELEASE_TIME):
                worker.submit(_calls.dump_call(_worker_side.release, (self.number,)), prepares=True)
                await worker.answer()
        except (CallNotRun, BrokenWorkerError):
            pass  # It has dropped everything.
        finally:
            pool.give_back(worker)


# A random start, because a fork of another process may be our worker.
_numbers: Final = itertools.count(int.from_bytes(os.urandom(6), "big"))
_holders: Final[weakref.WeakKeyDictionary[Worker, int]] = weakref.WeakKeyDictionary()
