"""Send log records and warnings of jobs and of ``init`` to the parent, if its context wants them.

This module waits for the import of ``logging``. A job that does not import it pays nothing.
"""

from __future__ import annotations

import os
import sys

from .._protocol.frames import Kind, encode_head
from . import imports, init_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

_wanted: dict[str, Any] | None = None


def follow(wanted: dict[str, Any] | None) -> None:
    """Forward as these settings say. None means that nothing is forwarded.

    ``trio_offload._forwarding.levels`` describes the settings.
    """
    global _wanted
    _wanted = wanted
    from . import warnings

    warnings.follow(None if wanted is None else post)
    if "logging" in sys.modules:
        _follow()
    elif wanted is not None and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def post(op: str, data: bytes) -> bool:
    """Send a message of the running job or of ``init``. Return False if neither runs here."""
    line: Any = sys.modules["_trio_offload_line"]
    call = line.call()
    if not (call or init_calls.is_running) or line.pid() != os.getpid():
        return False
    head = encode_head(Kind.POST, call, (len(data),), {"op": op, "thread": 0})
    sent: list[bool] = []
    line.write((head, data), call, sent)
    return bool(sent)


def _follow() -> None:
    from . import logs

    logs.follow(_wanted)


class _Finder:
    """A finder that waits for the import of ``logging``, and then removes itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "logging":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        return imports.find_spec(name, path, target, _follow)
