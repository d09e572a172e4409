"""The settings: facts about this interpreter that Python code in a worker may need later, and mostly does not."""

from __future__ import annotations

import os
import sys
from typing import Any, Final, TypeAlias

from .file_modules import Source, Strays
from .main_module import main_attributes, main_modules, main_plan


def current_settings() -> dict[str, Any]:
    """What ``trio_offload_worker`` may need, as builtin objects.

    * ``main``: how to load the user's main module, see :func:`main_plan`; and what it is like without being loaded:
      ``attributes``, ``spec`` and ``loader``
    * ``main_number``: which main module that is, counted: IPython's ``%run`` puts one after the other in its place
    * ``authkey``: the key with which multiprocessing's processes recognise each other, bytes; None if this process has
      not imported multiprocessing
    * ``resource_tracker``: the descriptor on which this process reaches multiprocessing's resource tracker, or None if it
      has started none
    * ``parent``: ``name`` and ``pid`` for :func:`multiprocessing.parent_process`
    * ``warning_filters``: the filters, if they are not those that Python starts with, else None; each a list of action,
      pattern of the message or None, ``module:qualified name`` of the category, pattern of the module or None, line
    * ``modules``: the modules that a worker would not find by their names, see :mod:`trio_offload._interpreter.file_modules`
    * ``coverage``: whether coverage.py measures this process and was told to measure those of multiprocessing too
    """
    processes = sys.modules.get("multiprocessing.process")
    authkey, resource_tracker, modules, main_number, _ = changing_state()
    return {
        "main": main_plan() | main_attributes(),
        "main_number": main_number,
        # Of multiprocessing's own type for it, which refuses to be pickled.
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


def new_settings(settings: dict[str, Any], told: ChangingState | None) -> dict[str, Any]:
    """Settings for a worker that has been told others before, when the state was ``told``.

    ``path`` is :data:`sys.path` as it was then and as it is now, if it has changed; it begins as HELLO says.
    """
    now = changing_state()[-1]
    before = now if told is None else told[-1]
    return settings if before == now else {**settings, "path": (before, now)}


def must_be_applied(settings: dict[str, Any]) -> bool:
    """Whether there is something in the settings that a worker has to act on before its first job."""
    return settings["warning_filters"] is not None or bool(settings["modules"]) or settings["coverage"]


ChangingState: TypeAlias = "tuple[bytes | None, int | None, dict[str, Source], int, tuple[str, ...]]"
"""``authkey``, ``resource_tracker``, ``modules`` and ``main_number`` of :func:`current_settings`; :data:`sys.path`."""


def changing_state() -> ChangingState:
    """What may change while a worker lives. As long as it does not, it is the very same object.

    Looked at before every call, so it imports nothing, and calls no function that it can do without.
    """
    modules = sys.modules
    count, last, main, processes, authkey, trackers, descriptor, path, state = _last_look.found
    try:
        if (
            len(modules) == count
            # As a rule the same objects, which are not compared further.
            and sys.path == path
            and modules["__main__"] is main
            # A module that is added is the last one, and changes the number too unless another one has gone.
            and next(reversed(modules)) is last
            and modules.get("multiprocessing.process") is processes
        ):
            if processes is None:
                return state
            if (
                processes.current_process().authkey is authkey
                and modules.get("multiprocessing.resource_tracker") is trackers
                and (trackers is None or trackers._resource_tracker._fd == descriptor)
            ):
                return state
    except (AttributeError, KeyError, RuntimeError):
        pass  # In the middle of an import, or of a change by another thread.
    return _last_look.again()


def filters_in_force(warnings: Any) -> list[tuple[Any, ...]]:
    """The list itself: that of the whole process, or of the current context if ``catch_warnings`` has changed it there only."""
    # The latter is what it does with `-X context_aware_warnings`, from Python 3.14 on. There is no public way to those filters; in
    # a later Python where this one is gone as well, those of the process have to do.
    if getattr(sys.flags, "context_aware_warnings", False) and hasattr(warnings, "_get_filters"):
        filters: list[tuple[Any, ...]] = warnings._get_filters()
    else:
        filters = warnings.filters
    return filters


class _LastLook:
    """What :func:`changing_state` found last, and what it would find otherwise if anything had changed."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        # In one piece: several threads may look. The number of modules, the last one's name, the main module, multiprocessing's module
        # for processes, its authkey, its module for the resource tracker, the descriptor, `sys.path`, and what all this comes to.
        self.found: tuple[int, str | None, Any, Any, bytes | None, Any, int | None, list[Any], ChangingState] = (
            -1, None, None, None, None, None, None, [], (None, None, {}, 0, ()),
        )  # fmt: skip

    def again(self) -> ChangingState:
        modules = sys.modules
        count = len(modules)
        try:
            last = next(reversed(modules))
        except RuntimeError:
            # Another thread has added one between the two steps of this.
            last = None
        main = modules.get("__main__")
        main_number = main_modules.number_of(main)
        # A copy: the list is changed in place.
        path: list[Any] = list(sys.path)
        strays = _strays.find(path)
        processes, trackers = modules.get("multiprocessing.process"), modules.get("multiprocessing.resource_tracker")
        authkey = descriptor = None
        if processes is not None:
            try:
                authkey = processes.current_process().authkey
                if trackers is not None:
                    descriptor = trackers._resource_tracker._fd
            except AttributeError:
                pass  # In the middle of its own import a module is there and its contents are not.
        entries = tuple(entry for entry in path if isinstance(entry, str))
        state = authkey, descriptor, strays, main_number, entries
        before = self.found[-1]
        if state == before:
            state = before
        self.found = count, last, main, processes, authkey, trackers, descriptor, path, state
        return state


_strays: Final = Strays()
_last_look: Final = _LastLook()


def _measured_with_multiprocessing() -> bool:
    """Whether coverage.py runs here with ``concurrency = multiprocessing``.

    The mark that it leaves on the module is how it knows itself (coverage/multiproc.py), and the variable is where the
    processes that it starts are told its configuration file. Asked for in another way (``patch = subprocess``,
    COVERAGE_PROCESS_START) it starts in a worker by itself, as in any Python.
    """
    processes = sys.modules.get("multiprocessing")
    return getattr(processes, "_coverage$patched", False) is True and "COVERAGE_RCFILE" in os.environ


def _warning_filters() -> list[list[Any]] | None:
    warnings = sys.modules.get("warnings")
    if warnings is None:
        return None
    filters = [
        [action, _pattern(message), f"{category.__module__}:{category.__qualname__}", _pattern(module), line]
        for action, message, category, module, line in filters_in_force(warnings)
    ]
    return None if filters == _DEFAULT_FILTERS else filters


def _pattern(value: Any) -> Any:
    """The text of a filter's pattern. One that Python's C code put there is a plain string, to be matched as a whole."""
    return value if value is None or isinstance(value, str) else [value.pattern, value.flags]


# What Python starts with, see init_filters() in Python/_warnings.c. A debug build starts with none.
_DEFAULT_FILTERS: Final = [
    ["default", None, "builtins:DeprecationWarning", "__main__", 0],
    ["ignore", None, "builtins:DeprecationWarning", None, 0],
    ["ignore", None, "builtins:PendingDeprecationWarning", None, 0],
    ["ignore", None, "builtins:ImportWarning", None, 0],
    ["ignore", None, "builtins:ResourceWarning", None, 0],
]
