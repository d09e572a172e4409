"""Async functions in a job: a run of Trio, which ends when the job's call is cancelled."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


def run(afn: Any, args: tuple[Any, ...], is_cancelled: Callable[[], bool]) -> Any:
    """Run ``await afn(*args)`` in a new run of Trio. It is cancelled once ``is_cancelled()``.

    Raises:
        trio.Cancelled: it was cancelled, and has not returned.
        TypeError: it is no async function.
    """
    if not callable(afn):
        if hasattr(afn, "__await__") and hasattr(afn, "close"):
            # Without this, Python warns that nobody has awaited it.
            afn.close()
        raise TypeError(
            f"run_async needs an async function and its arguments, got {afn!r}. If that is the result of a call, write "
            "run_async(afn, argument) instead of run_async(afn(argument))"
        )
    # Trio is loaded by jobs that use it.
    trio: Any = import_module("trio")
    outcomes: list[Any] = []

    async def watch(scope: Any) -> None:
        while not is_cancelled():  # The parent writes to memory.
            await trio.sleep(_LOOK_EVERY)
        scope.cancel()

    async def call() -> Any:
        awaitable = afn(*args)
        if not isawaitable(awaitable):
            raise TypeError(f"run_async needs an async function, but {afn!r} returned {awaitable!r}")
        return await awaitable

    async def main() -> None:
        # Two scopes, so that an exception of the function is not in a group.
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, scope)
                outcomes.append(await outcome.acapture(call))
                nursery.cancel_scope.cancel()

    outcome: Any = import_module("outcome")
    isawaitable: Any = import_module("inspect").isawaitable
    trio.run(main)
    return outcomes[0].unwrap()


_LOOK_EVERY: Final = 0.02  # seconds
