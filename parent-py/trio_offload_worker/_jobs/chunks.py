"""Runs the items of a chunk of ``map``: what each of them returns or raises is its own, as if it had come alone.

Rules that the code below keeps:

* an item whose arguments cannot be unpickled, or whose result cannot be pickled, spoils none of the others. Numbers, text
  and the like travel together, because nothing can go wrong with those; anything else has a pickle of its own, which
  also keeps two items from being one and the same object here;
* before an item begins its index stands in the record, which outlives this process. So the parent can tell
  which items had been begun when a worker died, and no item is run twice. To count takes some forty nanoseconds: items that
  take less than a microsecond are counted by the dozen, and where one of those kills the worker it is not known which;
* results and exceptions are pickled when the worker pickles its answer, and not before: only then is the user's main
  script left alone (``_jobs/main_module.py``);
* a copy of this process that an item has forked off runs no further item.

The parent imports this too, for what both sides have to agree on.
"""

from __future__ import annotations

import _pickle
import builtins
import os
from itertools import chain
from time import perf_counter

from .._protocol.parts import OUT_OF_BAND, Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    Item = tuple[bytes, list[Any]]
    """The pickle of an argument or a result, and its buffers."""
    Outcome = tuple[list[Any] | None, list[Item | None] | None, dict[int, Any], int, float]


def are_plain(values: Sequence[Any]) -> bool:
    """Whether all values are immutable objects of builtin types (or tuples of such): they may share a pickle."""
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return True
    if not kinds <= _PLAIN_OR_TUPLE:
        return False
    return set(map(type, chain.from_iterable(value for value in values if type(value) is tuple))) <= _PLAIN


def items_in(plain: list[Any] | tuple[int, int, int]) -> list[Any]:
    """A list, or of a range its start, stop and step: to find the class by its name takes as long as forty numbers."""
    return list(range(*plain)) if isinstance(plain, tuple) else plain


def run(
    function: Callable[[Any], Any],
    what: tuple[list[Any] | tuple[int, int, int] | None, list[Item] | None, int, tuple[int, int], float | None],
) -> Chunk | Outcome:
    """Run a chunk; what came of it, as that is pickled if nothing can go wrong with it.

    Args:
        function: what is called with each item.
        what: in this order

            * the items, if they are plain, as :func:`items_in` takes them; else None;
            * else the items, each pickled by itself;
            * the chunk's number, by which the parent knows what stands in the record;
            * the identity of the record;
            * seconds after which no further item is begun, unless it is the first; None: all are run.
    """
    items, pickled, number, record, budget = what
    global _forked
    _forked = False
    progress = _progress_in(record)
    # In this order: the number says that the rest is this chunk's.
    progress[_NUMBER] = 0
    progress[_INDEX], progress[_COUNT] = 0, 1
    progress[_NUMBER] = number
    chunk = Chunk(function)
    process = os.getpid()
    began = perf_counter()
    until = began + (_FOR_EVER if budget is None else budget)
    if any(function is builtin for builtin in _LOOK_AT_THEIR_CALLER):
        function = _called_from_main(function)
    rest: Any = pickled if items is None else items_in(items)
    run_some: Any = _run_plain if pickled is None else _run_pickled
    step, last = _STEP, began
    done = 0
    while done < len(rest):
        # The clock is looked at now and then only: it takes as long as a small job.
        done = run_some(function, rest, done, done + step, progress, chunk)
        if _forked and os.getpid() != process:
            # The executor ends the copy, with what the item gave it for an end.
            if done - 1 in chunk.errors:
                raise chunk.errors[done - 1][1]
            return chunk
        now = perf_counter()
        if now > until:
            break
        if pickled is None:
            is_quick = now - last < step * _QUICK
            run_some, step = (_run_quickly, _QUICK_STEP) if is_quick else (_run_plain, _STEP)
        last = now
    progress[_INDEX] = len(rest)
    chunk.seconds = perf_counter() - began
    return chunk if chunk.errors or not are_plain(chunk.results) else chunk.outcome(chunk.results, None, {})


def prepare(function: Callable[[Any], Any], nothing: tuple[()]) -> None:
    """Called before a chunk is, so that the function has been imported by then."""


