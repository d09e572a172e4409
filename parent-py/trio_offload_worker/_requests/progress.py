"""The progress of a job, written into the record, at which the parent looks.

PROTOCOL.md ("The record") has the layout. The parent may read at any moment, so changes that belong
together lie between two equal numbers.
"""

from __future__ import annotations

import operator
import struct
from itertools import count as count_up

from .._protocol.frames import NOTE_AT, NOTE_SIZE, STEP_AT
from .line import current_line, is_worker
from .requests import running_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Final, TypeVar

    ItemType = TypeVar("ItemType")


class Place:
    """The place in the record to which this thread's job writes.

    Attributes:
        call: Number of the job's call.
        running: Returns the number of the call that runs now.
        words: The front of the record, as integers of eight bytes.
        numbers: The same as floating-point numbers.
    """

    __slots__ = ("call", "numbers", "running", "words")

    def __init__(self, call: int, running: Callable[[], int], words: Any) -> None:
        self.call = call
        self.running = running
        self.words = words
        self.numbers = words.cast("B").cast("d")

    def write(self, item: int, done: float, total: float | None, note: str | None) -> None:
        """Write a step that begins a new sequence.

        Raises:
            TypeError: an argument has the wrong type.
        """
        number = next(_sequence)
        text = b"" if note is None else _clipped(note)
        known = _UNKNOWN if total is None else total
        try:
            _NUMBERS.pack(done, known)
        except struct.error:
            raise TypeError(f"done and total must be numbers, got {done!r} and {total!r}") from None
        if note is not None:
            self.words[_BEGUN] = number
            _NOTE.pack_into(self.words, NOTE_AT, self.call, len(text), text)
        # In one piece: neither another thread nor a signal handler can write in between.
        _STEP.pack_into(self.words, STEP_AT, number, self.call, item, done, known, number)


def find_place() -> Place | None:
    """Return the place of this thread's job, unless this is outside of a job, or it has ended."""
    if not is_worker():
        return None
    try:
        call = running_call()
    except RuntimeError:
        return None
    line = current_line()
    return Place(call, line.call, line.words)


def track(
    iterable: Iterable[ItemType], total: float | None, step: Callable[[float, float | None], None]
) -> Iterator[ItemType]:
    """Yield the items, and write a step after each.

    Args:
        iterable: The items.
        total: Their number, in place of the length or the length hint of the iterable.
        step: Writes a step.
    """
    if total is None:
        length = operator.length_hint(iterable, -1)
        total = None if length < 0 else length
    done = 0
    step(done, total)
    for item in iterable:
        yield item
        done += 1
        step(done, total)
    # A hint may be wrong, and the end is certain.
    if done != total:
        step(done, done)


def _clipped(note: str) -> bytes:
    """Return the start of a note that fits into the record."""
    if not isinstance(note, str):
        raise TypeError(f"note must be text, got {note!r}")
    text = note.encode(errors="replace")
    if len(text) <= NOTE_SIZE:
        return text
    return text[: NOTE_SIZE - 3].decode(errors="ignore").encode() + "…".encode()


# In native mode, which stores each number as a whole.
_STEP: Final = struct.Struct("QQQddQ")
_NOTE: Final = struct.Struct(f"QQ{NOTE_SIZE}s")
_NUMBERS: Final = struct.Struct("dd")
_BEGUN: Final = STEP_AT // 8
_UNKNOWN: Final = float("nan")
_sequence: Final = count_up(1)
