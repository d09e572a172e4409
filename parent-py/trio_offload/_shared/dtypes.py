"""Shapes and types of shared arrays, with NumPy and without it."""

from __future__ import annotations

import math
import operator
import pickle
import struct
import sys
from collections.abc import Iterable
from typing import Any, Final

import attrs

from trio_offload_worker._system.shared_memory import FORMATS, SIZES, import_numpy

_PLAIN_TYPES: Final = {float: "d", int: "q", bool: "?"}
_NAMES: Final = {"int": "i", "uint": "u", "float": "f"}
# Kinds of NumPy's types whose items are plain bytes: not objects, and not strings of any length.
_PLAIN_KINDS: Final = "biufcmMSUV"


@attrs.frozen
class Layout:
    """The layout of an array in its memory."""

    shape: tuple[int, ...]
    dtype: str | bytes
    """NumPy's ``dtype.str``, or a pickle of a dtype that cannot be written so."""
    order: str
    """``"C"`` or ``"F"``."""
    size: int
    """Size in bytes."""


def layout_of(shape: int | Iterable[int], dtype: Any, order: str) -> Layout:
    """Return the layout of an array.

    Raises:
        TypeError: the dtype has objects, or is unknown.
        ValueError: a dimension is negative, or the array is larger than the address space.
    """
    dimensions = _dimensions(shape)
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', got {order!r}")
    if any(length < 0 for length in dimensions):
        raise ValueError(f"shape must not have negative dimensions, got {shape!r}")
    numpy = import_numpy()
    name: str | bytes
    if numpy is None:
        name, item_size = _plain_type(dtype)
    else:
        described = numpy.dtype(dtype)
        if described.subdtype is not None:
            described, inner = described.subdtype
            dimensions += inner
        name, item_size = _described(numpy, described)
    size = math.prod(dimensions) * item_size
    if size > sys.maxsize:
        raise ValueError(f"a shared array must have at most {sys.maxsize} bytes, got {size}")
    if numpy is None and order == "F" and len(dimensions) > 1:
        raise ValueError("order 'F' needs NumPy, which is not installed")
    return Layout(dimensions, name, order, size)


def _dimensions(shape: Any) -> tuple[int, ...]:
    try:
        return (operator.index(shape),)
    except TypeError:
        pass
    try:
        return tuple(map(operator.index, shape))
    except TypeError:
        raise TypeError(f"shape must be an integer or a tuple of integers, got {shape!r}") from None


def _described(numpy: Any, dtype: Any) -> tuple[str | bytes, int]:
    if dtype.hasobject or dtype.kind not in _PLAIN_KINDS:
        raise TypeError(f"a shared array cannot have items of the dtype {dtype}: they refer to memory of one process")
    name: str = dtype.str
    if dtype.fields is None and numpy.dtype(name) == dtype:
        return name, dtype.itemsize
    return pickle.dumps(dtype, 5), dtype.itemsize


def _plain_type(dtype: Any) -> tuple[str, int]:
    """Return the name and the size of a type without NumPy."""
    code = _PLAIN_TYPES.get(dtype, dtype) if isinstance(dtype, type) else dtype
    for name, known in FORMATS.items():
        kind, size = str(name)[1], 8 * int(str(name)[2])
        long_name = next((f"{word}{size}" for word, letter in _NAMES.items() if letter == kind), "bool")
        if code in (known, name, str(name)[1:], long_name):
            return str(name), SIZES[known]
    if code in ("l", "L"):
        return _plain_type(f"{'int' if code == 'l' else 'uint'}{8 * struct.calcsize('l')}")
    raise TypeError(
        f"dtype must be the name of a number type such as 'float64', because NumPy is not installed, got {dtype!r}"
    )
