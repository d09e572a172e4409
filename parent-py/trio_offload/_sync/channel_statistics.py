"""Statistics of channels and work queues."""

from __future__ import annotations

import attrs

from trio_offload_worker import PublicType

from .._documented import documented
from .channel_state import ChannelState
from .queue_state import QueueState


@documented
@attrs.frozen
class ChannelStatistics(metaclass=PublicType):
    """Statistics of a channel, see :meth:`SendChannel.statistics`."""

    current_buffer_used: int
    """Number of items in the buffer."""
    max_buffer_size: float
    """Maximum number of items in the buffer."""
    current_buffer_bytes: int
    """Size of the pickled items in the buffer, in bytes."""
    max_buffer_bytes: int
    """Maximum size of the pickled items in the buffer, in bytes."""
    open_send_channels: int
    """Number of open send channels, of this program and of the calls that have one."""
    open_receive_channels: int
    """Number of open receive channels, counted in the same way."""
    tasks_waiting_send: int
    """Number of tasks and jobs that wait in ``send``."""
    tasks_waiting_receive: int
    """Number of tasks and jobs that wait in ``receive``."""


@documented
@attrs.frozen
class WorkQueueStatistics(metaclass=PublicType):
    """Statistics of a work queue, see :meth:`WorkQueue.statistics`."""

    current_buffer_used: int
    """Number of items that wait."""
    max_buffer_size: float
    """Maximum number of items that wait."""
    current_buffer_bytes: int
    """Size of the pickled items that wait, in bytes."""
    max_buffer_bytes: int
    """Maximum size of the pickled items that wait, in bytes."""
    leased: int
    """Number of items that are leased."""
    failed: int
    """Number of items that have failed."""
    tasks_waiting_put: int
    """Number of tasks and jobs that wait in ``put``."""
    tasks_waiting_get: int
    """Number of tasks and jobs that wait in ``get``."""
    tasks_waiting_join: int
    """Number of tasks and jobs that wait in ``join``."""


def statistics_of(state: ChannelState) -> ChannelStatistics:
    """Return statistics of a channel."""
    buffer = state.buffer
    return ChannelStatistics(
        current_buffer_used=len(buffer),
        max_buffer_size=buffer.max_items,
        current_buffer_bytes=buffer.bytes_used,
        max_buffer_bytes=int(buffer.max_bytes),
        open_send_channels=state.open_senders,
        open_receive_channels=state.open_receivers,
        tasks_waiting_send=buffer.parked_puts,
        tasks_waiting_receive=buffer.parked_takes,
    )


def queue_statistics_of(state: QueueState) -> WorkQueueStatistics:
    """Return statistics of a work queue."""
    buffer = state.buffer
    return WorkQueueStatistics(
        current_buffer_used=len(buffer),
        max_buffer_size=buffer.max_items,
        current_buffer_bytes=buffer.bytes_used,
        max_buffer_bytes=int(buffer.max_bytes),
        leased=len(state.leases),
        failed=len(state.failed),
        tasks_waiting_put=buffer.parked_puts,
        tasks_waiting_get=buffer.parked_takes,
        tasks_waiting_join=state.parked_joins,
    )
