"""``from_worker`` in a program that runs a job's function in one of Trio's threads.

Trio is not imported here: such a program has imported it.
"""

from __future__ import annotations

import sys
from _thread import _local

from .shields import shield_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


class _Adopted(_local):
    """The token of the run of Trio that has adopted this thread."""

    token: Any = None


def run(afn: Any, args: tuple[Any, ...]) -> Any:
    """Run an async function as ``trio.from_thread.run`` does. A shield of this thread protects it.

    Raises:
        RuntimeError: this is not a thread of Trio's.
    """
    trio = _trio_of_thread()
    end = shield_end()

    async def shielded() -> Any:
        with trio.CancelScope(shield=True):
            return await afn(*args)

    function, arguments = (afn, args) if end is None else (shielded, ())
    return trio.from_thread.run(function, *arguments, trio_token=_adopted.token)


def run_sync(fn: Any, args: tuple[Any, ...]) -> Any:
    """Run a function as ``trio.from_thread.run_sync`` does.

    Raises:
        RuntimeError: this is not a thread of Trio's.
    """
    return _trio_of_thread().from_thread.run_sync(fn, *args, trio_token=_adopted.token)


def sleep(seconds: float) -> bool:
    """Sleep in the parent task. Return False, at once, in another thread."""
    if not _is_thread_of_trio():
        return False
    run(_trio_of_thread().sleep, (seconds,))
    return True


def check_cancelled() -> None:
    """Raise ``trio.Cancelled`` if this thread's task is cancelled. Else return."""
    trio = sys.modules.get("trio")
    if trio is not None and shield_end() is None:
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:
            pass  # Not a thread of Trio's.


def is_cancellation(error: BaseException) -> bool:
    """Return True for a ``trio.Cancelled``."""
    trio = sys.modules.get("trio")
    return trio is not None and isinstance(error, trio.Cancelled)


def current_token() -> Any:
    """Return the token of this thread's run of Trio."""
    return run_sync(_trio_of_thread().lowlevel.current_trio_token, ())


def adopt(token: Any) -> None:
    """Let this thread talk to a run of Trio."""
    _adopted.token = token


def _is_thread_of_trio() -> bool:
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    if _adopted.token is not None:
        return True
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    except BaseException as error:
        if not is_cancellation(error):
            raise
    return True


def _trio_of_thread() -> Any:
    if not _is_thread_of_trio():
        raise RuntimeError(
            "this is no job: neither a worker of trio-offload nor a thread of trio.to_thread.run_sync runs it"
        )
    return sys.modules["trio"]


_adopted: Final = _Adopted()
