"""Async functions in a job: a run of Trio, which ends when the job's call is cancelled."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Final


def run(afn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], is_cancelled: Callable[[], bool]) -> Any:
    """Run ``await afn(*args)`` in a new run of Trio. It is cancelled once ``is_cancelled()``.

    Raises:
        trio.Cancelled: it was cancelled, and has not returned.
    """
    # Trio is loaded by jobs that use it.
    trio: Any = import_module("trio")
    outcomes: list[Any] = []

    async def watch(scope: Any) -> None:
        while not is_cancelled():  # The parent writes to memory.
            await trio.sleep(_LOOK_EVERY)
        scope.cancel()

    async def main() -> None:
        # Two scopes, so that an exception of the function is not in a group.
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, scope)
                outcomes.append(await outcome.acapture(afn, *args))
                nursery.cancel_scope.cancel()

    outcome: Any = import_module("outcome")
    trio.run(main)
    return outcomes[0].unwrap()


_LOOK_EVERY: Final = 0.02  # seconds
