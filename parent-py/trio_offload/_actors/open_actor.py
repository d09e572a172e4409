"""``open_actor``: start an object that lives in a worker."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import trio

from .._launch.select import launcher_for
from .._limiter import require_trio
from .._options import ContextOptions, WorkerType
from .._pool.pool import WorkerPool
from .._sizes import check_count, check_seconds
from .actor import Actor, NamespaceActor
from .host import ActorHost
from .interface import Interface

if TYPE_CHECKING:
    from typing_extensions import Unpack

_RESTARTS: Final = ("never", "fresh")
_FOREVER: Final = math.inf


class WorkerOptions(TypedDict, total=False):
    """Options of :func:`open_worker_context` that an actor's worker may have."""

    memory_limit: int | str | None
    worker_type: WorkerType | Literal["spawn", "forkserver", "fork"]
    grace_period: float
    report_interval: float
    crash_dir: str | os.PathLike[str] | None
    forkserver_preload: Iterable[str]
    forkserver_threads: Iterable[str]
    forward_logging: bool | int | str | Mapping[str, int | str] | None
    keep_handlers: Iterable[str]
    output: Literal["inherit", "lines"] | Callable[[str | None, str, bytes], Any]


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_actor(
    cls: Callable[..., Any],
    /,
    *args: Any,
    restart: Literal["never", "fresh"] = "never",
    max_pending: int | None = None,
    grace: float | None = None,
    **options: Unpack[WorkerOptions],
) -> AsyncIterator[Any]:
    """Make ``cls(*args)`` in a separate worker, where the object lives as long as the block.

    ::

        async with trio_offload.open_actor(Model, "weights.bin") as model:
            print(await model.predict(x))
            await trio_offload.run_sync(job, model)  # which calls model.predict(x) without await

    Calls run one after the other, in the order in which they were made. A call that is cancelled
    before its turn never runs. A running method is told, as a job is: see
    :mod:`trio_offload_worker.from_worker`. An actor takes no token of the default limiter.

    At the end of the block the running call is waited for. Calls that wait for their turn raise
    :exc:`trio.ClosedResourceError`.

    Args:
        cls: A class, or a :func:`functools.partial` of one for keyword arguments. It is pickled as
            the function of a job is.
        *args: Arguments of the class.
        restart: If the worker dies, the running call raises :exc:`BrokenWorkerError`. "never": all
            others raise :exc:`trio.BrokenResourceError`. "fresh": the next call makes a new object
            with the same arguments, and calls that wait run there.
        max_pending: Number of calls that may wait for their turn; further ones raise
            :exc:`trio.WouldBlock`. None means unlimited.
        grace: Seconds that a cancelled method has to end by itself. Then the worker is killed. None
            means unlimited.
        **options: Options of :func:`open_worker_context`; ``WorkerOptions`` names them.

    Returns:
        An async context manager, which returns an :class:`Actor`.

    Raises:
        TypeError, ValueError: An argument is wrong.
        Exception: The class has raised it, or it cannot be pickled.
        WorkerStartError, BrokenWorkerError: The worker did not start, or died.
    """
    require_trio()
    for name in options:
        if name not in WorkerOptions.__annotations__:
            raise TypeError(
                f"open_actor() got an unexpected keyword argument {name!r}. For those of the class use functools.partial"
            )
    host = _new_host(cls, args, restart, max_pending, grace, ContextOptions(_FOREVER, **options))
    try:
        await host.start()
        yield (NamespaceActor if host.interface.has_attributes else Actor)(host)
    except BaseException:
        await host.close(tells=True)
        raise
    await host.close(tells=False)


def _new_host(
    cls: Callable[..., Any],
    args: tuple[Any, ...],
    restart: Literal["never", "fresh"],
    max_pending: int | None,
    grace: float | None,
    options: ContextOptions,
) -> ActorHost:
    if restart not in _RESTARTS:
        raise ValueError(f"restart must be one of {', '.join(map(repr, _RESTARTS))}, got {restart!r}")
    if max_pending is not None:
        check_count("max_pending", max_pending, at_least=0)
    if grace is not None:
        check_seconds("grace", grace)
    limit = _FOREVER if max_pending is None else max_pending
    return ActorHost(WorkerPool(launcher_for(options)), Interface(cls), (cls, *args), restart, limit, grace)
