"""A call with a timeout, a grace or a progress: `WorkerContext.run_sync` without its warm path.

The time begins when a worker begins with the job, as in ``map``. The wait for a token, the worker's
start and the import of the function come before.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from trio_offload_worker._jobs import chunks as _worker_side

from .. import _clock
from .._pickling.calls import dump_call, dump_call_to_fork, dump_chunk
from .._pickling.payload import release
from .._worker.endings import raise_cancelled, with_lost
from .._worker.states import CallNotRun
from .._worker.time_limit import answer_in_time
from .._worker.watch import watched

if TYPE_CHECKING:
    from .._limiter import Limiter
    from .._pickling.payload import Payload
    from .._process.process import WorkerProcess
    from .._worker.watch import ShowProgress
    from .._worker.worker import Worker
    from .pool import WorkerPool

ResultType = TypeVar("ResultType")

# Functions that each worker has imported for such calls.
_imported: Final[weakref.WeakKeyDictionary[Worker, weakref.WeakSet[Any]]] = weakref.WeakKeyDictionary()


async def run_in_time(
    pool: WorkerPool,
    sync_fn: Callable[..., ResultType],
    args: tuple[Any, ...],
    seconds: float | None,
    grace: float | None,
    cancellable: bool,
    limiter: Limiter,
    progress: ShowProgress | None,
) -> ResultType:
    """Run ``sync_fn(*args)`` in a worker of the pool, and end the worker if that takes longer.

    The caller holds a token, and has executed a checkpoint.

    Raises:
        WorkerTimeoutError: the job timed out.
    """
    key = pool.calls.enter(trio.lowlevel.current_task())
    call: Payload | None = None
    try:
        to_fork = pool.launcher.inherits_main
        call = (dump_call_to_fork if to_fork else dump_call)(sync_fn, args)
        lost: list[WorkerProcess] = []
        while True:
            worker, new = await pool.take(cancellable)
            try:
                worker.grace, worker.limiter = grace, limiter
                answer: Callable[[], Awaitable[tuple[Any, BaseException | None]]]
                if seconds is None:
                    answer = functools.partial(worker.answer, cancellable, True)
                else:
                    await _import_in(worker, sync_fn, to_fork, cancellable)
                    answer = functools.partial(
                        answer_in_time, worker, _clock.now(), seconds, cancellable=cancellable, spin=True
                    )
                worker.submit(call)
                value, error = await (answer() if progress is None else watched(worker, progress, answer))
            except CallNotRun:
                # As in `WorkerContext.run_sync`.
                if new:
                    lost = with_lost(lost, worker.process, call.name)
                await trio.lowlevel.checkpoint_if_cancelled()
                continue
            finally:
                worker.grace = None
                pool.give_back(worker)
            if error is None:
                result: ResultType = value
                return result
            try:
                if not isinstance(error, Exception):
                    await raise_cancelled(error)
                raise error
            finally:
                # It refers to this frame. Without this, the cycle would keep it alive.
                error = None
    finally:
        pool.calls.leave(key)
        if call is not None:
            release(call)


async def _import_in(worker: Worker, function: Callable[..., Any], to_fork: bool, cancellable: bool) -> None:
    """Let a worker import the function, once. An error is ignored: the call will have the same."""
    part = _importable_part(function)
    if part is not None and not _has_imported(worker, part):
        worker.submit(dump_chunk(_worker_side.prepare, part, (), to_fork=to_fork), prepares=True)
        await worker.answer(cancellable, True)


def _has_imported(worker: Worker, part: Any) -> bool:
    """Return True if this was asked before, which counts as an import."""
    known = _imported.setdefault(worker, weakref.WeakSet())
    # Few callables have no hash, or no weak references.
    with contextlib.suppress(TypeError):
        if part in known:
            return True
        known.add(part)
    return False


def _importable_part(function: Any) -> Any:
    """Return the function, or its class, without the data that it is bound to.

    None stands for an object that decides itself how it is pickled.
    """
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is not None and isinstance(function, types.MethodType | types.BuiltinMethodType):
        return function if isinstance(owner, types.ModuleType) else owner if isinstance(owner, type) else type(owner)
    # Decorators of functools return objects with the name of the function.
    if isinstance(function, types.FunctionType | type) or hasattr(function, "__qualname__"):
        return function
    kind: Any = type(function)
    is_plain = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
    return kind if is_plain else None