class Chunk:
    """What came of a chunk. It pickles as an :data:`Outcome`: ``(results or None, pickled results or None, failures, count, seconds)``.

    ``count`` items have been run, the first of the chunk. In the place of one that failed there is None, and ``failures``
    has its index: ``(stage, segments, type, message, traceback)``, as in a RAISED of PROTOCOL.md.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self.results: list[Any] = []
        self.errors: dict[int, tuple[str, BaseException, Any]] = {}
        self.seconds = 0.0

    def failed(self, stage: str, error: BaseException) -> None:
        """The next item has failed."""
        self.errors[len(self.results)] = (stage, error, error.__traceback__)
        # Kept beside it: should a later item raise the same object, its traceback would grow.
        BaseException.with_traceback(error, None)
        self.results.append(None)

    def outcome(self, results: list[Any] | None, pickled: list[Item | None] | None, failures: dict[int, Any]) -> Outcome:
        return results, pickled, failures, len(self.results), self.seconds

    def __reduce__(self) -> tuple[Any, ...]:
        results: list[Any] | None = self.results
        pickled: list[Item | None] | None = None
        if not are_plain(self.results):
            results, pickled = None, [self._dump(index) for index in range(len(self.results))]
        failures = {index: _describe(*failure) for index, failure in self.errors.items()}
        return tuple, (self.outcome(results, pickled, failures),)

    def _dump(self, index: int) -> Item | None:
        if index in self.errors:
            return None
        # Dropped as soon as it is pickled: two forms of all results would be twice the memory.
        value, self.results[index] = self.results[index], None
        try:
            return _dump(value)
        except BaseException as error:
            refusal = _refusal(self._function, value)
            self.errors[index] = ("pickle", error, error.__traceback__) if refusal is None else ("call", refusal, None)
            return None


def _run_plain(
    function: Callable[[Any], Any], items: Sequence[Any], first: int, end: int, progress: Any, chunk: Chunk
) -> int:
    """Run the items from ``first`` to ``end``; how many of the chunk have been run by then."""
    add = chunk.results.append
    index = first
    progress[_INDEX] = first
    progress[_COUNT] = 1
    for item in items[first:end]:
        progress[0] = index
        try:
            add(function(item))
        except BaseException as error:
            chunk.failed("call", error)
        index += 1
        if _forked:
            return index
    return index


def _run_quickly(function: Callable[[Any], Any], items: list[Any], first: int, end: int, progress: Any, chunk: Chunk) -> int:
    """The same for items that take less time than it takes to count them: they are counted together."""
    global _part
    _part = part = items[first:end]
    # In this order: a worker that is killed in between has begun with fewer than this says.
    progress[_COUNT] = len(part)
    progress[_INDEX] = first
    results = map(function, part)
    while True:
        try:
            chunk.results.extend(results)
            break
        except BaseException as error:
            chunk.failed("call", error)
    return len(chunk.results)


def _run_pickled(
    function: Callable[[Any], Any], items: Sequence[Item], first: int, end: int, progress: Any, chunk: Chunk
) -> int:
    index = first
    for data, buffers in items[first:end]:
        progress[0] = index
        stage = "unpickle"
        try:
            item = _pickle.loads(data, buffers=buffers)
            stage = "call"
            chunk.results.append(function(item))
            # Before the next one is made: two large arguments need not be here at once.
            del item
        except BaseException as error:
            chunk.failed(stage, error)
        index += 1
        if _forked:
            return index
    return index


def _dump(value: Any) -> Item:
    buffers: list[_pickle.PickleBuffer] = []

    def take(buffer: _pickle.PickleBuffer) -> bool:
        """Beside the pickle (False), unless the buffer is small: then into it (True)."""
        if buffer.raw().nbytes < OUT_OF_BAND:
            return True
        buffers.append(buffer)
        return False

    file = Parts()
    try:
        _pickle.Pickler(file, 5, buffer_callback=take).dump(value)
    except Exception as error:
        from .pickling import dumps

        first, *others = dumps(value, error)
        return bytes(first), [_pickle.PickleBuffer(other) for other in others]
    return file.whole(), list(buffers)


def _describe(stage: str, error: BaseException, traceback: Any) -> tuple[str, list[bytes], str, str, str]:
    from .guards import describe

    BaseException.with_traceback(error, traceback)
    return stage, *describe(error, stage)


def _progress_in(record: tuple[int, int]) -> Any:
    """Where the progress goes: the front of the record, or if that cannot be had a list, which nobody sees."""
    global _progress
    # A worker that is a fork has what the process had that it was forked from, perhaps another worker's.
    if _progress is None or _progress[0] != record:
        _progress = record, _map_record(record) or [0, 0, 0]
    return _progress[1]


def _map_record(record: tuple[int, int]) -> Any:
    import mmap

    for descriptor in range(3, 256):
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) == record:
                return memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")
        except (OSError, ValueError):
            continue
    return None


def _note_fork() -> None:
    global _forked
    _forked = True
    # What is left of it is the original's to run.
    _part.clear()


def _called_from_main(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    from .guards import evaluate_in_main

    made: Callable[[Any], Any] = evaluate_in_main("lambda function: lambda item: function(item)")(function)
    return made


def _refusal(function: Callable[[Any], Any], value: Any) -> TypeError | None:
    """What is to be said of a result that only an event loop could run. It is closed, so that Python does not complain."""
    from .guards import refuse_asynchronous

    try:
        refuse_asynchronous(function, value)
    except TypeError as error:
        return error
    return None


# The places of the three numbers in the record, see trio_offload/_process/record.py.
_INDEX: Final = 0
_NUMBER: Final = 1
_COUNT: Final = 2
_SIZE: Final = 24  # bytes
_STEP: Final = 16  # items between two looks at the clock
_QUICK_STEP: Final = 64
_QUICK: Final = 1e-6  # seconds; items that take less are counted together
_FOR_EVER: Final = 1e18
_PLAIN: Final = frozenset({int, float, complex, str, bytes, bool, type(None)})
_PLAIN_OR_TUPLE: Final = _PLAIN | {tuple}
# They look at the frame that calls them; to them it has to be the user's main module.
_LOOK_AT_THEIR_CALLER: Final = (builtins.eval, builtins.exec, builtins.vars, builtins.dir, builtins.__import__)

# Of this process: where it counts, once that is known; and whether it is, or has, a fork.
_progress: tuple[tuple[int, int], Any] | None = None
_forked = False
_part: list[Any] = []
os.register_at_fork(after_in_child=_note_fork)
