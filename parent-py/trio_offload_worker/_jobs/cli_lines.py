"""The lines of ``trio-offload map``: one JSON object for each item.

* A line is ASCII and ends with a newline, so a lone surrogate or a locale cannot spoil the output.
* The worker makes the line of an item that it has run; the parent makes the others. So the parent
  imports this module too.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeAlias, TypeVar

    Result = TypeVar("Result")

    ItemKind: TypeAlias = Literal["text", "json"]
    """``text``: the content is the item. ``json``: the item is the value of a line of JSON."""


class Figures:
    """The figures at the end of a line.

    Attributes:
        seconds: Duration of the call. None if the function was not called.
        peak_rss: Largest resident memory of the worker, in bytes. None means unknown.
        pid: Process ID of the worker. None means unknown, or that it was not started.
        tries: Number of times that the item was run, from 1.
    """

    __slots__ = ("peak_rss", "pid", "seconds", "tries")

    def __init__(self, seconds: float | None, peak_rss: int | None, pid: int | None, tries: int) -> None:
        self.seconds = seconds
        self.peak_rss = peak_rss
        self.pid = pid
        self.tries = tries

    def encode(self) -> bytes:
        """Return the fields as JSON, without braces."""
        seconds = "null" if self.seconds is None else f"{self.seconds:.6f}"
        peak_rss = "null" if self.peak_rss is None else self.peak_rss
        pid = "null" if self.pid is None else self.pid
        return f'"seconds": {seconds}, "peak_rss": {peak_rss}, "pid": {pid}, "tries": {self.tries}'.encode("ascii")


def success_line(encoded_item: bytes, encoded_value: bytes, figures: Figures) -> bytes:
    """Return the line of an item whose call returned. :func:`encode_value` makes the second."""
    return b'{"item": %b, "ok": true, %b, %b}\n' % (encoded_item, encoded_value, figures.encode())


def part_line(encoded_item: bytes, number: int, encoded_value: bytes, tries: int) -> bytes:
    """Return the line of a value that a generator function has yielded. ``number`` is from 1."""
    return b'{"item": %b, "part": %d, %b, "tries": %d}\n' % (encoded_item, number, encoded_value, tries)


def failure_line(encoded_item: bytes, type_name: str, message: str, traceback: str | None, figures: Figures) -> bytes:
    """Return the line of a failed item.

    ``traceback`` is None if the exception has none. For a dead worker it is the report of its
    death.
    """
    error = {"type": type_name, "message": message, "traceback": traceback}
    return b'{"item": %b, "ok": false, "error": %b, %b}\n' % (encoded_item, _dump(error), figures.encode())


def encode_item(kind: ItemKind, content: str | bytes, value: object = ...) -> bytes:
    """Return the JSON of an item: the value of a JSON line, or else the item's text.

    A JSON line that cannot be read or written counts as text. ``value`` is the parsed content, if
    the caller has parsed it already.
    """
    if kind == "json":
        try:
            return _dump(parse_json(content) if value is ... else value)
        except (ValueError, RecursionError):
            # not JSON, or a number such as 1e999, which Python reads as infinity and JSON cannot
            # hold
            pass
    return encode_text(content)


def encode_text(content: str | bytes) -> bytes:
    """Return the JSON string of an item's text."""
    return _dump(content if isinstance(content, str) else content.decode("utf-8", "surrogateescape"))


def encode_value(value: object) -> bytes:
    """Return ``"value": …`` if JSON can hold the value unchanged, otherwise ``"repr": …``."""
    try:
        encoded = _dump_whole(value)
        if _keys_are_text(value):
            return b'"value": ' + encoded
    except Exception:  # json documents less, but a subclass of dict or str may raise anything
        pass
    return b'"repr": ' + _dump(_repr_of(value))


def parse_json(content: str | bytes) -> Any:
    """Return the value of a line of JSON.

    Raises:
        ValueError: It is not JSON. NaN and infinities are not JSON either.
        RecursionError: It is nested too deeply.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        return _load(text)
    except json.JSONDecodeError:
        raise
    # an integer beyond Python's digit limit, or a constant that JSON does not have
    except ValueError:
        return _without_digit_limit(_load, text)


def explain_parse_error(error: BaseException) -> str:
    """Return the reason why :func:`parse_json` failed."""
    # its own text says "line 1", which is not the line of the file
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return text_of(error)


def text_of(error: BaseException) -> str:
    """Return the message of an exception, also if its ``__str__`` raises."""
    try:
        return str(error)
    except BaseException as raised:
        return f"<{type(error).__name__} whose str raised {type(raised).__name__}>"


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


# The functions of the module would make a decoder and an encoder for each call.
_load = json.JSONDecoder(parse_constant=_refuse_constant).decode
_encode = json.JSONEncoder(allow_nan=False).encode


def _dump(value: object) -> bytes:
    return _encode(value).encode("ascii")


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


def _repr_of(value: object) -> str:
    try:
        return _without_digit_limit(repr, value)
    except BaseException as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
