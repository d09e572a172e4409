"""Shared memory as a job has it: arrays and counters. The parent owns the files."""

from __future__ import annotations

import weakref

from .. import publish
from .._system.shared_memory import CounterWord, Mapping, map_words, sum_words
from .descriptors import DescriptorHandle
from .pickles import result
from .requests import post, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


class SharedArray(DescriptorHandle):
    """An array in memory that the parent and its jobs share.

    ::

        def center(first, last, shared: handles.SharedArray):
            rows = shared.array[first:last]
            rows -= rows.mean()

    Details:
        shape, dtype, order: as :meth:`Mapping.view` takes them.
        size: the size of the file in bytes.
        is_read_only: True if it can be mapped for reading only.
    """

    __slots__ = ("_mapping",)

    _mapping: Mapping

    @property
    def array(self) -> Any:
        """A new view, as a NumPy array, or as a memoryview if NumPy is not installed."""
        try:
            mapping = self._mapping
        except AttributeError:
            mapping = self._mapping = _map(self, self._details[3], self._details[4])
        return mapping.view(*self._details[:3])

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        shape: tuple[int, ...] = self._details[0]
        return shape

    @property
    def is_read_only(self) -> bool:
        """True if it can be mapped for reading only."""
        return bool(self._details[4])


class SharedCounter(DescriptorHandle):
    """An integer that the parent and its jobs add to.

    ::

        def count_words(path, words: handles.SharedCounter):
            for line in open(path):
                words.add(len(line.split()))

    Details:
        size: the size of the file in bytes.
    """

    __slots__ = {"_state": "", "add": "Add a number, by default 1. It may be negative."}

    _state: _Counter
    add: Callable[..., None]

    def __getattr__(self, name: str) -> Any:
        # The first use makes `add`, so later ones are a call of the word's function.
        if name != "add":
            raise AttributeError(f"a SharedCounter has no attribute {name!r}")
        word = self._counter().word
        self.add = self._post if word is None else word.add
        return self.add

    def _post(self, number: int = 1) -> None:
        """Add by a message: all words are taken."""
        post("add", self._id, count=number) if number >= 0 else post("subtract", self._id, count=-number)

    @property
    def value(self) -> int:
        """The sum of all additions so far."""
        counter = self._counter()
        if counter.word is None:
            total: int = result(request("value", self._id, shield=True))
            return total
        return sum_words(counter.words)

    def _counter(self) -> _Counter:
        try:
            return self._state
        except AttributeError:
            found = _counters.get(self._id)
            if found is None:
                found = _counters.setdefault(self._id, _Counter(self))
            self._state = found
            return found


class _Counter:
    """A counter in this process, which has one word of it, or none if all are taken."""

    __slots__ = ("__weakref__", "word", "words")

    def __init__(self, handle: SharedCounter) -> None:
        # The worker keeps its word, also if this object is made again.
        place: int = result(request("place", handle._id, shield=True))
        self.words: Any = map_words(_map(handle, handle._details[0], False))
        self.word = CounterWord(self.words, place) if place >= 0 else None


def _map(handle: DescriptorHandle, size: int, is_read_only: bool) -> Mapping:
    """Map a handle's file, once for all objects of this process."""
    found = _mappings.get(handle._id)
    if found is None:
        owner = handle.fetch()
        found = _mappings.setdefault(handle._id, Mapping(owner.fileno(), size, is_read_only))
    return found


_mappings: Final[weakref.WeakValueDictionary[int, Mapping]] = weakref.WeakValueDictionary()
_counters: Final[weakref.WeakValueDictionary[int, _Counter]] = weakref.WeakValueDictionary()


publish("trio_offload_worker.handles", SharedArray, SharedCounter)
