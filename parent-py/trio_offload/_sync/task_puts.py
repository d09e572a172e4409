"""Tasks that put items into a channel or a work queue, and Trio's errors for refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from . import pickled_items
from .bounded_buffer import BROKEN, CLOSED, END_OF_CHANNEL, WOULD_BLOCK, Item, Refusal
from .waiters import TaskWaiter

_ERRORS: Final[dict[str, type[Exception]]] = {
    WOULD_BLOCK: trio.WouldBlock,
    END_OF_CHANNEL: trio.EndOfChannel,
    BROKEN: trio.BrokenResourceError,
    CLOSED: trio.ClosedResourceError,
}


def error_of(refusal: Refusal) -> Exception:
    """Return Trio's exception for a refusal."""
    cls = _ERRORS.get(refusal.status, RuntimeError)
    return cls(refusal.message) if refusal.message != refusal.status else cls()


def put_now(put: Callable[[list[Item], TaskWaiter[int] | None], bool], items: list[Item]) -> None:
    """Put items that have room. Otherwise release them, and raise Trio's exception."""
    try:
        put(items, None)
    except Refusal as refusal:
        pickled_items.release(items)
        raise error_of(refusal) from None


async def put_or_wait(
    put: Callable[[list[Item], TaskWaiter[int] | None], bool],
    withdraw: Callable[[TaskWaiter[int]], Any],
    items: list[Item],
) -> None:
    """Put items, and wait until they have room. A checkpoint. Raises as :func:`put_now`."""
    waiter: TaskWaiter[int] = TaskWaiter()
    try:
        is_done = put(items, waiter)
    except Refusal as refusal:
        pickled_items.release(items)
        raise error_of(refusal) from None
    await end_of_wait(waiter, is_done, withdraw)


async def end_of_wait(waiter: TaskWaiter[Any], is_done: bool, withdraw: Callable[[TaskWaiter[Any]], Any]) -> None:
    """Wait for the waiter's end, unless it was not parked. A checkpoint."""
    if is_done:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return
    try:
        await waiter.wait(lambda: withdraw(waiter))
    except Refusal as refusal:
        raise error_of(refusal) from None
