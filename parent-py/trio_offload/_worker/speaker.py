"""The interface of a worker to the conversation with its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trio_offload_worker._protocol.frames import Buffer, Frame

if TYPE_CHECKING:
    import trio

    from .._options import ContextOptions
    from .._process.process import WorkerProcess
    from .._transport.channel import Channel


class Speaker(Protocol):
    """A worker, as its conversation sees it."""

    process: WorkerProcess
    limiter: object
    options: ContextOptions
    deadline: trio.CancelScope | None

    @property
    def channel(self) -> Channel | None:
        """The channel, until the end."""

    @property
    def running_function(self) -> str | None:
        """The name of the running function."""

    def take_unsent(self) -> list[Buffer]:
        """Return the data that the socket has left. The caller writes it."""

    def put_back_unsent(self, unsent: list[Buffer]) -> None:
        """Undo :meth:`take_unsent` for the rest."""

    def begin_cancelling(self, *, kills: bool) -> None:
        """Kill the process because the caller is cancelled, or tell the job that."""

    def handle_aside(self, frame: Frame) -> bool:
        """Handle a frame beside the answers. Return False for an answer."""

    def write_flags(self, place: int, flags: int) -> None:
        """As :meth:`Shower.write_flags`."""

    def handed(self, request: int) -> int:
        """Return how many items that a request got have reached the code of its job."""
