"""CBOR (RFC 8949), as much of it as the bodies of our own messages consist of.

Integers, byte strings, text, arrays, maps, booleans and null, definite in length, no deeper than a few levels. The reader
gives up on anything else, and on whatever is wrong, with :class:`Unusual`: the codec then asks the CBOR library, which
knows all of it and names the error. So there is one judge, and a worker written in Python starts without the library's
import, which would take longer than Python's own start (it draws in ``typing`` and ``re``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


class Unusual(Exception):
    """The data holds something that is not read here; whether it is right, somebody else has to say."""


class Excessive(Exception):
    """The data is right, as far as anybody has looked, and more than is read; the text says of what."""


def dumps(value: Any) -> bytes:
    """A value in its shortest form.

    Raises:
        TypeError: it is not of the kinds that messages consist of.
    """
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def loads(data: bytes, most: int) -> Any:
    """The one value that ``data`` consists of, if that is at most so many items, itself and all in it.

    Raises:
        Unusual: it is something else, or something more.
        Excessive: it is more items.
    """
    try:
        value, end = _read(data, 0, _DEEPEST, [most - 1])
    except (IndexError, UnicodeDecodeError, TypeError) as error:
        raise Unusual from error
    if end != len(data):
        raise Unusual
    return value


def encode_uint(value: int, major: int = 0) -> bytes:
    """An unsigned integer; with another major type (its three bits in place), the length that such an item begins with."""
    if value < 24:
        return SINGLE_BYTES[major | value]
    if value < 0x100:
        return SINGLE_BYTES[major | 24] + SINGLE_BYTES[value]
    if value < 0x10000:
        return SINGLE_BYTES[major | 25] + value.to_bytes(2, "big")
    if value < 0x100000000:
        return SINGLE_BYTES[major | 26] + value.to_bytes(4, "big")
    return SINGLE_BYTES[major | 27] + value.to_bytes(8, "big")


SINGLE_BYTES: Final = [bytes((value,)) for value in range(256)]

_NEGATIVE: Final = 0x20
_BYTES: Final = 0x40
_TEXT: Final = 0x60
_ARRAY: Final = 0x80
_MAP: Final = 0xA0
_TAG: Final = 0xC0
_BREAK: Final = 0xFF
_SIMPLE: Final = {0xF4: False, 0xF5: True, 0xF6: None}
_DEEPEST: Final = 8
DEEPEST: Final = 32  # levels that a body may have; deeper than the above is for the CBOR library
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


def check(data: bytes, most: int) -> None:
    """Look whether ``data`` begins with one whole item of at most so many, no deeper than is allowed, and without tags: before anybody
    reads it who would take memory or time for whatever is announced.

    Raises:
        Excessive: it is not so.
        IndexError: it ends too early.
    """
    # How many items are missing at each level; -1: as many as come before the break.
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
        most -= 1
        if most < 0:
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
            if len(missing) > DEEPEST + 1:
                raise Excessive(f"more than {DEEPEST} levels")


def _read(data: bytes, at: int, levels: int, left: list[int]) -> tuple[Any, int]:
    """The value that begins at ``at``, and where what follows it begins. So many more items may be ``left``."""
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
