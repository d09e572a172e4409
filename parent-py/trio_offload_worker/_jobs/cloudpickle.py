"""Extensions of cloudpickle. Importing this module, as the parent does too, needs cloudpickle."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

import cloudpickle


class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc,unused-ignore]
    """A pickler that also takes cached functions that cannot be found by name.

    An example is a function decorated with :func:`functools.cache` at a prompt. Its ``__reduce__``
    returns a name, so pickle would not look any further.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is _CACHED and not _is_found(obj):
            parameters = obj.cache_parameters()
            return make_cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
        return super().reducer_override(obj)


class ResultPickler(Pickler):
    """A pickler for results. It sends objects of the main module by name, as the parent has them.

    cloudpickle alone would send them by value, and the parent would get a second class of the same
    name.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | FunctionType) and obj.__module__ == "__main__" and _has_its_name(obj):
            return NotImplemented
        return super().reducer_override(obj)


def make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """Return the function with an empty cache. Pickles refer to this function by name."""
    return functools.lru_cache(maxsize, typed)(function)


_CACHED: Final[Any] = functools._lru_cache_wrapper


def _is_found(obj: Any) -> bool:
    if obj.__module__ in ("__main__", "__mp_main__"):
        # cloudpickle sends a main module's objects by value, so the wrapped function has to go
        # along.
        return False
    return _has_its_name(obj)


def _has_its_name(obj: Any) -> bool:
    found: Any = sys.modules.get(obj.__module__)
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj
