"""The default limiter: the number of concurrent calls unless the caller passes a limiter."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Final

import trio

from ._process.processors import usable_processors

Limiter = contextlib.AbstractAsyncContextManager[Any]

_default_limiter: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("trio_offload_limiter")


def current_default_worker_limiter() -> trio.CapacityLimiter:
    """Return the default limiter, used by calls that do not pass ``limiter``.

    ::

        limiter = trio_offload.current_default_worker_limiter()
        limiter.total_tokens = max(1, limiter.total_tokens - 1)  # a processor for this program

    Each :func:`trio.run` has one. You may change its ``total_tokens``. Initially it has one token
    for each processor that this program may use:

    * the number in ``-X cpu_count`` or ``PYTHON_CPU_COUNT``, if one of them is set;
    * otherwise the processors of the affinity mask (taskset, cpusets), limited by the CPU quota of
      the control groups (containers).

    Raises:
        RuntimeError: Called outside of :func:`trio.run`.
    """
    try:
        return _default_limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(usable_processors())
        _default_limiter.set(limiter)
        return limiter
    except RuntimeError:
        raise _slip("outside_of_trio") from None


def counted_tokens(limiter: object) -> float:
    """Return the number of tokens of a limiter whose tokens can be lent, else infinity."""
    if type(limiter) is trio.CapacityLimiter or getattr(type(limiter), "_lends_tokens", False):
        tokens: float = limiter.total_tokens  # type: ignore[attr-defined]
        return tokens
    return math.inf


def checked_limiter(limiter: Limiter) -> Limiter:
    """Return a limiter. Raise TypeError unless it is an async context manager."""
    if not (hasattr(type(limiter), "__aenter__") and hasattr(type(limiter), "__aexit__")):
        raise _slip("wrong_limiter", limiter)
    return limiter


def require_trio() -> None:
    """Raise RuntimeError unless Trio runs the caller."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise _slip("outside_of_trio") from None


def _slip(name: str, *args: object) -> Exception:
    from . import _slips

    error: Exception = getattr(_slips, name)(*args)
    return error
