"""What ``multiprocessing`` believes of a worker, put right when a job imports it.

Left alone it takes a worker for a main process of its own. Then a manager's proxies in a job's arguments cannot
authenticate, :func:`multiprocessing.parent_process` knows of no parent, log records name the wrong process, and shared
memory of the parent's that a job merely opens is destroyed when the worker leaves, by a resource tracker of its own. The
parent's tracker is used instead, as multiprocessing's own children do, if the parent has one.
"""

from __future__ import annotations

import atexit
import itertools
import os
import stat
import sys

from .._system.linux import open_pidfd
from . import imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any, Final


def find_spec(settings: dict[str, Any], name: str, path: Any, target: Any) -> ModuleSpec | None:
    """The real spec of ``multiprocessing.process``, with a loader that calls :func:`adopt` afterwards.

    The finder that waits for this name has taken itself off ``sys.meta_path`` before it calls this.
    """
    return imports.find_spec(name, path, target, lambda: adopt(settings))


def adopt(settings: dict[str, Any]) -> None:
    """Give this process its identity in ``multiprocessing.process``, which is imported. May be called again."""
    process: Any = sys.modules["multiprocessing.process"]
    current = process.current_process()
    key = settings.get("authkey")
    if key is not None:
        current.authkey = key
    current._name = f"trio-offload-worker-{os.getpid()}"
    parent = settings.get("parent")
    if parent is not None and process.parent_process() is None:
        sentinel = _sentinel_of(parent["pid"])
        if sentinel is not None:
            process._parent_process = process._ParentProcess(parent["name"], parent["pid"], sentinel)
    if _TRACKER in sys.modules:
        _connect_tracker(settings)
    else:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TrackerFinder)]
        sys.meta_path.insert(0, _TrackerFinder(settings))


def begin_in_fork() -> list[Any]:
    """As a fork of multiprocessing's own begins (``BaseProcess._bootstrap``): the parent's children, finalizers and parent are not
    this process's. What must not be let go of is returned, because its end may be the end of something of the parent's.
    """
    process: Any = sys.modules["multiprocessing.process"]
    kept = [process._children, process._parent_process]
    process._children = set()
    process._process_counter = itertools.count(1)
    process._parent_process = None
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        kept.append(dict(util._finalizer_registry))
        util._finalizer_registry.clear()
        util._run_after_forkers()
        atexit.register(util._exit_function)
    return kept


class _TrackerFinder:
    """Waits for the import of the resource tracker, and is gone after it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _TRACKER:
            return None
        sys.meta_path.remove(self)
        return imports.find_spec(name, path, target, lambda: _connect_tracker(self._settings))


_TRACKER: Final = "multiprocessing.resource_tracker"


def _connect_tracker(settings: dict[str, Any]) -> None:
    tracker: Any = sys.modules[_TRACKER]._resource_tracker
    theirs, parent = settings.get("resource_tracker"), settings.get("parent")
    if theirs is None or parent is None or tracker._fd is not None:
        return
    try:
        # Opening the parent's end of a pipe by its place in /proc gives an end of one's own (proc(5)).
        descriptor = os.open(f"/proc/{parent['pid']}/fd/{theirs}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.set_blocking(descriptor, True)
        tracker._fd = descriptor
    else:
        # The parent has closed it since, and opened something else under the same number.
        os.close(descriptor)


def _sentinel_of(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends. It is open for as long as this process lives."""
    return open_pidfd(pid) if os.getppid() == pid else None
