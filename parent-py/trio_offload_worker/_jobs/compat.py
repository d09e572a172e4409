"""Private functions of Python that differ between its versions, each with what it is used for.

``tests/test_private_names.py`` has a list of the names.
"""

from __future__ import annotations

import _warnings
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def join_threads() -> None:
    """Wait for the threads that are not daemons, as Python does at its exit. Does nothing without `threading`."""
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def run_exit_handlers() -> None:
    """Call the exit handlers, as Python does at its exit."""
    import atexit

    atexit._run_exitfuncs()


def disable_finalizers() -> list[Any]:
    """Keep :class:`weakref.finalize` objects of the parent from running at the exit of this fork. Return them."""
    import atexit
    import weakref

    kept: list[Any] = list(getattr(weakref.finalize, "_registry", ()))
    for finalizer in kept:
        finalizer.atexit = False
    exit_function = getattr(weakref.finalize, "_exitfunc", None)
    if exit_function is not None:
        # Python registers it once in the life of a process.
        atexit.register(exit_function)
    return kept


def warning_filters() -> list[Any]:
    """Return the list of filters that both the C code and `warnings` use, without importing the latter."""
    filters: list[Any] = (sys.modules.get("warnings") or _warnings).filters
    return filters


class ChangeOfWarningFilters:
    """A block that changes the filters. At its end the modules' registries of past decisions become void.

    Python has only private functions for that: these up to 3.13, and others from 3.14, where a lock protects
    the filters. Without either, :class:`warnings.catch_warnings` has the same effect.
    """

    def __enter__(self) -> None:
        acquire = getattr(_warnings, "_acquire_lock", None)
        if acquire is not None:
            acquire()

    def __exit__(self, *exception: object) -> None:
        try:
            changed = getattr(_warnings, "_filters_mutated", getattr(_warnings, "_filters_mutated_lock_held", None))
            if changed is not None:
                changed()
                return
            import warnings

            with warnings.catch_warnings():
                pass
        finally:
            release = getattr(_warnings, "_release_lock", None)
            if release is not None:
                release()
