"""Parse and format amounts of memory; check the values of options; parse levels of logging.

A bare letter is a power of 1024, as in Docker's ``--memory 2g``, in systemd's ``MemoryMax=2G``, and
in Java's ``-Xmx2g``. Kubernetes alone means 1000 by ``2G``. To be clear, write ``2GiB``
or ``2GB``.
"""

from __future__ import annotations

import inspect
import logging
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Final

_SIZE: Final = re.compile(r"(?P<whole>[0-9]+(?:_[0-9]+)*)?(?:\.(?P<part>[0-9]+(?:_[0-9]+)*))?\s*(?P<unit>[A-Za-z]*)")
_PREFIXES: Final = "kmgt"
_UNITS: Final[dict[str, int]] = {"": 1, "b": 1, "byte": 1, "bytes": 1} | {
    letter + ending: base ** (power + 1)
    for power, letter in enumerate(_PREFIXES)
    for ending, base in (("", 1024), ("i", 1024), ("ib", 1024), ("b", 1000))
}
_BINARY: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_DECIMAL: Final = ("bytes", "kB", "MB", "GB", "TB")
_MAX_SIZE: Final = 2**63 - 1  # bytes; the protocol has 64 bits for a size
_MAX_DIGITS: Final = 40
_EXACT_DECIMALS: Final = 3
_HINT: Final = (
    'Give a number of bytes, or text like "500MiB" or "2 GB". k, M, G, T and KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, '
    "TB of 1000"
)


def parse_size(value: object, name: str) -> int:
    """Return the bytes of a size: a number, or text like ``"500MiB"``, ``"2 GB"`` or ``"2G"``.

    Args:
        value: The size.
        name: Name of the option, for error messages.

    Raises:
        ValueError: The value is not a size of a byte or more.
        TypeError: The value is neither a number nor text.
    """
    if isinstance(value, str):
        size = _parse_text(value, name)
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


def _parse_text(text: str, name: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match["unit"].lower())
    if match is None or unit is None or not (match["whole"] or match["part"]):
        raise ValueError(f"{name} must be a size in memory, got {text!r}. {_HINT}")
    whole, part = ((match[group] or "0").replace("_", "") for group in ("whole", "part"))
    if len(whole) > _MAX_DIGITS:
        # `int` refuses thousands of digits.
        return _MAX_SIZE + 1
    part = part[:_MAX_DIGITS]
    # In whole numbers, because a float rounds: "0.3 GB" is 300,000,000 bytes.
    scale: int = 10 ** len(part)
    return int(whole) * unit + int(part) * unit // scale


def readable_size(size: int, like: int | None = None) -> str:
    """Return a number of bytes as readable text, such as "1.5 GiB".

    Args:
        size: The number.
        like: A limit that stands beside it. If that reads as a decimal size, so does this one.
    """
    names, base = (_DECIMAL, 1000) if like is not None and _is_decimal(like) else (_BINARY, 1024)
    value = float(size)
    for unit in names[:-1]:
        if value < base:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= base
    return f"{value:.1f} {names[-1]}"


def readable_limit(size: int) -> str:
    """Return a size that somebody has chosen, exactly, in the unit that it was given in.

    "200MB" reads "200 MB", and "200MiB" reads "200 MiB". The number itself tells them apart: the
    other unit would need many decimals.
    """
    binary, decimal = _exact(size, 1024, _BINARY), _exact(size, 1000, _DECIMAL)
    texts = [text for text in (binary, decimal) if text]
    return min(texts, key=len) if texts else readable_size(size)


def _is_decimal(size: int) -> bool:
    return readable_limit(size) == _exact(size, 1000, _DECIMAL) != _exact(size, 1024, _BINARY)


def _exact(size: int, base: int, names: tuple[str, ...]) -> str:
    """Return the size in its largest unit, or "" if that needs many decimals."""
    power = max(power for power in range(len(names)) if size >= base**power or not power)
    thousandths, rest = divmod(size * 10**_EXACT_DECIMALS, base**power)
    if rest:
        return ""
    whole, part = divmod(thousandths, 10**_EXACT_DECIMALS)
    decimals = f".{part:03d}".rstrip("0").rstrip(".")
    return f"{whole}{decimals} {names[power]}"


