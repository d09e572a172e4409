"""The subset of CBOR (RFC 8949) that the bodies of our own messages use.

Integers, byte strings, text, arrays, maps, booleans and null, with definite lengths and a few
levels. The reader raises :class:`Unusual` for all other and all malformed data. The codec then uses
the CBOR library, which supports the full format and names the error. So only the library judges
errors, and a Python worker starts without importing it. That import draws in ``typing`` and ``re``,
and would take longer than Python's own start.

The messages of a job's requests are many, but their bodies are few: they differ in the request's
number, which is the last field. So a body is decoded and checked once, and kept by its bytes up to
that number. General decoding would take a third of the parent's time for a request.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


class Unusual(Exception):
    """The data is beyond this reader. It may be valid or not."""


class Excessive(Exception):
    """The data exceeds a limit, which the text names. It was valid up to that point."""


def dumps(value: Any) -> bytes:
    """Encode a value in its shortest form.

    Raises:
        TypeError: the value has a type that messages do not use.
    """
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def loads(data: bytes, max_items: int) -> Any:
    """Decode ``data``, one value of at most ``max_items`` items, itself and nested ones included.

    Raises:
        Unusual: it is malformed, beyond this reader, or followed by more data.
        Excessive: it has more items.
    """
    try:
        value, end = _read(data, 0, _MAX_FAST_LEVELS, [max_items - 1])
    except (IndexError, UnicodeDecodeError, TypeError) as error:
        raise Unusual from error
    if end != len(data):
        raise Unusual
    return value


def encode_uint(value: int, major: int = 0) -> bytes:
    """Encode an unsigned integer, or the head of an item with another major type.

    ``major`` holds the major type in its upper three bits.
    """
    if value < 24:
        return SINGLE_BYTES[major | value]
    if value < 0x100:
        return SINGLE_BYTES[major | 24] + SINGLE_BYTES[value]
    if value < 0x10000:
        return SINGLE_BYTES[major | 25] + value.to_bytes(2, "big")
    if value < 0x100000000:
        return SINGLE_BYTES[major | 26] + value.to_bytes(4, "big")
    return SINGLE_BYTES[major | 27] + value.to_bytes(8, "big")


def recall(kind: int, segments: int, data: bytes) -> dict[str, Any] | None:
    """Return the body of a message, if one that differs at most in its request has been kept.

    Args:
        kind: Kind of the message.
        segments: Number of its segments.
        data: The bytes of its body.
    """
    start, request = split_request(data)
    known = _bodies.get((kind, segments, start, request is None))
    if known is None:
        return None
    body = known.copy()
    if request is not None:
        body["request"] = request
    return body


def keep(kind: int, segments: int, data: bytes, decoded: dict[Any, Any], body: dict[str, Any]) -> None:
    """Keep a body, if it is in our own form.

    Args:
        kind: Kind of the message.
        segments: Number of its segments.
        data: The bytes of its body.
        decoded: All fields of the body, in their order.
        body: The fields that the message defines.
    """
    start, request = split_request(data)
    # Each field stands once. So the start is followed by the request, and by nothing else.
    if len(start) > _MAX_KEPT_SIZE or data[0] != _MAP | len(decoded):
        return
    if request is not None and (next(reversed(decoded)) != "request" or body.get("request") != request):
        return
    if len(_bodies) >= _MAX_KEPT:
        _bodies.clear()
    _bodies[kind, segments, start, request is None] = body.copy()


def split_request(data: bytes) -> tuple[bytes, int | None]:
    """Return the bytes before the request's number and the number, or all bytes and None."""
    end = data.rfind(_REQUEST) + len(_REQUEST)
    if end < len(_REQUEST) or end == len(data):
        return data, None
    initial = data[end]
    if initial < 24:
        return (data[:end], initial) if end + 1 == len(data) else (data, None)
    if initial > 27 or end + 1 + (1 << (initial - 24)) != len(data):
        return data, None
    return data[:end], int.from_bytes(data[end + 1 :], "big")


def figures_after(data: bytes, at: int, head: bytes) -> list[int] | None:
    """Return the four figures that ``data`` ends with after ``head`` at ``at``, or None."""
    if not data.startswith(head, at):
        return None
    at += len(head)
    if len(data) > at + _SIZES.size:
        first, rss, second, peak, third, size, fourth = _SIZES.unpack_from(data, at)
        time = data[at + _SIZES.size :]
        # The sizes take four bytes each if the worker uses less than 4 GiB.
        if first == second == third == 0x1A and 0x18 <= fourth <= 0x1B and len(time) == 1 << (fourth - 0x18):
            return [rss, peak, size, int.from_bytes(time, "big")]
    figures = []
    while at < len(data):
        initial = data[at]
        at += 1
        if initial < 24:
            figures.append(initial)
        elif initial > 27:
            return None
        else:
            end = at + (1 << (initial - 24))
            figures.append(int.from_bytes(data[at:end], "big"))
            at = end
    return figures if at == len(data) and len(figures) == 4 else None


