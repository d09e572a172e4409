"""How the tests of the state machines explore: a laboratory per machine, driven at random and through all histories.

A laboratory holds a state machine beside a model of it that is made of plain lists. Each step is taken by both, and has to
have the same outcome: the same result or exception, and the same waiters that are completed, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol

import hypothesis
import hypothesis.strategies as st

Step = tuple[Any, ...]
OWNERS = ("a", "b", "c")


class Laboratory(Protocol):
    def steps(self) -> list[Step]:
        """All that may happen now."""

    def take(self, step: Step) -> None:
        """Let it happen, to the machine and to the model, and compare."""

    def key(self) -> Hashable:
        """The state of the model: two laboratories with one key have the same future."""

    def finish(self) -> None:
        """Let all owners end, and check that nothing is left."""


class FakeWaiter:
    """A waiter that notes its end in a log that all share. It may end once."""

    def __init__(self, owner: Hashable, log: list[Step]) -> None:
        self.owner = owner
        self._log = log
        self._has_ended = False

    def complete(self, result: Any) -> None:
        self._end("done", result)

    def fail(self, error: BaseException) -> None:
        self._end("failed", type(error).__name__)

    def _end(self, *outcome: Any) -> None:
        assert not self._has_ended, f"{self.owner} was answered twice"
        self._has_ended = True
        self._log.append((self.owner, *outcome))


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, or the name of the exception that it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error).__name__


def explore_at_random(make: Callable[[], Laboratory], *, steps: int = 40, examples: int = 150) -> None:
    """Take steps that hypothesis chooses, so that a failing history is shrunk."""

    @hypothesis.settings(max_examples=examples, database=None, deadline=None)
    @hypothesis.given(st.data())
    def explore(data: st.DataObject) -> None:
        laboratory = make()
        for _ in range(data.draw(st.integers(1, steps))):
            laboratory.take(data.draw(st.sampled_from(laboratory.steps())))
        laboratory.finish()

    explore()


def explore_everything(make: Callable[[], Laboratory], *, depth: int = 6) -> int:
    """Take every step in every state that `depth` steps reach; return the number of states."""
    seen = {make().key()}
    histories: Iterable[tuple[Step, ...]] = [()]
    for _ in range(depth):
        following = []
        for history in histories:
            for step in replayed(make, history).steps():
                laboratory = replayed(make, (*history, step))
                key = laboratory.key()
                if key not in seen:
                    seen.add(key)
                    following.append((*history, step))
                laboratory.finish()
        histories = following
    return len(seen)


def replayed(make: Callable[[], Laboratory], history: Iterable[Step]) -> Laboratory:
    laboratory = make()
    for step in history:
        laboratory.take(step)
    return laboratory
