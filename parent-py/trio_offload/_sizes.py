"""Amounts of memory as people write them."""

from __future__ import annotations

import math
import numbers
import re
from typing import Final


def parse_size(value: object, name: str) -> int:
    """A number of bytes from a number, or from text like ``"500MiB"`` or ``"2 GB"``.

    Args:
        value: what the user gave.
        name: of what, for the error's text.

    Raises:
        ValueError: it is not a size, or not more than zero.
        TypeError: it is neither a number nor text.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        unit = None if match is None else _UNITS.get((match["unit"] or "b").lower())
        if match is None or unit is None:
            raise ValueError(f"{name}={value!r} is not a size in memory. {_ACCEPTED}")
        amount = float(match["number"]) * unit
        # Digits without end are an infinity to float().
        size = int(amount) if math.isfinite(amount) else 2**63
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} is not a size in memory. {_ACCEPTED}")
    elif not math.isfinite(value) or float(value) != math.floor(float(value)):
        raise ValueError(f"{name}={value!r} is not a whole number of bytes. {_ACCEPTED}")
    else:
        size = math.floor(float(value))
    if size <= 0:
        raise ValueError(f"{name}={value!r} is not more than zero. {_ACCEPTED}")
    if size >= 2**63:
        raise ValueError(f"{name}={value!r} is more than any machine has. {_ACCEPTED}")
    return size


def readable_size(size: int) -> str:
    """A number of bytes for a person."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


_SIZE: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[A-Za-z]*)")
_UNITS: Final = {"b": 1, "bytes": 1} | {
    letter + ending: base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for ending, base in (("b", 1000), ("ib", 1024))
}
_ACCEPTED: Final = (
    'Give a number of bytes, or text like "500MiB" or "2 GB": kB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024.'
)
