"""The fate of a chunk: pickled, sent again, split, or finished with results and errors.

A chunk runs once. It goes to another worker only if it is known not to have begun. The same holds
for the part of a chunk that is sent again.
"""

from __future__ import annotations

import functools
import itertools
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from trio_offload_worker._jobs import chunks as _worker_side
from trio_offload_worker._jobs.notes import add_note, has_main_failed
from trio_offload_worker._protocol.frames import Frame, Kind

from .._exceptions import BrokenWorkerError
from .._pickling import calls as _calls
from .._pickling.payload import Grant, Payload, exporting, function_name, release
from .._worker.endings import MAX_LOST, contained, describe_ending, load_exception, workers_lost
from . import failures as _failures
from .holding import Held
from .source import Chunk

if TYPE_CHECKING:
    from .._worker.worker import Worker
    from .pace import AdaptiveBatching
    from .results import ResultQueue

# Seconds after which a worker gives back the items of a measured chunk that it has not begun.
_CHUNK_TIME_LIMIT: Final = 0.1


class Sink(Protocol):
    """The map, as its chunks see it."""

    pace: AdaptiveBatching
    results: ResultQueue[Any]

    def put_back(self, chunk: Chunk) -> None:
        """Let the next free lane take a chunk that has not begun."""


@attrs.define(eq=False)
class Task:
    """The function of a map, and how calls of it are pickled."""

    function: Callable[..., Any]
    unpacks: bool
    """True if an item is a tuple of arguments."""
    to_fork: bool
    """True if the workers are forks of this process."""
    time_limit: float | None
    """Seconds after which a worker gives back the rest of a chunk. None means never."""
    small: bool
    """True if chunks are ranges, whose pickles are small."""
    dump_call: Callable[..., Payload]
    numbers: itertools.count[int]
    """Numbers of chunks. Workers write them into their records."""
    held: Held | None
    """The function, if workers hold it."""

    def for_holder(self) -> Task:
        """Return the task as a worker gets it that holds the function."""
        return self if self.held is None else attrs.evolve(self, function=self.held)


def make_task(function: Callable[..., Any], *, unpacks: bool, to_fork: bool, measures: bool, small: bool) -> Task:
    """Return the task of a map. ``measures`` is true if the chunk size is measured."""
    return Task(
        function,
        unpacks,
        to_fork,
        _CHUNK_TIME_LIMIT if measures else None,
        small,
        _calls.dump_call_to_fork if to_fork else _calls.dump_call,
        itertools.count(int.from_bytes(os.urandom(7), "big")),
        Held(function) if type(function) is functools.partial else None,
    )


def dump_import(task: Task) -> Payload:
    """Return a call that imports the function in the worker, or lets it hold the function."""
    if task.held is not None:
        payload = task.held.dump(to_fork=task.to_fork)
        if not payload.grants:
            return payload
        # The handles in it serve one call each, so the function goes with every chunk.
        release(payload)
        task.held = None
    return _calls.dump_chunk(_worker_side.prepare, task.function, (), to_fork=task.to_fork)


def dump(sink: Sink, task: Task, chunk: Chunk, record: tuple[int, int]) -> Payload | None:
    """Return the chunk as a call to the worker with this record.

    None means that the chunk is settled: its item has failed, or its items follow one by one.
    """
    items = chunk.items
    if len(items) == 1:
        try:
            return task.dump_call(task.function, _arguments_of(items[0]) if task.unpacks else (items[0],))
        except Exception as error:
            sink.results.deposit(chunk, [], {0: error})
            return None
    try:
        return _dump_several(task, chunk, record)
    except Exception:
        # One item is at fault, or the function. Each item finds out for itself.
        for index, item in enumerate(items):
            sink.put_back(Chunk(chunk.start + index, [item]))
        return None


def _dump_several(task: Task, chunk: Chunk, record: tuple[int, int]) -> Payload:
    items, function = chunk.items, task.function
    if task.unpacks:
        items = [*map(_arguments_of, items)]
    plain: Sequence[Any] | None = items
    pickled = None
    grants: tuple[Grant, ...] = ()
    if type(items) is range:
        plain = items.start, items.stop, items.step
    elif not _worker_side.are_builtin_values(items):
        plain = None
        with exporting() as export:
            pickled = [_calls.dump_item(item, function, to_fork=task.to_fork) for item in items]
        grants = tuple(export.grants.values())
    chunk.number = next(task.numbers)
    payload = _calls.dump_chunk(
        _worker_side.run_unpacked if task.unpacks else _worker_side.run,
        function,
        (plain, pickled, chunk.number, record, task.time_limit),
        to_fork=task.to_fork,
        small=task.small,
    )
    if grants:
        payload.grants = (*payload.grants, *grants)
    return payload


