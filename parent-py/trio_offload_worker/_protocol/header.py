"""The header of a frame: its kind, its number, the lengths of its segments and its body.

A body is a map of the fields of its message. Unknown fields, which a later version may add, are
ignored.
"""

from __future__ import annotations

import struct

from .cbor import Excessive, Unusual, check, keep, loads, recall
from .frames import (
    BYTEARRAY,
    FIRST_OF_WORKER,
    KINDS,
    MAX_ARRAY,
    MAX_DESCRIPTORS,
    MAX_HEADER,
    MAX_ID,
    MAX_ITEMS,
    MAX_SEGMENTS,
    PROTOCOL_VERSION,
    REPEATED,
    Kind,
    WireError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

# How an unsigned integer continues after each first byte.
_WIDTHS: Final = {
    24 + place: (struct.Struct(code).unpack_from, 1 << place) for place, code in enumerate((">B", ">H", ">I", ">Q"))
}
# The major types that stand before a body, and their descriptions.
_BYTES: Final = 0x40
_ARRAY: Final = 0x80
_EXPECTED: Final = {
    0: "an unsigned integer",
    _BYTES: "a byte string of definite length",
    _ARRAY: "an array of definite length",
}
# The parent's messages whose fields may have any number of items.
_UNLIMITED_KINDS: Final = (Kind.HELLO, Kind.TEMPLATE)


class Head:
    __slots__ = ("body", "id", "is_known", "kind", "lengths", "payload")

    def __init__(
        self, kind: Kind, id: int, lengths: list[int], payload: int, body: dict[str, Any], is_known: bool = False
    ) -> None:
        self.kind = kind
        self.id = id
        self.lengths = lengths
        self.payload = payload
        self.is_known = is_known
        self.body = body


def parse_header(data: bytes, payload: int, of_worker: bool) -> Head:
    try:
        items, at = _decode_uint(data, 0, _ARRAY)
        if items not in (3, 4):
            raise _malformed(f"an array of {items} items; 3 or 4 are allowed")
        kind, at = _decode_uint(data, at)
        id, at = _decode_uint(data, at)
        lengths, at = _decode_lengths(data, at)
    except (IndexError, struct.error):
        raise _malformed("it ends too early") from None
    body: dict[str, Any] = {}
    recalled = None
    if items == 4:
        if not (of_worker and kind < FIRST_OF_WORKER):
            if kind in REPEATED:
                recalled = recall(kind, len(lengths), data[at:])
            if recalled is None:
                body = _decode_body(data[at:], MAX_HEADER if kind in _UNLIMITED_KINDS else MAX_ITEMS)
    elif at != len(data):
        raise _malformed(f"{len(data) - at} bytes after its end")
    known = KINDS.get(kind)
    if known is None:
        raise WireError("unknown_kind", f"no message has the number {kind} in version {PROTOCOL_VERSION}")
    if sum(lengths) != payload:
        raise WireError("segment_mismatch", f"segments of {sum(lengths)} bytes in all, a payload of {payload}")
    if of_worker and kind < FIRST_OF_WORKER:
        return Head(known, id, lengths, payload, {})
    if recalled is not None:
        return Head(known, id, lengths, payload, recalled, True)
    checked = _checked_body(known, body, len(lengths))
    if kind in REPEATED and items == 4:
        keep(kind, len(lengths), data[at:], body, checked)
    return Head(known, id, lengths, payload, checked)


def _decode_lengths(data: bytes, at: int) -> tuple[list[int], int]:
    """Decode an array of unsigned integers, or a byte string with eight bytes for each.

    The loop is slow and the array therefore short: it takes 0.1 ms, and a full byte string 1 ms.
    """
    if data[at] & 0xE0 == _BYTES:
        size, at = _decode_uint(data, at, _BYTES)
        count, rest = divmod(size, 8)
        if rest or count > MAX_SEGMENTS:
            raise _malformed(f"{size} bytes of lengths; eight for each of at most {MAX_SEGMENTS} segments are allowed")
        return list(struct.unpack_from(f">{count}Q", data, at)), at + size
    count, at = _decode_uint(data, at, _ARRAY)
    if count > MAX_ARRAY:
        raise _malformed(f"an array of {count} lengths; {MAX_ARRAY} are allowed")
    lengths: list[int] = []
    add = lengths.append
    for _ in range(count):
        initial = data[at]
        at += 1
        if initial < 24:
            add(initial)
            continue
        try:
            unpack, size = _WIDTHS[initial]
        except KeyError:
            raise _malformed(f"byte {at - 1} is not an unsigned integer") from None
        add(unpack(data, at)[0])
        at += size
    return lengths, at


def _decode_body(data: bytes, max_items: int) -> dict[str, Any]:
    try:
        try:
            body = loads(data, max_items)
        except Unusual:
            check(data, max_items)
            body = _decode_unusual(data)
    except Excessive as error:
        raise _malformed(f"its body: {error}") from None
    except IndexError:
        raise _malformed("its body ends too early") from None
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise _malformed("its body is not a map with text keys")
    return body


def _decode_unusual(data: bytes) -> Any:
    """Decode a body that our own messages do not have: a later version's, or an error."""
    import io

    try:
        import cbor2
    except ImportError:
        raise _malformed("its body is not CBOR, or of a kind that cannot be read without the package cbor2") from None
    stream = io.BytesIO(data)
    try:
        body = cbor2.CBORDecoder(stream).decode()
    # cbor2 does not promise a common base class for its errors.
    except Exception as error:
        raise _malformed(f"its body is not CBOR: {error}") from error
    if stream.tell() != len(data):
        raise _malformed(f"{len(data) - stream.tell()} bytes after its end")
    return body


def _malformed(message: str) -> WireError:
    return WireError("malformed_header", message)


def _decode_uint(data: bytes, at: int, major: int = 0) -> tuple[int, int]:
    """Return the unsigned integer at ``at``, and the offset after it.

    With the major type of an array or a byte string: its length, and the offset of its first item.
    """
    initial = data[at] ^ major
    if initial < 24:
        return initial, at + 1
    if initial > 27:
        raise _malformed(f"byte {at} is not {_EXPECTED[major]}")
    end = at + 1 + (1 << (initial - 24))
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at + 1 : end], "big"), end


