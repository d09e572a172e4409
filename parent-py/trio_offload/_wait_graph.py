"""The graph of owners and of the locks that they wait for: finds deadlocks before they begin.

Each owner (a task, or a thread of a job) waits for one thing at a time, and each lock has one
holder. So the graph is a set of chains, and the search for a cycle follows one of them. Semaphores
and channels are missing here, because anybody may end such a wait.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple, Protocol

from ._exceptions import DeadlockError


class Awaited(Protocol):
    """A thing with one holder, whose ``str`` is its name in messages."""

    @property
    def holder(self) -> Hashable | None:
        """The owner who can end the wait. None means that the thing is free."""


class Outcome(NamedTuple):
    """The end of another owner's work, such as a callback that a job waits for."""

    name: str
    holder: Hashable

    def __str__(self) -> str:
        return self.name


class WaitGraph:
    """The waits of owners, and the one place that finds cycles in them."""

    __slots__ = ("_awaited",)

    def __init__(self) -> None:
        self._awaited: dict[Hashable, Awaited] = {}

    def __len__(self) -> int:
        return len(self._awaited)

    def add(self, owner: Hashable, awaited: Awaited) -> None:
        """Enter a wait.

        Raises:
            DeadlockError: it would close a cycle. The graph is unchanged.
        """
        cycle = self.cycle(owner, awaited)
        if cycle:
            raise DeadlockError(in_words(cycle))
        self._awaited[owner] = awaited

    def add_unchecked(self, owner: Hashable, awaited: Awaited) -> None:
        """Enter a wait that cannot close a cycle, or that has begun already."""
        self._awaited[owner] = awaited

    def remove(self, owner: Hashable) -> None:
        """Remove the wait of this owner, if it has one."""
        self._awaited.pop(owner, None)

    def awaited(self, owner: Hashable) -> Awaited | None:
        """Return the thing that this owner waits for, if it does."""
        return self._awaited.get(owner)

    def cycle(self, owner: Hashable, awaited: Awaited) -> list[tuple[Hashable, Awaited]]:
        """Return the owners and waits of the cycle that this wait would close, or an empty list."""
        chain: list[tuple[Hashable, Awaited]] = []
        # An unchecked wait may have closed a cycle elsewhere.
        seen = set[Hashable]()
        current: Hashable | None = owner
        following: Awaited | None = awaited
        while current is not None and following is not None and current not in seen:
            seen.add(current)
            chain.append((current, following))
            current = following.holder
            if current == owner:
                return chain
            following = self._awaited.get(current)
        return []


def in_words(cycle: list[tuple[Hashable, Awaited]]) -> str:
    """Describe a cycle, from the owner who closes it."""
    owner, awaited = cycle[0]
    text = f"deadlock: {owner} would wait for {awaited}"
    for other, following in cycle[1:]:
        text += f", which depends on {other}, which waits for {following}"
    return f"{text}, which depends on {owner}"


WAITS: Final = WaitGraph()
"""The waits of this program: an owner belongs to one run of Trio, so the runs cannot mix."""
