"""cloudpickle, with what it lacks. The parent imports this too; it can be imported only where cloudpickle is installed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

import cloudpickle


class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc,unused-ignore]
    """Takes functions with a cache too that are not found by their names: :func:`functools.cache` at a prompt, say.

    Such a function says itself that it is pickled by its name, and no pickler asks further.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is _CACHED and not _is_found(obj):
            parameters = obj.cache_parameters()
            return make_cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
        return super().reducer_override(obj)


class ResultPickler(Pickler):
    """In a worker: names what is in the main module, which the parent has.

    cloudpickle alone would send that by value, and the parent would get a second class of the same name.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | FunctionType) and obj.__module__ == "__main__" and _has_its_name(obj):
            return NotImplemented
        return super().reducer_override(obj)


def make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """The function with a cache of its own, which is empty. A pickle names this."""
    return functools.lru_cache(maxsize, typed)(function)


_CACHED: Final[Any] = functools._lru_cache_wrapper


def _is_found(obj: Any) -> bool:
    if obj.__module__ in ("__main__", "__mp_main__"):
        # cloudpickle sends all that is of a main module by value, so what it uses has to come along.
        return False
    return _has_its_name(obj)


def _has_its_name(obj: Any) -> bool:
    found: Any = sys.modules.get(obj.__module__)
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj
