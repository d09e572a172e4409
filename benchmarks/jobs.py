"""What runs in workers. Imports as little as it can, because every contender's worker imports it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

_kept: dict[tuple[str, int], Any] = {}


def keep(kind: str, size: int) -> None:
    """Make the object that `kept` returns, so that making it is not timed."""
    _kept[kind, size] = make(kind, size)


def kept(kind: str, size: int) -> Any:
    return _kept[kind, size]


def make(kind: str, size: int) -> Any:
    """An object of `size` bytes, all of its pages written to."""
    if kind == "bytes":
        return b"\x5a" * size
    if kind == "bytearray":
        return bytearray(b"\x5a") * size
    if kind == "array":
        import numpy

        return numpy.full(size // 8, 1.5)
    raise ValueError(kind)


def size_of(value: Any) -> int:
    return int(value.nbytes) if hasattr(value, "nbytes") else len(value)


def last_item(value: Any) -> float:
    """Of an array, or of a shared one."""
    return float(getattr(value, "array", value)[-1])


def spin() -> None:
    """Never ends and never lets go of the GIL for long."""
    while True:
        pass


def wait(seconds: float) -> None:
    time.sleep(seconds)


def answer(connection: Any) -> None:
    """What a process of multiprocessing's does to give a result back."""
    connection.send(abs(-3))
    connection.close()


def same(value: Any) -> Any:
    return value


def kilobyte(_: Any) -> bytes:
    return bytes(1000)


def values_of(values: range) -> Iterator[int]:
    yield from values


class Idle:
    """An actor that does nothing."""

    def nothing(self) -> None:
        pass