class _Field:
    __slots__ = ("description", "fits", "name", "required")

    def __init__(self, name: str, description: str, fits: Callable[[Any], bool], required: bool = True) -> None:
        self.name = name
        self.description = description
        self.fits = fits
        self.required = required


def _is_unsigned(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_array_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_streams(value: Any) -> bool:
    """True if the numbers are below three and ascending."""
    return isinstance(value, list) and all(map(_is_unsigned, value)) and value == [n for n in range(3) if n in value]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def _is_bytes_or_null(value: Any) -> bool:
    return value is None or isinstance(value, bytes)


def _is_array_of_bytes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, bytes) for item in value)


def _is_environment(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], bytes) and _is_bytes_or_null(pair[1])
        for pair in value
    )


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_unsigned, value))


def _are_types(value: Any) -> bool:
    # Delete the valid bytes in C: there may be tens of thousands.
    return isinstance(value, bytes) and not value.translate(None, bytes(range(BYTEARRAY + 1)))


def _is_flags(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(flag, int) and not isinstance(flag, bool) and -(2**31) <= flag < 2**31
        for name, flag in value.items()
    )


def _is_bundle(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("folder"), bytes)
        and "pyz" in value
        and _is_bytes_or_null(value["pyz"])
        and _is_array_of(value.get("modules"), lambda item: len(item) == 2 and _is_code(item))
        and _is_array_of(
            value.get("scripts"),
            lambda item: len(item) == 3 and _is_code(item) and (item[2] is None or isinstance(item[2], str)),
        )
    )


def _is_array_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(isinstance(item, list) and fits(item) for item in value)


def _is_code(item: Any) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], bytes)


def _unsigned(name: str, *, required: bool = True, most: int = MAX_ID) -> _Field:
    return _Field(name, f"an unsigned integer up to {most}", lambda value: _is_unsigned(value) and value <= most, required)


def _texts(*names: str) -> tuple[_Field, ...]:
    return tuple(_Field(name, "text", _is_text) for name in names)


def _byte_strings(*names: str) -> tuple[_Field, ...]:
    return tuple(_Field(name, "a byte string", _is_bytes) for name in names)


