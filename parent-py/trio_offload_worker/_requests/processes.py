"""A job with a separate process, and its channel to the program."""

from __future__ import annotations

from .. import PublicType, publish
from .named_calls import NamedCall
from .requests import running_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Final

    from .channels import ReceiveChannel, SendChannel


class ProcessCall(NamedCall):
    """The function of a process. It has the channel as long as it runs."""

    def __call__(self, send: SendChannel[Any], receive: ReceiveChannel[Any], *args: Any) -> Any:
        """Call the function."""
        call = running_call()
        _channels[call] = ProcessChannel(send, receive)
        try:
            return self.function(*args)
        finally:
            del _channels[call]


class ProcessChannel(metaclass=PublicType):
    """The channel between a process and the program, from :func:`from_worker.channel`.

    Iterate over it for the items that the program sends. The iteration ends after ``send_eof()`` in
    the program, or when its block is left.
    """

    __slots__ = ("_receive", "_send")
    _is_constructible = False

    def __init__(self, send: SendChannel[Any], receive: ReceiveChannel[Any]) -> None:
        self._send = send
        self._receive = receive

    def send(self, value: Any, *, timeout: float | None = None) -> None:
        """Send an item to the program, as :meth:`SendChannel.send`."""
        self._send.send(value, timeout=timeout)

    def send_nowait(self, value: Any) -> None:
        """As :meth:`SendChannel.send_nowait`."""
        self._send.send_nowait(value)

    def send_many(self, values: Iterable[Any]) -> None:
        """As :meth:`SendChannel.send_many`."""
        self._send.send_many(values)

    def send_eof(self) -> None:
        """Send nothing any more. The program gets the end behind what was sent."""
        self._send.close()

    def receive(self, *, timeout: float | None = None) -> Any:
        """Receive an item of the program, as :meth:`ReceiveChannel.receive`."""
        return self._receive.receive(timeout=timeout)

    def receive_nowait(self) -> Any:
        """As :meth:`ReceiveChannel.receive_nowait`."""
        return self._receive.receive_nowait()

    def receive_many(self, max_items: int, *, timeout: float | None = None) -> list[Any]:
        """As :meth:`ReceiveChannel.receive_many`."""
        return self._receive.receive_many(max_items, timeout=timeout)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._receive)


def channel() -> ProcessChannel:
    """Return the channel between this job and the program. For functions of ``open_process``.

    ::

        def square():
            channel = from_worker.channel()
            for number in channel:
                channel.send(number * number)

        async with trio_offload.open_process(square) as process:
            await process.send(3)
            print(await process.receive())  # 9

    Raises:
        RuntimeError: The job has none.
    """
    found = _channels.get(running_call())
    if found is None:
        raise RuntimeError("this job has no channel: only a function of open_process() has one")
    return found


# By the number of the call.
_channels: Final[dict[int, ProcessChannel]] = {}


publish("trio_offload_worker.from_worker", channel)
