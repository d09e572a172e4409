"""An actor's object in its worker. A call of one of its methods is a call of :func:`call`."""

from __future__ import annotations

import _pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final


class Itself:
    """Stands for the object in the result of a method that returns it. Pickled by reference."""


def make(cls: Callable[..., Any], /, *args: Any) -> None:
    """Make the object. It stays in this process."""
    global _object
    _object = None  # the old one ends before the new one begins
    _object = cls(*args)


def call(name: str, /, *args: Any) -> Any:
    """Call a method of the object for the parent."""
    return sendable(_object, name, getattr(_object, name)(*args))


def call_with_keywords(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As :func:`call`, with keyword arguments."""
    return sendable(_object, name, getattr(_object, name)(*args, **kwargs))


def call_pickled(name: str, arguments: bytes) -> Sequence[Any]:
    """Call a method for another job. Arguments and result pass through the parent as pickles.

    Args:
        name: name of the method.
        arguments: pickle of the positional and the keyword arguments.

    Returns:
        The pickle of the result and its buffers.
    """
    args, kwargs = _pickle.loads(arguments)
    return _pickled(call_with_keywords(name, args, kwargs))


def call_for_job(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
    """As :func:`call_pickled`, for arguments that the parent has unpickled: they hold handles."""
    return _pickled(call_with_keywords(name, args, kwargs))


def send_values(name: str, channel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Send the values of a generator method into a channel, and return what it returns."""
    from . import streams

    method = getattr(_object, name)
    values = method(*args, **kwargs)
    return streams.send_values(channel, streams.iterator_of(values, method))


def stream_pickled(name: str, channel: Any, arguments: bytes) -> Sequence[Any]:
    """As :func:`send_values`, for another job: see :func:`call_pickled`."""
    args, kwargs = _pickle.loads(arguments)
    return stream_for_job(name, channel, args, kwargs)


def stream_for_job(name: str, channel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
    """As :func:`send_values`, for another job: see :func:`call_for_job`."""
    return _pickled(send_values(name, channel, args, kwargs))


def _pickled(value: Any) -> Sequence[Any]:
    buffers: list[Any] = []
    try:
        return [_pickle.dumps(value, 5, buffer_callback=buffers.append), *buffers]
    except (_pickle.PicklingError, AttributeError, TypeError) as error:
        from .._jobs.pickling import dumps

        return dumps(value, error, "the result of the method")


def sendable(owner: Any, name: str, value: Any) -> Any:
    """Return the result of a method of ``owner`` in a form that can be pickled."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if value is owner:
        return Itself
    if kind in _VIEWS or name in _ITERATING:
        return list(value)
    return value


_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_VIEWS: Final = frozenset((type({}.keys()), type({}.values()), type({}.items())))
_ITERATING: Final = frozenset(("__iter__", "__reversed__"))
_object: Any = None
