"""The settings: facts about this interpreter that Python code in a worker may need later.

A snapshot is sent when a worker starts, and again when one of the facts has changed.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, TypeAlias

from .file_modules import FileModules, Source
from .main_module import main_attributes, main_module_spec, main_modules

# See init_filters() in Python/_warnings.c. A debug build starts without filters.
_DEFAULT_FILTERS: Final = [
    ["default", None, "builtins:DeprecationWarning", "__main__", 0],
    ["ignore", None, "builtins:DeprecationWarning", None, 0],
    ["ignore", None, "builtins:PendingDeprecationWarning", None, 0],
    ["ignore", None, "builtins:ImportWarning", None, 0],
    ["ignore", None, "builtins:ResourceWarning", None, 0],
]


def current_settings() -> dict[str, Any]:
    """Return the settings, as builtin objects.

    * ``main``: how to load the main module, see :func:`main_module_spec`, and its attributes, see
      :func:`main_attributes`
    * ``main_number``: number of the main module; IPython's ``%run`` replaces it
    * ``authkey``: authentication key of multiprocessing, bytes; None before its import
    * ``resource_tracker``: descriptor of multiprocessing's resource tracker; None before its start
    * ``parent``: ``name`` and ``pid`` for :func:`multiprocessing.parent_process`
    * ``warning_filters``: None for Python's default filters. Otherwise a list for each: action,
      message (a pattern or None), category (``module:qualified name``), module (a pattern or None),
      line
    * ``modules``: modules that the import system would not find, see
      :mod:`trio_offload._interpreter.file_modules`
    * ``coverage``: True if coverage.py measures this process and multiprocessing's processes

    A worker of a context that forwards log records also gets ``forwarding``, see
    :mod:`trio_offload._forwarding.levels`. One whose output is read here gets ``output``, True.
    """
    processes = sys.modules.get("multiprocessing.process")
    authkey, resource_tracker, modules, main_number, _ = current_snapshot()
    return {
        "main": main_module_spec() | main_attributes(),
        "main_number": main_number,
        # multiprocessing's type for it refuses pickling.
        "authkey": None if authkey is None else bytes(authkey),
        "resource_tracker": resource_tracker,
        "parent": {
            "name": processes.current_process().name if processes is not None else "MainProcess",
            "pid": os.getpid(),
        },
        "warning_filters": _warning_filters(),
        "modules": modules,
        "coverage": _measured_with_multiprocessing(),
    }


def new_settings(settings: dict[str, Any], sent: Snapshot | None) -> dict[str, Any]:
    """Return changed settings for a worker whose last settings were sent at the state ``sent``.

    ``path`` is :data:`sys.path` then and now, if it has changed; HELLO has its first value.
    """
    now = current_snapshot()[-1]
    before = now if sent is None else sent[-1]
    return settings if before == now else {**settings, "path": (before, now)}


def needs_eager_settings(settings: dict[str, Any]) -> bool:
    """Return True if a worker must apply the settings before its first job."""
    return (
        "output" in settings
        or settings["warning_filters"] is not None
        or bool(settings["modules"])
        or settings["coverage"]
        or "forwarding" in settings
    )


Snapshot: TypeAlias = "tuple[bytes | None, int | None, dict[str, Source], int, tuple[str, ...]]"
"""Authentication key, resource tracker, modules, number of the main module, ``sys.path``."""


def current_snapshot() -> Snapshot:
    """Return the settings that may change while a worker lives: the same object until one changes.

    Called before every call, so it avoids imports and function calls.
    """
    modules = sys.modules
    count, last, main, processes, authkey, trackers, descriptor, path, state = _watcher.found
    try:
        if (
            len(modules) == count
            # Usually the same objects, which compare at once.
            and sys.path == path
            and modules["__main__"] is main
            # A new module is the last one, and changes the number unless another was removed.
            and next(reversed(modules)) is last
        ):
            if processes is None:
                return state
            if (
                modules["multiprocessing.process"] is processes
                and processes.current_process().authkey is authkey
                and modules.get("multiprocessing.resource_tracker") is trackers
                and (trackers is None or trackers._resource_tracker._fd == descriptor)
            ):
                return state
    except (AttributeError, KeyError, RuntimeError):
        pass  # During an import, or a change by another thread.
    return _watcher.update()


def filters_in_force(warnings: Any) -> list[tuple[Any, ...]]:
    """Return the list of filters in force: the current context's, else the process's."""
    # From Python 3.14 on, with `-X context_aware_warnings`, `catch_warnings` changes the context
    # only. The public name leads to the process's filters, the private one to the context's.
    if getattr(sys.flags, "context_aware_warnings", False) and hasattr(warnings, "_get_filters"):
        filters: list[tuple[Any, ...]] = warnings._get_filters()
    else:
        filters = warnings.filters
    return filters


class SettingsWatcher:
    """The last snapshot that :func:`current_snapshot` returned, and the facts behind it."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        # One tuple, because several threads may read it. It has the number of modules, the last
        # one's name and the main module. Then come multiprocessing's module for processes, its
        # authkey, its module for the resource tracker and the descriptor. The last two are
        # `sys.path` and the state.
        self.found: tuple[int, str | None, Any, Any, bytes | None, Any, int | None, list[Any], Snapshot] = (
            -1, None, None, None, None, None, None, [], (None, None, {}, 0, ()),
        )  # fmt: skip

    def update(self) -> Snapshot:
        """Collect the facts again. Return the old state if they are equal."""
        modules = sys.modules
        count = len(modules)
        try:
            last = next(reversed(modules))
        except RuntimeError:
            # Another thread has added a module between the two steps.
            last = None
        main = modules.get("__main__")
        main_number = main_modules.number_of(main)
        # A copy: the list is changed in place.
        path: list[Any] = list(sys.path)
        file_modules = _file_modules.find(path)
        processes, trackers = modules.get("multiprocessing.process"), modules.get("multiprocessing.resource_tracker")
        authkey = descriptor = None
        if processes is not None:
            try:
                authkey = processes.current_process().authkey
                if trackers is not None:
                    descriptor = trackers._resource_tracker._fd
            except AttributeError:
                pass  # A module is incomplete during its own import.
        entries = tuple(entry for entry in path if isinstance(entry, str))
        state = authkey, descriptor, file_modules, main_number, entries
        before = self.found[-1]
        if state == before:
            state = before
        self.found = count, last, main, processes, authkey, trackers, descriptor, path, state
        return state


