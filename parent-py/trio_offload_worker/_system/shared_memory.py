"""Memory that processes share: a mapping of a nameless file, as an array or as words."""

from __future__ import annotations

import os
import sys
import weakref
from _thread import RLock
from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final


class Mapping:
    """A mapping of a file. It is unmapped after its last view.

    Args:
        descriptor: the file's descriptor. It may be closed afterwards.
        size: the file's size in bytes, at least 1.
        is_read_only: True to map the file for reading only.
    """

    __slots__ = ("__weakref__", "memory")

    def __init__(self, descriptor: int, size: int, is_read_only: bool) -> None:
        protection = PROT_READ if is_read_only else PROT_READ | PROT_WRITE
        self.memory = mmap(descriptor, size, MAP_SHARED, protection)

    def view(self, shape: tuple[int, ...], dtype: str | bytes, order: str) -> Any:
        """Return a new view: a NumPy array, or a memoryview if NumPy is not installed.

        Args:
            shape: the dimensions.
            dtype: NumPy's ``dtype.str``, or a pickle of a dtype that cannot be written so.
            order: ``"C"`` or ``"F"``.
        """
        numpy = import_numpy()
        if numpy is None:
            return self._plain_view(shape, dtype)
        if isinstance(dtype, bytes):
            import pickle

            dtype = pickle.loads(dtype)
        # `frombuffer` keeps the mapping exported. `ndarray` itself does not (numpy/numpy#23305).
        exported = numpy.frombuffer(self.memory, numpy.uint8)
        return numpy.ndarray(shape, dtype, exported, order=order)

    def _plain_view(self, shape: tuple[int, ...], dtype: str | bytes) -> memoryview:
        code: Any = FORMATS.get(dtype)
        if code is None:
            raise TypeError(f"an array of the dtype {dtype!r} needs NumPy, which is not installed here")
        bytes_of: memoryview = memoryview(self.memory)
        if 0 in shape:
            return bytes_of[:0].cast(code)  # a memoryview of several dimensions has items
        size = SIZES[code]
        for length in shape:
            size *= length
        return bytes_of[:size].cast(code, shape)

    def close(self) -> None:
        """Unmap it now.

        Raises:
            BufferError: a view is in use.
        """
        self.memory.close()


class CounterWord:
    """The word that one process adds to. Its threads take turns.

    In a fork of the process it raises RuntimeError: two processes would overwrite each other.

    Args:
        words: the mapped integers.
        place: the index of the process's word.
    """

    __slots__ = ("__weakref__", "_lock", "_words", "place")

    def __init__(self, words: Any, place: int) -> None:
        self._words = words
        self._lock = RLock()
        self.place = place
        _counted.add(self)

    def refuse(self) -> None:
        """Let additions raise."""
        self._lock = RLock()  # another thread may have held it
        self._words = _Refusal()

    def add(self, number: int = 1) -> None:
        """Add a number."""
        # Re-entrant: a signal handler may add too. It cannot run inside of the statement, because
        # that has no call and no jump.
        try:
            with self._lock:
                self._words[self.place] = self._words[self.place] + number
        except (TypeError, ValueError):
            if isinstance(number, int):
                raise OverflowError(f"a SharedCounter has 64 bits; {number} is too much to add") from None
            raise TypeError(f"a SharedCounter adds integers, got {number!r}") from None


class _Refusal:
    def __getitem__(self, place: int) -> int:
        raise RuntimeError(
            "a fork of the process cannot add to its SharedCounter; only a worker of trio-offload can, or the program itself"
        )


def _refuse_in_copy() -> None:
    for word in list(_counted):
        word.refuse()


_counted: Final[weakref.WeakSet[CounterWord]] = weakref.WeakSet()
os.register_at_fork(after_in_child=_refuse_in_copy)


def map_words(mapping: Mapping) -> memoryview:
    """Return a mapping's memory as integers of eight bytes."""
    return memoryview(mapping.memory).cast("q")


def sum_words(words: Any) -> int:
    """Return the sum of the words of all processes."""
    return sum(words[: words[USED] * WORD_STEP : WORD_STEP])


def import_numpy() -> Any:
    """Return NumPy, or None if it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


# Formats of the struct module, by NumPy's `dtype.str`, in this machine's byte order.
_ORDER: Final = "<" if sys.byteorder == "little" else ">"
_CODES: Final[Sequence[tuple[str, str]]] = (
    ("|b1", "?"),
    ("|i1", "b"),
    ("|u1", "B"),
    ("|S1", "c"),
    (_ORDER + "i2", "h"),
    (_ORDER + "u2", "H"),
    (_ORDER + "i4", "i"),
    (_ORDER + "u4", "I"),
    (_ORDER + "i8", "q"),
    (_ORDER + "u8", "Q"),
    (_ORDER + "f4", "f"),
    (_ORDER + "f8", "d"),
)
FORMATS: Final[dict[str | bytes, str]] = dict(_CODES)
SIZES: Final = {code: int(name[2]) for name, code in _CODES}
# A counter's words are 64 bytes apart, so that processors do not share their cache lines. The
# number of words in use stands beside the first.
WORD_STEP: Final = 8
USED: Final = 1
