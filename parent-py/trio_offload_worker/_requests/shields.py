"""The ``shielded`` blocks of each thread, in a worker or not."""

from __future__ import annotations

from _thread import _local
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class _Shields(_local):
    def __init__(self) -> None:
        # The ends of this thread's blocks, on the monotonic clock.
        self.ends: list[float] = []


def shield_end() -> float | None:
    """Return the time of the monotonic clock at which this thread's last shield ends.

    None means: without a shield now.
    """
    ends = _shields.ends
    if not ends:
        return None
    end = max(ends)
    return end if end > monotonic() else None


def add_shield(end: float) -> None:
    """Protect this thread from cancellation until a time of the monotonic clock."""
    _shields.ends.append(end)


def drop_shield(end: float) -> None:
    """Undo one :func:`add_shield`."""
    if end in _shields.ends:
        _shields.ends.remove(end)


_shields: Final = _Shields()