SINGLE_BYTES: Final = [bytes((value,)) for value in range(256)]
FIGURES_HEAD: Final = b"\xa1\x67figures\x84"
"""A body that has only figures, up to the first of them."""

# Three figures of four bytes each, and the initial byte of the fourth.
_SIZES: Final = struct.Struct(">" + 3 * "BI" + "B")
_NEGATIVE: Final = 0x20
_BYTES: Final = 0x40
_TEXT: Final = 0x60
_ARRAY: Final = 0x80
_MAP: Final = 0xA0
_TAG: Final = 0xC0
_BREAK: Final = 0xFF
_SIMPLE: Final = {0xF4: False, 0xF5: True, 0xF6: None}
# The name of the field: a text of seven bytes.
_REQUEST: Final = b"\x67request"
_MAX_KEPT_SIZE: Final = 256  # bytes
_MAX_KEPT: Final = 256
_bodies: Final[dict[tuple[int, int, bytes, bool], dict[str, Any]]] = {}
_MAX_FAST_LEVELS: Final = 8
# levels that a body may have; the CBOR library reads those deeper than the above
MAX_LEVELS: Final = 32
_TOO_MANY: Final = "more items than are allowed"


def _write(value: Any, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"\xf6")
    elif value is True or value is False:
        parts.append(b"\xf5" if value else b"\xf4")
    elif isinstance(value, int):
        parts.append(encode_uint(value) if value >= 0 else encode_uint(-1 - value, _NEGATIVE))
    elif isinstance(value, bytes):
        parts += (encode_uint(len(value), _BYTES), value)
    elif isinstance(value, str):
        data = value.encode()
        parts += (encode_uint(len(data), _TEXT), data)
    elif isinstance(value, list | tuple):
        parts.append(encode_uint(len(value), _ARRAY))
        for item in value:
            _write(item, parts)
    elif isinstance(value, dict):
        parts.append(encode_uint(len(value), _MAP))
        for key, item in value.items():
            _write(key, parts)
            _write(item, parts)
    else:
        raise TypeError(f"a message cannot hold an object of the type {type(value).__name__}")


def check(data: bytes, max_items: int) -> None:
    """Check that ``data`` starts with one complete item within the limits, without tags.

    This protects the CBOR library, which allocates memory and spends time for announced lengths.

    Raises:
        Excessive: it has too many items or levels, or a tag.
        IndexError: it ends too early.
    """
    # Missing items at each level. -1 means an indefinite number, up to the break.
    missing = [1]
    at = 0
    while missing:
        if missing[-1] == 0:
            missing.pop()
            continue
        initial = data[at]
        at += 1
        if initial == _BREAK and missing[-1] < 0:
            missing.pop()
            continue
        if missing[-1] > 0:
            missing[-1] -= 1
        max_items -= 1
        if max_items < 0:
            raise Excessive(_TOO_MANY)
        major, number = initial & 0xE0, initial & 0x1F
        if major == _TAG:
            raise Excessive("it has a tag")
        if 24 <= number < 28:
            end = at + (1 << (number - 24))
            if end > len(data):
                raise IndexError
            number = int.from_bytes(data[at:end], "big")
            at = end
        elif number == 31:
            number = -1
        if major in (_BYTES, _TEXT) and number >= 0:
            at += number
            if at > len(data):
                raise IndexError
        elif major in (_BYTES, _TEXT, _ARRAY, _MAP):
            missing.append(2 * number if major == _MAP and number > 0 else number)
            if len(missing) > MAX_LEVELS + 1:
                raise Excessive(f"more than {MAX_LEVELS} levels")


def _read(data: bytes, at: int, levels: int, left: list[int]) -> tuple[Any, int]:
    """Return the value at ``at``, and the offset after it. ``left`` counts the allowed items."""
    initial = data[at]
    major = initial & 0xE0
    if major >= 0xC0 or levels == 0:
        if initial in _SIMPLE:
            return _SIMPLE[initial], at + 1
        raise Unusual
    number = initial & 0x1F
    at += 1
    if number >= 24:
        if number > 27:
            raise Unusual
        end = at + (1 << (number - 24))
        if end > len(data):
            raise Unusual
        number = int.from_bytes(data[at:end], "big")
        at = end
    if major == 0:
        return number, at
    if major == _NEGATIVE:
        return -1 - number, at
    if major in (_BYTES, _TEXT):
        end = at + number
        if end > len(data):
            raise Unusual
        return (data[at:end] if major == _BYTES else data[at:end].decode()), end
    left[0] -= number if major == _ARRAY else 2 * number
    if left[0] < 0:
        raise Excessive(_TOO_MANY)
    if major == _ARRAY:
        items = []
        for _ in range(number):
            item, at = _read(data, at, levels - 1, left)
            items.append(item)
        return items, at
    pairs: dict[Any, Any] = {}
    for _ in range(number):
        key, at = _read(data, at, levels - 1, left)
        pairs[key], at = _read(data, at, levels - 1, left)
    return pairs, at
