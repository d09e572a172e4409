"""Handles that a worker has for all its jobs: from ``init`` and ``retire``, or as copies in a fork.

They are not in a call's pickle. So a job that speaks of one gets a grant for its call at that
moment, and jobs that do not use them pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from .endings import describe_ending
from .requests import Death

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._process.process import WorkerProcess


class Granter(Protocol):
    """A conversation, as the handles of its worker see it."""

    def grant(self, number: int, grants: Sequence[Grant]) -> None:
        """Let a call use these handles."""


def _no_copy(number: int) -> Grant | None:
    return None


class LastingGrants:
    """The handles of one worker.

    Args:
        grants: handles in the pickles of ``init`` and ``retire``.
        of_copy: returns a grant of the handle whose copy in a fork has this number, for one call.
    """

    def __init__(self, grants: Sequence[Grant] = (), of_copy: Callable[[int], Grant | None] = _no_copy) -> None:
        self._grants: Final = {grant.id: grant for grant in grants}
        self._of_copy: Final = of_copy

    def begin(self, conversation: Granter) -> None:
        """Let the worker have them."""
        for grant in self._grants.values():
            grant.begin(conversation)

    def add(self, grants: Sequence[Grant], conversation: Granter) -> None:
        """Let a worker that has started have further handles."""
        for grant in grants:
            self._grants[grant.id] = grant
            grant.begin(conversation)

    def lend(self, conversation: Granter, call: int, handle: int | None) -> Grant | None:
        """Grant a handle to one call. Return None if the worker was not given it."""
        if not handle:
            return None
        lasting = self._grants.get(handle)
        grant = self._of_copy(handle) if lasting is None else lasting.for_call()
        if grant is not None:
            conversation.grant(call, (grant,))
        return grant

    def end(self, death: Death | None = None) -> None:
        """Settle them, because the worker has ended or was not started. May be called again."""
        for grant in self._grants.values():
            grant.end(death)

    def end_with(self, process: WorkerProcess, function: str | None, in_hand: list[Any]) -> None:
        """Settle them, because the process has ended: in order, or while it ran a function."""
        if function is None:
            self.end()
        else:
            self.end(Death(process.pid, function, describe_ending(process), process.signal, in_hand))
