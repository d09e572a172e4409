"""Exit handlers that a forked worker runs too.

A fork of the parent skips the exit handlers that it inherits, because they release the parent's
resources. Handlers registered here release only the resources of the process that runs them, so the
fork runs them too.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any, Final

handlers: Final[list[Callable[[], Any]]] = []
"""All registered handlers, the oldest first."""


def register(handler: Callable[[], Any]) -> None:
    """Call ``handler`` when this process exits, and when a worker that was forked from it exits."""
    atexit.register(handler)
    handlers.append(handler)
