"""A pickled call, and its function's name for messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from trio_offload_worker._protocol.frames import Buffer

# Bytes. More than the pickler gathers into one frame: a larger part is one object's data.
SMALL: Final = 128 * 1024
MAIN: Final = b"__main__"


@attrs.define
class Payload:
    """A pickled call."""

    parts: Sequence[Buffer]
    """The bytes of all segments, in the order in which they are written."""
    lengths: Sequence[int]
    """Length of each segment, in bytes."""
    function: Callable[..., Any]
    types: bytes = b""
    """Type of each segment. Empty if all are memory."""
    small: bool = False
    """True if the payload is one ``bytes`` that is cheap to copy."""

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return function_name(self.function)


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function for a message."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    try:
        name = getattr(inner, "__qualname__", None)
        if name is None:
            return repr(function)
        module = getattr(inner, "__module__", None)
        return name if module in (None, "builtins") else f"{module}.{name}"
    except Exception:
        # Callables may have or lack any attribute; a message must not fail.
        return f"an instance of {type(inner).__qualname__}"


def mentions_main(payload: Payload) -> bool:
    """Return True if a pickle may name an object of ``__main__``. Large data is not searched."""
    return mentions(payload, (MAIN,))


def mentions(payload: Payload, names: Sequence[bytes]) -> bool:
    """Return True if a small part of a pickle contains one of the names.

    A false alarm is harmless.
    """
    # `find`, because `in` first tries its operand as a number and handles an exception.
    return any(
        part.find(name) >= 0 for part in payload.parts if len(part) <= SMALL and isinstance(part, bytes) for name in names
    )
