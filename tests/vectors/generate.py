"""Writes the protocol's test vectors: bytes on one side, what they mean on the other.

This is a third opinion beside the two codecs, so it shares nothing with them, nor with the CBOR
libraries that they use: bytes come from `struct` and the few lines of CBOR below, read off PROTOCOL.md
and RFC 8949. `README.md` in this folder says how a vector is to be read.

    python tests/vectors/generate.py            write every file, remove those that are no longer made
    python tests/vectors/generate.py --check    exit with 1 if a file differs from what would be written
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

MAGIC = b"tro\x01"
MAX_HEADER = 16_777_216
MAX_PAYLOAD = 1_099_511_627_776
MAX_SEGMENTS = 65_536
MAX_ARRAY = 1024
MAX_ITEMS = 1024
MAX_LEVELS = 32

HELLO, SETUP, CALL, RETIRE, REPLY, SETTINGS, TEMPLATE, FORK, CREDIT = 1, 2, 3, 4, 5, 6, 7, 8, 9
WELCOME, REFUSED, READY, SETUP_FAILED = 16, 17, 18, 19
RESULT, RAISED, RETIRED, ABORTED, REQUEST, REPORT, POST, WITHDRAW = 20, 21, 22, 23, 24, 25, 26, 27

# --- CBOR, as little of it as the protocol has ---------------------------------------------------


class Raw(bytes):
    """Bytes of CBOR that stand for themselves where a value is expected."""


def head(major: int, argument: int) -> bytes:
    """The initial byte of an item and its argument, in the shortest form."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for additional, form, limit in ((24, ">B", 8), (25, ">H", 16), (26, ">I", 32), (27, ">Q", 64)):
        if argument < 1 << limit:
            return bytes([major << 5 | additional]) + struct.pack(form, argument)
    raise ValueError(f"{argument} needs a bignum")


def wide_head(major: int, argument: int, size: int) -> bytes:
    """The same with an argument of 1, 2, 4 or 8 bytes, whether it needs them or not."""
    additional, form = {1: (24, ">B"), 2: (25, ">H"), 4: (26, ">I"), 8: (27, ">Q")}[size]
    return bytes([major << 5 | additional]) + struct.pack(form, argument)


