"""The stacks of all Python threads go into the record when the process dies of a fault, and when the watcher asks."""

from __future__ import annotations

import faulthandler
import os

from ._watcher import STACKS, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FaultReports:
    """Python's ``faulthandler``, writing to the record."""

    def __init__(self, record: int) -> None:
        self._record = record
        self._identity: Any = identity(record)

    def begin(self) -> None:
        try:
            faulthandler.enable(self._record, all_threads=True)
            faulthandler.register(STACKS, self._record, all_threads=True)
        except (OSError, RuntimeError, ValueError):
            pass  # Then there is no record; no job is concerned.

    def end_in_copy(self) -> None:
        """In a fork of this process, which is nothing to the parent: whatever gets the number next is the user's."""
        faulthandler.disable()
        faulthandler.unregister(STACKS)
        if identity(self._record) == self._identity:
            os.close(self._record)
