"""The method ``stream`` of a context."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Literal

from trio_offload_worker import publish
from trio_offload_worker._requests.streams import GeneratorCall

from .._limiter import Limiter
from .._pickling.by_reference import check_function
from .._sizes import check_count, check_progress, check_seconds
from .._worker.watch import ShowProgress
from .stream import Stream
from .values import Values


def stream(
    self: Any,
    genfn: Callable[..., Iterable[Any] | AsyncIterable[Any]],
    *args: Any,
    window: int = 16,
    chunk: int | Literal["auto"] = "auto",
    grace: float | None = 5.0,
    limiter: Limiter | None = None,
    progress: ShowProgress | None = None,
) -> Stream[Any, Any]:
    """Run a generator function in a worker, and iterate over its values.

    ::

        async with trio_offload.stream(read_rows, path) as rows:
            async for row in rows:
                ...
        print(rows.result)  # what the generator has returned

    :func:`trio_offload.stream` uses the innermost :func:`cache_scope`, else the default
    context. The iteration is for one task.

    The generator starts when the block is entered, and waits while it is ``window`` values
    ahead. An exception of the generator is raised by the iteration, after the values before it.

    If the block is left earlier, the generator is closed: its next ``yield`` raises
    ``GeneratorExit``, as with ``generator.close``. The block waits for that, ``grace``
    seconds at most. A generator that seldom yields can ask
    :func:`~trio_offload_worker.from_worker.check_cancelled`.

    An async generator function runs in a run of Trio in the worker. It is closed in the same way.
    If it waits then for anything but its consumer, the wait is cancelled.

    Args:
        genfn: A generator function, or another function that returns an iterable. It may be async.
            It is pickled as for :func:`run_sync`.
        *args: Its positional arguments.
        window: Largest number of values that it is ahead of the consumer.
        chunk: Largest number of values that travel together. They do so only while the consumer
            is behind. "auto" means up to half of the window. 1 means that each value is sent when
            it has been yielded.
        grace: Seconds that it has to end after its block was left, or cancelled. Then its
            worker is killed. None means unlimited.
        limiter: As for :func:`run_sync`. The generator holds a token until it ends, but lends
            it while it waits for the consumer.
        progress: As for :func:`run_sync`.

    Returns:
        An async context manager, which is the async iterator too. ``result`` is the value that
        the generator has returned.

    Raises:
        TypeError, ValueError: An argument is wrong.

    The iterator raises the exceptions of :func:`run_sync`. The end of the block raises an
    exception of the generator's cleanup.
    """
    return _checked(self, GeneratorCall(genfn), args, window, chunk, grace, limiter, progress)


stream.__qualname__ = "WorkerContext.stream"
publish("trio_offload", stream)


def _checked(
    context: Any,
    call: GeneratorCall,
    args: tuple[Any, ...],
    window: int,
    chunk: int | Literal["auto"],
    grace: float | None,
    limiter: Limiter | None,
    progress: ShowProgress | None,
) -> Stream[Any, Any]:
    if not inspect.isasyncgenfunction(call.function):
        check_function(call.function, "stream")
    check_count("window", window)
    if chunk != "auto":
        check_count("chunk", chunk, alternative=" or 'auto'")
    if grace is not None:
        check_seconds("grace", grace)
    check_progress(progress)

    def start(values: Values) -> Awaitable[Any]:
        awaitable: Awaitable[Any] = context.run_sync(call, values, *args, grace=grace, limiter=limiter, progress=progress)
        return awaitable

    return Stream(start, window, None if chunk == "auto" else chunk)
