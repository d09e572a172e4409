"""Correct the state of ``multiprocessing`` in a worker when a job imports it.

Otherwise it would treat the worker as a main process, with these effects:

* The proxies of a manager in a job's arguments cannot authenticate.
* :func:`multiprocessing.parent_process` returns None.
* Log records name the wrong process.
* Shared memory of the parent that a job only opens is destroyed at the worker's exit, by the
  worker's resource tracker.

The worker uses the parent's resource tracker instead, if the parent has one. The children of
multiprocessing do the same.
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
    """Return the real spec of ``multiprocessing.process``.

    Its loader calls :func:`adopt` after it has executed the module. The finder that waits for this
    name removes itself from ``sys.meta_path`` before it calls this.
    """
    return imports.find_spec(name, path, target, lambda: adopt(settings))


def adopt(settings: dict[str, Any]) -> None:
    """Give this process its identity in ``multiprocessing.process``. May be called again.

    The module must have been imported.
    """
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
    """Reset the state inherited from the parent, as ``BaseProcess._bootstrap`` does in a fork.

    The parent's children, finalizers and parent do not belong to this process. Return the objects
    to keep alive, because their finalization could end resources of the parent.
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
    """A finder that waits for the import of the resource tracker, and then removes itself."""

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
        # Opening a pipe through /proc gives a new descriptor for the parent's end (proc(5)).
        descriptor = os.open(f"/proc/{parent['pid']}/fd/{theirs}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.set_blocking(descriptor, True)
        tracker._fd = descriptor
    else:
        # The parent has closed it since, and reused the number for another file.
        os.close(descriptor)


def _sentinel_of(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends. It stays open."""
    return open_pidfd(pid) if os.getppid() == pid else None
