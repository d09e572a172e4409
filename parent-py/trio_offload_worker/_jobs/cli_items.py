"""The worker's side of ``trio-offload map``: one item in, one line of JSON out.

* The module does not import trio. Besides the imports of a plain worker it needs only ``json``, and
  ``traceback`` after a failure.
* The worker makes the line. So results need not pickle, they are encoded in parallel, and the
  parent only passes bytes on. The parent imports this module too, to name its functions and to
  write the line of an item whose worker died. It does not import the user's module.
* A line is ASCII and ends with a newline, so a lone surrogate or a locale cannot spoil the output.
* User code always yields a line, even if it raises ``SystemExit``, returns a value that contains
  itself, or has a ``__repr__`` that raises.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Literal, TypeAlias, TypeVar

    Result = TypeVar("Result")

    ItemKind: TypeAlias = Literal["text", "json"]
    """``text``: the content is the item. ``json``: the item is the value of a line of JSON."""

# Flags of a code object whose call returns a coroutine or an asynchronous generator. To import
# ``inspect`` for them would take longer than to start the worker.
_CO_COROUTINE = 0x80
_CO_ASYNC_GENERATOR = 0x200


class UnusableFunction(Exception):
    """``MODULE:FUNCTION`` cannot be found. The message gives the reason."""


class Prepare:
    """The ``init`` of a worker: redirect the standard streams, and import the user's function.

    Standard output carries the command's lines. Output of jobs and of the programs they start goes
    to standard error, so that it cannot break a line. Standard input may carry the list of items.
    Jobs find it empty, as under ``xargs``, so that they cannot consume items.

    ``path_entry`` goes to the front of ``sys.path``, unless it is there already. None leaves the
    path unchanged.

    The import happens here, before the first item. It may take longer than an item, and its memory
    use is not a leak.

    Raises:
        UnusableFunction: the function does not exist or cannot be called.
    """

    __slots__ = ("function", "path_entry")

    def __init__(self, path_entry: str | None, function: Function) -> None:
        self.path_entry = path_entry
        self.function = function

    def __repr__(self) -> str:
        return f"import {self.function.module}"

    def __reduce__(self) -> tuple[type[Prepare], tuple[str | None, Function]]:
        return type(self), (self.path_entry, self.function)

    def __call__(self) -> None:
        if self.path_entry is not None and (not sys.path or sys.path[0] not in ("", self.path_entry)):
            sys.path.insert(0, self.path_entry)
        _take_standard_streams()
        problem = self.function.find_problem()
        if problem is not None:
            raise UnusableFunction(problem)


class Function:
    """The user's function, by its name ``MODULE:ATTRIBUTE``. The attribute may be dotted.

    A worker calls it with one item. It is an object, so that error messages about a dead worker
    show the name of the user's function instead of a function of this module.
    """

    __slots__ = ("attribute", "module")

    def __init__(self, module: str, attribute: str) -> None:
        self.module = module
        self.attribute = attribute

    def __repr__(self) -> str:
        return f"{self.module}:{self.attribute}"

    def __reduce__(self) -> tuple[type[Function], tuple[str, str]]:
        return type(self), (self.module, self.attribute)

    def __call__(self, kind: ItemKind, number: int, content: str | bytes) -> tuple[int, str | None, bytes]:
        """Call the user's function. Return the worker's PID, the exception's name and the line.

        ``number`` is the position of the item in its source, counted from 1 (the line number in a
        file). The exception's name is None if the call succeeded.
        """
        failure, line = self._call(kind, number, content)
        return os.getpid(), failure, line

    def _call(self, kind: ItemKind, number: int, content: str | bytes) -> tuple[str | None, bytes]:
        if kind == "json":
            try:
                item = _parse(content)
            except (ValueError, RecursionError) as error:
                message = f"line {number} cannot be read as JSON: {_explain(error)}"
                return type(error).__name__, failure_line(_encode_text(content), type(error).__name__, message)
        else:
            item = content
        encoded_item = encode_item(kind, content, item)
        try:
            value = self._resolve()(item)
        # SystemExit and KeyboardInterrupt too: they end the job, not the worker
        except BaseException as error:
            # The first entry is the frame of this method, which does not help the reader.
            traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
            name = type(error).__name__
            return name, failure_line(encoded_item, name, _text_of(error), _format(error, traceback))
        return None, b'{"item": %b, "ok": true, %b}\n' % (encoded_item, _encode_value(value))

    def find_problem(self) -> str | None:
        """Return why the function cannot be called, as one line. Return None if it can.

        The reason is text, because an exception of the user's module may not survive pickling.
        """
        try:
            function = self._resolve()
        except UnusableFunction as problem:
            return _one_line(str(problem))
        if not callable(function):
            return f"{self!r} is not callable: it is of type {type(function).__name__}"
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        if flags & (_CO_COROUTINE | _CO_ASYNC_GENERATOR):
            return f"{self!r} is an async function; workers call ordinary ones"
        return None

    def _resolve(self) -> Any:
        try:
            found: Any = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise UnusableFunction(f"cannot import {self.module}: {error.msg}") from error
        except BaseException as error:
            raise UnusableFunction(f"cannot import {self.module}: it raised {_summary(error)}") from error
        reached = self.module
        for name in self.attribute.split("."):
            try:
                found = getattr(found, name)
            except AttributeError as error:
                raise UnusableFunction(f"{reached} has no attribute {name!r}") from error
            reached = f"{reached}:{name}" if reached == self.module else f"{reached}.{name}"
        return found


def encode_item(kind: ItemKind, content: str | bytes, value: object = ...) -> bytes:
    """Return the JSON of an item: the value of a JSON line, or else the item's text.

    A JSON line that cannot be read or written counts as text. ``value`` is the parsed content, if
    the caller has parsed it already.
    """
    if kind == "json":
        try:
            return _dump(_parse(content) if value is ... else value)
        except (ValueError, RecursionError):
            # not JSON, or a number such as 1e999, which Python reads as infinity and JSON cannot
            # hold
            pass
    return _encode_text(content)


def failure_line(encoded_item: bytes, type_name: str, message: str, traceback: str | None = None) -> bytes:
    """Return the line of a failed item.

    ``traceback`` is None if the exception has none. For a dead worker it is the report of its
    death.
    """
    error = {"type": type_name, "message": message, "traceback": traceback}
    return b'{"item": %b, "ok": false, "error": %b}\n' % (encoded_item, _dump(error))


def _take_standard_streams() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # standard error is closed too
            os.dup2(null, 1)
    finally:
        if null > 2:
            os.close(null)
    # If descriptor 1 was a pipe or a file at startup, sys.stdout buffers whole blocks. A killed
    # job's output would be lost.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def _parse(content: str | bytes) -> Any:
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        return _load(text)
    except json.JSONDecodeError:
        raise
    # an integer beyond Python's digit limit, or a constant that JSON does not have
    except ValueError:
        return _without_digit_limit(_load, text)


def _load(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _explain(error: BaseException) -> str:
    # its own text says "line 1", which is not the line of the file
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return _text_of(error)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _encode_value(value: object) -> bytes:
    """Return ``"value": …`` if JSON can hold the value unchanged, otherwise ``"repr": …``."""
    try:
        encoded = _dump_whole(value)
        if _keys_are_text(value):
            return b'"value": ' + encoded
    except Exception:  # json documents less, but a subclass of dict or str may raise anything
        pass
    return b'"repr": ' + _dump(_repr_of(value))


def _dump(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode("ascii")


def _dump_whole(value: object) -> bytes:
    try:
        return _dump(value)
    except ValueError:
        # The reason may be an integer beyond Python's digit limit. Write it all the same.
        return _without_digit_limit(_dump, value)


def _without_digit_limit(function: Callable[[Any], Result], value: object) -> Result:
    if not hasattr(sys, "set_int_max_str_digits"):  # Python before 3.10.7 has no limit
        return function(value)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return function(value)
    finally:
        sys.set_int_max_str_digits(limit)


def _keys_are_text(value: object) -> bool:
    """True if every key in ``value`` is text. ``json`` would silently turn 1 and None into text.

    The value has been encoded before, so it is finite. The encoder nests deeper than Python code
    can, so this is a loop and not a recursion.
    """
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            for key in found:
                if not isinstance(key, str):
                    return False
            waiting.extend(child for child in found.values() if isinstance(child, (dict, list, tuple)))
        elif isinstance(found, (list, tuple)):
            waiting.extend(child for child in found if isinstance(child, (dict, list, tuple)))
    return True


def _encode_text(content: str | bytes) -> bytes:
    return _dump(content if isinstance(content, str) else content.decode("utf-8", "surrogateescape"))


def _repr_of(value: object) -> str:
    try:
        return _without_digit_limit(repr, value)
    except BaseException as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as raised:
        return f"<{type(error).__name__} whose str raised {type(raised).__name__}>"


def _summary(error: BaseException) -> str:
    text = _text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _format(error: BaseException, traceback: TracebackType | None) -> str | None:
    from traceback import format_exception

    try:
        return "".join(format_exception(type(error), error, traceback))
    # an exception with a hostile attribute: the line still has its type and its message
    except BaseException:
        return None
