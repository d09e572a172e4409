"""The record that a stream's ``statistics()`` returns."""

from __future__ import annotations

import attrs

from trio_offload_worker import PublicType

from .._documented import documented


@documented
@attrs.frozen
class StreamStatistics(metaclass=PublicType):
    """Figures of a stream at one moment.

    ::

        async with trio_offload.stream(read_rows, path) as rows:
            async for row in rows:
                await insert(row)
                statistics = rows.statistics()
                if not statistics.buffered:
                    print(f"{statistics.received} rows have come: reading is slower than inserting")
    """

    received: int
    """Number of values that have come."""
    taken: int
    """Number of values that the consumer is done with."""
    buffered: int
    """Number of values that have come, and that the consumer has not got."""
    window: int
    """Largest number of values that the generator is ahead."""
