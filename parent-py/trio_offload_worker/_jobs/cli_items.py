"""The worker's side of ``trio-offload map``: one item in, one line of JSON out.

* It never imports trio, and nothing that a plain worker does not need anyway except ``json``. ``traceback`` waits for a
  failure.
* A line is made here, in the worker: what a job returns never has to pickle, turning it into text is done in parallel, and
  the parent has only bytes to pass on. The parent imports this module too, to name its functions and to write the line of
  an item whose worker is gone; it never imports the user's module.
* A line is pure ASCII and ends with a newline, so neither a lone surrogate nor a locale can spoil the output.
* Whatever user code does here (raise ``SystemExit``, return a value that contains itself, have a ``__repr__`` that raises)
  ends in a line.
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
    """``text``: the item is the content itself; ``json``: the content is a line of JSON and the item is its value."""

# The flags of a code object whose call only makes a coroutine or an asynchronous generator. Spelt out because importing ``inspect`` for them
# would take longer than starting the worker.
_CO_COROUTINE = 0x80
_CO_ASYNC_GENERATOR = 0x200


class UnusableFunction(Exception):
    """``MODULE:FUNCTION`` leads nowhere; the message says why."""


class Prepare:
    """The ``init`` of a worker: take standard input and output from the jobs, and import the user's function.

    Standard output carries the command's lines: a job that prints would break them, so its output (also that of the
    programs it starts) goes to standard error. Standard input may be the list of items: a job that reads it would eat
    them, so it finds it empty, as under ``xargs``.

    ``path_entry`` goes in front of ``sys.path`` unless it leads it already; ``None`` leaves the path alone.

    The import is done here and not by the first item: it may take longer than an item, and what it needs of memory is not
    a leak. Raises :class:`UnusableFunction` if there is nothing to call.
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
    """The user's function, by its name: ``MODULE:ATTRIBUTE``, the latter dotted if need be.

    It is called in a worker, for one item. An object and not a function, because what is said about a worker that died names
    what it ran, and that is the user's function and not ours.
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
        """Call the user's function. Returns the worker's process id, the name of the exception if there was one, and the
        item's line.

        ``number`` is the item's place in its source, counted from 1 (the number of the line in a file).
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
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are this job's, not the worker's
            # The first entry is this method's own frame, which is of no use to the reader.
            traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
            name = type(error).__name__
            return name, failure_line(encoded_item, name, _text_of(error), _format(error, traceback))
        return None, b'{"item": %b, "ok": true, %b}\n' % (encoded_item, _encode_value(value))

    def find_problem(self) -> str | None:
        """Why the function cannot be called for an item, in one line of text; ``None`` if it can.

        Text and not an exception, because what a user's module raises need not survive the way to the parent.
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
    """The JSON of an item: of a line of JSON its value, written anew; of one that cannot be read or written, its text.

    ``value`` is the parsed content where the caller has it already.
    """
    if kind == "json":
        try:
            return _dump(_parse(content) if value is ... else value)
        except (ValueError, RecursionError):
            pass  # not JSON, or a number like 1e999 that Python reads as an infinity, which JSON does not have
    return _encode_text(content)


def failure_line(encoded_item: bytes, type_name: str, message: str, traceback: str | None = None) -> bytes:
    """The line of an item that failed. ``traceback`` is ``None`` where there is none; of a worker that died it is what is known of that."""
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
        except OSError:  # there is no standard error either
            os.dup2(null, 1)
    finally:
        if null > 2:
            os.close(null)
    # Made when descriptor 1 was perhaps a pipe or a file, sys.stdout keeps whole blocks back: what a killed job had printed
    # would be lost.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def _parse(content: str | bytes) -> Any:
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        return _load(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than Python likes to read, or a constant that JSON does not have
        return _without_digit_limit(_load, text)


def _load(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _explain(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):  # its own text says "line 1", which is not the line of the file
        return f"{error.msg} at column {error.colno}"
    return _text_of(error)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _encode_value(value: object) -> bytes:
    """``"value": …`` if JSON can hold the value as it is, otherwise ``"repr": …``."""
    try:
        encoded = _dump_whole(value)
        if _keys_are_text(value):
            return b'"value": ' + encoded
    except Exception:  # not only what json documents: a subclass of dict or str may raise anything on the way
        pass
    return b'"repr": ' + _dump(_repr_of(value))


def _dump(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode("ascii")


def _dump_whole(value: object) -> bytes:
    try:
        return _dump(value)
    except ValueError:
        # Perhaps only an integer of more digits than Python likes to write. The job has computed it: write it.
        return _without_digit_limit(_dump, value)


def _without_digit_limit(function: Callable[[Any], Result], value: object) -> Result:
    if not hasattr(sys, "set_int_max_str_digits"):  # before 3.10.7 there is no limit
        return function(value)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return function(value)
    finally:
        sys.set_int_max_str_digits(limit)


def _keys_are_text(value: object) -> bool:
    """Whether every key in ``value`` is text: ``json`` would turn 1 and None into "1" and "null" without a word.

    Called after the value has been encoded, so it is known to be finite. A loop and not a recursion: the encoder goes deeper
    than Python code can.
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
    except BaseException:  # an exception with a hostile attribute: the line still has its type and its message
        return None
