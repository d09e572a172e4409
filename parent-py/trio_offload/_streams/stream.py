"""A stream: the values of a generator that runs in a worker.

The generator's call is an ordinary one, in a task of the block. It gets a handle, by which its job
sends the values (``values.py``). Rules:

* An error comes after the values that were sent before it.
* At the end of the block the call is cancelled, if it still runs. So its job is told, and the next
  ``yield`` raises ``GeneratorExit``.
* The call's error is raised once: by the iteration, or at the end of the block if the generator's
  cleanup has raised it. An error that nobody has waited for when the block was left is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import outcome
import trio
from trio.lowlevel import enable_ki_protection

from trio_offload_worker import PublicType

from .._exceptions import is_interrupt
from .._sync.waiters import current_owner
from .values import LATE, Values, load

if TYPE_CHECKING:
    from .statistics import StreamStatistics

ValueType = TypeVar("ValueType", covariant=True)
ResultType = TypeVar("ResultType", covariant=True)


class Stream(Generic[ValueType, ResultType], metaclass=PublicType):
    """The values of a generator function that runs in a worker, made by :func:`stream`.

    ::

        async with trio_offload.stream(read_log, "app.log") as lines:
            async for line in lines:
                if line.startswith("ERROR"):
                    print(line)
                    break  # the rest is not read, because the block closes the generator

    It is an async context manager, and in the block an async iterator for one task.
    ``Stream[int, str]`` has values of the type `int`, and its generator returns a `str`.
    """

    _is_constructible = False

    def __init__(self, start: Callable[[Values], Awaitable[ResultType]], window: int = 16, chunk: int | None = None) -> None:
        """Make a stream.

        Args:
            start: Runs the call, with the argument for the job's
                :func:`~trio_offload_worker._requests.streams.send_values`. Returns its result.
            window: Largest number of values that have been yielded and not been taken.
            chunk: Largest number of values that travel together. None means that it depends on the
                window.
        """
        self._start = start
        self._values = Values(window, chunk)
        self._scope = trio.CancelScope()
        self._outcome: outcome.Value[ResultType] | outcome.Error | None = None
        self._manager: Any = None
        # The values that the consumer gets before the next checkpoint.
        self._batch: list[Any] = []
        self._rest: Iterator[Any] = iter(())
        self._has_ended = False
        self._is_left = False
        self._has_raised_late = False
        self._is_exhausted = False

    @enable_ki_protection
    async def __aenter__(self) -> Stream[ValueType, ResultType]:
        if self._manager is not None:
            raise RuntimeError("a stream can be entered once; call stream() again")
        await trio.lowlevel.checkpoint()
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        nursery.start_soon(self._run)
        return self

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_left = True
        self._values.taker = None
        self._scope.cancel()
        self._rest = iter(())
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as problem:
            # The task catches its errors, so this is Ctrl+C while the call was ended.
            if not is_interrupt(problem):
                raise
            raise KeyboardInterrupt from None
        finally:
            self._values.close()
        if self._has_raised_late and isinstance(self._outcome, outcome.Error):
            raise self._outcome.error

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a stream cannot be pickled or copied. For a job, use the receiving end of an open_channel()")

    def __aiter__(self) -> Stream[ValueType, ResultType]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, ValueType]:
        # Returns the coroutine, because another one around it would slow each step.
        return self._next()

    async def _next(self) -> ValueType:
        while True:
            for value in self._rest:
                if type(value) in LATE:
                    loaded: ValueType = load(value)
                    return loaded
                plain: ValueType = value
                return plain
            if not await self._advance():
                raise StopAsyncIteration

    @enable_ki_protection
    async def _advance(self) -> bool:
        """Wait for further values. Return False at the end."""
        values = self._values
        if self._manager is None:
            raise TypeError("a stream runs inside a block: write `async with stream(genfn) as values:`, and iterate there")
        if self._batch:
            batch, self._batch = self._batch, []
            values.note_taken(batch)
        values.taker = current_owner()
        if len(values):
            await trio.lowlevel.checkpoint()
        while not self._is_left and not len(values) and not self._has_ended:
            await values.wait()
        if self._is_left:
            raise trio.ClosedResourceError("the block of this stream has ended")
        if len(values):
            self._batch = values.take()
            self._rest = iter(self._batch)
            return True
        await trio.lowlevel.checkpoint()
        if not self._is_exhausted:
            self._is_exhausted = True
            if self._outcome is None:
                # The consumer has a shield from a cancellation that has ended the call.
                raise trio.BrokenResourceError("the generator's call was cancelled")
            self._outcome.unwrap()
        return False

    @property
    def result(self) -> ResultType:
        """The value that the generator has returned.

        Raises:
            RuntimeError: It has not returned.
        """
        if not isinstance(self._outcome, outcome.Value):
            raise RuntimeError(
                "the generator has not returned: it still runs, has raised, or its stream was left before its end"
            )
        return self._outcome.value

    def statistics(self) -> StreamStatistics:
        """Return statistics of the stream."""
        return self._values.statistics()

    @enable_ki_protection
    async def _run(self) -> None:
        try:
            with self._scope:
                self._outcome = outcome.Value(await self._start(self._values))
        except trio.Cancelled:
            pass  # From a scope around the block, whose own task gets its own cancellation.
        except Exception as error:
            self._outcome = outcome.Error(error)
            self._has_raised_late = self._is_left
        finally:
            self._has_ended = True
            self._values.wake()
