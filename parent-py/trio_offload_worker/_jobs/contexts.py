"""The context variables of a job.

Each job runs in a copy of the worker's context, as a call of ``trio.to_thread`` runs in a copy of its caller's. The copy has
what ``init`` and the imports of the jobs' modules have set; what a job sets is gone with it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any


def part(context: Context) -> None:
    """Give a copy a decimal context of its own, if the worker's context has one: jobs change that object in place."""
    decimal: Any = sys.modules.get("decimal")
    kind = getattr(decimal, "Context", None)
    if kind is None:
        return
    for variable, value in context.items():
        if isinstance(value, kind):
            context.run(variable.set, value.copy())
