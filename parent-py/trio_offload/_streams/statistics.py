"""The record that a stream's ``statistics()`` returns."""

from __future__ import annotations

import attrs


@attrs.frozen
class StreamStatistics:
    """Figures of a stream. Those of a generator that runs may be old when they are read."""

    received: int
    """Number of values that have come."""
    taken: int
    """Number of values that the consumer is done with."""
    buffered: int
    """Number of values that have come, and that the consumer has not got."""
    window: int
    """Largest number of values that the generator is ahead."""
