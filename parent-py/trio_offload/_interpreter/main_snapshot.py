"""The functions and classes of ``__main__`` at one moment.

A fork of this process keeps the ones that existed at the fork. A call that names a later one fails
there.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any


class MainSnapshot:
    """The definitions in ``__main__`` when this was made."""

    __slots__ = ("_known", "_main")

    def __init__(self) -> None:
        self._main = sys.modules.get("__main__")
        self._known = {name: weakref.ref(value) for name, value in self._definitions()}

    def is_current(self) -> bool:
        """Return True if none has been added or replaced since.

        Deleted ones do not matter, because no call can name them.
        """
        if sys.modules.get("__main__") is not self._main:
            return False
        for name, value in self._definitions():
            known = self._known.get(name)
            if known is None or known() is not value:
                return False
        return True

    def _definitions(self) -> Iterator[tuple[str, Any]]:
        # Copied in one step, because other threads may define more at the same time.
        for name, value in list(vars(self._main).items()) if self._main is not None else []:
            if isinstance(value, (types.FunctionType, type)):
                yield name, value
