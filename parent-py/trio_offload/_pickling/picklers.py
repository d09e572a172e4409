"""Reusable picklers, and cloudpickle's pickler."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final

from trio_offload_worker._protocol.frames import Buffer
from trio_offload_worker._protocol.parts import flat
from trio_offload_worker._protocol.segments import Collector

from .payload import SMALL, Payload

PROTOCOL: Final = 5
_MAX_KEPT: Final = 4
# Trio's module name, as each pickle of one of its objects has it.
_OF_TRIO: Final = b"\x8c\x04trio\x94"
_MAX_SEARCHED: Final = 4096  # bytes


class RefusedArgument(TypeError):
    """An argument that could be pickled, but would be useless in a worker."""


def dump_plain(value: Any, function: Callable[..., Any]) -> Payload:
    """Pickle with the standard pickler.

    Some picklers are kept: creating one takes longer than pickling a small call.
    """
    try:
        kept = _kept.pop()
    except IndexError:
        kept = Pickling(pickle.Pickler, out_of_band=True)
    payload = kept.dump(value, function)
    # A pickler that has failed, or has pickled much, is not kept.
    if len(payload.lengths) == 1 and payload.lengths[0] <= SMALL and len(_kept) < _MAX_KEPT:
        kept.pickler.clear_memo()
        kept.collector.parts.clear()
        _kept.append(kept)
    return payload


class Pickling:
    """A pickler and its output."""

    __slots__ = ("collector", "out_of_band", "pickler")

    def __init__(self, pickler: Any, out_of_band: bool) -> None:
        # Without a reference back to the pickler: a cycle would keep large arguments after their
        # call.
        self.collector = collector = Collector()
        self.out_of_band = out_of_band
        self.pickler = pickler(collector, PROTOCOL, buffer_callback=collector.take if out_of_band else None)

    def dump(self, value: Any, function: Callable[..., Any]) -> Payload:
        """Pickle a value; ``function`` names it in messages."""
        self.pickler.dump(value)
        collector = self.collector
        parts = collector.parts
        if len(parts) == 1 and self.out_of_band and not collector.offered:
            # The usual case: each item of a `map` may have a pickle.
            first = parts[0]
            size = len(first)
            if size <= _MAX_SEARCHED and type(first) is bytes and first.find(_OF_TRIO) >= 0:
                _refuse_objects_of_trio(first)
            return Payload([first], [size], function)
        for part in parts[:2]:
            _check(part)
        if not self.out_of_band:
            pieces = list(map(flat, parts))
            return Payload(pieces, [sum(map(len, pieces))], function)
        sent, lengths, types = collector.segments()
        return Payload(sent, lengths, function, types)


def _check(part: Buffer) -> None:
    # `find`, because `in` first tries its operand as a number and handles an exception.
    if type(part) is bytes and len(part) <= _MAX_SEARCHED and part.find(_OF_TRIO) >= 0:
        _refuse_objects_of_trio(part)


def _refuse_objects_of_trio(pickled: bytes) -> None:
    """Raise RefusedArgument if a pickle makes an object of Trio that tasks share."""
    from .. import _slips

    name = _slips.shared_object_of_trio(pickled)
    if name is not None:
        raise RefusedArgument(_slips.object_of_trio(name))


# For all threads. Each takes one out while it pickles, so nested pickling uses another.
_kept: Final[list[Pickling]] = []


def cloud_pickler() -> Any:
    """Return cloudpickle's pickler class. None means that cloudpickle is not installed."""
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return None
    from trio_offload_worker._jobs.cloudpickle import Pickler

    return Pickler