def _arguments_of(item: Any) -> tuple[Any, ...]:
    """Return the arguments of an item of ``starmap``.

    Raises:
        TypeError: the item is none. Text, bytes and dictionaries are iterables by mistake.
    """
    if type(item) is tuple:
        return item
    if isinstance(item, Iterable) and not isinstance(item, (str, bytes, bytearray, Mapping)):
        return tuple(item)
    raise TypeError(
        f"an item of starmap must be a tuple of positional arguments, got {reprlib.repr(item)}. Use map for functions "
        "of one argument, and functools.partial for keyword arguments"
    )


def resend(sink: Sink, task: Task, chunk: Chunk, worker: Worker, *, is_new: bool) -> None:
    """Put back a chunk whose worker exited before it began.

    The chunk fails after several new workers in a row, because starting more would not help.
    """
    if is_new:
        chunk.lost += (worker.process,)
    if len(chunk.lost) < MAX_LOST:
        sink.put_back(chunk)
        return
    fail(sink, chunk, workers_lost(function_name(task.function), chunk.lost))


def fail(sink: Sink, chunk: Chunk, error: BaseException) -> None:
    """Finish a chunk: each of its items fails with the same error."""
    sink.results.deposit(chunk, [], dict.fromkeys(range(len(chunk.items)), error))


def fail_broken(sink: Sink, task: Task, chunk: Chunk, worker: Worker, error: BrokenWorkerError) -> None:
    """Finish a chunk whose worker ended while it ran, and put back the items not begun."""
    count, progress = len(chunk.items), worker.progress
    if count == 1 or progress.chunk != chunk.number or progress.index >= count:
        # It was this item, or the item is unknown.
        fail(sink, chunk, error)
        return
    begun, end = progress.index, min(progress.index + max(progress.count, 1), count)
    failures: dict[int, BaseException] = {}
    if begun:
        lost = BrokenWorkerError(
            f"the result of an item was lost: worker {worker.process.pid} had run it, and "
            f"{describe_ending(worker.process)} while it ran a later item of the same chunk of {count} items. "
            "The results of a chunk are sent together. With chunk_size=1, each result is sent at once",
            worker.process,
        )
        lost.crash = error.crash
        lost.__cause__ = error
        if end == begun + 1:
            # A caller that gets only the first error finds the fatal item in its cause.
            _failures.mark(error, task.function, chunk, [begun])
        failures = dict.fromkeys(range(begun), lost)
    failures.update(dict.fromkeys(range(begun, end), error))
    _put_back_from(sink, chunk, end)
    sink.results.deposit(chunk, [], failures)


def accept(
    sink: Sink,
    chunk: Chunk,
    result: tuple[Any, BaseException | None],
    seconds: float,
    answer_size: int,
) -> None:
    """Finish a chunk that the worker has answered, and put back the items not begun.

    Raises:
        Exception: as :func:`refuse_main`.
    """
    count = len(chunk.items)
    value, error = result
    if error is not None:
        # A fault of the whole chunk: for example, the function could not be unpickled.
        refuse_main(error)
        sink.pace.measured(count, seconds, chunk.sent + answer_size)
        fail(sink, chunk, error)
        return
    if count == 1:
        if sink.pace.measures:
            sink.pace.measured(1, seconds, chunk.sent + answer_size)
        sink.results.deposit(chunk, [value], {})
        return
    values, pickled, failed, done, worked = value
    sink.pace.measured(done, worked, chunk.sent + answer_size)
    failures = {index: _load_failure(*failure) for index, failure in failed.items()} if failed else {}
    if pickled is not None:
        values = _load_values(pickled, failures)
    _put_back_from(sink, chunk, done)
    sink.results.deposit(chunk, values, failures)


def refuse_main(error: BaseException | None) -> None:
    """Raise the error of a worker that could not load the main script. It ends the map.

    The items are innocent, and each further chunk would run the top of the script again.
    """
    if error is not None and has_main_failed(error):
        raise error


def _put_back_from(sink: Sink, chunk: Chunk, index: int) -> None:
    if index < len(chunk.items):
        sink.put_back(Chunk(chunk.start + index, chunk.items[index:]))
        chunk.items = chunk.items[:index]


def _load_values(pickled: list[Any], failures: dict[int, BaseException]) -> list[Any]:
    """Unpickle results one by one. Errors go into ``failures``."""
    values = []
    for index, pair in enumerate(pickled):
        value = None
        if pair is not None:
            try:
                value = _calls.load_item(*pair)
            except BaseException as problem:
                add_note(problem, "(while unpickling the result of a job)")
                failures[index] = contained(problem)
        values.append(value)
    return values


def _load_failure(stage: str, segments: list[Any], type_name: str, message: str, traceback: str) -> BaseException:
    body = {"stage": stage, "type": type_name, "message": message, "traceback": traceback}
    return contained(load_exception(Frame(Kind.RAISED, 0, segments, body)))
