"""The ``init`` of a worker whose context forwards log records: those of ``init`` are sent too."""

from __future__ import annotations

from .._jobs import init_calls
from .named_calls import NamedCall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ReportedInit(NamedCall):
    """Calls ``init``, whose records and warnings are sent."""

    def __call__(self) -> Any:
        """Call it."""
        return init_calls.call(self.function)

    def __repr__(self) -> str:
        return repr(self.function)
