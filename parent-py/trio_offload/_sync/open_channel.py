"""``open_channel``: a channel between tasks and jobs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from .._sizes import parse_size
from . import pickled_items
from .channel_state import ON_DEATH, ChannelState
from .channels import ReceiveChannel, SendChannel

T = TypeVar("T")


def check_buffer_size(size: float) -> float:
    """Return the maximum number of items in a buffer.

    Raises:
        TypeError: it is neither an integer nor infinite.
        ValueError: it is negative.
    """
    if size != math.inf and (not isinstance(size, int) or isinstance(size, bool)):
        raise TypeError(f"max_buffer_size must be an integer or math.inf, got {size!r}")
    if size < 0:
        raise ValueError(f"max_buffer_size must be >= 0, got {size!r}")
    return size


def _open_channel(
    max_buffer_size: float, max_buffer_bytes: int | str = "64MiB", *, on_death: str = "raise"
) -> tuple[SendChannel[Any], ReceiveChannel[Any]]:
    """Open a channel between tasks and jobs. It works like :func:`trio.open_memory_channel`.

    ::

        send, receive = trio_offload.open_channel[Row](100)
        async with trio.open_nursery() as nursery, receive:
            nursery.start_soon(run_sync, produce, send.move())
            async for row in receive: ...

    Either end can be passed to jobs, sent through channels, and returned by jobs. A job gets a
    clone with the same methods that blocks instead of being awaited::

        def produce(send):
            for row in rows():
                send.send(row)  # waits while the buffer is full

    The clone is closed when the job's call has ended. Your own end stays open, so close it, or hand
    it over with ``move()``: otherwise receivers would wait for further items.

    Args:
        max_buffer_size: Maximum number of items in the buffer, or ``math.inf``. With 0, ``send``
            waits for a receiver.
        max_buffer_bytes: Maximum size of the pickled items in the buffer: a number of bytes, or
            text like ``"64MiB"``. One larger item passes if the buffer is empty.
        on_death: How the stream ends if the worker of a job with a send channel has died.
            ``"raise"``: with :exc:`trio.BrokenResourceError`, as it may be incomplete.
            ``"ignore"``: with :exc:`trio.EndOfChannel`.

    Returns:
        The sending and the receiving end. ``open_channel[T](...)`` gives them their type.

    Raises:
        TypeError: ``max_buffer_size`` is neither an integer nor infinite.
        ValueError: An argument is out of its range.
    """
    if on_death not in ON_DEATH:
        raise ValueError(f"on_death must be one of {', '.join(map(repr, ON_DEATH))}, got {on_death!r}")
    state = ChannelState(check_buffer_size(max_buffer_size), parse_size(max_buffer_bytes, "max_buffer_bytes"), on_death)
    state.buffer.released = pickled_items.release
    return SendChannel(state, state.add_sender()), ReceiveChannel(state, state.add_receiver())


if TYPE_CHECKING:

    class open_channel(tuple[SendChannel[T], ReceiveChannel[T]]):  # noqa: N801 (used as a function)
        """A class for type checkers only, because a function cannot be subscripted."""

        def __new__(  # type: ignore[misc]
            cls, max_buffer_size: float, max_buffer_bytes: int | str = "64MiB", *, on_death: str = "raise"
        ) -> tuple[SendChannel[T], ReceiveChannel[T]]: ...

        def __init__(
            self, max_buffer_size: float, max_buffer_bytes: int | str = "64MiB", *, on_death: str = "raise"
        ) -> None: ...

else:

    class _Generic:
        """A function that may be subscripted with types, which change nothing."""

        def __init__(self, function):
            self.__wrapped__ = function
            self.__doc__ = function.__doc__
            self.__name__ = self.__qualname__ = function.__name__.lstrip("_")

        def __call__(self, *args, **kwargs):
            return self.__wrapped__(*args, **kwargs)

        def __repr__(self):
            return f"<function {self.__module__}.{self.__name__}>"

        def __get__(self, instance, owner=None):
            return self  # never bound, as a builtin function; so `help` lists it with the functions

        def __getitem__(self, _types):
            return self

        def __reduce__(self):
            return self.__name__  # by reference, as a function

    open_channel = _Generic(_open_channel)
