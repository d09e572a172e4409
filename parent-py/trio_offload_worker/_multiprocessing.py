"""What ``multiprocessing`` believes of a worker, put right when a job imports it.

Left alone it takes a worker for a main process of its own. Then a manager's proxies in a job's arguments cannot
authenticate, :func:`multiprocessing.parent_process` knows of no parent, and log records name the wrong process.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def find_spec(settings: dict[str, Any], name: str, path: Any, target: Any) -> ModuleSpec | None:
    """The real spec of ``multiprocessing.process``, with a loader that calls :func:`adopt` afterwards.

    The finder that waits for this name has taken itself off ``sys.meta_path`` before it calls this.
    """
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if find is None else find(name, path, target)
        if spec is not None:
            _adopt_after_loading(spec.loader, settings)
            return spec
    return None


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


def _adopt_after_loading(loader: Any, settings: dict[str, Any]) -> None:
    # On the instance and not around it: `__loader__` and `__spec__.loader` stay the real ones, with all that others ask of
    # them (source, resources), and after this one use nothing is left of it.
    real = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        real(module)
        adopt(settings)

    loader.exec_module = exec_module


def _sentinel_of(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends. It is open for as long as this process lives."""
    if not hasattr(os, "pidfd_open") or os.getppid() != pid:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
