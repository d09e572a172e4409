"""The worker's side of ``trio-offload map``: one item in, one line of JSON out.

* The module does not import trio. Besides the imports of a plain worker it needs only ``json``, and
  ``traceback`` after a failure.
* The worker makes the line (``cli_lines``). So results need not pickle, they are encoded in
  parallel, and the parent only passes bytes on. The parent imports this module too, to name its
  functions. It does not import the user's module.
* User code always yields a line, even if it raises ``SystemExit``, returns a value that contains
  itself, or has a ``__repr__`` that raises.
"""

from __future__ import annotations

import importlib
import os
import sys
from time import perf_counter

from .._system.figures import PeakMeter
from .cli_arity import unfit_parameters
from .cli_lines import (
    Figures,
    encode_item,
    encode_text,
    encode_value,
    explain_parse_error,
    failure_line,
    parse_json,
    part_line,
    success_line,
    text_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Any, Final, TypeAlias

    from .cli_lines import ItemKind

    Outcome: TypeAlias = tuple[int, int | None, str | None, bytes]
    """The worker's PID, its peak memory in bytes, the exception's name, the line.

    The name is None if the call returned. The line is empty if the function is a generator function
    and was called without a place for its values.
    """

    Parts: TypeAlias = Callable[[bytes], object]
    """Takes the line of a value that a generator function has yielded."""

# Flags of a code object whose call returns a coroutine or an asynchronous generator. To import
# ``inspect`` for them would take longer than to start the worker.
_CO_GENERATOR = 0x20
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

    def __call__(self, kind: ItemKind, number: int, content: str | bytes, tries: int, parts: Parts | None = None) -> Outcome:
        """Call the user's function.

        Args:
            kind: the meaning of ``content``.
            number: the position of the item in its source, from 1 (the line number in a file).
            content: the item.
            tries: the number of times that the item has been run, with this one.
            parts: takes the lines of the values of a generator function.
        """
        figures = Figures(None, None, os.getpid(), tries)
        failure, line = self._call(kind, number, content, figures, parts)
        return os.getpid(), figures.peak_rss, failure, line

    def _call(
        self, kind: ItemKind, number: int, content: str | bytes, figures: Figures, parts: Parts | None
    ) -> tuple[str | None, bytes]:
        if kind == "json":
            try:
                item = parse_json(content)
            except (ValueError, RecursionError) as error:
                name = type(error).__name__
                message = f"line {number} cannot be read as JSON: {explain_parse_error(error)}"
                return name, failure_line(encode_text(content), name, message, None, figures)
        else:
            item = content
        encoded_item = encode_item(kind, content, item)
        _meter.begin()
        began = perf_counter()
        try:
            function = self._resolve()
            value: Any = function(item)
            if type(value) is _GENERATOR and value.gi_code is getattr(function, "__code__", None):
                if parts is None:
                    return None, b""  # It has not begun.
                value = _send_parts(value, encoded_item, parts, figures.tries)
        # SystemExit and KeyboardInterrupt too: they end the job, not the worker
        except BaseException as error:
            if type(error).__module__ == "trio_offload_worker.from_worker" and type(error).__name__ == "Cancelled":
                raise  # the run was interrupted, and has no line for the item
            figures.seconds = perf_counter() - began
            figures.peak_rss = _meter.end(figures.seconds)
            # The first entries are frames of this file, which do not help the reader.
            traceback = error.__traceback__
            while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
                traceback = traceback.tb_next
            name = type(error).__name__
            return name, failure_line(encoded_item, name, text_of(error), _format(error, traceback), figures)
        figures.seconds = perf_counter() - began
        # Encoding the value is part of the item's memory use.
        encoded_value = encode_value(value)
        figures.peak_rss = _meter.end(figures.seconds)
        return None, success_line(encoded_item, encoded_value, figures)

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
        parameters = unfit_parameters(function)
        if parameters is not None:
            return _one_line(f"{self!r} must take one argument, the item; its parameters are {parameters}")
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


class NamedCall(Function):
    """The user's function with an item in its name, so messages and the table name the item.

    The worker receives the function only. But it imports this class before a call with a timeout.
    In a module of the parent, the class would bring trio with it.
    """

    __slots__ = ("_label",)

    def __init__(self, function: Function, label: str) -> None:
        super().__init__(function.module, function.attribute)
        self._label = label

    def __repr__(self) -> str:
        return f"{super().__repr__()}({self._label})"

    def __reduce__(self) -> tuple[type[Function], tuple[str, str]]:
        return Function, (self.module, self.attribute)

    def failure_in(self, outcome: Outcome) -> tuple[str, str] | None:
        """Return the error and the traceback of an item that has failed: a trace shows them."""
        *_, failure, line = outcome
        if failure is None:
            return None
        error = parse_json(line)["error"]
        return f"{error['type']}: {error['message']}", error.get("traceback") or ""


def _send_parts(values: Generator[Any, Any, Any], encoded_item: bytes, parts: Parts, tries: int) -> Any:
    """Send a line for each value of a generator, and return what it returns."""
    number = 0
    try:
        while True:
            try:
                value = next(values)
            except StopIteration as end:
                return end.value
            number += 1
            parts(part_line(encoded_item, number, encode_value(value), tries))
    finally:
        values.close()


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


def _summary(error: BaseException) -> str:
    text = text_of(error)
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


_meter: Final = PeakMeter()
_GENERATOR: Final[Any] = type(_ for _ in ())