def cbor(value: object) -> bytes:
    match value:
        case Raw():
            return bytes(value)
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int() if value >= 0:
            return head(0, value)
        case int():
            return head(1, -1 - value)
        case float():
            return b"\xfb" + struct.pack(">d", value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            text = value.encode()
            return head(3, len(text)) + text
        case list() | tuple():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            pairs = (cbor(key) + cbor(item) for key, item in value.items())
            return head(5, len(value)) + b"".join(pairs)
    raise TypeError(f"no CBOR for {value!r}")


# --- frames --------------------------------------------------------------------------------------


def prefix(header_length: int, payload_length: int, magic: bytes = MAGIC) -> bytes:
    return magic + struct.pack(">IQ", header_length, payload_length)


def with_header(header: bytes, payload: bytes = b"", payload_length: int | None = None) -> bytes:
    """A frame round a header that is given as bytes; `payload_length` only to lie about it."""
    length = len(payload) if payload_length is None else payload_length
    return prefix(len(header), length) + header + payload


Frame = tuple[int, int, list[bytes], dict[str, Any]]


def frame(
    kind: int,
    number: int = 0,
    segments: list[bytes] | None = None,
    body: dict[str, Any] | None = None,
) -> Frame:
    return kind, number, segments or [], body or {}


def encode(one: Frame) -> bytes:
    kind, number, segments, body = one
    lengths = [len(segment) for segment in segments]
    header: list[Any] = [kind, number, lengths if len(lengths) <= MAX_ARRAY else packed(lengths)]
    if body:
        header.append(body)
    return with_header(cbor(header), b"".join(segments))


def packed(lengths: list[int]) -> bytes:
    """Lengths as a byte string."""
    return struct.pack(f">{len(lengths)}Q", *lengths)


def readable(value: object) -> object:
    """A body in JSON: what JSON lacks is a byte string, written {"$bytes": hex}."""
    match value:
        case bytes():
            return {"$bytes": value.hex()}
        case dict():
            return {key: readable(item) for key, item in value.items()}
        case list() | tuple():
            return [readable(item) for item in value]
    return value


VECTORS: dict[str, dict[str, Any]] = {}


def add(
    name: str,
    about: str,
    data: bytes,
    frames: list[Frame] | None = None,
    *,
    error: str | None = None,
    end: bool = False,
    canonical: bool = False,
) -> None:
    if name in VECTORS:
        raise ValueError(f"two vectors are called {name}")
    vector: dict[str, Any] = {"name": name, "about": about, "bytes": data.hex()}
    vector["frames"] = [
        {
            "kind": kind,
            "id": number,
            "segments": [segment.hex() for segment in segments],
            "body": readable(body),
        }
        for kind, number, segments, body in frames or []
    ]
    if error is not None:
        vector["error"] = error
    if end:
        vector["end"] = True
    if canonical:
        vector["canonical"] = True
    VECTORS[name] = vector


def good(name: str, about: str, *frames: Frame) -> None:
    add(name, about, b"".join(map(encode, frames)), list(frames), canonical=True)


def bad(name: str, about: str, error: str, data: bytes, *before: Frame) -> None:
    add(name, about, b"".join(map(encode, before)) + data, list(before), error=error)


# --- bodies that look like real ones -------------------------------------------------------------

VERSION = "3.11.7 (main, Jan  2 2024, 10:20:30) [GCC 12.2.0]"
LIBPYTHON = b"/opt/python/lib/libpython3.11.so.1.0"


def hello_body(**changes: Any) -> dict[str, Any]:
    """A HELLO with something in every key, in the order of PROTOCOL.md. The flags are in alphabetical
    order, so that an encoder that sorts them and one that leaves them alone agree."""
    body: dict[str, Any] = {
        "protocol": 2,
        "parent_pid": 4242,
        "version": VERSION,
        "libpython": LIBPYTHON,
        "environment": [
            [b"LD_LIBRARY_PATH", None],
            [b"TRIO_OFFLOAD_TEST", b"caf\xe9"],
        ],
        "program_name": b"/home/user/project/.venv/bin/python",
        "argv": [b"script.py", b"--name", b"caf\xe9"],
        "orig_argv": [b"python", b"-X", b"importtime", b"script.py", b"--name", b"caf\xe9"],
        "path": [
            b"/home/user/project",
            b"/opt/python/lib/python311.zip",
            b"/opt/python/lib/python3.11",
        ],
        "warnoptions": [b"error", b"ignore::DeprecationWarning"],
        "xoptions": [b"importtime", b"int_max_str_digits=5000"],
        "pycache_prefix": None,
        "flags": {
            "buffered_stdio": 1,
            "bytes_warning": 0,
            "dev_mode": 0,
            "int_max_str_digits": 5000,
            "isolated": 0,
            "optimization_level": 2,
            "parser_debug": 0,
            "quiet": 0,
            "safe_path": 0,
            "site_import": 1,
            "use_environment": 1,
            "user_site_directory": 1,
            "utf8_mode": 0,
            "verbose": 0,
            "warn_default_encoding": 0,
            "write_bytecode": 1,
        },
    }
    return body | changes


BUNDLE: dict[str, Any] = {
    "folder": b"/opt/caf\xe9/_internal",
    "pyz": b"/opt/caf\xe9/app?123456",
    "modules": [["struct", b"\xe3code"], ["pyimod01_archive", b""]],
    "scripts": [["pyiboot01_bootstrap", b"\xe3boot", None], ["pyi_rth_inspect", b"\xe3hook", "inspect"]],
}


def bundle_hello_body(**changes: Any) -> dict[str, Any]:
    """A HELLO from an app made by PyInstaller: the keys that others leave out follow the others."""
    return hello_body() | {
        "home": b"/opt/caf\xe9/_internal",
        "search_path": [b"/opt/caf\xe9/_internal/base_library.zip", b"/opt/caf\xe9/_internal"],
        "bundle": BUNDLE | changes,
    }


def without(body: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != key}


WELCOME_BODY: dict[str, Any] = {
    "protocol": 2,
    "worker": "0.1.0",
    "pid": 70_000,
    "version": VERSION,
    "libpython": LIBPYTHON,
    "prefix": b"/home/user/project/.venv",
    "exec_prefix": b"/home/user/project/.venv",
}
SETUP_BODY: dict[str, Any] = {"idle_timeout_ms": 600_000, "eager": False}
SETUP_SEGMENTS = [b"\x80\x05}.", b"", b""]
RAISED_BODY: dict[str, Any] = {
    "stage": "call",
    "type": "builtins.ValueError",
    "message": "nought point seven",
    "traceback": 'Traceback (most recent call last):\n  File "job.py", line 3, in job\nValueError: nought point seven\n',
}
# Resident, its peak, the address space (bytes), processor time (microseconds).
FIGURES: dict[str, Any] = {"figures": [11_000_000, 12_345_678, 250_000_000, 23_456]}
FAILED_BODY: dict[str, Any] = RAISED_BODY | {"stage": "setup"}
ABORTED_BODY: dict[str, Any] = {
    "code": "unexpected_message",
    "message": "a HELLO came while the worker was idle",
}

REPLY_BODY: dict[str, Any] = {"request": 3, "status": "value"}
CREDIT_BODY: dict[str, Any] = {"handle": 2**64 - 1, "count": 16}
POST_BODY: dict[str, Any] = {"op": "send", "thread": 4242}
REQUEST_BODY: dict[str, Any] = {"request": 3, "op": "receive", "thread": 4242}

HELLO_FRAME = frame(HELLO, body=hello_body())
SETUP_FRAME = frame(SETUP, segments=SETUP_SEGMENTS, body=SETUP_BODY)
WELCOME_FRAME = frame(WELCOME, body=WELCOME_BODY)
READY_FRAME = frame(READY)
RETIRE_FRAME = frame(RETIRE)


def call(number: int = 1, *segments: bytes) -> Frame:
    return frame(CALL, number, list(segments or (b"\x80\x05N.",)))


def result(number: int = 1, *segments: bytes) -> Frame:
    return frame(RESULT, number, list(segments or (b"\x80\x05N.",)))


def filled(items: int) -> dict[str, Any]:
    """A body of so many items, itself, its key and the array of the rest among them."""
    return {"later": [0] * (items - 3)}


def nested(levels: int) -> dict[str, Any]:
    value: Any = 0
    for _ in range(levels - 1):
        value = [value]
    return {"later": value}


# --- every message -------------------------------------------------------------------------------


def messages() -> None:
    good("hello", "a HELLO with something in every key", HELLO_FRAME)
    good(
        "hello-least",
        "empty arrays and an empty map of flags are a HELLO too; a pycache_prefix that is set",
        frame(
            HELLO,
            body=hello_body(
                environment=[],
                argv=[],
                orig_argv=[],
                path=[],
                warnoptions=[],
                xoptions=[],
                pycache_prefix=b"/var/cache/pyc\xff",
                flags={},
            ),
        ),
    )
    good(
        "hello-empty-value",
        "a variable with an empty value is not a variable that is unset",
        frame(HELLO, body=hello_body(environment=[[b"A", b""], [b"B", None]])),
    )
    good(
        "hello-negative-flag",
        "a flag is an integer, so it may be negative (int_max_str_digits is -1 where it is not set)",
        frame(HELLO, body=hello_body(flags={"int_max_str_digits": -1, "verbose": -300})),
    )
    good(
        "hello-later-version",
        "a HELLO that speaks a later version is readable; refusing it is the session's work",
        frame(HELLO, body=hello_body(protocol=3)),
    )
    good("hello-bundle", "a HELLO from an app made by PyInstaller", frame(HELLO, body=bundle_hello_body()))
    good(
        "hello-bundle-least",
        "a bundle without an archive, modules and scripts is one too",
        frame(HELLO, body=hello_body(bundle={"folder": b"", "pyz": None, "modules": [], "scripts": []})),
    )
    good(
        "hello-home",
        "home and an empty search_path without a bundle",
        frame(HELLO, body=hello_body(home=b"/opt/app", search_path=[])),
    )
    good("setup", "a SETUP with an idle timeout, no init and no retire", SETUP_FRAME)
    good(
        "setup-for-ever",
        "a SETUP without an idle timeout, to be applied at once, with init and retire",
        frame(SETUP, segments=[b"\x80\x05}.", b"init", b"retire"], body={"eager": True}),
    )
    good(
        "setup-timeout-zero",
        "an idle timeout of 0 is a timeout, and not the absence of one",
        frame(SETUP, segments=[b"", b"", b""], body={"idle_timeout_ms": 0, "eager": False}),
    )
    good("call", "a CALL with one segment", call())
    good(
        "call-buffers",
        "a CALL with out-of-band buffers",
        call(2, b"pickle", b"first", b"second buffer"),
    )
    good(
        "call-types",
        "a CALL that says what its segments become",
        frame(CALL, 2, [b"pickle", b"memory", b"bytes", b"", b"bytearray"], {"types": bytes([0, 0, 1, 1, 2])}),
    )
    good("call-prepares", "a CALL that is no job", frame(CALL, 1, [b"pickle"], {"prepares": True}))
    good(
        "call-types-prepares",
        "a CALL that is no job and says what its segments become",
        frame(CALL, 1, [b"pickle", b"bytes"], {"types": bytes([0, 1]), "prepares": True}),
    )
    good("call-types-first", "the first segment may have a type too", frame(CALL, 2, [b"pickle"], {"types": bytes([2])}))
    good(
        "call-empty-segments",
        "segments of no length, at the start, inside and at the end, are segments",
        call(3, b"", b"one", b"", b"", b"two", b""),
    )
    good("call-one-empty-segment", "a CALL whose only segment has no length", call(4, b""))
    good("retire", "a RETIRE", RETIRE_FRAME)
    good("settings", "a SETTINGS", frame(SETTINGS, segments=[b"\x80\x05}."], body={"eager": False}))
    good(
        "settings-eager",
        "a SETTINGS to be applied at once",
        frame(SETTINGS, segments=[b"x"], body={"eager": True}),
    )
    good(
        "template",
        "a TEMPLATE that imports two modules",
        frame(TEMPLATE, segments=[b"\x80\x05}."], body={"eager": False, "modules": ["json", "a.b"]}),
    )
    good(
        "template-no-modules",
        "a TEMPLATE that imports nothing",
        frame(TEMPLATE, segments=[b"x"], body={"eager": True, "modules": []}),
    )
    good(
        "template-threads",
        "a TEMPLATE that may have two threads",
        frame(TEMPLATE, segments=[b"x"], body={"eager": False, "modules": ["a"], "threads": ["jemalloc_bg_thd", "io-*"]}),
    )
    good("fork", "a FORK", frame(FORK))
    good(
        "hello-forked",
        "a HELLO with which all comes that a forked worker takes over",
        frame(HELLO, body=hello_body(streams=[0, 1, 2], directory=True)),
    )
    good(
        "hello-forked-bare",
        "a HELLO to a forked worker from a parent without streams or a directory",
        frame(HELLO, body=hello_body(streams=[])),
    )
    good("hello-template", "a HELLO that makes a template", frame(HELLO, body=hello_body() | {"template": True}))
    good(
        "setup-failed-module",
        "a SETUP_FAILED that names a module",
        frame(SETUP_FAILED, segments=[b"exception"], body=FAILED_BODY | {"module": "a.b"}),
    )
    good("welcome", "a WELCOME", WELCOME_FRAME)
    good(
        "hello-free-threaded",
        "a HELLO from a Python that is built without a GIL",
        frame(HELLO, body=hello_body(free_threaded=True)),
    )
    good(
        "welcome-free-threaded",
        "a WELCOME of a Python that is built without a GIL",
        frame(WELCOME, body=WELCOME_BODY | {"free_threaded": True}),
    )
    good(
        "refused",
        "a REFUSED, with text that is not ASCII",
        frame(
            REFUSED,
            body={"code": "python_version", "message": "3.11.2 ≠ 3.11.7 — nicht dasselbe 🐍"},
        ),
    )
    good(
        "refused-empty-message",
        "empty text is text",
        frame(REFUSED, body={"code": "", "message": ""}),
    )
    good("ready", "a READY", READY_FRAME)
    good(
        "setup-failed",
        "a SETUP_FAILED with the exception",
        frame(SETUP_FAILED, segments=[b"exception"], body=FAILED_BODY),
    )
    good(
        "setup-failed-unpicklable",
        "a SETUP_FAILED whose exception could not be pickled",
        frame(SETUP_FAILED, body=FAILED_BODY),
    )
    good("result", "a RESULT with one segment", result())
    good(
        "result-buffers",
        "a RESULT with out-of-band buffers",
        result(9, b"pickle", b"\x00" * 100, b""),
    )
    for stage in ("unpickle", "call", "pickle"):
        good(
            f"raised-{stage}",
            f"a RAISED of stage {stage}",
            frame(RAISED, 7, [b"the exception"], RAISED_BODY | {"stage": stage}),
        )
    good(
        "raised-unpicklable",
        "a RAISED whose exception could not be pickled",
        frame(RAISED, 7, [], RAISED_BODY),
    )
    good(
        "raised-buffers",
        "a RAISED whose exception has out-of-band buffers",
        frame(RAISED, 8, [b"the exception", b"its array"], RAISED_BODY),
    )
    for reason in ("idle", "retire", "asked"):
        good(
            f"retired-{reason}",
            f"a RETIRED for the reason «{reason}»",
            frame(RETIRED, body={"reason": reason}),
        )
    good("aborted", "an ABORTED", frame(ABORTED, body=ABORTED_BODY))

    good(
        "setup-watched",
        "a SETUP that wants reports and has a ceiling",
        frame(
            SETUP,
            segments=SETUP_SEGMENTS,
            body={"idle_timeout_ms": 1, "eager": True, "report_interval_ms": 1000, "memory_limit": 2**33},
        ),
    )
    good("ready-figures", "a READY with the figures before the first job", frame(READY, body=FIGURES))
    good("result-figures", "a RESULT with figures", frame(RESULT, 3, [b"\x80\x05N."], FIGURES))
    good(
        "result-types",
        "a RESULT that says what its segments become",
        frame(RESULT, 3, [b"pickle", b"a bytes"], {"types": bytes([0, 1])}),
    )
    good(
        "result-types-figures",
        "a RESULT with types and figures",
        frame(RESULT, 3, [b"pickle", b"a bytearray"], {"types": bytes([0, 2])} | FIGURES),
    )
    good(
        "result-buffers-figures",
        "a RESULT with out-of-band buffers and figures",
        frame(RESULT, 300, [b"pickle", b"\x00" * 300, b""], FIGURES),
    )
    good("raised-figures", "a RAISED with figures", frame(RAISED, 7, [b"exception"], RAISED_BODY | FIGURES))
    good("report", "a REPORT", frame(REPORT, body=FIGURES))
    talk()
    for label, value in (("zero", 0), ("small", 23), ("byte", 24), ("large", 2**64 - 1)):
        good(
            f"result-figures-{label}",
            f"a RESULT with four figures of {value}",
            frame(RESULT, 1, [b"abc"], {"figures": [value] * 4}),
        )


# --- what the encoding allows --------------------------------------------------------------------


def talk() -> None:
    """What a job and its parent say to each other."""
    segments = [b"pickle", b"memory", b"bytes"]
    types = {"types": bytes([0, 0, 1])}
    good("reply", "a REPLY with a value", frame(REPLY, 7, [b"\x80\x05N."], REPLY_BODY))
    good("reply-none", "a REPLY without segments", frame(REPLY, 7, [], REPLY_BODY | {"status": "cancelled"}))
    good(
        "reply-types",
        "a REPLY that says what its segments become, with a large number",
        frame(REPLY, 7, segments, {"request": 2**64 - 1, "status": "value"} | types),
    )
    good(
        "reply-raised",
        "a REPLY whose exception could not be pickled",
        frame(
            REPLY,
            7,
            [],
            {
                "request": 3,
                "status": "raised",
                "type": "ValueError",
                "message": "nought",
                "traceback": "ValueError: nought\n",
            },
        ),
    )
    good("reply-refused", "a REPLY with a message only", frame(REPLY, 7, [], REPLY_BODY | {"message": "it is closed"}))
    good("reply-descriptors", "a REPLY with a descriptor", frame(REPLY, 7, [], REPLY_BODY | {"descriptors": 1}))
    good("reply-descriptors-most", "a REPLY with the most", frame(REPLY, 7, [b"x"], REPLY_BODY | {"descriptors": 16}))
    good("credit", "a CREDIT", frame(CREDIT, 7, [], CREDIT_BODY))
    good("request", "a REQUEST without a handle and without segments", frame(REQUEST, 7, [], REQUEST_BODY))
    whole = {"request": 2**32, "op": "send", "handle": 2**64 - 1, "thread": 2**22, "count": 3, "item": 0, "shield": True}
    good("request-whole", "a REQUEST with something in every key", frame(REQUEST, 7, segments, whole | types))
    good("request-buffers", "a REQUEST with buffers and no types", frame(REQUEST, 300, segments, REQUEST_BODY))
    good("post", "a POST with one segment", frame(POST, 7, [b"\x80\x05N."], POST_BODY))
    good("post-none", "a POST of `init`, without segments", frame(POST, 0, [], {"op": "release", "handle": 1, "thread": 1}))
    whole = {"op": "send", "handle": 2**64 - 1, "thread": 2**22, "count": 3, "item": 9}
    good("post-whole", "a POST with something in every key", frame(POST, 7, segments, whole | types))
    good("withdraw", "a WITHDRAW", frame(WITHDRAW, 7, [], {"request": 3}))
    good(
        "talk",
        "a job that asks, is told, says something and returns",
        frame(REQUEST, 7, [b"pickle"], REQUEST_BODY),
        frame(WITHDRAW, 7, [], {"request": 3}),
        frame(POST, 7, [b"pickle"], POST_BODY),
        result(7),
    )
    good(
        "reply-behind-calls",
        "a REPLY that comes behind what was sent ahead",
        call(8),
        frame(SETTINGS, 0, [b"x"], {"eager": False}),
        frame(REPLY, 7, [b"\x80\x05N."], REPLY_BODY),
        frame(CREDIT, 7, [], CREDIT_BODY),
        call(9),
    )


def encodings() -> None:
    for number in (
        1,
        23,
        24,
        255,
        256,
        65_535,
        65_536,
        2**32 - 1,
        2**32,
        2**63 - 1,
        2**63,
        2**64 - 1,
    ):
        good(f"id-{number}", f"id {number}, in the shortest form", call(number))
    for length in (23, 24, 255, 256, 300):
        good(
            f"length-{length}",
            f"a segment of {length} bytes",
            result(1, bytes(i % 251 for i in range(length))),
        )
    good(
        "two-frames",
        "two frames with nothing between them",
        call(1, b"one"),
        call(2, b"two", b"three"),
    )
    good(
        "parent-stream",
        "what a parent says in one breath, and a second call",
        HELLO_FRAME,
        SETUP_FRAME,
        call(1, b"first"),
        call(2, b"second", b"buffer"),
        RETIRE_FRAME,
    )
    good(
        "worker-stream",
        "what a worker says from its start to its end",
        WELCOME_FRAME,
        READY_FRAME,
        result(1, b"value"),
        frame(RAISED, 2, [b"exception"], RAISED_BODY),
        frame(RETIRED, body={"reason": "asked"}),
    )
    good(
        "payload-like-a-frame",
        "a segment that holds a frame is a segment",
        call(5, encode(call(6, b"inner")), MAGIC),
        call(7),
    )
    good("most-in-array", "as many lengths as an array may have", call(1, *[b"a"] * MAX_ARRAY))
    good("one-more-than-in-array", "one more, so they are a byte string", call(1, *[b"a"] * (MAX_ARRAY + 1)))
    good(
        "bytes-of-lengths-and-types",
        "lengths of several widths in a byte string, and a body",
        frame(
            RESULT, 5, [bytes(size) for size in (0, 1, 300)] + [b""] * (MAX_ARRAY - 2), {"types": b"\x01" * (MAX_ARRAY + 1)}
        ),
    )
    add("nothing", "no bytes are no frame and no error", b"")
    add("clean-end-at-once", "an end before the first frame is a clean one", b"", end=True)
    add("clean-end", "an end between frames is a clean one", encode(call()), [call()], end=True)
    add(
        "clean-end-after-empty-payload",
        "a frame without a payload is over when its header is",
        encode(READY_FRAME),
        [READY_FRAME],
        end=True,
    )

    def accepted(name: str, about: str, header: bytes, expected: Frame) -> None:
        add(name, about, with_header(header, b"".join(expected[2])), [expected])

    one = call(5, b"abc")
    accepted("bytes-of-one-length", "a single length in a byte string", cbor([CALL, 5, packed([3])]), one)
    accepted("bytes-of-no-length", "no length in a byte string", cbor([RETIRE, 0, b""]), RETIRE_FRAME)
    accepted("empty-body", "an empty map means the same as no body", cbor([CALL, 5, [3], {}]), one)
    accepted(
        "empty-body-retire",
        "the same for a message without segments",
        cbor([RETIRE, 0, [], {}]),
        RETIRE_FRAME,
    )
    accepted(
        "unknown-key-where-no-body",
        "a message that has no body ignores the keys of one",
        cbor([CALL, 5, [3], {"priority": 7}]),
        one,
    )
    later = {"reason": "idle", "later": [1, {"deep": b"\x00"}, None, True, -5], "zzz": "text"}
    accepted(
        "unknown-key",
        "unknown keys are ignored, whatever their values",
        cbor([RETIRED, 0, [], later]),
        frame(RETIRED, body={"reason": "idle"}),
    )
    for kind, name in ((CALL, "call"), (RESULT, "result")):
        accepted(
            f"most-items-{name}",
            f"a body of {MAX_ITEMS} items",
            cbor([kind, 1, [3], filled(MAX_ITEMS)]),
            frame(kind, 1, [b"abc"]),
        )
    modules = [f"module{number}" for number in range(MAX_ITEMS)]
    good(
        "template-many-modules",
        "a TEMPLATE may have any number of items, and so may a HELLO",
        frame(TEMPLATE, segments=[b"\x80\x05}."], body={"eager": False, "modules": modules}),
        frame(HELLO, body=hello_body(path=[b"/a"] * MAX_ITEMS)),
    )
    accepted(
        "deepest-body",
        f"a body of {MAX_LEVELS} levels",
        cbor([CALL, 1, [3], nested(MAX_LEVELS)]),
        frame(CALL, 1, [b"abc"]),
    )
    accepted(
        "key-twice",
        "the last of two keys of the same name counts",
        b"\x84" + cbor(RETIRED) + b"\x00\x80\xa2" + cbor("reason") + cbor(1) + cbor("reason") + cbor("idle"),
        frame(RETIRED, body={"reason": "idle"}),
    )
    flags = b"\xa2" + cbor("verbose") + cbor("much") + cbor("verbose") + cbor(1)
    accepted(
        "flag-twice",
        "and the last of two flags",
        cbor([HELLO, 0, [], hello_body(flags=Raw(flags))]),
        frame(HELLO, body=hello_body(flags={"verbose": 1})),
    )
    accepted(
        "unknown-key-types",
        "the key of another message is an unknown one too",
        cbor([RETIRED, 0, [], {"reason": "idle", "types": 1}]),
        frame(RETIRED, body={"reason": "idle"}),
    )
    accepted(
        "unknown-key-module",
        "RAISED has no module, which SETUP_FAILED has",
        cbor([RAISED, 5, [], RAISED_BODY | {"module": None}]),
        frame(RAISED, 5, [], RAISED_BODY),
    )
    accepted(
        "unknown-key-hello",
        "a HELLO with a key of a later version",
        cbor([HELLO, 0, [], {"later": "than you"} | hello_body(protocol=2)]),
        frame(HELLO, body=hello_body(protocol=2)),
    )
    accepted(
        "key-order",
        "the order of the keys means nothing",
        cbor([RAISED, 5, [], dict(reversed(RAISED_BODY.items()))]),
        frame(RAISED, 5, [], RAISED_BODY),
    )
    for size in (1, 2, 4, 8):
        accepted(
            f"wide-kind-{size}",
            f"a kind in {size} more bytes than it needs",
            cbor([Raw(wide_head(0, CALL, size)), 5, [3]]),
            one,
        )
        accepted(
            f"wide-id-{size}",
            f"an id in {size} more bytes than it needs",
            cbor([CALL, Raw(wide_head(0, 5, size)), [3]]),
            one,
        )
        accepted(
            f"wide-length-{size}",
            f"a length in {size} more bytes than it needs",
            cbor([CALL, 5, [Raw(wide_head(0, 3, size))]]),
            one,
        )
        accepted(
            f"wide-arrays-{size}",
            f"the lengths of both arrays in {size} more bytes than they need",
            wide_head(4, 3, size) + cbor(CALL) + cbor(5) + wide_head(4, 1, size) + cbor(3),
            one,
        )
        accepted(
            f"wide-body-{size}",
            f"map, key and value with lengths in {size} more bytes than they need",
            wide_head(4, 4, size)
            + cbor(RETIRED)
            + cbor(0)
            + cbor([])
            + wide_head(5, 1, size)
            + wide_head(3, 6, size)
            + b"reason"
            + wide_head(3, 4, size)
            + b"idle",
            frame(RETIRED, body={"reason": "idle"}),
        )


# --- errors of the prefix ------------------------------------------------------------------------


def prefix_errors() -> None:
    rest = encode(call())[4:]
    for position, letter in ((0, b"s"), (1, b"R"), (2, b"\x00")):
        wrong = MAGIC[:position] + letter + MAGIC[position + 1 :]
        bad(
            f"bad-magic-{position}",
            f"byte {position} of the magic is wrong",
            "bad_magic",
            wrong + rest,
        )
        bad(
            f"bad-magic-{position}-at-once",
            f"a wrong byte {position} is found as soon as it is there",
            "bad_magic",
            wrong[: position + 1],
        )
    bad("bad-magic-text", "text where a frame belongs", "bad_magic", b"Hello, world\n")
    bad("bad-magic-later", "garbage after two good frames", "bad_magic", b"\x00", call(1), call(2))
    bad(
        "bad-magic-shifted",
        "a payload one byte longer than it said",
        "bad_magic",
        b"\x00" + encode(call(2)),
        call(1),
    )
    for version in (0, 2, 0x31, 255):
        bad(
            f"unsupported-framing-{version}",
            f"version {version} of the framing",
            "unsupported_framing",
            b"tro" + bytes([version]) + rest,
        )
    bad(
        "unsupported-framing-at-once",
        "found as soon as the byte is there",
        "unsupported_framing",
        b"tro\x02",
    )
    bad("header-empty", "h = 0", "header_too_large", prefix(0, 0))
    bad(
        "header-empty-with-payload",
        "h = 0 with a payload",
        "header_too_large",
        prefix(0, 4) + b"abcd",
    )
    bad("header-one-over", "h one above its bound", "header_too_large", prefix(MAX_HEADER + 1, 0))
    bad("header-huge", "h = 2^32 - 1", "header_too_large", prefix(2**32 - 1, 0))
    bad("payload-one-over", "p one above its bound", "payload_too_large", prefix(5, MAX_PAYLOAD + 1))
    bad("payload-huge", "p = 2^64 - 1", "payload_too_large", prefix(5, 2**64 - 1))
    bad(
        "payload-sign-bit",
        "p = 2^63: negative for a signed reader",
        "payload_too_large",
        prefix(5, 2**63),
    )
    bad(
        "magic-before-lengths",
        "the magic is looked at before the lengths",
        "bad_magic",
        prefix(0, 2**64 - 1, b"trO\x02"),
    )
    bad(
        "framing-before-lengths",
        "the version of the framing is looked at before the lengths",
        "unsupported_framing",
        prefix(0, 2**64 - 1, b"tro\x02"),
    )
    bad("header-before-payload", "h is looked at before p", "header_too_large", prefix(0, 2**64 - 1))
    bad(
        "header-one-over-later",
        "after a good frame",
        "header_too_large",
        prefix(MAX_HEADER + 1, 0),
        call(),
    )
    bad(
        "payload-before-header",
        "p is looked at before the header",
        "payload_too_large",
        prefix(1, MAX_PAYLOAD + 1) + b"\xff",
    )


# --- errors of the header ------------------------------------------------------------------------


def header_errors() -> None:
    def malformed(name: str, about: str, header: bytes, payload: bytes = b"") -> None:
        bad(name, about, "malformed_header", with_header(header, payload))

    ordinary = cbor([CALL, 1, [3]])
    malformed("cbor-break", "a «break» that ends nothing", b"\xff")
    malformed("cbor-reserved", "additional information 28 is reserved", b"\x1c")
    malformed("cbor-reserved-inside", "the same inside the array", b"\x83\x03\x1e\x80")
    malformed("cbor-truncated", "the item needs one byte more than the header has", ordinary[:-1], b"abc")
    malformed("cbor-truncated-argument", "an id of 8 bytes that has 3", b"\x83\x03\x1b\x00\x00\x00")
    malformed("cbor-trailing", "a byte is left over after the item", ordinary + b"\x00", b"abc")
    malformed("cbor-trailing-item", "a second item is left over", ordinary + ordinary, b"abc")
    malformed("cbor-trailing-break", "a «break» is left over", ordinary + b"\xff", b"abc")
    malformed("cbor-pickle", "a pickle where the header belongs", b"\x80\x05K\x01.")
    malformed("cbor-json", "JSON where the header belongs", b"[3,1,[3]]", b"abc")

    malformed("header-integer", "an integer is no header", b"\x03")
    malformed("header-text", "nor is a text", cbor("CALL"))
    malformed("header-bytes", "nor are bytes that would be one", cbor(ordinary), b"abc")
    malformed("header-map", "nor is a map", cbor({"kind": 3, "id": 1, "lengths": [3]}), b"abc")
    malformed(
        "header-map-like-array",
        "nor a map whose keys and values would read well",
        cbor({3: 1, "a": [3]}),
    )
    malformed("header-null", "nor is null", b"\xf6")
    malformed("header-0-items", "an array of nothing", b"\x80")
    malformed("header-1-item", "an array of one item", cbor([RETIRE]))
    malformed("header-2-items", "an array of two items", cbor([RETIRE, 0]))
    malformed("header-5-items", "an array of five items", cbor([RETIRE, 0, [], {}, 0]))
    malformed(
        "header-indefinite",
        "an array of indefinite length",
        b"\x9f" + cbor(CALL) + cbor(1) + cbor([3]) + b"\xff",
        b"abc",
    )
    malformed(
        "header-indefinite-open",
        "an array of indefinite length that does not end",
        b"\x9f\x03\x01\x80",
    )

    # Everything that a lenient reader could take for kind 3, id 1 or a length of 1.
    impostors: list[tuple[str, str, Any]] = [
        ("negative", "a negative integer", -1),
        ("most-negative", "-2^64", Raw(b"\x3b" + b"\xff" * 8)),
        ("text", "a text", "1"),
        ("bytes", "bytes", b"\x01"),
        ("float", "a float of integral value", 1.0),
        ("half", "a float of 16 bits of integral value", Raw(b"\xf9\x3c\x00")),
        ("nan", "not a number", Raw(b"\xf9\x7e\x00")),
        ("true", "true, which Python takes for 1", True),
        ("null", "null", None),
        ("undefined", "undefined", Raw(b"\xf7")),
        ("array", "an array", [1]),
        ("map", "a map", {}),
        ("time", "an integer under a tag that makes it a time", Raw(b"\xc1\x01")),
    ]
    for name, about, value in impostors:
        kind = Raw(b"\xc1\x03") if name == "time" else 3.0 if name == "float" else value
        malformed(f"kind-{name}", f"the kind is {about}", cbor([kind, 1, [3]]), b"abc")
        malformed(f"id-{name}", f"the id is {about}", cbor([CALL, value, [3]]), b"abc")
        malformed(f"length-{name}", f"a length is {about}", cbor([CALL, 1, [value]]), b"a")
    bignum = Raw(b"\xc2\x49\x01" + bytes(8))
    malformed("id-bignum", "the id is 2^64, as a bignum", cbor([CALL, bignum, [3]]), b"abc")
    malformed(
        "id-negative-bignum",
        "the id is -1 - 2^64, as a bignum",
        b"\x83\x03\xc3\x49\x01" + bytes(8) + b"\x80",
    )
    malformed("id-small-bignum", "the id is 5, as a bignum", cbor([CALL, Raw(b"\xc2\x41\x05"), [3]]), b"abc")
    malformed("kind-small-bignum", "the kind is 3, as a bignum", cbor([Raw(b"\xc2\x41\x03"), 1, [3]]), b"abc")
    malformed("length-small-bignum", "a length is 3, as a bignum", cbor([CALL, 1, [Raw(b"\xc2\x41\x03")]]), b"abc")
    malformed("lengths-indefinite", "the lengths are an array of indefinite length", b"\x83\x03\x01\x9f\x03\xff", b"abc")
    malformed(
        "lengths-indefinite-with-body",
        "the same in front of a body",
        b"\x84\x03\x01\x9f\x03\xff\xa0",
        b"abc",
    )
    malformed("id-empty-bignum-text", "a bignum made of text", b"\x83\x03\xc2\x61\x35\x80")

    for name, value in (
        ("integer", 3),
        ("text", "abc"),
        ("bytes", b"\x03"),
        ("map", {}),
        ("null", None),
    ):
        malformed(f"lengths-{name}", f"the lengths are a {name}", cbor([CALL, 1, value]), b"abc")
    for name, value in (
        ("array", []),
        ("text", "{}"),
        ("null", None),
        ("integer", 0),
        ("true", True),
    ):
        malformed(f"body-{name}", f"the body is a {name}", cbor([CALL, 1, [3], value]), b"abc")
    malformed("body-integer-key", "a key of the body is an integer", cbor([CALL, 1, [3], {1: 2}]), b"abc")
    malformed("body-bytes-key", "a key of the body is bytes", cbor([RETIRED, 0, [], {b"reason": "idle"}]))
    malformed("body-null-key", "a key of the body is null", cbor([CALL, 1, [3], {None: 2}]), b"abc")
    malformed(
        "body-array-key",
        "a key of the body is an array, which Python cannot hash",
        b"\x84\x03\x01\x81\x03\xa1\x81\x01\x02",
        b"abc",
    )
    malformed(
        "body-key-not-utf8",
        "a key of the body is text that is not UTF-8",
        b"\x84\x16\x00\x80\xa1\x62\xc3\x28\x01",
    )
    malformed(
        "body-odd",
        "the body ends between a key and its value",
        b"\x84\x16\x00\x80\xa1" + cbor("reason"),
    )
    malformed(
        "body-truncated-text",
        "a text in the body is cut off",
        b"\x84\x16\x00\x80\xa1" + cbor("reason") + b"\x64id",
    )
    malformed(
        "kind-not-utf8",
        "a text that is not UTF-8 where the kind belongs",
        b"\x83\x62\xc3\x28\x00\x80",
    )

    for kind, name in ((CALL, "call"), (RESULT, "result")):
        malformed(f"items-one-over-{name}", "one item more", cbor([kind, 1, [3], filled(MAX_ITEMS + 1)]), b"abc")
        malformed(
            f"items-one-over-indefinite-{name}",
            "one item more, in an array of indefinite length",
            cbor([kind, 1, [3]]).replace(b"\x83", b"\x84", 1)
            + b"\xa1"
            + cbor("later")
            + b"\x9f"
            + b"\x00" * (MAX_ITEMS - 2)
            + b"\xff",
            b"abc",
        )
    pairs = {f"later {number}": number for number in range(MAX_ITEMS // 2)}
    malformed("items-in-pairs", "the keys of a map and their values count", cbor([CALL, 1, [3], pairs]), b"abc")
    malformed(
        "items-before-kind",
        "the items are counted before the kind is looked at",
        cbor([99, 1, [3], filled(MAX_ITEMS + 1)]),
        b"abc",
    )
    malformed("levels-one-over", "one level more", cbor([CALL, 1, [3], nested(MAX_LEVELS + 1)]), b"abc")
    many = MAX_SEGMENTS + 1
    malformed(
        "segments-before-kind",
        "the number of the segments is looked at before the kind",
        cbor([99, 1, [0] * (MAX_ARRAY + 1)]),
    )
    malformed(
        "segments-one-over-claimed",
        "one segment more than is allowed is claimed, and not there",
        b"\x83\x03\x01" + head(2, 8 * many),
    )
    malformed("array-one-over", "one length more than an array may have", cbor([CALL, 1, [0] * (MAX_ARRAY + 1)]))
    malformed(
        "array-one-over-claimed",
        "so many are claimed, and not there",
        b"\x83\x03\x01" + head(4, MAX_ARRAY + 1),
    )
    for size in (1, 7, 9):
        malformed(f"bytes-of-lengths-{size}", f"lengths in {size} bytes", cbor([CALL, 1, bytes(size)]))
    malformed("bytes-of-lengths-short", "fewer bytes of lengths than are claimed", b"\x83\x03\x01\x50" + bytes(15))
    malformed(
        "bytes-of-lengths-indefinite",
        "the lengths are a byte string of indefinite length",
        b"\x83\x03\x01\x5f\x48" + packed([3]) + b"\xff",
        b"abc",
    )

    for size, text in (
        (2**32 - 1, "2^32 - 1"),
        (2**60, "2^60"),
        (2**63, "2^63"),
        (2**64 - 1, "2^64 - 1"),
    ):
        suffix = text.replace("^", "").replace(" - ", "-")
        malformed(f"claim-array-{suffix}", f"an array that claims {text} items", head(4, size))
        malformed(
            f"claim-lengths-{suffix}",
            f"lengths that claim {text} items",
            b"\x83\x03\x01" + head(4, size),
        )
        malformed(
            f"claim-map-{suffix}",
            f"a body that claims {text} pairs",
            b"\x84\x03\x01\x80" + head(5, size),
        )
        malformed(
            f"claim-key-{suffix}",
            f"a key of the body that claims {text} bytes of text",
            b"\x84\x03\x01\x80\xa1" + head(3, size) + b"key",
        )
        malformed(
            f"claim-bytes-{suffix}",
            f"a value in the body that claims {text} bytes",
            b"\x84\x03\x01\x80\xa1" + cbor("key") + head(2, size) + b"value",
        )
    malformed("deep-arrays", "arrays in one another, 10,000 deep", b"\x81" * 10_000 + b"\x00")
    malformed(
        "deep-arrays-open",
        "the same, cut off, where the body belongs",
        b"\x84\x03\x01\x80" + b"\x81" * 10_000,
    )
    malformed(
        "deep-maps-open",
        "maps in one another, 5,000 deep, cut off, in a body",
        b"\x84\x03\x01\x80" + b"\xa1\x61k" * 5_000,
    )
    malformed(
        "deep-tags",
        "tags in one another, 10,000 deep, where the kind belongs",
        b"\x83" + b"\xc1" * 10_000 + b"\x03\x01\x80",
    )
    malformed("deep-indefinite", "indefinite arrays in one another, 10,000 deep", b"\x9f" * 10_000)
    malformed(
        "tag-cycle",
        "lengths that contain themselves, by the tags for shared values",
        b"\x83\x03\x01\xd8\x1c\x81\xd8\x1d\x00",
        b"abc",
    )
    malformed(
        "tag-nothing",
        "a reference to a shared value that is not there",
        b"\x83\xd8\x1d\x05\x01\x80",
    )
    malformed(
        "tag-date",
        "a date that is none, where the kind belongs",
        b"\x83\xc0" + cbor("tomorrow") + b"\x01\x80",
    )
    bad(
        "malformed-header-later",
        "after a good frame",
        "malformed_header",
        with_header(b"\xff"),
        call(),
    )

    for kind in (0, 10, 15, 28, 99, 255, 256 + CALL, 65_536 + CALL, 2**32 + CALL, 2**64 - 1):
        bad(
            f"unknown-kind-{kind}",
            f"kind {kind} is not in the table",
            "unknown_kind",
            with_header(cbor([kind, 1, [3]]), b"abc"),
        )
    bad(
        "kind-before-lengths",
        "the kind is looked at before the sum of the lengths",
        "unknown_kind",
        with_header(cbor([99, 1, [3]]), payload_length=4),
    )
    bad(
        "shape-before-kind",
        "the header's shape is looked at before the kind",
        "malformed_header",
        with_header(cbor([99, 1, [-3]]), payload_length=3),
    )

    def mismatch(name: str, about: str, lengths: list[int], payload_length: int, payload: bytes = b"") -> None:
        header = cbor([CALL, 1, lengths])
        bad(name, about, "segment_mismatch", with_header(header, payload, payload_length))

    mismatch("mismatch-short", "the lengths add up to less than p", [3], 4, b"abcd")
    mismatch("mismatch-long", "the lengths add up to more than p", [3], 2, b"ab")
    mismatch("mismatch-none", "a length where p is 0", [1], 0)
    mismatch("mismatch-zero", "a segment of no length where p is not 0", [0], 1, b"a")
    mismatch("mismatch-several", "the last of several lengths is one too long", [3, 0, 4], 6, b"abcdef")
    mismatch("mismatch-at-once", "found before the payload is there", [3, 5], 9)
    mismatch("mismatch-huge", "a length of 2^64 - 1", [2**64 - 1], 3)
    mismatch("mismatch-one-over-bound", "a length above p's bound", [MAX_PAYLOAD + 1], 3)
    mismatch("mismatch-wraps-to-0", "lengths whose sum is 0 modulo 2^64", [2**64 - 1, 1], 0)
    mismatch("mismatch-wraps-to-p", "lengths whose sum is p modulo 2^64", [2**64 - 1, 2, 2], 3, b"abc")
    mismatch("mismatch-wraps-signed", "lengths whose sum is p modulo 2^63", [2**62, 2**62, 3], 3, b"abc")
    bad(
        "mismatch-in-bytes",
        "lengths in a byte string whose sum is 0 modulo 2^64",
        "segment_mismatch",
        with_header(cbor([CALL, 1, packed([2**64 - 1, 1])]), payload_length=0),
    )
    mismatch("mismatch-wraps-32", "a length that is p modulo 2^32", [2**32 + 3], 3, b"abc")
    bad(
        "mismatch-before-body",
        "the sum of the lengths is looked at before the body",
        "segment_mismatch",
        with_header(cbor([RAISED, 1, [3], {}]), payload_length=4),
    )
    bad(
        "mismatch-later",
        "after a good frame",
        "segment_mismatch",
        with_header(cbor([CALL, 2, [3]]), b"ab"),
        call(),
    )


# --- errors of the body --------------------------------------------------------------------------


def body_errors() -> None:
    def malformed(name: str, about: str, kind: int, segments: list[bytes], body: dict[Any, Any]) -> None:
        number = 1 if kind in (CALL, RESULT, RAISED, REPLY, CREDIT, REQUEST, POST, WITHDRAW) else 0
        bad(name, about, "malformed_body", encode((kind, number, segments, body)))

    whole: dict[str, tuple[int, list[bytes], dict[str, Any]]] = {
        "hello": (HELLO, [], hello_body()),
        "setup": (SETUP, SETUP_SEGMENTS, SETUP_BODY),
        "call": (CALL, [b"abc"], {}),
        "retire": (RETIRE, [], {}),
        "settings": (SETTINGS, [b"\x80\x05}."], {"eager": False}),
        "template": (TEMPLATE, [b"\x80\x05}."], {"eager": False, "modules": ["json"]}),
        "fork": (FORK, [], {}),
        "welcome": (WELCOME, [], WELCOME_BODY),
        "refused": (REFUSED, [], ABORTED_BODY),
        "ready": (READY, [], {}),
        "setup-failed": (SETUP_FAILED, [b"exception"], FAILED_BODY),
        "result": (RESULT, [b"abc"], {}),
        "raised": (RAISED, [b"exception"], RAISED_BODY),
        "retired": (RETIRED, [], {"reason": "idle"}),
        "aborted": (ABORTED, [], ABORTED_BODY),
        "report": (REPORT, [], FIGURES),
        "reply": (REPLY, [b"abc"], REPLY_BODY),
        "credit": (CREDIT, [], CREDIT_BODY),
        "request": (REQUEST, [b"abc"], REQUEST_BODY),
        "post": (POST, [b"abc"], POST_BODY),
        "withdraw": (WITHDRAW, [], {"request": 3}),
    }
    segment_counts: dict[str, list[list[bytes]]] = {
        "hello": [[b""], [b"abc"]],
        "setup": [[], [b"a"], [b"a", b"b"], [b"a", b"b", b"c", b"d"], [b"", b"", b"", b""]],
        "call": [[]],
        "retire": [[b""], [b"abc"]],
        "settings": [[], [b"a", b"b"], [b"a", b"", b""]],
        "template": [[], [b"a", b"b"]],
        "fork": [[b""], [b"abc"]],
        "welcome": [[b""], [b"abc"]],
        "refused": [[b"abc"]],
        "ready": [[b""], [b"abc"]],
        "result": [[]],
        "retired": [[b"abc"]],
        "aborted": [[b"abc"]],
        "report": [[b""], [b"abc"]],
        "credit": [[b""], [b"abc"]],
        "withdraw": [[b""], [b"abc"]],
    }
    for name, alternatives in segment_counts.items():
        kind, _, body = whole[name]
        for segments in alternatives:
            lengths = "-".join(str(len(segment)) for segment in segments) or "none"
            malformed(
                f"{name}-segments-{lengths}",
                f"{name.upper().replace('-', '_')} does not have {len(segments)} segments",
                kind,
                segments,
                body,
            )

    # idle_timeout_ms is the one key of these that may be left out. Whether a pycache_prefix that is null may be
    # left out as well, PROTOCOL.md does not say.
    for name, (kind, segments, body) in whole.items():
        for key in body:
            if key not in ("idle_timeout_ms", "pycache_prefix"):
                malformed(f"{name}-without-{key}", f"{key} is missing", kind, segments, without(body, key))
        if body:
            number = 1 if kind == RAISED else 0
            header = cbor([kind, number, [len(segment) for segment in segments]])
            bad(
                f"{name}-without-body",
                "the message needs a body and has none",
                "malformed_body",
                with_header(header, b"".join(segments)),
            )

    not_figures: list[tuple[str, Any]] = [
        ("three", [1, 2, 3]),
        ("five", [1, 2, 3, 4, 5]),
        ("negative", [1, 2, 3, -4]),
        ("float", [1, 2, 3, 4.0]),
        ("true", [True, 2, 3, 4]),
        ("text", "1234"),
        ("null", None),
        ("map", {"rss": 1}),
    ]
    # Of one segment.
    not_types: list[tuple[str, Any]] = [
        ("none", b""),
        ("two", bytes(2)),
        ("three", bytes([3])),
        ("255", b"\xff"),
        ("text", "0"),
        ("array", [0]),
        ("integer", 0),
        ("null", None),
    ]
    not_unsigned: list[tuple[str, Any]] = [("text", "1"), ("negative", -1), ("true", True), ("float", 1.5), ("null", None)]
    not_text: list[tuple[str, Any]] = [("bytes", b"a"), ("integer", 1), ("null", None), ("array", ["a"])]
    wrong: dict[str, dict[str, list[tuple[str, Any]]]] = {
        "template": {
            "eager": [("integer", 1), ("null", None)],
            "modules": [("text", "json"), ("bytes-item", [b"json"]), ("null", None), ("nested", [["json"]])],
            "threads": [("text", "io"), ("bytes-item", [b"io"]), ("null", None), ("nested", [["io"]])],
        },
        "ready": {"figures": not_figures},
        "reply": {
            "request": not_unsigned,
            "status": not_text,
            "types": not_types,
            "type": not_text,
            "message": not_text,
            "traceback": not_text,
            "descriptors": [*not_unsigned, ("seventeen", 17), ("huge", 2**64 - 1)],
        },
        "credit": {"handle": not_unsigned, "count": not_unsigned},
        "request": {
            "request": not_unsigned,
            "op": not_text,
            "handle": not_unsigned,
            "thread": not_unsigned,
            "count": not_unsigned,
            "item": not_unsigned,
            "shield": [("integer", 1), ("null", None), ("text", "yes")],
            "types": not_types,
        },
        "post": {
            "op": not_text,
            "handle": not_unsigned,
            "thread": not_unsigned,
            "count": not_unsigned,
            "item": not_unsigned,
            "types": not_types,
        },
        "withdraw": {"request": not_unsigned},
        "call": {"types": not_types, "prepares": [("integer", 1), ("null", None), ("text", "yes")]},
        "result": {"figures": not_figures, "types": not_types},
        "report": {"figures": not_figures},
        "hello": {
            "protocol": [
                ("text", "1"),
                ("negative", -1),
                ("true", True),
                ("null", None),
                ("float", 1.0),
            ],
            "parent_pid": [("text", "1"), ("negative", -1), ("bytes", b"1")],
            "version": [("bytes", b"3.11"), ("null", None), ("array", ["3", "11"])],
            "libpython": [("text", "/lib"), ("null", None)],
            "environment": [
                ("map", {"A": b"b"}),
                ("null", None),
                ("flat", [b"A", b"b"]),
                ("single", [[b"A"]]),
                ("triple", [[b"A", b"b", b"c"]]),
                ("text-name", [["A", b"b"]]),
                ("text-value", [[b"A", "b"]]),
                ("null-name", [[None, b"b"]]),
                ("integer-value", [[b"A", 1]]),
            ],
            "program_name": [("text", "python"), ("null", None)],
            "argv": [
                ("bytes", b"a"),
                ("text-item", ["a"]),
                ("null-item", [b"a", None]),
                ("null", None),
                ("map", {}),
            ],
            "orig_argv": [("bytes", b"a"), ("text-item", [b"a", "b"])],
            "path": [("bytes", b"a"), ("text-item", ["a"]), ("nested", [[b"a"]])],
            "warnoptions": [("bytes", b"a"), ("text-item", ["a"])],
            "xoptions": [("map", {"a": "b"}), ("text-item", ["a"])],
            "pycache_prefix": [("text", "/cache"), ("integer", 0), ("false", False)],
            "flags": [
                ("array", [["verbose", 1]]),
                ("null", None),
                ("text-value", {"verbose": "1"}),
                ("null-value", {"verbose": None}),
                ("float-value", {"verbose": 1.0}),
                ("true-value", {"verbose": True}),
                ("large-value", {"verbose": 2**31}),
                ("most-negative-value", {"verbose": -(2**31) - 1}),
                ("bytes-name", {b"verbose": 1}),
                ("integer-name", {1: 1}),
            ],
        },
        "setup": {
            "idle_timeout_ms": [
                ("text", "1"),
                ("negative", -1),
                ("float", 1.5),
                ("null", None),
                ("true", True),
            ],
            "eager": [("0", 0), ("1", 1), ("text", "true"), ("null", None)],
            "report_interval_ms": [("text", "1"), ("negative", -1), ("null", None)],
            "memory_limit": [("text", "1"), ("negative", -1), ("float", 1.5), ("null", None)],
        },
        "settings": {"eager": [("0", 0), ("1", 1), ("text", "true"), ("null", None)]},
        "welcome": {
            "protocol": [("text", "1"), ("negative", -1), ("true", True)],
            "worker": [("bytes", b"0.1.0"), ("null", None)],
            "pid": [("text", "1"), ("negative", -1), ("null", None)],
            "version": [("bytes", b"3.11")],
            "libpython": [("text", "/lib"), ("null", None)],
            "prefix": [("text", "/usr"), ("null", None)],
            "exec_prefix": [("text", "/usr"), ("null", None)],
            "free_threaded": [("integer", 1), ("null", None), ("text", "yes")],
        },
        "refused": {
            "code": [("bytes", b"a"), ("integer", 3), ("null", None)],
            "message": [("bytes", b"a"), ("null", None)],
        },
        "setup-failed": {"stage": [("bytes", b"setup")], "message": [("null", None)]},
        "raised": {
            "stage": [("integer", 1), ("null", None), ("bytes", b"call")],
            "type": [("bytes", b"a"), ("null", None)],
            "message": [("bytes", b"a"), ("null", None), ("array", ["a"])],
            "traceback": [("bytes", b"a"), ("null", None), ("array", ["a"])],
            "figures": not_figures,
        },
        "retired": {"reason": [("bytes", b"idle"), ("integer", 1), ("null", None)]},
        "aborted": {
            "code": [("bytes", b"a"), ("integer", 5), ("null", None)],
            "message": [("bytes", b"a"), ("null", None)],
        },
    }
    wrong_in_bundle: dict[str, list[tuple[str, Any]]] = {
        "folder": [("text", "/opt"), ("null", None)],
        "pyz": [("text", "/opt/app?1"), ("integer", 1)],
        "modules": [
            ("null", None),
            ("map", {"struct": b""}),
            ("bytes-name", [[b"struct", b""]]),
            ("text-code", [["struct", ""]]),
            ("single", [["struct"]]),
            ("triple", [["struct", b"", None]]),
        ],
        "scripts": [
            ("null", None),
            ("pair", [["boot", b""]]),
            ("flat", ["boot", b"", None]),
            ("bytes-name", [[b"boot", b"", None]]),
            ("null-code", [["boot", None, None]]),
            ("bytes-module", [["boot", b"", b"inspect"]]),
        ],
    }
    for key, values in wrong_in_bundle.items():
        malformed(f"bundle-without-{key}", f"a bundle without {key}", HELLO, [], hello_body(bundle=without(BUNDLE, key)))
        for label, value in values:
            malformed(
                f"bundle-{key}-{label}",
                f"the {key} of a bundle is of the wrong type: {label.replace('-', ' ')}",
                HELLO,
                [],
                bundle_hello_body(**{key: value}),
            )
    wrong["hello"] |= {
        "home": [("text", "/opt"), ("null", None)],
        "search_path": [("bytes", b"/opt"), ("null", None), ("text-item", ["/opt"])],
        "bundle": [("null", None), ("array", []), ("empty", {}), ("text", "PyInstaller")],
        "streams": [
            ("three", [3]),
            ("twice", [1, 1]),
            ("backwards", [2, 1]),
            ("text", ["0"]),
            ("true", [True]),
            ("null", None),
        ],
        "directory": [("integer", 1), ("null", None)],
        "free_threaded": [("integer", 1), ("null", None)],
    }
    for name, keys in wrong.items():
        kind, segments, body = whole[name]
        for key, values in keys.items():
            for label, value in values:
                malformed(
                    f"{name}-{key}-{label}",
                    f"{key} is of the wrong type: {label.replace('-', ' ')}",
                    kind,
                    segments,
                    body | {key: value},
                )
    bad(
        "malformed-body-at-once",
        "found before the payload is there",
        "malformed_body",
        encode((RAISED, 1, [b"exception"], without(RAISED_BODY, "stage")))[:-9],
    )
    bad(
        "malformed-body-later",
        "after a good frame",
        "malformed_body",
        encode((RETIRED, 0, [], {"reason": 1})),
        result(),
    )


# --- an end inside a frame -----------------------------------------------------------------------


def torn() -> None:
    def torn_frame(name: str, about: str, data: bytes, *before: Frame) -> None:
        whole = b"".join(map(encode, before)) + data
        add(name, about, whole, list(before), error="torn_frame", end=True)

    one = encode(call(5, b"abc", b"def"))
    header_end = len(one) - 6
    torn_frame("torn-first-byte", "the stream ends after one byte", one[:1])
    torn_frame("torn-magic", "the stream ends inside the magic", one[:3])
    torn_frame("torn-after-magic", "the stream ends after the magic", one[:4])
    torn_frame("torn-lengths", "the stream ends inside the lengths", one[:11])
    torn_frame("torn-prefix", "the stream ends one byte before the header", one[:15])
    torn_frame("torn-before-header", "the stream ends before the header", one[:16])
    torn_frame("torn-header", "the stream ends inside the header", one[:18])
    torn_frame(
        "torn-header-last",
        "the stream ends one byte before the end of the header",
        one[: header_end - 1],
    )
    torn_frame("torn-before-payload", "the stream ends before the payload", one[:header_end])
    torn_frame("torn-payload", "the stream ends inside the first segment", one[: header_end + 1])
    torn_frame("torn-between-segments", "the stream ends between two segments", one[: header_end + 3])
    torn_frame("torn-payload-last", "the stream ends one byte before the end of the frame", one[:-1])
    torn_frame("torn-later", "the stream ends inside the second frame", one[:20], call(1), call(2))
    torn_frame(
        "torn-header-at-bound",
        "h at its bound is allowed; the header does not come",
        prefix(MAX_HEADER, 0) + b"\x83",
    )
    torn_frame(
        "torn-without-payload",
        "a message without a payload, one byte short",
        encode(READY_FRAME)[:-1],
    )


def written(vector: dict[str, Any]) -> str:
    """JSON with a line for each key and each frame: readable in a diff, also with 65,536 segments."""
    lines = []
    for key, value in vector.items():
        if key == "frames" and value:
            rows = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value)
            lines.append(f'"frames": [\n  {rows}\n ]')
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def build() -> dict[str, str]:
    """The text of each file, by its name."""
    VECTORS.clear()
    messages()
    encodings()
    prefix_errors()
    header_errors()
    body_errors()
    torn()
    return {f"{name}.json": written(vector) for name, vector in VECTORS.items()}


def differences() -> list[str]:
    """What is in the folder and should not be, or should be and is not, or has other text."""
    made = build()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def main() -> int:
    changed = differences()
    if sys.argv[1:] == ["--check"]:
        for name in changed:
            print(f"{name} is not what generate.py makes")
        return 1 if changed else 0
    made = build()
    for name in changed:
        if name in made:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    print(f"{len(made)} vectors, {len(changed)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
