"""Run the items of a chunk of ``map``. Each item has its result or its exception.

Invariants:

* An item does not affect the others, even if its arguments cannot be unpickled or its result cannot
  be pickled. Numbers, text and other builtin values share a pickle, because they cannot fail. Any
  other item has a separate pickle, which also keeps two items from becoming one object here.
* The index of an item is in the record before the item starts. The record outlives this process, so
  the parent can tell which items had started when a worker died. So an item runs once at most.
  Counting takes about 40 ns. Items that take less than a microsecond are therefore counted in
  groups; if one of them kills the worker, the parent does not know which.
* Results and exceptions are pickled together with the worker's answer. Only then does
  pickling leave the user's main script unloaded (``_jobs/main_module.py``).
* If an item forks, the copy of this process stops after that item.

The parent imports this module too, for the definitions that both sides share.
"""

from __future__ import annotations

import _pickle
import builtins
import os
from itertools import chain
from time import perf_counter

from .._protocol.parts import OUT_OF_BAND, Parts
from .notes import has_main_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    Item = tuple[bytes, list[Any]]
    """The pickle of an argument or a result, and its buffers."""
    Outcome = tuple[list[Any] | None, list[Item | None] | None, dict[int, Any], int, float]


def are_builtin_values(values: Sequence[Any]) -> bool:
    """True if values are immutable builtin objects, or tuples of such, that may share a pickle."""
    kinds = set(map(type, values))
    if kinds <= _BUILTIN_TYPES:
        return True
    if not kinds <= _BUILTIN_TYPES_OR_TUPLE:
        return False
    return set(map(type, chain.from_iterable(value for value in values if type(value) is tuple))) <= _BUILTIN_TYPES


def items_in(plain: list[Any] | tuple[int, int, int]) -> list[Any]:
    """Return the list, or make it from the start, stop and step of a range.

    A range travels as three numbers: to find its class by name takes as long as 40 numbers.
    """
    return list(range(*plain)) if isinstance(plain, tuple) else plain


def run(
    function: Callable[..., Any],
    spec: tuple[list[Any] | tuple[int, int, int] | None, list[Item] | None, int, tuple[int, int], float | None],
    call: Callable[[Any], Any] | None = None,
) -> Chunk | Outcome:
    """Run a chunk. Return its outcome, ready to pickle if pickling it cannot fail.

    Args:
        function: called with each item.
        spec: in this order

            * the items as :func:`items_in` takes them, if they are builtin values; else None;
            * else the items, each with its own pickle;
            * the chunk's number, by which the parent matches the record to the chunk;
            * the device and inode of the record;
            * seconds after which no further item starts; the first item always runs. None means no
              limit.
        call: called in place of the function, which messages name.
    """
    items, pickled, number, record, budget = spec
    global _interrupted
    _interrupted = False
    _after_item.clear()
    progress = _progress_in(record)
    # The number is cleared first and set last: it marks the other fields as this chunk's.
    progress[_NUMBER] = 0
    progress[_INDEX], progress[_COUNT] = 0, 1
    progress[_NUMBER] = number
    chunk = Chunk(function)
    process = os.getpid()
    began = perf_counter()
    until = began + (_NO_TIMEOUT if budget is None else budget)
    if call is None:
        call = function
        if any(function is builtin for builtin in _FRAME_INSPECTORS):
            call = _made_in_main("lambda function: lambda item: function(item)", function)
    rest: Any = pickled if items is None else items_in(items)
    run_some: Any = _run_plain if pickled is None else _run_pickled
    step, last = _STEP, began
    done = 0
    while done < len(rest):
        # Reading the clock takes as long as a small job, so read it once per group of items.
        done = run_some(call, rest, done, done + step, progress, chunk)
        if _interrupted:
            if os.getpid() != process:
                # The executor ends the copy, with the exception that ended the item, if any.
                if done - 1 in chunk.errors:
                    raise chunk.errors[done - 1][1]
                return chunk
            _finish_item()
        now = perf_counter()
        if now > until:
            break
        if pickled is None:
            is_quick = now - last < step * _QUICK
            run_some, step = (_run_quickly, _QUICK_STEP) if is_quick else (_run_plain, _STEP)
        last = now
    progress[_INDEX] = len(rest)
    chunk.seconds = perf_counter() - began
    return chunk if chunk.errors or not are_builtin_values(chunk.results) else chunk.outcome(chunk.results, None, {})


def run_unpacked(function: Callable[..., Any], spec: Any) -> Chunk | Outcome:
    """Run a chunk of ``starmap``, as :func:`run`: each item is a tuple of arguments."""
    if any(function is builtin for builtin in _FRAME_INSPECTORS):
        return run(function, spec, _made_in_main("lambda function: lambda item: function(*item)", function))
    return run(function, spec, lambda item: function(*item))


def prepare(function: Callable[[Any], Any], nothing: tuple[()]) -> None:
    """Make the worker import the function: the pickle of a call refers to it."""


def hold(function: Callable[..., Any], number: tuple[int]) -> None:
    """Keep a function, with all that it binds, for the chunks that name it. It replaces another."""
    global _held
    _held = number[0], function


def held(number: int) -> Callable[..., Any]:
    """Return the function that :func:`hold` kept."""
    if _held is None or _held[0] != number:
        raise LookupError("this worker does not hold the function of this map; this is an error in trio-offload")
    return _held[1]


def release(number: int) -> None:
    """Drop the function that :func:`hold` kept."""
    global _held
    if _held is not None and _held[0] == number:
        _held = None


