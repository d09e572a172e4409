"""Is there an order of the operations in which each has the outcome that it had? The search of Wing and Gong, with a memory.

An operation takes effect at one moment between its call and its return. A message without a reply, such as ``release``, may take
effect later, but before the next operation of its owner. An operation whose owner died in it may have had an effect or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import attrs

UNKNOWN: Final = object()
"""The outcome of an operation whose owner has died in it."""

State = Hashable


@attrs.frozen(eq=False)
class Operation:
    """An operation of a task or a job."""

    owner: int
    name: str
    argument: Any = None
    outcome: Any = None
    called: float = 0.0
    returned: float = math.inf
    """Time of its return. Infinity for a message without a reply, and for a death."""


Model = Callable[[State, Operation], list[tuple[Any, State]]]
"""Returns the outcomes that an operation may have in a state, with the states that follow."""


def explain(operations: Sequence[Operation], model: Model, state: State) -> list[Operation] | None:
    """Return the operations in an order that explains their outcomes. None means that there is none."""
    ordered = sorted(operations, key=lambda operation: operation.called)
    owners: dict[int, list[int]] = {}
    for index, operation in enumerate(ordered):
        owners.setdefault(operation.owner, []).append(index)
    tried: set[tuple[frozenset[int], State]] = set()
    everything = frozenset(range(len(ordered)))
    # An explicit stack: what is left, the state, and the order so far.
    stack: list[tuple[frozenset[int], State, tuple[int, ...]]] = [(everything, state, ())]
    while stack:
        left, state, order = stack.pop()
        if all(ordered[index].outcome is UNKNOWN for index in left):
            return [ordered[index] for index in order]
        if (left, state) in tried:
            continue
        tried.add((left, state))
        # Nothing may come before an operation that had returned when it was called.
        limit = min(ordered[index].returned for index in left if ordered[index].outcome is not UNKNOWN)
        for indices in owners.values():
            index = next((index for index in indices if index in left), None)
            if index is None or ordered[index].called > limit:
                continue
            operation = ordered[index]
            rest = left - {index}
            for outcome, following in model(state, operation):
                if operation.outcome is UNKNOWN or operation.outcome == outcome:
                    stack.append((rest, following, (*order, index)))
            if operation.outcome is UNKNOWN:
                stack.append((rest, state, (*order, index)))  # without an effect
    return None


# --- models -----------------------------------------------------------------------------------------


def lock(state: Any, operation: Operation) -> list[tuple[Any, State]]:
    """The state is the holder, None or "abandoned"."""
    name, owner = operation.name, operation.owner
    if name in ("acquire", "acquire_nowait"):
        if state == "abandoned":
            return [("AbandonedLockError", state)]
        if state is None:
            return [(None, owner), *_given_up(state, operation)]
        return [("WouldBlock", state)] if name == "acquire_nowait" else _given_up(state, operation)
    if name == "release":
        return [(None, None)] if state == owner else []
    if name == "die":
        return [(None, "abandoned" if state == owner else state)]
    if name == "recover":
        return [(state == "abandoned", None if state == "abandoned" else state)]
    raise ValueError(name)


def semaphore(state: Any, operation: Operation) -> list[tuple[Any, State]]:
    """The state is the number of tokens, and the number that each owner has taken, in pairs."""
    free, taken = state
    owner, name = operation.owner, operation.name
    held = dict(taken)
    if name in ("acquire", "acquire_nowait"):
        if free:
            held[owner] = held.get(owner, 0) + 1
            return [(None, (free - 1, _frozen(held))), *_given_up(state, operation)]
        return [("WouldBlock", state)] if name == "acquire_nowait" else _given_up(state, operation)
    if name == "release":
        held[owner] = held.get(owner, 0) - 1
        return [(None, (free + 1, _frozen(held)))]
    if name == "die":
        return [(None, (free + max(held.pop(owner, 0), 0), _frozen(held)))]
    raise ValueError(name)


def channel(max_items: int) -> Model:
    """The state is the items in order."""

    def model(state: Any, operation: Operation) -> list[tuple[Any, State]]:
        name = operation.name
        if name in ("send", "send_nowait"):
            if len(state) < max_items:
                return [(None, (*state, operation.argument)), *_given_up(state, operation)]
            return [("WouldBlock", state)] if name == "send_nowait" else _given_up(state, operation)
        if name in ("receive", "receive_nowait"):
            if state:
                return [(state[0], state[1:]), *_given_up(state, operation)]
            return [("WouldBlock", state)] if name == "receive_nowait" else _given_up(state, operation)
        if name == "die":
            return [(None, state)]
        raise ValueError(name)

    return model


def _given_up(state: State, operation: Operation) -> list[tuple[Any, State]]:
    """A wait that times out is without an effect."""
    return [("TimeoutError", state)] if not operation.name.endswith("_nowait") else []


def _frozen(held: dict[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((owner, number) for owner, number in held.items() if number))
