"""Objects to segments and back: which pickler, and what travels beside the pickle.

The ordinary pickler goes first. cloudpickle, where it is installed, takes what that one refuses, and what it would
only name although a worker could not find it: functions of a ``__main__`` that has no file (a REPL, a notebook,
``python -c``, standard input). See :mod:`trio_offload._launch` for which ``__main__`` that is. A function for which the
ordinary pickler was of no use once is not tried with it again, see :mod:`trio_offload._by_value`.

Nothing large is copied. The C pickler hands a large ``bytes`` over to its file as it is, and buffers of
``_OUT_OF_BAND`` bytes and more (NumPy arrays, say) travel beside the pickle (PEP 574). So an argument must not be
changed by another task until the call has returned, as with a thread.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from trio_offload_worker._wire import MAX_SEGMENTS, Buffer

from ._by_value import ByValue
from ._errors import add_note
from ._launch import main_plan


@attrs.define
class Payload:
    """A pickled call: ``parts`` in the order in which they are written, and the length of each segment in bytes."""

    parts: Sequence[Buffer]
    lengths: Sequence[int]
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return function_name(self.function)


def dump_call(function: Callable[..., Any], args: tuple[Any, ...]) -> Payload:
    """Pickle a call.

    Raises:
        Exception: whatever the pickler raises, with a note that says what would help.
    """
    return _dump((function, args), function, out_of_band=True)


def dump_callable(function: Callable[[], Any]) -> bytes:
    """Pickle ``init`` or ``retire`` into one piece. Raises as :func:`dump_call` does."""
    return b"".join(_dump(function, function, out_of_band=False).parts)


def dump_settings(settings: dict[str, Any]) -> bytes:
    """Pickle builtin objects."""
    return pickle.dumps(settings, _PROTOCOL)


def load(segments: Sequence[Any]) -> Any:
    """What the segments of a frame hold. Raises whatever unpickling raises."""
    # A worker has the user's main module under the name that multiprocessing gives it; here it is __main__ itself, and
    # whichever that is just now.
    modules = sys.modules
    main = modules["__main__"]
    if modules.get("__mp_main__") is not main:
        modules["__mp_main__"] = main
    if len(segments) == 1:
        return pickle.loads(segments[0])
    return pickle.loads(segments[0], buffers=segments[1:])


def function_name(function: Callable[..., Any]) -> str:
    """The name of a function as a message shows it."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    try:
        name = getattr(inner, "__qualname__", None)
        if name is None:
            return repr(function)
        module = getattr(inner, "__module__", None)
        return name if module in (None, "builtins") else f"{module}.{name}"
    except Exception:
        # Some callables answer to any name and some to none; a message must not fail for that.
        return f"an instance of {type(inner).__qualname__}"


_PROTOCOL: Final = 5
_OUT_OF_BAND: Final = 16 * 1024
_SMALL: Final = 128 * 1024  # above what the pickler gathers into one frame: larger parts are one object's data
_MAIN: Final = b"__main__"
# What was found out about objects, for all threads: as good for one as for another, and gone with the object.
_by_value: Final = ByValue()


class _Sink:
    """The least that a pickler takes for a file."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self.write = write


def _dump(value: Any, function: Callable[..., Any], *, out_of_band: bool) -> Payload:
    """Pickle a value with the pickler that it needs; ``function`` is what messages call it by."""
    if _by_value.holds(function):
        pickler = _cloud_pickler()
        if pickler is not None:
            try:
                return _dump_with(pickler, value, function, out_of_band)
            except Exception as error:
                add_note(error, _also_with_cloudpickle(function))
                raise
    try:
        payload = _dump_with(pickle.Pickler, value, function, out_of_band)
    except Exception as error:
        pickler = _cloud_pickler()
        if pickler is None:
            add_note(
                error,
                f"(while pickling a call of {function_name(function)}: the function, its arguments or both cannot be "
                "pickled. Functions at the top of a module can; with the package cloudpickle installed, lambdas and "
                "functions defined inside others can too)",
            )
            raise
        _by_value.remember(function)
        try:
            return _dump_with(pickler, value, function, out_of_band)
        except Exception as second:
            add_note(second, _also_with_cloudpickle(function))
            raise second from error
    if not _mentions_main(payload):
        return payload
    plan = main_plan()
    if plan["kind"] != "none":
        return payload
    pickler = _cloud_pickler()
    if pickler is None:
        raise pickle.PicklingError(
            f"a worker cannot find {function_name(function)}, or something in its arguments: it lives in a __main__ "
            f"that {plan['why']}. Install the package cloudpickle, which sends such things by value, or move them into "
            "a module."
        )
    _by_value.remember(function)
    return _dump_with(pickler, value, function, out_of_band)


def _also_with_cloudpickle(function: Callable[..., Any]) -> str:
    return f"(while pickling a call of {function_name(function)}, also with cloudpickle)"


def _dump_with(pickler: Any, value: Any, function: Callable[..., Any], out_of_band: bool) -> Payload:
    parts: list[Any] = []
    buffers: list[memoryview] = []

    def take(buffer: pickle.PickleBuffer) -> bool:
        """Out of band (False), unless the buffer is small or there are too many: then into the pickle (True)."""
        view = buffer.raw()
        if view.nbytes < _OUT_OF_BAND or len(buffers) >= MAX_SEGMENTS - 1:
            return True
        buffers.append(view)
        return False

    pickler(_Sink(parts.append), _PROTOCOL, buffer_callback=take if out_of_band else None).dump(value)
    lengths = [len(parts[0]) if len(parts) == 1 else sum(map(len, parts))]
    if buffers:
        lengths += [view.nbytes for view in buffers]
        parts += buffers
    return Payload(parts, lengths, function)


def _mentions_main(payload: Payload) -> bool:
    """Whether a pickle may name something in ``__main__``: false alarms are harmless, and large data is left alone."""
    return any(_MAIN in part for part in payload.parts if len(part) <= _SMALL and isinstance(part, bytes))


def _cloud_pickler() -> Any:
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return None
    from trio_offload_worker._cloud import Pickler

    return Pickler
