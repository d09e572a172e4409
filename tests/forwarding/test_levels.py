"""Unit: the levels that ``forward_logging`` takes, and those that workers mirror."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from trio_offload._forwarding.levels import Mirror
from trio_offload._options import ContextOptions
from trio_offload._sizes import parse_levels


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """The levels of the program are put back."""
    names = ["", "library", "library.part", "other"]
    before = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        (None, None),
        (False, None),
        (True, {"": 0}),
        ("WARNING", {"": 30}),
        (15, {"": 15}),
        ({"library": "DEBUG", "other": 40}, {"library": 10, "other": 40}),
        ({"root": "INFO"}, {"": 20}),
        ({}, {}),
    ],
)
def test_parse(value: Any, levels: dict[str, int] | None) -> None:
    assert parse_levels(value) == levels
    assert ContextOptions(forward_logging=value).forward_logging == levels


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("LOUD", ValueError, "forward_logging must have a level that logging knows, such as 'WARNING', got 'LOUD'"),
        ({"library": "LOUD"}, ValueError, "got 'LOUD'"),
        (1.5, TypeError, "forward_logging must be a bool, a level such as 'WARNING', or a dictionary"),
        ({"library": True}, TypeError, "got True"),
        ({7: "INFO"}, TypeError, "forward_logging must map names of loggers to levels, got the name 7"),
        (["library"], TypeError, r"got \['library'\]"),
    ],
)
def test_parse_refuses(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextOptions(forward_logging=value)


def test_mirror_follows_changes_only() -> None:
    logging.getLogger().setLevel(logging.INFO)
    mirror = Mirror({"": 0})
    first = mirror.current()
    assert first["levels"][""] == logging.INFO
    assert first["disable"] == 0
    assert mirror.current() is first
    logging.getLogger("library").setLevel(logging.DEBUG)
    second = mirror.current()
    assert second["levels"]["library"] == logging.DEBUG
    assert mirror.current() is second
    # A change to the same value is none.
    logging.getLogger("library").setLevel(logging.DEBUG)
    assert mirror.current() is second
    logging.disable(logging.WARNING)
    assert mirror.current()["disable"] == logging.WARNING


def test_two_mirrors_notice_the_same_change() -> None:
    mirrors = [Mirror({"": 0}), Mirror({"": 0})]
    for level in (logging.DEBUG, logging.ERROR):
        logging.getLogger("library").setLevel(level)
        assert [mirror.current()["levels"]["library"] for mirror in mirrors] == [level, level]


def test_threshold_disables_what_is_below() -> None:
    assert Mirror({"": logging.WARNING}).current()["disable"] == logging.WARNING - 1


def test_mirror_of_some_loggers() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("library.part").setLevel(logging.DEBUG)
    logging.getLogger("other").setLevel(logging.DEBUG)
    logging.disable(logging.DEBUG)
    settings = Mirror({"library": logging.DEBUG}).current()
    assert settings == {
        "thresholds": {"library": logging.DEBUG},
        "levels": {"library": logging.ERROR, "library.part": logging.DEBUG + 1},
        "disable": None,
    }
