"""Functions that a job calls in its parent: by name, or by a handle."""

from __future__ import annotations

import contextvars
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import outcome
import trio

from .._exceptions import is_cancelled
from .._pickling.payload import function_name
from .._wait_graph import WAITS, Outcome
from .peer import logger
from .requests import TaskOwner

if TYPE_CHECKING:
    from .requests import JobOwner, Request

_SLOW: Final = 0.02  # seconds
# Raised by a callback, these concern this program.
_CONTROLLING: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)


class Observer(Protocol):
    """Follows one callback, for telemetry."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As :func:`call_now`."""

    def awaited(self, awaitable: Any) -> Any:
        """Return an awaitable around the one that the callback has returned."""

    def returned(self) -> None:
        """Note that the callback was a synchronous function, and has returned."""

    def failed(self, error: BaseException) -> None:
        """Note that the callback has raised, or is of the wrong kind."""


observe: Callable[[JobOwner, Callable[..., Any]], Observer | None] | None = None
"""Set while telemetry is on."""


def call_plain(request: Request) -> None:
    """Handle a request by name: a function to call, or a sleep."""
    if request.op == "sleep":
        return  # it ends by its timeout, or by a cancellation
    if request.op not in ("run", "run_sync"):
        request.fail(ValueError(f"unknown request {request.op!r}; this is an error in trio-offload"))
        return
    try:
        function, args = request.load()
    except BaseException as error:
        fail(request, error)
    else:
        call(request, function, args, {}, awaits=request.op == "run")


def call(
    request: Request, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, awaits: bool | None
) -> None:
    """Call a function for a job, and reply with its outcome.

    Args:
        request: the job's request.
        function: the function. It may return an awaitable.
        args: its positional arguments.
        kwargs: its keyword arguments.
        awaits: whether it is asynchronous. None means that its value decides.
    """
    observer = None if observe is None else observe(request.owner, function)
    try:
        value = (call_now if observer is None else observer.call)(function, args, kwargs)
        is_awaitable = inspect.isawaitable(value)
        if awaits is not None and awaits != is_awaitable:
            raise wrong_kind(function, value, awaits=awaits)
    except BaseException as error:
        if observer is not None:
            observer.failed(error)
        fail(request, error)
        return
    if is_awaitable:
        if observer is not None:
            value = observer.awaited(value)
        request.ends_itself = True
        request.start(_await, request, value)
    else:
        if observer is not None:
            observer.returned()
        request.complete_value(value)


def call_now(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function in the event loop. Log a warning if it holds the loop for long."""
    began = time.monotonic()
    try:
        # A copy: what a callback sets is its own.
        return contextvars.copy_context().run(_call_unprotected, function, args, kwargs)
    finally:
        seconds = time.monotonic() - began
        if seconds > _SLOW:
            logger.warning(
                "callback %s blocked the event loop for %.0f ms. Use an async function to wait, and a thread to compute",
                function_name(function),
                seconds * 1000,
            )


def wrong_kind(function: Callable[..., Any], value: Any, *, awaits: bool) -> TypeError:
    """Return the error for a function of the other kind. Close its coroutine."""
    name = function_name(function)
    if awaits:
        return TypeError(f"from_worker.run awaits its function, but {name} is synchronous: use from_worker.run_sync")
    if inspect.iscoroutine(value):
        value.close()
    return TypeError(f"from_worker.run_sync calls its function, but {name} is asynchronous: use from_worker.run")


def fail(request: Request, error: BaseException) -> None:
    """Reply with the exception of a callback. Ctrl+C and its like end the job instead.

    A callback with a nursery raises groups. The job gets one without Trio's cancellations, because
    those cannot leave this program.
    """
    if _is_controlling(error):
        request.complete("cancelled")
        request.interrupt(error)
    elif is_cancelled(error):
        request.complete("cancelled")
    else:
        split = getattr(error, "split", None)
        request.fail(error if split is None else split(trio.Cancelled)[1])


def _is_controlling(error: BaseException) -> bool:
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return isinstance(error, _CONTROLLING) or any(map(_is_controlling, inner))


@trio.lowlevel.disable_ki_protection
def _call_unprotected(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


@trio.lowlevel.disable_ki_protection
async def _await_unprotected(awaitable: Any) -> Any:
    return await awaitable


async def _await(request: Request, awaitable: Any) -> None:
    task = trio.lowlevel.current_task()
    # In messages about deadlocks.
    task.name = getattr(awaitable, "__qualname__", task.name)
    WAITS.add_unchecked(request.owner, Outcome("its callback", TaskOwner(task)))
    with trio.CancelScope() as scope:
        # Its end decides: a callback that has finished is no cancelled one.
        request.on_withdraw = scope.cancel
        if request.withdrawn_as:
            scope.cancel()
        result = await outcome.acapture(_await_unprotected, awaitable)
        if not request.is_completed or request.is_over:
            WAITS.remove(request.owner)
        if isinstance(result, outcome.Value):
            request.complete_value(result.value)
        elif request.withdrawn_as and is_cancelled(result.error):
            if request.withdrawn_as == "refused" and request.refusal is not None:
                request.fail(request.refusal)
            else:
                request.complete(request.withdrawn_as)
        elif is_cancelled(result.error) and request.is_late:
            # The job stays where it is until its stacks are written. Then it is told, or killed.
            request.ends_itself, request.on_withdraw = False, None
        else:
            # Also a Cancelled: the caller's is the job's too.
            fail(request, result.error)
