"""Parse and format amounts of memory."""

from __future__ import annotations

import math
import numbers
import re
from typing import Final

_SIZE: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[A-Za-z]*)")
_UNITS: Final = {"b": 1, "bytes": 1} | {
    letter + ending: base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for ending, base in (("b", 1000), ("ib", 1024))
}
_MAX_SIZE: Final = 2**63 - 1  # bytes; the protocol has 64 bits for a size
_HINT: Final = (
    'Give a number of bytes, or text like "500MiB" or "2 GB". kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024'
)


def parse_size(value: object, name: str) -> int:
    """Return the bytes of a size: a number, or text like ``"500MiB"`` or ``"2 GB"``.

    Args:
        value: The size.
        name: Name of the option, for error messages.

    Raises:
        ValueError: The value is not a size of a byte or more.
        TypeError: The value is neither a number nor text.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        unit = None if match is None else _UNITS.get((match["unit"] or "b").lower())
        if match is None or unit is None:
            raise ValueError(f"{name} must be a size in memory, got {value!r}. {_HINT}")
        amount = float(match["number"]) * unit
        # float() turns a very long number into infinity.
        size = int(amount) if math.isfinite(amount) else _MAX_SIZE + 1
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a size in memory, got {value!r}. {_HINT}")
    elif not math.isfinite(value) or float(value) != math.floor(float(value)):
        raise ValueError(f"{name} must be a whole number of bytes, got {value!r}. {_HINT}")
    else:
        size = math.floor(float(value))
    if size <= 0:
        raise ValueError(f"{name} must be more than zero bytes, got {value!r}. {_HINT}")
    if size > _MAX_SIZE:
        raise ValueError(f"{name} must be less than 8 EiB, got {value!r}. {_HINT}")
    return size


def readable_size(size: int) -> str:
    """Return a number of bytes as readable text, such as "1.5 GiB"."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
