"""Private functions of Python that differ between its versions, each with its use.

``tests/project/test_private_names.py`` lists the names.
"""

from __future__ import annotations

import _warnings
import atexit  # here, so a template has it: each forked worker would import it
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def join_threads() -> None:
    """Join the non-daemon threads, as Python does at its exit, if `threading` is imported."""
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def run_exit_handlers() -> None:
    """Call the exit handlers, as Python does at its exit."""
    atexit._run_exitfuncs()


def disable_finalizers() -> list[Any]:
    """Disable the parent's :class:`weakref.finalize` objects in this fork. Return them."""
    import weakref

    kept: list[Any] = list(getattr(weakref.finalize, "_registry", ()))
    for finalizer in kept:
        finalizer.atexit = False
    exit_function = getattr(weakref.finalize, "_exitfunc", None)
    if exit_function is not None:
        # Python registers the function only once in a process.
        atexit.register(exit_function)
    return kept


def warning_filters() -> list[Any]:
    """Return the filters that the C code and `warnings` share, without importing `warnings`."""
    filters: list[Any] = (sys.modules.get("warnings") or _warnings).filters
    return filters


class ChangeOfWarningFilters:
    """Change the warning filters in a block. Its end voids the modules' registries of decisions.

    Python has only private functions for that: one set up to 3.13, another from 3.14, where a lock
    protects the filters. Without either, :class:`warnings.catch_warnings` has the same effect.
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
