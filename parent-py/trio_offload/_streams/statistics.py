"""The record that a stream's ``statistics()`` returns."""

from __future__ import annotations

import attrs

from trio_offload_worker import PublicType

from .._documented import documented


@documented
@attrs.frozen
class StreamStatistics(metaclass=PublicType):
    """Figures of a stream at one moment."""

    received: int
    """Number of values that have come."""
    taken: int
    """Number of values that the consumer is done with."""
    buffered: int
    """Number of values that have come, and that the consumer has not got."""
    window: int
    """Largest number of values that the generator is ahead."""