_file_modules: Final = FileModules()
_watcher: Final = SettingsWatcher()


def _measured_with_multiprocessing() -> bool:
    """Return True if coverage.py runs here with ``concurrency = multiprocessing``.

    The mark on the module is its own (coverage/multiproc.py), and the variable names its
    configuration file. Configured in other ways (``patch = subprocess``, COVERAGE_PROCESS_START) it
    starts in a worker as in any Python.
    """
    processes = sys.modules.get("multiprocessing")
    return getattr(processes, "_coverage$patched", False) is True and "COVERAGE_RCFILE" in os.environ


def _warning_filters() -> list[list[Any]] | None:
    warnings = sys.modules.get("warnings")
    return None if warnings is None else _filters_as_data(tuple(filters_in_force(warnings)))


def _filters_as_data(found: tuple[tuple[Any, ...], ...]) -> list[list[Any]] | None:
    """Return warning filters as builtin objects: the same list until one changes."""
    last, filters = _last_filters[0]
    if found != last:
        filters = [
            [action, _pattern(message), f"{category.__module__}:{category.__qualname__}", _pattern(module), line]
            for action, message, category, module, line in found
        ]
        if filters == _DEFAULT_FILTERS:
            filters = None
        _last_filters[0] = found, filters
    return filters


# The filters of the last worker, and the data for them. One tuple, because several threads may
# start workers.
_last_filters: Final[list[tuple[tuple[tuple[Any, ...], ...], list[list[Any]] | None]]] = [((), [])]


def _pattern(value: Any) -> Any:
    """Return a filter's pattern: None, a string from Python's C code, or text and flags."""
    return value if value is None or isinstance(value, str) else [value.pattern, value.flags]
