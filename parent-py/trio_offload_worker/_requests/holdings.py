"""Counts what the running job holds: locks and tokens, by thread.

So a release by a thread that holds nothing raises here, and a release that is right needs no reply.
A lock that an item of a ``map`` keeps is given up at the item's end, although its call goes on.
"""

from __future__ import annotations

from _thread import get_native_id

from .._jobs import chunks
from .requests import post, running_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


def held(handle: int) -> int:
    """Return how often this thread holds a handle."""
    return _of_call().get((handle, get_native_id()), 0)


def add(handle: int, number: int = 1) -> None:
    """Count a handle that this thread holds from now on."""
    counts = _of_call()
    key = handle, get_native_id()
    counts[key] = counts.get(key, 0) + number
    chunks.call_after_item(_end_item)


def remove(handle: int, message: str) -> int:
    """Count one less, and return the rest.

    Raises:
        RuntimeError: this thread does not hold it. The error has this message.
    """
    counts = _of_call()
    key = handle, get_native_id()
    rest = counts.get(key, 0) - 1
    if rest < 0:
        raise RuntimeError(message)
    if rest:
        counts[key] = rest
    else:
        del counts[key]
    return rest


def remove_all(handle: int, message: str) -> int:
    """Set the count to 0, and return what it was.

    Raises:
        RuntimeError: it was 0. The error has this message.
    """
    number = _of_call().pop((handle, get_native_id()), 0)
    if not number:
        raise RuntimeError(message)
    return number


def _of_call() -> dict[tuple[int, int], int]:
    """Return the counts of the running call, by handle and thread."""
    global _call
    call = running_call()
    if call != _call:
        _call = call
        _counts.clear()
    return _counts


def _end_item() -> None:
    """Tell the parent of handles that the item which has ended still holds."""
    thread = get_native_id()
    for handle in [handle for handle, holder in _of_call() if holder == thread]:
        del _counts[handle, thread]
        post("end", handle)


_counts: Final[dict[tuple[int, int], int]] = {}
_call = 0
