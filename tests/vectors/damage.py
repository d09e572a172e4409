"""Damages the headers of good vectors at random, and writes down what the parent's codec makes of each.

    PYTHONPATH=tests python tests/vectors/damage.py COUNT SEED FILE

FILE is a JSON array of vectors as README.md describes them; the worker's codec must give the same. The damage is done to
what a header says and to how it says it: other values and other types, items left out, repeated and put in another order,
numbers in more bytes than they need, strings in pieces, lengths that are not true. A body gets nothing of which PROTOCOL.md
leaves open what a receiver makes of it.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cbor2
from generate import MAX_PAYLOAD, MAX_SEGMENTS, cbor, head, packed, readable, wide_head, with_header
from wire_support import decode

FOLDER = Path(__file__).parent


def main() -> None:
    count, seed, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    choice = random.Random(seed)
    headers = good_headers()
    vectors: list[dict[str, Any]] = []
    while len(vectors) < count:
        header = Damage(choice, choice.choice(RATES)).header(choice.choice(headers))
        vectors.append(judged(with_payload(header, choice)))
    path.write_text(json.dumps(vectors), encoding="utf-8")
    verdicts = Counter(vector.get("error", "accepted") for vector in vectors)
    print(", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common()))


def good_headers() -> list[list[Any]]:
    """Each header that is written in the vectors as it should be."""
    headers = []
    for path in sorted(FOLDER.glob("*.json")):
        vector = json.loads(path.read_text(encoding="utf-8"))
        data = bytes.fromhex(vector["bytes"])
        while vector.get("canonical") and data and len(data) < 4096:
            begin, end = 16, 16 + int.from_bytes(data[4:8], "big")
            headers.append(cbor2.loads(data[begin:end]))
            data = data[end + int.from_bytes(data[8:16], "big") :]
    return headers


class Damage:
    """Writes values as CBOR and strikes at each with a chance of ``rate``, in several ways."""

    def __init__(self, choice: random.Random, rate: float) -> None:
        self._choice = choice
        self._rate = rate

    def header(self, items: list[Any]) -> bytes:
        kind, number, lengths, *body = items
        if self._strikes():
            body = body or [{}]
        if self._strikes():
            lengths = packed(lengths)
        parts = [self._item(item, FOREIGN) for item in (kind, number, lengths)]
        parts += [self._item(self._later(item), NATIVE) for item in body]
        if self._strikes():
            parts = self._mangled(parts)
        header = head(4, self._count(len(parts))) + b"".join(parts)
        if self._strikes():
            header = self._choice.choice([header[: self._choice.randrange(len(header))], header + b"\x00"])
        return header

    def _item(self, value: Any, strangers: list[bytes]) -> bytes:
        if self._strikes():
            return self._choice.choice(strangers)
        match value:
            case None | bool():
                return cbor(value)
            case int():
                return self._integer(value)
            case bytes() | str():
                return self._string(value, in_pieces=strangers is NATIVE)
            case list():
                return self._container(4, [self._item(item, strangers) for item in value])
            case dict():
                pairs = [self._item(key, NATIVE) + self._item(item, NATIVE) for key, item in value.items()]
                return self._container(5, pairs)
        raise TypeError(f"no vector has {value!r}")

    def _integer(self, value: int) -> bytes:
        if self._strikes():
            value = self._choice.choice(BOUNDARIES)
        if value < 0:
            return cbor(value)
        if self._strikes():
            size = self._choice.choice([size for size in (1, 2, 4, 8) if value < 256**size])
            return wide_head(0, value, size)
        return cbor(value)

    def _string(self, value: bytes | str, *, in_pieces: bool) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        major = 3 if isinstance(value, str) else 2
        if self._strikes():
            major ^= 1
        if self._strikes():
            data = self._choice.choice([b"", data + b"x", data[:-1], b"\xff", b"\x00\x01\x02\x03"])
        if in_pieces and self._strikes():
            cut = self._choice.randrange(len(data) + 1)
            pieces = (head(major, len(piece)) + piece for piece in (data[:cut], data[cut:]))
            return bytes([major << 5 | 31]) + b"".join(pieces) + b"\xff"
        return head(major, len(data)) + data

    def _container(self, major: int, parts: list[bytes]) -> bytes:
        if self._strikes():
            parts = self._mangled(parts)
        if self._strikes():
            return bytes([major << 5 | 31]) + b"".join(parts) + b"\xff"
        return head(major, self._count(len(parts))) + b"".join(parts)

    def _mangled(self, parts: list[bytes]) -> list[bytes]:
        if not parts:
            return parts
        at = self._choice.randrange(len(parts))
        match self._choice.randrange(4):
            case 0:
                return parts[:at] + parts[at + 1 :]
            case 1:
                return [*parts, parts[at]]
            case 2:
                return [parts[at], *parts]
            case _:
                return self._choice.sample(parts, len(parts))

    def _later(self, body: dict[str, Any]) -> dict[str, Any]:
        """With a key more at times, that the message may have or not."""
        return body | self._choice.choice(KEYS) if self._strikes() else body

    def _count(self, count: int) -> int:
        return max(0, count + self._choice.choice([-1, 1, 1000])) if self._rate > self._choice.random() * 5 else count

    def _strikes(self) -> bool:
        return self._choice.random() < self._rate


def with_payload(header: bytes, choice: random.Random) -> bytes:
    """A frame with the payload that its header announces, where that is neither unclear nor large; and at times with another."""
    try:
        lengths = cbor2.loads(header)[2]
        if isinstance(lengths, bytes):
            lengths = struct.unpack(f">{len(lengths) // 8}Q", lengths)
        size = sum(lengths)
    except Exception:  # whatever can be wrong with a damaged header; which is the point of it
        size = 3
    if not isinstance(size, int) or not 0 <= size <= 10_000 or choice.random() < 0.1:
        size = 3
    return with_header(header, bytes(size))


def judged(data: bytes) -> dict[str, Any]:
    """What the parent's codec makes of a stream that ends behind these bytes, as a vector. Its name is the stream."""
    try:
        outcome = decode([data], True)
    except Exception as error:
        raise RuntimeError(f"the codec fails with {data.hex()}") from error
    frames = []
    for kind, number, segments, body in outcome.frames:
        # No is the same as nothing at all, which is what the worker's codec writes.
        said = {
            key: value
            for key, value in body.items()
            if value is not False or key not in {"template", "directory", "free_threaded", "prepares", "shield"}
        }
        frames.append(
            {"kind": kind, "id": number, "segments": [segment.hex() for segment in segments], "body": readable(said)}
        )
    vector: dict[str, Any] = {"name": data.hex(), "about": "damaged", "bytes": data.hex(), "frames": frames, "end": True}
    return vector if outcome.error is None else vector | {"error": outcome.error}


