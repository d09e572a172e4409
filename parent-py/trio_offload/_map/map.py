"""``map``: one function, many items, several workers at once.

    items ─▶ source ─▶ chunks ─▶ lanes, one worker each ─▶ results ─▶ the consumer
                ▲                                             │
                └────────────────── window ◀──────────────────┘

Rules that the code below keeps:

* An item is inside the window from the moment it is read until its chunk's results have been consumed. Only what is
  outside waits for the consumer; what is inside always comes to its end by itself.
* A lane holds a token of the limiter and a worker only while it has something to run. It waits with empty hands: a consumer that
  calls :func:`~trio_offload.run_sync` for each result must get a token, and so must everybody else, so a lane also
  lets go every now and then when it is never out of work.
* A chunk is run once. It goes to another worker only if it, or the part of it that is sent again, is known not to have begun.
* No lane raises. What goes wrong with an item becomes that item's outcome, anything else the end of the iteration; the
  consumer gets it from the iterator, and never in a group.
* An async iterable is read by one task from its beginning to its end, because it may have nurseries and
  cancel scopes open; an ordinary one is read by whichever lane needs an item.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import math
import os
import reprlib
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs
import trio

from trio_offload_worker._jobs import chunks
from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._protocol.frames import Frame, Kind

from .. import _clock
from .._exceptions import BrokenWorkerError, WorkerStartError, WorkerTimeoutError, is_interrupt
from .._pickling import calls as _calls
from .._pickling import payload as _payload
from .._process.processors import usable_processors
from .._worker.endings import describe_ending, load_exception
from .._worker.peer import logger
from .._worker.states import IDLE, RUNNING, CallNotRun
from .._worker.worker import Worker
from .results import Results
from .source import Chunk, Pace, Source

if TYPE_CHECKING:
    from types import TracebackType

    from .._context import WorkerContext
    from .._limiter import Limiter
    from .._options import MapSettings

DeliveredType = TypeVar("DeliveredType")


class Map(contextlib.AbstractAsyncContextManager[AsyncIterator[DeliveredType]], Generic[DeliveredType]):
    """One ``map``: the context manager. Inside of its block the lanes run; the results are an iterator of their own."""

    def __init__(
        self,
        context: WorkerContext,
        function: Callable[[Any], Any],
        items: Any,
        options: MapSettings,
        limiter: Limiter | None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"fn must be a callable that takes one item, got {function!r}")
        if not isinstance(items, (AsyncIterable, Iterable)):
            raise TypeError(f"items must be an iterable or an async iterable, got {items!r}")
        if options.chunk_size is None and (options.timeout is not None or context.retire is not bool):
            # A worker that is ended for a job, or after one, is that job's own.
            options = attrs.evolve(options, chunk_size=1)
        self._context = context
        self._function = function
        self._options = options
        self._limiter = limiter
        self._may_retire = context.retire is not bool
        self._to_fork = context._settings.fork
        self._processors = 0
        self._dump_call = _calls.dump_call_to_fork if self._to_fork else _calls.dump_call
        self._pace = Pace(options.chunk_size)
        self._source = Source(items)
        self._results: Results[DeliveredType] = Results(self, ordered=options.ordered, outcomes=options.return_outcomes)
        self._again: list[tuple[int, Chunk]] = []
        # Where lanes wait that have nothing to do, and where the reader of an async iterable waits. Not in one place: who is woken for
        # a chunk that was put back must be one that takes it.
        self._items = trio.lowlevel.ParkingLot()
        self._room_for_more = trio.lowlevel.ParkingLot()
        self._lanes: set[trio.CancelScope] = set()
        # Lanes that could not get a worker, and whether any ever had one.
        self._failed_lanes = 0
        self._had_worker = False
        self._stopped = False
        self._entered = False
        self._fatal: BaseException | None = None
        self._close_error: BaseException | None = None
        self._reader = trio.CancelScope()
        self._prepared: weakref.WeakSet[Worker] = weakref.WeakSet()
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), "big"))

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Results[DeliveredType]:
        if self._entered:
            raise RuntimeError("a map can be entered once; call map() again")
        self._entered = True
        await trio.lowlevel.checkpoint()
        if self._context._calls.closed:
            raise trio.ClosedResourceError("this worker context is closed")
        # So that a function that cannot travel is said once, here, and not of each item.
        self._dump_call(self._function, ())
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        if self._source.is_async:
            self._nursery.start_soon(self._read_ahead)
        self._add_lane()
        return self._results

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._results.close()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as problem:
            # Of the nursery's own, as no lane raises: Ctrl+C while the workers were being ended.
            if not is_interrupt(problem):
                raise
            raise KeyboardInterrupt from None
        if error is None and self._close_error is not None:
            raise self._close_error

    # --- what the results ask ---------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether no more results will come."""
        return not self._lanes

    def problem(self) -> BaseException | None:
        """Why there are no more results, if that is not because all items have been run."""
        return self._fatal or self._source.error

    def stop(self) -> None:
        """Kill what runs, and begin nothing more."""
        self._stopped = True
        self._source.end()
        self._reader.cancel()
        for scope in self._lanes:
            scope.cancel()

    def stop_reading(self) -> None:
        """What has been begun goes on, and nothing else is."""
        self._source.end()
        self._reader.cancel()
        self._items.unpark_all()

    def stop_after(self, start: int) -> None:
        """What comes after the chunk that begins with this item is not needed."""
        self._again = [entry for entry in self._again if entry[0] < start]
        heapq.heapify(self._again)
        self.stop_reading()

    def consumed(self, count: int) -> None:
        """So many items have left the window."""
        if count:
            self._source.inside -= count
            self._items.unpark_all()
            if self._source.is_async:
                self._room_for_more.unpark_all()

    def note(self, error: BaseException, chunk: Chunk, indexes: list[int]) -> None:
        """Say in the error which items it is about."""
        name = _payload.function_name(self._function)
        first, last = chunk.start + indexes[0], chunk.start + indexes[-1]
        if first == last:
            try:
                shown = reprlib.repr(chunk.items[indexes[0]])
            except Exception:
                shown = f"an instance of {type(chunk.items[indexes[0]]).__qualname__}"
            add_note(error, f"(item {first} of a map of {name}: {shown})")
        else:
            add_note(error, f"(items {first} to {last} of a map of {name})")

    # --- lanes ------------------------------------------------------------------------------------

    def _limit(self) -> int:
        """How many lanes there may be. A limiter's tokens may change meanwhile."""
        if self._options.workers is not None:
            return self._options.workers
        limiter = self._limiter
        tokens = limiter.total_tokens if type(limiter) is trio.CapacityLimiter else math.inf
        if tokens != math.inf:
            return max(1, int(tokens))
        if not self._processors:
            self._processors = usable_processors()
        return self._processors

    def _window(self) -> int:
        """How many items may be inside."""
        return self._options.window or self._pace.inside * self._limit() * self._pace.size

    def _chunk_size(self) -> int:
        if self._options.window is None:
            return self._pace.size
        # Every lane should get something of a window that is small.
        return min(self._pace.size, max(1, self._options.window // self._limit()))

    def _room(self) -> int:
        """How many items the next chunk may have; 0: there is no room for one. There always is if there is no other."""
        inside = self._source.inside
        if self._options.window is None:
            pace = self._pace
            size = pace.size
            # As by the other two methods, in a step instead of three: it is asked for each chunk.
            return (
                size if not inside or inside + size <= pace.inside * (self._options.workers or self._limit()) * size else 0
            )
        size = self._chunk_size()
        return size if not inside or inside + size <= self._window() else 0

    def _add_lane(self) -> None:
        """One more lane, if it could find something to do. Each adds the next when it has found something itself."""
        if self._stopped or self._fatal is not None or not (self._again or self._source.may_have_more):
            return
        if self._lanes and len(self._lanes) >= self._limit() - self._failed_lanes:
            return
        scope = trio.CancelScope()
        self._lanes.add(scope)
        self._nursery.start_soon(self._lane, scope)

    @trio.lowlevel.enable_ki_protection
    async def _lane(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while (chunk := await self._next_chunk()) is not None:
                    self._add_lane()
                    try:
                        await self._serve(chunk)
                    except WorkerStartError as error:
                        if not self._goes_on_without(error):
                            break
        except trio.Cancelled:
            # From around the block. The task ends here, and the one with the block has its own cancellation.
            pass
        except Exception as error:
            self._fail(error)
        finally:
            self._lanes.discard(scope)
            self._results.wake()

    def _goes_on_without(self, error: WorkerStartError) -> bool:
        """A lane could not have a worker started, and has put its chunk back. Whether it is to go on."""
        if self._had_worker and len(self._lanes) > 1:
            # The others go on without this one.
            self._failed_lanes += 1
            logger.warning("map goes on with a worker less: %s", error)
            return False
        if len(self._context._cache):
            # It can have that of a lane which has come to its end, say.
            return True
        self._fail(error)
        return False

    def _fail(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
        self.stop_reading()

    async def _next_chunk(self) -> Chunk | None:
        """Wait, with empty hands, for something to do; None: there will be no more."""
        await trio.lowlevel.checkpoint()
        while self._fatal is None:
            chunk = self._take()
            if chunk is not None:
                return chunk
            if not self._again and not self._source.may_have_more:
                return None
            await self._items.park()
        return None

    def _take(self) -> Chunk | None:
        """The next chunk, if there is one and room for it."""
        if self._again:
            return heapq.heappop(self._again)[1]
        source, pace = self._source, self._pace
        if source.is_async:
            return source.take(self._chunk_size())
        size = self._room()
        if not size:
            return None
        if pace.measures:
            began = time.perf_counter()
            chunk = source.read(size)
            if chunk is not None:
                pace.read(len(chunk.items), time.perf_counter() - began)
        else:
            chunk = source.read(size)
        if source.exhausted:
            # Those that wait for an item wait in vain.
            self._items.unpark_all()
        return chunk

    @trio.lowlevel.enable_ki_protection
    async def _read_ahead(self) -> None:
        source = self._source
        try:
            with self._reader:
                for count in itertools.count(1):
                    while source.inside >= self._window():
                        await self._room_for_more.park()
                    if not await source.read_one():
                        break
                    self._items.unpark_all()
                    if not count % _UNINTERRUPTED:
                        await trio.lowlevel.checkpoint()
            try:
                await source.close()
            except Exception as error:
                self._close_error = error
        except trio.Cancelled:
            pass  # As in a lane.
        finally:
            source.exhausted = True
            self._items.unpark_all()

    async def _serve(self, chunk: Chunk) -> None:
        """Take a token and a worker, and keep that fed as long as there is something to feed it with."""
        async with contextlib.AsyncExitStack() as stack:
            if self._limiter is not None:
                await stack.enter_async_context(self._limiter)
            context = self._context
            try:
                key = context._calls.enter()
            except trio.ClosedResourceError:
                self._put_back(chunk)
                raise
            stack.callback(context._calls.leave, key)
            try:
                worker, new = await context._ready_worker()
            except Exception:
                self._put_back(chunk)
                raise
            self._had_worker = True
            try:
                if await self._prepare(worker, chunk, new):
                    await self._feed(worker, chunk, new)
            finally:
                if worker.state is RUNNING:
                    # Cancelled between two answers.
                    await worker.end()
                if worker.state is IDLE and worker.will_retire():
                    # As after a call of `run_sync`: until it says so it would count as idle, and be sent calls.
                    worker.ask_to_retire()
                    context._begin_spare()
                context._cache.push(worker)

    async def _prepare(self, worker: Worker, chunk: Chunk, new: bool) -> bool:
        """Let the worker import the function first where the time of an item counts: the import is not the item's.

        Whether the worker takes the chunk.
        """
        if self._options.timeout is None or worker in self._prepared:
            return True
        self._prepared.add(worker)
        try:
            worker.submit(_calls.dump_chunk(chunks.prepare, self._function, (), to_fork=self._to_fork), prepares=True)
            # What comes of it does not matter: the item will find the same.
            await worker.answer()
        except CallNotRun:
            self._send_elsewhere(chunk, worker, new)
        except BrokenWorkerError as error:
            self._fail_all(chunk, error)
        return worker.state is IDLE

    async def _feed(self, worker: Worker, first: Chunk, new: bool) -> None:
        """Run chunks in the worker, until there is none, it has left, or its turn is over."""
        timeout = self._options.timeout
        begun: collections.deque[Chunk] = collections.deque()
        record = worker.record_identity
        takes_more = self._begin(worker, record, first, begun, new)
        clock = _clock.now
        now = since = sent = clock()
        until = now + _TURN
        answered = 0
        for answers in itertools.count(1):
            if takes_more and not begun and now < until and self._source.may_have_more and not self._room():
                # Most often the consumer has only not had its turn yet.
                await trio.lowlevel.checkpoint()
            # What has been read already comes first: then all that follow go out together.
            if takes_more and now < until and not (begun and worker.has_answer):
                if answered:
                    self._pace.answered(answered, now - sent, waits=not begun)
                    answered = 0
                most = self._most_in_flight()
                while len(begun) < most and not self._stopped:
                    chunk = None if self._may_retire and worker.will_retire(len(begun)) else self._take()
                    if chunk is None:
                        break
                    takes_more = self._begin(worker, record, chunk, begun, new)
                    if not takes_more:
                        break
                    if len(begun) == 1:
                        # The time that it took to pickle it is not its own.
                        since = clock()
                sent = since
            if not begun:
                return
            try:
                if timeout is None:
                    result = await worker.answer()
                else:
                    result = await self._answer_in_time(worker, since, timeout)
            except CallNotRun:
                for chunk in begun:
                    self._send_elsewhere(chunk, worker, new)
                return
            except (BrokenWorkerError, WorkerTimeoutError) as error:
                chunk = begun.popleft()
                for place, other in enumerate(begun):
                    if place < worker.answered_too_late:
                        self._fail_all(other, self._ended_for_another(worker))
                    else:
                        self._put_back(other)
                if isinstance(error, BrokenWorkerError):
                    self._break(chunk, worker, error)
                else:
                    self._fail_all(chunk, error)
                return
            new = False
            now = clock()
            if now >= until and not self._is_waited_for():
                until = now + _TURN
            self._accept(begun.popleft(), result, now - since, worker.answer_size)
            since = now
            answered += 1
            if not answers % _UNINTERRUPTED:
                # As long as answers are there already, none of them is waited for.
                await trio.lowlevel.checkpoint()

    def _most_in_flight(self) -> int:
        """How many chunks a worker may have. Towards the end of the items each lane leaves some for the others."""
        most = self._pace.in_flight
        share = self._source.left / (2 * self._limit() * self._pace.size)
        return most if share >= most else 1 + int(share)

    def _is_waited_for(self) -> bool:
        """Whether somebody else may want the token. To let go of it means to let the worker run dry."""
        limiter = self._limiter
        if limiter is None:
            return False
        return type(limiter) is not trio.CapacityLimiter or limiter.statistics().tasks_waiting > 0

    def _begin(
        self, worker: Worker, record: tuple[int, int], chunk: Chunk, begun: collections.deque[Chunk], new: bool
    ) -> bool:
        """Send a chunk off, unless it has come to nothing: its items fail, or are tried one by one.

        Return False if the worker must get no more chunks. It is given back once it has answered.
        """
        payload = self._pickled(chunk, record)
        if payload is not None:
            chunk.sent = sum(payload.lengths)
            try:
                worker.submit(payload)
            except CallNotRun:
                if begun:
                    self._put_back(chunk)
                else:
                    self._send_elsewhere(chunk, worker, new)
                return False
            begun.append(chunk)
        return True

    async def _answer_in_time(self, worker: Worker, since: float, seconds: float) -> tuple[Any, BaseException | None]:
        with _clock.move_on_after(since + seconds - _clock.now()):
            # Where this process has little of a processor the answer may be older than the deadline's end is seen. The worker has
            # gone on to the next item then, which must not be run once more.
            return await worker.answer(looks_again=True)
        raise WorkerTimeoutError(
            f"an item was not finished within {seconds:g} seconds; worker {worker.process.pid}, which ran it, was killed",
            seconds,
        )

    def _ended_for_another(self, worker: Worker) -> WorkerTimeoutError:
        """Of an item that a worker may have begun in the moment between its look for a late answer and its end."""
        seconds = self._options.timeout or 0.0
        return WorkerTimeoutError(
            f"the item before this one was not finished within {seconds:g} seconds; worker {worker.process.pid}, which ran it, was "
            "killed, and may have begun this one by then",
            seconds,
        )

    def _pickled(self, chunk: Chunk, record: tuple[int, int]) -> _payload.Payload | None:
        """The chunk as a call to the worker with this record; None if it has come to nothing."""
        function, items = self._function, chunk.items
        if len(items) == 1:
            try:
                return self._dump_call(function, (items[0],))
            except Exception as error:
                self._results.deposit(chunk, [], {0: error})
                return None
        try:
            plain: Sequence[Any] | None = items
            pickled = None
            if type(items) is range:
                plain = items.start, items.stop, items.step
            elif not chunks.are_builtin_values(items):
                plain, pickled = None, [_calls.dump_item(item, function, to_fork=self._to_fork) for item in items]
            chunk.number = next(self._numbers)
            budget = None if self._options.chunk_size is not None else _BUDGET
            return _calls.dump_chunk(
                chunks.run,
                function,
                (plain, pickled, chunk.number, record, budget),
                to_fork=self._to_fork,
                small=self._source.is_plain,
            )
        except Exception:
            # One of them, or all; each finds out for itself.
            for index, item in enumerate(items):
                self._put_back(Chunk(chunk.start + index, [item]))
            return None

    # --- what becomes of a chunk --------------------------------------------------------------------

    def _put_back(self, chunk: Chunk) -> None:
        """It has not begun: whoever is free next takes it, before anything new."""
        heapq.heappush(self._again, (chunk.start, chunk))
        self._items.unpark()

    def _send_elsewhere(self, chunk: Chunk, worker: Worker, new: bool) -> None:
        """Its worker had left. It is a bad sign if one after the other does that was started for it."""
        if new:
            chunk.lost += (worker.process,)
        if len(chunk.lost) < _MOST_LOST:
            self._put_back(chunk)
            return
        name = _payload.function_name(self._function)
        self._fail_all(
            chunk,
            BrokenWorkerError(
                f"{len(chunk.lost)} workers that were started for a call of {name} left one after the other before they had "
                "begun with it; does something that init starts end them?",
                *chunk.lost,
            ),
        )

    def _fail_all(self, chunk: Chunk, error: BaseException) -> None:
        self._results.deposit(chunk, [], dict.fromkeys(range(len(chunk.items)), error))

    def _break(self, chunk: Chunk, worker: Worker, error: BrokenWorkerError) -> None:
        """The worker ended while it ran the chunk."""
        count, progress = len(chunk.items), worker.progress
        if count == 1 or progress.chunk != chunk.number or progress.index >= count:
            # It was this item, or there is no knowing which.
            self._fail_all(chunk, error)
            return
        begun, end = progress.index, min(progress.index + max(progress.count, 1), count)
        failures: dict[int, BaseException] = {}
        if begun:
            lost = BrokenWorkerError(
                f"the result of an item was lost: worker {worker.process.pid}, which had run it, {describe_ending(worker.process)} "
                f"when it ran a later one of the same chunk of {count} items, before it had sent any result of that. With "
                "chunk_size=1 every result is sent as soon as it is there",
                worker.process,
            )
            lost.crash = error.crash
            lost.__cause__ = error
            failures = dict.fromkeys(range(begun), lost)
        failures.update(dict.fromkeys(range(begun, end), error))
        if end < count:
            self._put_back(Chunk(chunk.start + end, chunk.items[end:]))
            chunk.items = chunk.items[:end]
        self._results.deposit(chunk, [], failures)

    def _accept(self, chunk: Chunk, result: tuple[Any, BaseException | None], seconds: float, answer_size: int) -> None:
        """The worker has answered."""
        count = len(chunk.items)
        value, error = result
        if error is not None:
            # If there are several it was no item's fault: the function could not be unpickled, say.
            self._pace.measured(count, seconds, chunk.sent + answer_size)
            self._fail_all(chunk, error)
            return
        if count == 1:
            self._pace.measured(1, seconds, chunk.sent + answer_size)
            self._results.deposit(chunk, [value], {})
            return
        values, pickled, failed, done, worked = value
        self._pace.measured(done, worked, chunk.sent + answer_size)
        failures = {index: _rebuilt(*failure) for index, failure in failed.items()} if failed else {}
        if pickled is not None:
            values = []
            for index, pair in enumerate(pickled):
                value = None
                if pair is not None:
                    try:
                        value = _calls.load_item(*pair)
                    except BaseException as problem:
                        add_note(problem, "(while unpickling the result of a job)")
                        failures[index] = problem
                values.append(value)
        if done < count:
            self._put_back(Chunk(chunk.start + done, chunk.items[done:]))
            chunk.items = chunk.items[:done]
        self._results.deposit(chunk, values, failures)


_TURN: Final = 0.05  # seconds after which a lane lets others have its token
_BUDGET: Final = 0.1  # seconds after which a worker gives back what it has not begun of a chunk
_UNINTERRUPTED: Final = 16  # answers, or items of an async iterable, before other tasks have their turn
_MOST_LOST: Final = 5


def _rebuilt(stage: str, segments: list[Any], type_name: str, message: str, traceback: str) -> BaseException:
    body = {"stage": stage, "type": type_name, "message": message, "traceback": traceback}
    return load_exception(Frame(Kind.RAISED, 0, segments, body))
