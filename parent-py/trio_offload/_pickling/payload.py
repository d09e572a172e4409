"""A pickled call, and its function's name for messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from trio_offload_worker._protocol.frames import Buffer

SMALL: Final = 128 * 1024  # above what the pickler gathers into one frame: larger parts are one object's data
MAIN: Final = b"__main__"


@attrs.define
class Payload:
    """A pickled call: ``parts`` in the order in which they are written, the length of each segment in bytes, and their types
    if one of them is not memory. A ``small`` one is a single ``bytes``, which may be copied for a shorter way.
    """

    parts: Sequence[Buffer]
    lengths: Sequence[int]
    function: Callable[..., Any]
    types: bytes = b""
    small: bool = False

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return function_name(self.function)


def function_name(function: Callable[..., Any]) -> str:
    """The name of a function as a message shows it."""
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
        # Some callables answer to any name and some to none; a message must not fail for that.
        return f"an instance of {type(inner).__qualname__}"


def mentions_main(payload: Payload) -> bool:
    """Whether a pickle may name something in ``__main__``: false alarms are harmless, and large data is left alone."""
    return mentions(payload, (MAIN,))


def mentions(payload: Payload, names: Sequence[bytes]) -> bool:
    # Not by `in`; see `dump_chunk`.
    return any(
        part.find(name) >= 0 for part in payload.parts if len(part) <= SMALL and isinstance(part, bytes) for name in names
    )