_NONE: Final = range(1)
_ANY: Final = range(MAX_SEGMENTS + 1)
_SOME: Final = range(1, MAX_SEGMENTS + 1)
_EAGER: Final = _Field("eager", "a boolean", _is_boolean)
_FIGURES: Final = _Field("figures", "an array of four unsigned integers", _are_figures, required=False)
_TYPES: Final = _Field("types", "a byte string of the numbers 0, 1 and 2", _are_types, required=False)
_FREE_THREADED: Final = _Field("free_threaded", "a boolean", _is_boolean, required=False)
_ERROR: Final = _texts("stage", "type", "message", "traceback")
# The fields that REQUEST and POST share.
_SAID: Final = (
    *_texts("op"),
    _unsigned("handle", required=False),
    _unsigned("thread"),
    _unsigned("count", required=False),
    _unsigned("item", required=False),
)
# The number of segments and the body's fields of each message.
SHAPES: Final[dict[Kind, tuple[range, tuple[_Field, ...]]]] = {
    Kind.HELLO: (
        _NONE,
        (
            _unsigned("protocol"),
            _unsigned("parent_pid"),
            *_texts("version"),
            *_byte_strings("libpython", "program_name"),
            _Field("environment", "an array of [name, value or null]", _is_environment),
            *(
                _Field(name, "an array of byte strings", _is_array_of_bytes)
                for name in ("argv", "orig_argv", "path", "warnoptions", "xoptions")
            ),
            _Field("pycache_prefix", "a byte string or null", _is_bytes_or_null),
            _Field("flags", "a map from text to integers of 32 bits", _is_flags),
            _Field("home", "a byte string", _is_bytes, required=False),
            _Field("search_path", "an array of byte strings", _is_array_of_bytes, required=False),
            _Field("bundle", "a bundle", _is_bundle, required=False),
            _Field("template", "a boolean", _is_boolean, required=False),
            _Field("streams", "some of 0, 1 and 2 in their order", _are_streams, required=False),
            _Field("directory", "a boolean", _is_boolean, required=False),
            _FREE_THREADED,
        ),
    ),
    Kind.SETUP: (
        range(3, 4),
        (
            _unsigned("idle_timeout_ms", required=False),
            _EAGER,
            _unsigned("report_interval_ms", required=False),
            _unsigned("memory_limit", required=False),
        ),
    ),
    Kind.CALL: (_SOME, (_TYPES, _Field("prepares", "a boolean", _is_boolean, required=False))),
    Kind.RETIRE: (_NONE, ()),
    Kind.REPLY: (
        _ANY,
        (
            _unsigned("request"),
            *_texts("status"),
            _TYPES,
            *(_Field(name, "text", _is_text, required=False) for name in ("type", "message", "traceback")),
            _unsigned("descriptors", required=False, most=MAX_DESCRIPTORS),
        ),
    ),
    Kind.SETTINGS: (range(1, 2), (_EAGER,)),
    Kind.TEMPLATE: (
        range(1, 2),
        (
            _EAGER,
            _Field("modules", "an array of text", _is_array_of_text),
            _Field("threads", "an array of text", _is_array_of_text, required=False),
        ),
    ),
    Kind.FORK: (_NONE, ()),
    Kind.CREDIT: (_NONE, (_unsigned("handle"), _unsigned("count"))),
    Kind.WELCOME: (
        _NONE,
        (
            _unsigned("protocol"),
            _unsigned("pid"),
            *_texts("worker", "version"),
            *_byte_strings("libpython", "prefix", "exec_prefix"),
            _FREE_THREADED,
        ),
    ),
    Kind.REFUSED: (_NONE, _texts("code", "message")),
    Kind.READY: (_NONE, (_FIGURES,)),
    Kind.SETUP_FAILED: (_ANY, (*_ERROR, _Field("module", "text", _is_text, required=False))),
    Kind.RESULT: (_SOME, (_TYPES, _FIGURES)),
    Kind.RAISED: (_ANY, (*_ERROR, _FIGURES)),
    Kind.RETIRED: (_NONE, _texts("reason")),
    Kind.ABORTED: (_NONE, _texts("code", "message")),
    Kind.REQUEST: (
        _ANY,
        (_unsigned("request"), *_SAID, _Field("shield", "a boolean", _is_boolean, required=False), _TYPES),
    ),
    Kind.REPORT: (_NONE, (_Field(_FIGURES.name, _FIGURES.description, _FIGURES.fits),)),
    Kind.POST: (_ANY, (*_SAID, _TYPES)),
    Kind.WITHDRAW: (_NONE, (_unsigned("request"),)),
}


def _checked_body(kind: Kind, body: dict[str, Any], segments: int) -> dict[str, Any]:
    """Return the fields that the message defines. Later versions may add others."""
    allowed, fields = SHAPES[kind]
    if segments not in allowed:
        raise WireError("malformed_body", f"a {kind.name} with {segments} segments")
    if not fields:
        return {}
    for field in fields:
        if field.name not in body:
            if field.required:
                raise WireError("malformed_body", f"a {kind.name} without {field.name!r}")
        elif not field.fits(body[field.name]):
            raise WireError("malformed_body", f"the {field.name!r} of a {kind.name} is not {field.description}")
    # In another message `types` is an unknown key, and may be anything.
    if _TYPES in fields and "types" in body and len(body["types"]) != segments:
        raise WireError("malformed_body", f"a {kind.name} with {segments} segments and the types of {len(body['types'])}")
    return {field.name: body[field.name] for field in fields if field.name in body}