def check_count(name: str, value: object, *, at_least: int = 1, alternative: str = "") -> None:
    """Raise TypeError or ValueError unless the value is an integer of that size."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer{alternative}, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be {at_least} or more, got {value!r}")


def check_seconds(name: str, value: object, *, at_least: float = 0, positive: bool = False, hint: str = "") -> None:
    """Raise TypeError or ValueError unless the value is a number of seconds of that size."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    # Comparisons that are false for NaN.
    if positive and not value > 0:
        raise ValueError(f"{name} must be more than 0 seconds, got {value!r}{hint}")
    if not value >= at_least:
        raise ValueError(f"{name} must be {at_least} seconds or more, got {value!r}{hint}")


def check_modules(name: str, modules: Iterable[str]) -> None:
    """Raise ValueError unless these are full names of modules other than the main script."""
    for module in modules:
        if module == "__main__":
            raise ValueError(f"{name} must not contain '__main__'. Workers load the main script when a job needs it")
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"{name} must contain full module names like 'package.module', got {module!r}")


def check_callable(name: str, value: object) -> None:
    """Raise TypeError unless an option is a callable that takes no arguments."""
    if not callable(value):
        raise TypeError(f"{name} must be a callable that takes no arguments, got {value!r}")
    try:
        inspect.signature(value).bind()
    except ValueError:  # a builtin without a signature
        pass
    except TypeError as error:
        raise TypeError(f"{name} must be callable without arguments, got {value!r}: {error}") from None


def check_path(name: str, value: object) -> None:
    """Raise TypeError unless an option is a path that was converted to text, or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a path, got {value!r}")


def check_output(name: str, value: object) -> None:
    """Raise ValueError unless the value names a place for output, or is callable."""
    if value not in ("inherit", "lines") and not callable(value):
        raise ValueError(f"{name} must be 'inherit', 'lines' or a function, got {value!r}")


def check_progress(value: object) -> None:
    """Raise TypeError unless the value is None, or may be a function that is told the progress."""
    if value is not None and not callable(value):
        raise TypeError(f"progress must be a callable with three arguments, got {value!r}")
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"progress must be a synchronous function, got the asynchronous {value!r}")


def check_names(name: str, value: object, kind: str) -> None:
    """Check a tuple of names.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, tuple):
        got = f"the single string {value!r}" if isinstance(value, str) else repr(value)
        raise TypeError(f"{name} must be an iterable of {kind} names, got {got}")
    for one in value:
        if not isinstance(one, str):
            raise TypeError(f"{name} must contain {kind} names, got {one!r}")


def parse_levels(value: object) -> dict[str, int] | None:
    """Return the smallest level that is forwarded, by the name of the logger. None means never.

    Loggers below a name share its level. The name ``""`` stands for all loggers.

    Raises:
        TypeError, ValueError: the value is not one that ``forward_logging`` takes.
    """
    if value is None or value is False:
        return None
    if value is True:
        return {"": logging.NOTSET}
    if not isinstance(value, Mapping):
        return {"": _parse_level(value)}
    levels = {}
    for name, level in value.items():
        if not isinstance(name, str):
            raise TypeError(f"forward_logging must map names of loggers to levels, got the name {name!r}")
        # A logger has this name or the empty one for the root of all.
        levels["" if name == "root" else name] = _parse_level(level)
    return levels


def _parse_level(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(
            f"forward_logging must be a bool, a level such as 'WARNING', or a dictionary of logger names and levels, got {value!r}"
        )
    if isinstance(value, int):
        return value
    level: object = logging.getLevelName(value)  # a number for a name
    if not isinstance(level, int):
        raise ValueError(f"forward_logging must have a level that logging knows, such as 'WARNING', got {value!r}")
    return level
