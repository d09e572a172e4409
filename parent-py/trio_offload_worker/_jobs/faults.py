"""Write the stacks of all Python threads to the record on a fault, or when the sentinel asks.

Python's ``faulthandler`` writes them, and a process has only one. So jobs that enable or disable it
get the usual return values, but change nothing. The worker executable uses :func:`shield` too
(``faults.rs``).
"""

from __future__ import annotations

import faulthandler
import os
import sys

from .._system.linux import STACKS, identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


def shield(functions: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """Replace these functions of ``faulthandler`` for jobs. Return the replacements.

    Args:
        functions: the originals of ``enable``, ``disable``, ``is_enabled``, ``register`` and
            ``unregister``, by name.
    """
    if _shields:
        return _shields
    worker = os.getpid()
    is_enabled = True

    def is_copy() -> bool:
        # A process that a job has forked has its own faulthandler.
        return os.getpid() != worker

    def enable(file: Any = None, *arguments: Any, **keywords: Any) -> None:
        nonlocal is_enabled
        if is_copy():
            functions["enable"](sys.stderr if file is None else file, *arguments, **keywords)
            return
        file = sys.stderr if file is None else file
        if file is None:
            raise RuntimeError("unable to get sys.stderr")
        if not isinstance(file, int):
            file.fileno()
        is_enabled = True

    def disable() -> bool:
        nonlocal is_enabled
        if is_copy():
            return bool(functions["disable"]())
        before, is_enabled = is_enabled, False
        return before

    def ask() -> bool:
        return bool(functions["is_enabled"]()) if is_copy() else is_enabled

    def register(signum: int, *arguments: Any, **keywords: Any) -> None:
        if signum == STACKS and not is_copy():
            raise RuntimeError(f"signal {signum} cannot be registered: workers of trio-offload handle it themselves")
        functions["register"](signum, *arguments, **keywords)

    def unregister(signum: int) -> bool:
        return False if signum == STACKS and not is_copy() else bool(functions["unregister"](signum))

    ask.__name__ = "is_enabled"
    for function in (enable, disable, ask, register, unregister):
        _shields[function.__name__] = function
        setattr(faulthandler, function.__name__, function)
    return _shields


_shields: Final[dict[str, Callable[..., Any]]] = {}


class FaultReports:
    """Python's ``faulthandler``, writing to the record."""

    def __init__(self, record: int) -> None:
        self._record = record
        # A worker forked from another worker's job finds that worker's replacements.
        names = ("enable", "disable", "is_enabled", "register", "unregister")
        found = {name: getattr(faulthandler, name) for name in names}
        self._functions: dict[str, Any] = faulthandler.__dict__.setdefault("_functions_of_trio_offload", found)
        self._identity: Any = identity_of(record)

    def begin(self) -> None:
        self._arm()
        _shields.clear()
        shield(self._functions)

    def end_job(self) -> None:
        """Arm the handler again. A job that has not imported ``signal`` cannot have disarmed it."""
        if "signal" not in sys.modules:
            return
        self._functions["disable"]()
        self._functions["unregister"](STACKS)
        self._arm()

    def _arm(self) -> None:
        try:
            self._functions["enable"](self._record, all_threads=True)
            self._functions["register"](STACKS, self._record, all_threads=True)
        except (OSError, RuntimeError, ValueError):
            pass  # The record stays empty. Jobs are not affected.

    def end_in_copy(self) -> None:
        """Disarm the handler and close the record in a fork that the parent does not know.

        The user's code may reuse the descriptor's number.
        """
        self._functions["disable"]()
        self._functions["unregister"](STACKS)
        if identity_of(self._record) == self._identity:
            os.close(self._record)
