"""A generator function that runs as a job: each value is sent to the parent when it is yielded."""

from __future__ import annotations

from .shields import add_shield, drop_shield

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Final

    from .channels import SendChannel


class GeneratorCall:
    """A function that sends the values of a generator function. It has the name of that."""

    def __init__(self, function: Callable[..., Iterable[Any]]) -> None:
        self._function = function
        for name in ("__module__", "__qualname__"):
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))

    def __reduce__(self) -> Any:
        return GeneratorCall, (self._function,)

    def __call__(self, channel: SendChannel[Any], *args: Any) -> Any:
        """Call the generator function, send its values, and return its result."""
        values = self._function(*args)
        try:
            iterator = iter(values)
        except TypeError:
            raise TypeError(
                f"a stream needs a generator function, or another that returns an iterable; {self._function!r} has "
                f"returned {values!r}"
            ) from None
        return send_values(channel, iterator)


def send_values(channel: SendChannel[Any], values: Iterator[Any]) -> Any:
    """Send the values of an iterator, and return what it returns, if it is a generator.

    If the stream is left, or a value cannot be sent, the generator is closed. Waits of its cleanup
    are protected from the cancellation.
    """
    try:
        while True:
            try:
                value = next(values)
            except StopIteration as end:
                return end.value
            channel.send(value)
    except BaseException:
        add_shield(_FOREVER)
        try:
            close = getattr(values, "close", None)
            if close is not None:
                close()
        finally:
            drop_shield(_FOREVER)
        raise


_FOREVER: Final = float("inf")
