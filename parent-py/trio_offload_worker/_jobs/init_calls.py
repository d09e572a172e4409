"""The call of ``init`` in a worker whose context forwards log records."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

is_running = False
"""True while ``init`` runs. Its records and warnings are sent, in messages with the ID 0."""


def call(init: Callable[[], Any]) -> Any:
    """Call ``init``."""
    global is_running
    is_running = True
    try:
        return init()
    finally:
        is_running = False
