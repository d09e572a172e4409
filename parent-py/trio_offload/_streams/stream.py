"""A stream: the values of a generator that runs in a worker.

The generator's call is an ordinary one, in a task of the block. It gets a channel, whose buffer is
the window. Rules:

* An error comes after the values that were sent before it.
* At the end of the block the call is cancelled, if it still runs. So its job is told, and the next
  ``yield`` raises ``GeneratorExit``.
* The call's error is raised once: by the iteration, or at the end of the block if the generator's
  cleanup has raised it. An error that nobody has waited for when the block was left is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import outcome
import trio
from trio.lowlevel import enable_ki_protection

from .._exceptions import is_interrupt
from .._sync.channels import MovedEnd, ReceiveChannel, SendChannel
from .._sync.open_channel import open_channel

ValueType = TypeVar("ValueType", covariant=True)
ResultType = TypeVar("ResultType", covariant=True)


class Stream(Generic[ValueType, ResultType]):
    """The values of a generator function that runs in a worker, made by :func:`stream`.

    It is an async context manager, and in the block an async iterator for one task.

    Args:
        start: Runs the call, with the argument for the job's
            :func:`~trio_offload_worker._requests.streams.send_values`. Returns the call's result.
        window: Largest number of values that have been sent and not been consumed.
    """

    def __init__(self, start: Callable[[MovedEnd], Awaitable[ResultType]], window: int) -> None:
        self._start = start
        self._window = window
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._outcome: outcome.Value[ResultType] | outcome.Error | None = None
        self._manager: Any = None
        self._values: ReceiveChannel[ValueType] | None = None
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
        send, self._values = open_channel[Any](self._window)
        nursery.start_soon(self._run, send)
        return self

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_left = True
        self._scope.cancel()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as problem:
            # The task catches its errors, so this is Ctrl+C while the call was ended.
            if not is_interrupt(problem):
                raise
            raise KeyboardInterrupt from None
        finally:
            if self._values is not None:
                self._values.close()
        if self._has_raised_late and isinstance(self._outcome, outcome.Error):
            raise self._outcome.error

    def __aiter__(self) -> Stream[ValueType, ResultType]:
        return self

    @enable_ki_protection
    async def __anext__(self) -> ValueType:
        if self._values is None:
            raise TypeError("a stream runs inside a block: write `async with stream(genfn) as values:`, and iterate there")
        if self._is_left:
            raise trio.ClosedResourceError("the block of this stream has ended")
        if self._is_exhausted:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        try:
            return await self._values.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError):
            pass
        await self._ended.wait()
        self._is_exhausted = True
        if self._outcome is None:
            # The consumer has a shield from a cancellation that has ended the call.
            raise trio.BrokenResourceError("the generator's call was cancelled")
        self._outcome.unwrap()
        raise StopAsyncIteration

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

    @enable_ki_protection
    async def _run(self, send: SendChannel[Any]) -> None:
        try:
            with self._scope:
                self._outcome = outcome.Value(await self._start(send.move()))
        except trio.Cancelled:
            pass  # From a scope around the block, whose own task gets its own cancellation.
        except Exception as error:
            self._outcome = outcome.Error(error)
            self._has_raised_late = self._is_left
        finally:
            send.close()
            self._ended.set()
