"""``SharedCounter``: an integer that this program and its jobs add to."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from trio_offload_worker._system.shared_memory import USED, WORD_STEP, CounterWord, map_words, sum_words

from .._sync.descriptors import DescriptorGrant, DescriptorHandle
from .files import SharedFile

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

    from .._pickling.payload import Grant
    from .._worker.conversation import Conversation
    from .._worker.requests import Post, Request

_WORDS: Final = 1024


class SharedCounter(DescriptorHandle):
    """An integer that tasks, threads and jobs add to at once. Every addition counts.

    ::

        counter = trio_offload.SharedCounter()
        await trio_offload.run_sync(job, counter)  # in the job: `counter.add()`
        print(counter.value)

    Each process adds to a separate word in shared memory, without a message or a lock between
    processes. The additions of a worker that dies count.

    Args:
        value: the value at the beginning.
    """

    _internal = DescriptorHandle._internal | {"place_of"}

    kind: ClassVar[str] = "shared_counter"

    @property
    def handle(self) -> JobHandles.SharedCounter:
        """This object with the type that a job sees. Its methods work in every thread."""
        return cast("JobHandles.SharedCounter", self)

    def __init__(self, value: int = 0) -> None:
        super().__init__()
        self._file = SharedFile.create(_WORDS * WORD_STEP * 8)
        self._words: Any = map_words(self._file.mapping)
        self._words[USED] = 1
        self._word = CounterWord(self._words, 0)
        self._word.add(value)
        # The words of workers, by their conversations. A word is free again after its worker.
        self._places: weakref.WeakKeyDictionary[Conversation, int] = weakref.WeakKeyDictionary()
        self._free: list[int] = []

    def add(self, number: int = 1) -> None:
        """Add a number. It may be negative. From any thread."""
        self._word.add(number)

    @property
    def value(self) -> int:
        """The sum of all additions so far."""
        return sum_words(self._words)

    def __repr__(self) -> str:
        return f"<trio_offload.SharedCounter: {self.value}>"

    def fileno(self) -> int:
        """Return the number of the memory's descriptor."""
        return self._file.fileno()

    def grant(self) -> DescriptorGrant:
        """As :meth:`Handle.grant`."""
        return _CounterGrant(self)

    def details(self, grant: Grant | None) -> tuple[Any, ...]:
        """As :meth:`Handle.details`: the size of the file."""
        return (self._file.size,)

    def place_of(self, conversation: Conversation) -> int:
        """Return the index of a worker's word, or -1 if all words are taken."""
        place = self._places.get(conversation)
        if place is None:
            if self._free:
                place = self._free.pop()
            elif self._words[USED] < _WORDS:
                place = self._words[USED] * WORD_STEP
                self._words[USED] += 1
            else:
                return -1
            self._places[conversation] = place
            weakref.finalize(conversation, self._free.append, place).atexit = False
        return place


class _CounterGrant(DescriptorGrant):
    """The right of one call to add to a counter."""

    handle: SharedCounter

    def __init__(self, handle: SharedCounter) -> None:
        super().__init__(handle)
        self._conversation: Conversation | None = None

    def begin(self, conversation: Conversation) -> None:
        """As :meth:`PlainGrant.begin`."""
        self._conversation = conversation

    def settle(self, death: object) -> None:
        """As :meth:`PlainGrant.settle`."""
        self._conversation = None

    def request(self, request: Request) -> None:
        """Answer a job that wants its word, or has none."""
        if request.op == "place" and self._conversation is not None:
            request.complete_value(self.handle.place_of(self._conversation))
        elif request.op == "value":
            request.complete_value(self.handle.value)
        else:
            super().request(request)

    def post(self, post: Post) -> None:
        """Add for a job that has no word."""
        if post.op in ("add", "subtract") and post.count is not None:
            self.handle.add(post.count if post.op == "add" else -post.count)
