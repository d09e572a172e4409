"""The flags of events in the record of a worker: its jobs read them without a request."""

from __future__ import annotations

from typing import Final, Protocol

from trio_offload_worker._protocol.frames import FLAGS, FLAGS_AT, TAKEN_AT

_WORD: Final = 64
# Behind the flags, in the same words.
_TAKEN: Final = (TAKEN_AT - FLAGS_AT) // 8
# Bit 0 tells the job that the flags count: a front that cannot be mapped is empty.
_FIRST: Final = 1


class Shower(Protocol):
    """A worker, as its board sees it."""

    def write_flags(self, place: int, flags: int) -> None:
        """Write a word of the flags into the record, as long as there is one."""


class Board:
    """The flags of one worker."""

    def __init__(self, worker: Shower) -> None:
        self._worker = worker
        self._words = [_FIRST] + [0] * (FLAGS // _WORD - 1)
        worker.write_flags(0, _FIRST)

    def show(self, number: int, is_set: bool) -> None:
        """Set or reset the flag with this number."""
        place, bit = divmod(number, _WORD)
        if is_set:
            self._words[place] |= 1 << bit
        else:
            self._words[place] &= ~(1 << bit)
        self._worker.write_flags(place, self._words[place])

    def show_taken(self, number: int) -> None:
        """Tell the running stream how many of its values have been taken."""
        self._worker.write_flags(_TAKEN, number)


# Numbers of flags that no event has. All events of the program share them: in each record an event
# has the same flag. Operations on a list are one step, so threads may share it.
_free: Final = list(range(FLAGS - 1, 0, -1))


def take_flag() -> int:
    """Return a free number, or 0 if there is none: then jobs ask."""
    try:
        return _free.pop()
    except IndexError:
        return 0


def give_flag_back(number: int) -> None:
    """Let another event have the number."""
    _free.append(number)