class Chunk:
    """The outcome of a chunk. It pickles as an :data:`Outcome`.

    An outcome is ``(results or None, pickled results or None, failures, count, seconds)``.
    ``count`` is the number of items that ran, from the first of the chunk. The result of a failed
    item is None, and ``failures`` maps its index to ``(stage, segments, type, message,
    traceback)``, as in a RAISED of PROTOCOL.md.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.results: list[Any] = []
        self.errors: dict[int, tuple[str, BaseException, Any]] = {}
        self.seconds = 0.0

    def failed(self, stage: str, error: BaseException) -> None:
        """Record that the next item failed."""
        self.errors[len(self.results)] = (stage, error, error.__traceback__)
        # Keep the traceback apart: if a later item raises the same object, its traceback grows.
        BaseException.with_traceback(error, None)
        self.results.append(None)

    def outcome(self, results: list[Any] | None, pickled: list[Item | None] | None, failures: dict[int, Any]) -> Outcome:
        return results, pickled, failures, len(self.results), self.seconds

    def __reduce__(self) -> tuple[Any, ...]:
        results: list[Any] | None = self.results
        pickled: list[Item | None] | None = None
        if not are_builtin_values(self.results):
            results, pickled = None, [self._dump(index) for index in range(len(self.results))]
        failures = {index: _describe(*failure) for index, failure in self.errors.items()}
        return tuple, (self.outcome(results, pickled, failures),)

    def _dump(self, index: int) -> Item | None:
        if index in self.errors:
            return None
        # Drop each result once it is pickled. Both forms of all results would take twice the
        # memory.
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
    """Run the items from ``first`` to ``end``. Return how many items of the chunk have run."""
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
        if _interrupted:
            return index
    return index


def _run_quickly(function: Callable[[Any], Any], items: list[Any], first: int, end: int, progress: Any, chunk: Chunk) -> int:
    """Run the items like :func:`_run_plain`, but count them together.

    For items that take less time than counting them one by one.
    """
    global _remaining
    _remaining = part = items[first:end]
    # The count comes first. If the worker is killed in between, the record names too many items
    # rather than too few.
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
            # Free the item before the next one is made: two large arguments need not coexist.
            del item
        except BaseException as error:
            if stage == "unpickle" and has_main_failed(error):
                # Each further item would run the main script again.
                raise
            chunk.failed(stage, error)
        index += 1
        if _interrupted:
            return index
    return index


def _dump(value: Any) -> Item:
    buffers: list[_pickle.PickleBuffer] = []

    def take(buffer: _pickle.PickleBuffer) -> bool:
        """Keep a large buffer out of band (False). Put a small one into the pickle (True)."""
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
    """Return the array that takes the progress.

    It is the front of the record. If the record cannot be mapped it is a list, which is not read.
    """
    global _progress
    # A forked worker inherits the mapping of its origin, which may be another worker.
    if _progress is None or _progress[0] != record:
        _progress = record, _map_record(record) or [0, 0, 0]
    return _progress[1]


def _map_record(record: tuple[int, int]) -> Any:
    from .._system.linux import map_for_life  # needed once

    for descriptor in range(3, 256):
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) == record:
                return map_for_life(descriptor, _SIZE)
        except (OSError, ValueError):
            continue
    return None


def progress() -> tuple[int, int, int] | None:
    """Return the number of the last chunk, the index of its item, and the items counted with it."""
    if _progress is None:
        return None
    words = _progress[1]
    return words[_NUMBER], words[_INDEX], words[_COUNT]


def call_after_item(function: Callable[[], object]) -> None:
    """Call a function once when the running item has ended. Does nothing unless a chunk runs."""
    if function not in _after_item:
        _after_item.append(function)
    _interrupt()


def _finish_item() -> None:
    global _interrupted
    _interrupted = False
    while _after_item:
        _after_item.pop()()


def _interrupt() -> None:
    """Let :func:`run` look after the running item."""
    global _interrupted
    _interrupted = True
    _remaining.clear()


def _made_in_main(source: str, function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Call the value of ``source``, an expression in the user's main module, with ``function``."""
    from .guards import evaluate_in_main

    made: Callable[[Any], Any] = evaluate_in_main(source)(function)
    return made


def _refusal(function: Callable[..., Any], value: Any) -> TypeError | None:
    """Return the error for a result that only an event loop could run.

    Close the result first, so that Python does not warn about it.
    """
    from .guards import refuse_asynchronous

    try:
        refuse_asynchronous(function, value)
    except TypeError as error:
        return error
    return None


# Indexes of the three numbers in the record, see trio_offload/_process/record.py.
_INDEX: Final = 0
_NUMBER: Final = 1
_COUNT: Final = 2
_SIZE: Final = 24  # bytes
_STEP: Final = 16  # items between two reads of the clock
_QUICK_STEP: Final = 64
_QUICK: Final = 1e-6  # seconds; quicker items are counted together
_NO_TIMEOUT: Final = 1e18
_BUILTIN_TYPES: Final = frozenset({int, float, complex, str, bytes, bool, type(None)})
_BUILTIN_TYPES_OR_TUPLE: Final = _BUILTIN_TYPES | {tuple}
# These functions inspect the calling frame, which must belong to the user's main module.
_FRAME_INSPECTORS: Final = (builtins.eval, builtins.exec, builtins.vars, builtins.dir, builtins.__import__)

# State of this process: the mapped record, and whether the item that runs is the last of its group,
# because it has forked (the original process runs the remaining items), or functions wait for its
# end.
_progress: tuple[tuple[int, int], Any] | None = None
_interrupted = False
_after_item: Final[list[Callable[[], object]]] = []
_held: tuple[int, Callable[..., Any]] | None = None
_remaining: list[Any] = []
os.register_at_fork(after_in_child=_interrupt)
