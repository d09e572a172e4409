"""Picklers that are used again, and cloudpickle's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final

from trio_offload_worker._protocol.parts import flat
from trio_offload_worker._protocol.segments import Collector

from .payload import SMALL, Payload

PROTOCOL: Final = 5
_MOST_KEPT: Final = 4


def dump_plain(value: Any, function: Callable[..., Any]) -> Payload:
    """With the ordinary pickler. To make one with its file takes longer than to pickle a small call: so some are kept."""
    try:
        kept = _kept.pop()
    except IndexError:
        kept = Pickling(pickle.Pickler, out_of_band=True)
    payload = kept.dump(value, function)
    # One that has failed, or has seen much, is not used again.
    if len(payload.lengths) == 1 and payload.lengths[0] <= SMALL and len(_kept) < _MOST_KEPT:
        kept.pickler.clear_memo()
        kept.collector.parts.clear()
        _kept.append(kept)
    return payload


class Pickling:
    """A pickler with what it writes to."""

    __slots__ = ("collector", "out_of_band", "pickler")

    def __init__(self, pickler: Any, out_of_band: bool) -> None:
        # It knows nothing of the pickler: in a circle large arguments would outlive their call.
        self.collector = collector = Collector()
        self.out_of_band = out_of_band
        self.pickler = pickler(collector, PROTOCOL, buffer_callback=collector.take if out_of_band else None)

    def dump(self, value: Any, function: Callable[..., Any]) -> Payload:
        """Pickle a value; ``function`` is what messages call it by."""
        self.pickler.dump(value)
        collector = self.collector
        parts = collector.parts
        if not self.out_of_band:
            pieces = list(map(flat, parts))
            return Payload(pieces, [sum(map(len, pieces))], function)
        if len(parts) == 1 and not collector.offered:
            return Payload(parts.copy(), [len(parts[0])], function)
        sent, lengths, types = collector.segments()
        return Payload(sent, lengths, function, types)


# For all threads; each takes one out while it pickles, so that a pickle within a pickle gets another.
_kept: Final[list[Pickling]] = []


def cloud_pickler() -> Any:
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return None
    from trio_offload_worker._cloud import Pickler

    return Pickler