RATES = [0.005, 0.02, 0.1]
BOUNDARIES = [0, 1, 3, 5, 19, 20, 23, 24, 255, 256, MAX_SEGMENTS, MAX_PAYLOAD]
BOUNDARIES += [2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
BOUNDARIES += [-1, -24, -25, -(2**31), -(2**31) - 1, -(2**63), -(2**64)]
# What may stand anywhere.
NATIVE = [cbor(value) for value in (None, True, False, 0, 3, -1, 2**64 - 1, b"", b"\x01", "", "text", [], [1], {}, {"a": 1})]
NATIVE += [cbor({1: 2}), cbor({b"key": 1}), cbor({None: 1}), b"\xa1\x80\x01", b"\xa1\xa0\x01"]
# Without an end of their own, with one that is missing or too many, text that is none, and very deep.
NATIVE += [
    bytes.fromhex(item) for item in ["9fff", "bfff", "5fff", "7fff", "9f01ff", "7f4161ff", "61ff", "62c328", "ff", "1c"]
]
NATIVE += [b"\x81" * 20 + b"\x00"]
# What may not stand in front of a body, and in one PROTOCOL.md does not say what becomes of it: floating point, simple
# values, tags.
FOREIGN = [*NATIVE, cbor(1.0)]
FOREIGN += [
    bytes.fromhex(item)
    for item in [
        "f93c00",
        "f7",
        "e0",
        "f820",
        "f814",
        "c101",
        "c24105",
        "c34105",
        "c240",
        "d9d9f701",
        "d81c01",
        "d81d00",
        "c060",
    ]
]
KEYS: list[dict[str, Any]] = [
    {"types": b"\x00"},
    {"types": b"\x02\x01"},
    {"types": b"\x03"},
    {"types": 1},
    {"figures": [1, 2, 3, 2**40]},
    {"figures": [1, 2, 3]},
    {"module": None},
    {"module": "numpy"},
    {"eager": True},
    {"reason": "idle"},
    {"later": [1, {"deep": b"\x00"}, None]},
    {"template": True},
    {"streams": [0, 2]},
    {"item": 0},
    {"handle": None},
    {"shield": True},
    {"request": 1},
]


if __name__ == "__main__":
    main()
