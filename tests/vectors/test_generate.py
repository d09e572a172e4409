"""The files are what the program makes of PROTOCOL.md, and the program is right about CBOR."""

from __future__ import annotations

import json
from typing import Any

import cbor2
import generate
import pytest


def test_the_files_are_those_that_the_program_makes() -> None:
    assert generate.differences() == [], "run: python tests/vectors/generate.py"


def test_names_and_keys() -> None:
    allowed = {"name", "about", "bytes", "frames", "error", "end", "canonical"}
    for path in generate.FOLDER.glob("*.json"):
        vector = json.loads(path.read_text(encoding="utf-8"))
        assert vector["name"] == path.stem
        assert vector["about"]
        assert vector.keys() <= allowed
        assert not ("error" in vector and "canonical" in vector)
        assert vector.get("error") != "torn_frame" or vector["end"]


@pytest.mark.parametrize(
    "value",
    [
        *(boundary + step for boundary in (0, 24, 2**8, 2**16, 2**32) for step in (-1, 0, 1)),
        2**64 - 1,
        -(2**64),
        b"",
        bytes(300),
        "",
        "é" * 200,
        None,
        True,
        False,
        1.5,
        [1, [2, [3, {}]]],
        {"a": [None, b"b"], "c": {"d": -1}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_small_writer_agrees_with_a_library(value: Any) -> None:
    written = generate.cbor(value)
    assert cbor2.loads(written) == value
    if not isinstance(value, float):  # a library may write a shorter float; the protocol has none
        assert written == cbor2.dumps(value)
