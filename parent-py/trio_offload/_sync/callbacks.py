"""``callback``: a function of this program that jobs may call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, overload

import outcome

from trio_offload_worker._requests import trio_threads

from .._exceptions import is_cancelled
from .._pickling.payload import function_name
from .._worker import callbacks
from .._worker.callbacks import call, call_now
from .._worker.requests import Post, Request
from .handles import Handle, PlainGrant

Parameters = ParamSpec("Parameters")
ResultType = TypeVar("ResultType")


class Callback(Handle, Generic[Parameters, ResultType]):
    """A function of this program, made by :func:`callback`. A job calls it like a function."""

    kind: ClassVar[str] = "callback"

    def __init__(self, function: Callable[Parameters, Any], *, wait: bool) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"callback needs a function, got {function!r}")
        self.function = function
        self.waits = wait

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> ResultType:
        """Call it from a thread of :func:`trio.to_thread.run_sync`, as a job does from a worker."""
        bound = functools.partial(self.function, *args, **kwargs)
        if inspect.iscoroutinefunction(self.function):
            result: Any = trio_threads.run(bound, ())
        else:
            # In a tuple, because Trio refuses awaitables here.
            (result,) = trio_threads.run_sync(lambda: (bound(),), ())
            if inspect.isawaitable(result):
                result = trio_threads.run(_awaited, (result,))
        value: ResultType = result if self.waits else None  # type: ignore[assignment]
        return value

    @property
    def handle(self) -> Callback[Parameters, ResultType]:
        """The callback itself: a job calls it, in a worker and in a thread."""
        return self

    def __repr__(self) -> str:
        return f"<trio_offload.callback of {function_name(self.function)}>"

    def grant(self) -> PlainGrant:
        """As :meth:`Handle.grant`."""
        return _CallbackGrant(self)

    def details(self, grant: Any) -> tuple[Any, ...]:
        """As :meth:`Handle.details`: does a call wait, the function's name, is it asynchronous?"""
        return self.waits, function_name(self.function), inspect.iscoroutinefunction(self.function)


class _CallbackGrant(PlainGrant):
    handle: Callback[..., Any]

    def request(self, request: Request) -> None:
        """Call the function, and reply with its outcome."""
        try:
            args, kwargs = request.load()
        except BaseException as error:
            request.fail(error)
        else:
            call(request, self.handle.function, args, kwargs, awaits=None)

    def post(self, post: Post) -> None:
        """Call the function. An exception ends the job, and its caller gets it."""
        function = self.handle.function
        observer = None if callbacks.observe is None else callbacks.observe(post.owner, function)
        try:
            args, kwargs = post.load()
            value = (call_now if observer is None else observer.call)(function, args, kwargs)
            if inspect.isawaitable(value):
                post.start(_await, post, value if observer is None else observer.awaited(value))
            elif observer is not None:
                observer.returned()
        except BaseException as error:
            if observer is not None:
                observer.failed(error)
            post.interrupt(error)


async def _await(post: Post, awaitable: Awaitable[Any]) -> None:
    result = await outcome.acapture(_awaited, awaitable)
    if isinstance(result, outcome.Error) and not is_cancelled(result.error):
        post.interrupt(result.error)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@overload
def callback(
    function: Callable[Parameters, Awaitable[ResultType]], *, wait: bool = True
) -> Callback[Parameters, ResultType]: ...


@overload
def callback(function: Callable[Parameters, ResultType], *, wait: bool = True) -> Callback[Parameters, ResultType]: ...


def callback(function: Callable[Parameters, Any], *, wait: bool = True) -> Callback[Parameters, Any]:
    """Return a handle of a function, with which a job can call it in this program.

    ::

        def report(done: int) -> None: ...

        await trio_offload.run_sync(job, trio_offload.callback(report))

    The job gets it as an argument and calls it like a function. Lambdas, closures and bound methods
    will do. The function runs in the event loop, in the task that waits for the job: inside
    its cancel scopes and with its context variables. A synchronous one must be quick. An async one
    is awaited.

    Arguments and the result are pickled. An exception of the function is raised in the job.

    Args:
        function: A synchronous or async function.
        wait: If false, a call in the job returns None at once. :func:`run_sync` returns when all
            such calls of an async function have ended. If the caller is cancelled, the timeout
            passes or the worker dies, they are cancelled. An exception of the function ends the
            job, and its caller gets it.

    Returns:
        A handle. It is valid in the run of Trio in which it is passed to a job first. Called in a
        thread of Trio's, it calls the function in the event loop too.

    Raises:
        TypeError: ``function`` is not callable.
    """
    return Callback(function, wait=wait)
