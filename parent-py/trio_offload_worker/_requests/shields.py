"""The ``shielded`` blocks of each thread, in a worker or not."""

from __future__ import annotations

from _thread import _local
from time import monotonic

from .. import PublicType, publish

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


class shielded(metaclass=PublicType):  # noqa: N801 (used as a function)
    """Run a block in which this thread can talk to the parent although the call is cancelled.

    It is for cleaning up::

        try:
            go_on(state)
        except from_worker.Cancelled:
            with from_worker.shielded(seconds=5):
                from_worker.run(save, state)
            raise

    Args:
        seconds: Seconds after which the protection ends. None means at the end of the block.

    Raises:
        ValueError: ``seconds`` is negative.
    """

    def __init__(self, seconds: float | None = None) -> None:
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"seconds must be None, 0 or more, got {seconds!r}")
        self._seconds = seconds
        self._ends: list[float] = []

    def __enter__(self) -> None:
        end = float("inf") if self._seconds is None else monotonic() + self._seconds
        self._ends.append(end)
        add_shield(end)

    def __exit__(self, *error: object) -> None:
        drop_shield(self._ends.pop())


_shields: Final = _Shields()


publish("trio_offload_worker.from_worker", shielded)
