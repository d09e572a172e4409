"""Waiters that count their answers, for the states of channels and work queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio_offload._sync.bounded_buffer import Item


class CountingWaiter:
    """Remembers its answers. More than one is an error of the state machine."""

    def __init__(self, name: str, on_answer: Callable[[CountingWaiter], None]) -> None:
        self.owner = self.name = name
        self.answers: list[Any] = []
        self.items: list[Item] = []  # of a put
        self.end: Any = None
        self.withdrawn = False
        self._on_answer = on_answer

    def __repr__(self) -> str:
        return self.name

    @property
    def waits(self) -> bool:
        return not self.answers and not self.withdrawn

    def complete(self, result: Any) -> None:
        self._answer(result)

    def fail(self, error: BaseException) -> None:
        self._answer(error)

    def _answer(self, answer: Any) -> None:
        assert not self.withdrawn, f"{self} was withdrawn, and then answered"
        assert not self.answers, f"{self} was answered twice"
        self.answers.append(answer)
        self._on_answer(self)
