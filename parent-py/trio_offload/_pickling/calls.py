"""Pickle calls and items into segments, and unpickle results.

The standard pickler is tried first. cloudpickle, if installed, pickles the rest by value:

* objects that the standard pickler refuses;
* objects that a worker could not find by reference, because their ``__main__`` has no file (a REPL,
  a notebook, ``python -c``, standard input), see :mod:`trio_offload._interpreter.main_module`;
* modules that the user has registered with cloudpickle.

A function that needed cloudpickle once is not tried with the standard pickler again, see
:mod:`trio_offload._pickling.by_value`.

Large data is not copied: buffers (NumPy arrays, for example), ``bytes`` and ``bytearray`` are sent
from their own memory beside the pickle, see :mod:`trio_offload_worker._protocol.segments`. So an
argument must not change until the call has returned, as with a thread. A ``bytearray`` cannot be
resized until then (``BufferError``).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._protocol.frames import MEMORY

from .._interpreter.main_module import main_module_spec
from .by_reference import (
    AFTER_PROTOCOL,
    CALL_WITHOUT_ARGUMENTS,
    END_OF_CALL,
    END_OF_CALL_OF_TWO,
    CallsByReference,
    are_small,
    check_function,
)
from .by_value import CLOUDPICKLE, FunctionsByValue, registered
from .payload import MAIN, function_name, mentions, mentions_main, with_grants
from .payload import Payload as Payload
from .picklers import PROTOCOL, Pickling, RefusedArgument, cloud_pickler, dump_plain

_MAX_COPIED: Final = 4096  # bytes
# The place of the module's name in the start of a call's pickle, for names of this length.
_OF_MODULE: Final = slice(AFTER_PROTOCOL + 1, AFTER_PROTOCOL + 1 + len(MAIN))
_MIN_WITH_MAIN: Final = len(b"__mp_main__")  # bytes
# Facts about functions, for all threads.
_by_value: Final = FunctionsByValue()
_by_reference: Final = CallsByReference()


def dump_call(function: Callable[..., Any], args: tuple[Any, ...]) -> Payload:
    """Pickle a call.

    Raises:
        Exception: the pickler's error, with a note that names the remedy.
    """
    start = _by_reference.start_of(function)
    if start is None or (args and not are_small(args)) or (_by_value.known and _by_value.holds(function)):
        check_function(function)
        return with_grants(_dump, (function, args), function, start, args)
    # The usual call. Small arguments need a plain pickler, without out-of-band buffers.
    pickled = start + (pickle.dumps(args, PROTOCOL)[AFTER_PROTOCOL:-1] + END_OF_CALL if args else CALL_WITHOUT_ARGUMENTS)
    size = len(pickled)
    payload = Payload((pickled,), (size,), function, b"", size <= _MAX_COPIED)
    # Numbers and texts do not refer to modules. The start has the function's module.
    if start[_OF_MODULE] != MAIN and not (CLOUDPICKLE in sys.modules and registered()):
        return payload
    return _checked(payload, (function, args), function, out_of_band=True)


def dump_call_to_fork(function: Callable[..., Any], args: tuple[Any, ...]) -> Payload:
    """Pickle a call for a fork of this process, as :func:`dump_call`.

    The fork has this ``__main__``, so its objects are pickled by reference. This includes typed
    functions that refer to objects which cannot be pickled.
    """
    check_function(function)
    return with_grants(_dump_to_fork, (function, args), function)


def dump_call_as(
    function: Callable[..., Any], helper: Callable[..., Any], args: tuple[Any, ...], *, to_fork: bool = False
) -> Payload:
    """Pickle a call of ``helper``, as :func:`dump_call`. Messages name ``function``."""
    start = _by_reference.start_of(helper)
    if to_fork:
        return with_grants(_dump_to_fork, (helper, args), function)
    if start is None or not are_small(args):
        return with_grants(_dump, (helper, args), function, start, args)
    # As in `dump_call`. The helper is ours, so it is never in `__main__` or pickled by value.
    pickled = start + pickle.dumps(args, PROTOCOL)[AFTER_PROTOCOL:-1] + END_OF_CALL
    size = len(pickled)
    return Payload((pickled,), (size,), function, b"", size <= _MAX_COPIED)


def dump_chunk(
    helper: Callable[..., Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    to_fork: bool = False,
    small: bool = False,
) -> Payload:
    """Pickle a call of ``helper`` with ``function`` and ``args``, as :func:`dump_call`.

    Messages name the function.

    Args:
        helper: The function to call.
        function: Its first argument.
        args: Its second argument.
        to_fork: True for a fork of this process.
        small: True if ``args`` has only tuples and ranges of numbers.
    """
    if to_fork:
        return with_grants(_dump_to_fork, (helper, (function, args)), function)
    start = _by_reference.start_of_two(helper, function)
    if not small or start is None or (_by_value.known and _by_value.holds(function)):
        return with_grants(_dump, (helper, (function, args)), function, start, args, END_OF_CALL_OF_TWO)
    # As in `dump_call`.
    pickled = start + pickle.dumps(args, PROTOCOL)[AFTER_PROTOCOL:-1] + END_OF_CALL_OF_TWO
    size = len(pickled)
    payload = Payload((pickled,), (size,), function, b"", size <= _MAX_COPIED)
    # `find`, because `in` first tries its operand as a number and handles an exception.
    if pickled.find(MAIN) < 0 and not (CLOUDPICKLE in sys.modules and registered()):
        return payload
    return _checked(payload, (helper, (function, args)), function, out_of_band=True)


def dump_around(helper: Callable[..., Any], argument: bytes, call: Payload) -> Payload:
    """Return a call of ``helper`` with bytes and with the function and arguments of a pickled call.

    The pickle of ``call`` becomes a part of the new one as it is. The bytes come first. A start by
    reference behind ``helper`` would be taken for that of a chunk's function.
    """
    start = _by_reference.start_of(helper)
    if start is None:
        raise RuntimeError(f"{helper!r} must be pickled by reference")
    around = _call_with(start + b"B" + len(argument).to_bytes(4, "little") + argument, call, END_OF_CALL_OF_TWO)
    around.small = call.small and around.lengths[0] <= _MAX_COPIED
    around.grants = call.grants
    return around


def dump_item(item: Any, function: Callable[..., Any], *, to_fork: bool = False) -> tuple[bytes, list[Any]]:
    """Pickle one item of a chunk. Return the pickle and its buffers. As :func:`dump_call`."""
    payload = _dump_to_fork(item, function) if to_fork else _dump(item, function)
    buffers = len(payload.lengths) - 1
    pieces = len(payload.parts) - buffers
    types = payload.types[1:] or bytes(buffers)
    # An object with a segment type is returned itself, and the pickle of the chunk restores its
    # type. Other parts are buffers, which stay out of the pickle of the chunk too.
    outside = [_item_part(part, kind) for part, kind in zip(payload.parts[pieces:], types, strict=True)]
    return b"".join(payload.parts[:pieces]), outside


def _item_part(part: Any, kind: int) -> Any:
    if kind == MEMORY:
        return pickle.PickleBuffer(part)
    return part.obj if type(part) is memoryview else part


def load_item(data: Any, buffers: Sequence[Any]) -> Any:
    """Unpickle an item of :func:`dump_item`, or a result of a chunk.

    Raises the error of unpickling.
    """
    return load([data, *buffers])


def dump_value(value: Any) -> Payload:
    """Pickle a value for a job that runs. Raises the same as :func:`dump_call`."""
    return _dump(value, type(value))


def dump_callable(function: Callable[[], Any]) -> bytes:
    """Pickle ``init`` or ``retire`` into one piece. Raises the same as :func:`dump_call`."""
    if _by_value.holds(function) and (pickler := cloud_pickler()) is not None:
        payload = _dump_by_value(pickler, function, function, out_of_band=False)
    else:
        try:
            payload = Pickling(pickle.Pickler, out_of_band=False).dump(function, function)
        except Exception as error:
            payload = _dump_refused(function, function, error, out_of_band=False)
        else:
            payload = _checked(payload, function, function, out_of_band=False)
    return b"".join(payload.parts)


def dump_settings(settings: dict[str, Any]) -> bytes:
    """Pickle builtin objects."""
    return pickle.dumps(settings, PROTOCOL)


def load(segments: Sequence[Any]) -> Any:
    """Unpickle the segments of a frame. Raises the error of unpickling."""
    # In a worker the user's main module is `__mp_main__`, as in multiprocessing. Here it is the
    # current `__main__`.
    first = segments[0]
    if len(first) > _MIN_WITH_MAIN:
        modules = sys.modules
        main = modules["__main__"]
        try:
            if modules["__mp_main__"] is not main:
                modules["__mp_main__"] = main
        except KeyError:
            modules["__mp_main__"] = main
    if len(segments) == 1:
        return pickle.loads(first)
    return pickle.loads(segments[0], buffers=segments[1:])


def _dump(
    value: Any,
    function: Callable[..., Any],
    start: bytes | None = None,
    args: tuple[Any, ...] = (),
    end: bytes = END_OF_CALL,
) -> Payload:
    """Pickle a value with the pickler that it needs; ``function`` names it in messages.

    If the start of a call's pickle is known, the standard pickler pickles only ``args``.
    """
    if _by_value.known and _by_value.holds(function) and (pickler := cloud_pickler()) is not None:
        return _dump_by_value(pickler, value, function, out_of_band=True)
    try:
        payload = dump_plain(value, function) if start is None else _call_with(start, dump_plain(args, function), end)
    except RefusedArgument:
        raise
    except Exception as error:
        return _dump_refused(value, function, error, out_of_band=True)
    return _checked(payload, value, function, out_of_band=True)


def _call_with(start: bytes, arguments: Payload, end: bytes) -> Payload:
    """Return the call with this start and end around its arguments."""
    parts, lengths = arguments.parts, arguments.lengths
    outside = len(lengths) - 1
    if len(parts) == 1 + outside:
        first = start + parts[0][AFTER_PROTOCOL:-1] + end
        return Payload([first, *parts[1:]], [len(first), *lengths[1:]], arguments.function, arguments.types)
    last = len(parts) - outside - 1
    sent = [*parts[:last], bytes(parts[last][:-1]) + end, *parts[last + 1 :]]
    sent[0] = start + sent[0][AFTER_PROTOCOL:]
    longer = len(start) - AFTER_PROTOCOL + len(end) - 1
    return Payload(sent, [lengths[0] + longer, *lengths[1:]], arguments.function, arguments.types)


def _dump_to_fork(value: Any, function: Callable[..., Any]) -> Payload:
    try:
        payload = dump_plain(value, function)
    except RefusedArgument:
        raise
    except Exception:
        return _dump(value, function)
    return _as_registered(payload, value, function, out_of_band=True) or payload


def _dump_by_value(pickler: Any, value: Any, function: Callable[..., Any], *, out_of_band: bool) -> Payload:
    """Pickle with cloudpickle; ``function`` names the value in messages."""
    try:
        return Pickling(pickler, out_of_band).dump(value, function)
    except Exception as error:
        add_note(error, _also_with_cloudpickle(value, function))
        raise


def _dump_refused(value: Any, function: Callable[..., Any], error: Exception, *, out_of_band: bool) -> Payload:
    """Pickle a value that the standard pickler has refused."""
    pickler = cloud_pickler()
    if pickler is None:
        add_note(
            error,
            f"(while pickling {_named(value, function)}: a part of it cannot be pickled. Functions at the top of a module can. "
            "With the package cloudpickle installed, lambdas and nested functions can too)",
        )
        raise error
    _by_value.remember(function)
    try:
        return Pickling(pickler, out_of_band).dump(value, function)
    except Exception as second:
        add_note(second, _also_with_cloudpickle(value, function))
        raise second from error


def _checked(payload: Payload, value: Any, function: Callable[..., Any], *, out_of_band: bool) -> Payload:
    """Return the payload if a worker can find its references; otherwise pickle by value."""
    by_value = _as_registered(payload, value, function, out_of_band=out_of_band)
    if by_value is not None:
        return by_value
    if not mentions_main(payload):
        return payload
    spec = main_module_spec()
    if spec["kind"] != "none":
        return payload
    pickler = cloud_pickler()
    if pickler is None:
        raise pickle.PicklingError(
            f"a worker cannot find {function_name(function)}, or something in its arguments: it is defined in a "
            f"__main__ that {spec['why']}. Install the package cloudpickle, which sends such objects by value, or move "
            "them into a module."
        )
    _by_value.remember(function)
    return Pickling(pickler, out_of_band).dump(value, function)


def _as_registered(payload: Payload, value: Any, function: Callable[..., Any], *, out_of_band: bool) -> Payload | None:
    """Return a payload with registered modules by value. None means that none is mentioned."""
    if CLOUDPICKLE not in sys.modules:
        return None
    names = registered()
    # The name of a submodule contains the name of its registered package.
    if not names or not mentions(payload, [name.encode("utf-8", "surrogatepass") for name in names]):
        return None
    _by_value.remember(function)
    pickler = cloud_pickler()
    return None if pickler is None else _dump_by_value(pickler, value, function, out_of_band=out_of_band)


def _also_with_cloudpickle(value: Any, function: Callable[..., Any]) -> str:
    return f"(while pickling {_named(value, function)}, also with cloudpickle)"


def _named(value: Any, function: Callable[..., Any]) -> str:
    """Name what is pickled: a call, or a value, whose type is passed as the function."""
    is_call_of_tuple = function is tuple and bool(value) and value[0] is function
    if function is type(value) and not is_call_of_tuple:
        return f"an object of the type {function_name(function)}"
    return f"a call of {function_name(function)}"
