"""The context variables of a job.

Each job runs in a copy of the worker's context, as ``trio.to_thread`` runs in a copy of its
caller's. The copy has the values that ``init`` and the imports of the jobs' modules have set.
Values that a job sets are dropped with the copy.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any


def copy_mutable_values(context: Context) -> None:
    """Copy the decimal context, if the worker's context has one: jobs change it in place."""
    decimal: Any = sys.modules.get("decimal")
    kind = getattr(decimal, "Context", None)
    if kind is None:
        return
    for variable, value in context.items():
        if isinstance(value, kind):
            context.run(variable.set, value.copy())
