"""Workers whose standard output and standard error are read here.

The task that waits for a worker reads its pipes too: during its start, a call and its exit. So a
full pipe does not stop the worker for ever. In between, output waits in the pipes.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import outcome
import trio

from .._exceptions import WorkerStartError, is_cancelled
from .._process.output import NAMES
from .states import IDLE

if TYPE_CHECKING:
    from .._pickling.payload import Payload
    from .worker import Worker

    _Base = Worker
else:
    _Base = object

ResultType = TypeVar("ResultType")

_DRAIN_INTERVAL: Final = 0.01  # seconds


class _Captured(_Base):
    """A worker with pipes."""

    __slots__ = ()

    def current_settings(self) -> dict[str, Any]:
        return super().current_settings() | {"output": True}

    async def finish(self, *, cancellable: bool) -> None:
        try:
            self.open_pipes()
        except OSError as error:
            raise WorkerStartError(f"a worker could not be started: {error.strerror}") from error
        self._vitals.pipes = self.pipes
        try:
            await self._while_reading(lambda: super(_Captured, self).finish(cancellable=cancellable))
            self._handle_rest()
        except BaseException:
            if self._process is None:
                self.close_pipes()
            raise
        finally:
            if self.pipes is not None:
                self.pipes.close_writes()

    def submit(self, call: Payload, prepares: bool = False) -> None:
        if self.state is IDLE and self.pipes is not None:
            self._handle_rest()
            self.pipes.tail.clear()
        super().submit(call, prepares)

    async def answer(
        self, cancellable: bool = True, spin: bool = False, deadline: trio.CancelScope | None = None
    ) -> tuple[Any, BaseException | None]:
        if self.pipes is None:
            raise RuntimeError("the worker has no call to answer")
        self.pipes.job = self.running_function
        try:
            result = await self._while_reading(lambda: super(_Captured, self).answer(cancellable, spin, deadline))
            self._handle_rest()
            return result
        finally:
            self.pipes.job = None

    async def wait(self) -> None:
        await self._while_reading(super().wait)

    async def end_gently(self) -> None:
        await self._while_reading(super().end_gently)

    def wait_sync(self, deadline: float) -> bool:
        while True:
            step = min(deadline, time.monotonic() + _DRAIN_INTERVAL)
            if super().wait_sync(step):
                return True
            self._handle_rest()
            if step >= deadline:
                return False

    def hear(self) -> bool:
        self._handle_rest()
        return super().hear()

    def gone(self) -> bool:
        self._handle_rest()
        return super().gone()

    def _let_go(self) -> None:
        self._handle_rest()
        super()._let_go()
        self.close_pipes()

    def _handle_rest(self) -> None:
        """Handle the output so far, and the end of what it belongs to."""
        if self.pipes is not None:
            self._handle(self.pipes.read_all, finishes=True)

    def _handle(self, read: Callable[[], list[tuple[int, bytes]]], *, finishes: bool = False) -> None:
        pipes, receiver = self.pipes, self.receiver
        if pipes is None or receiver is None or self._process is None or not self._process.has_pid:
            return
        if not pipes.handling.acquire(blocking=False):
            return  # Another thread, or the code that this signal handler interrupts, does it.
        try:
            pid = self._process.pid
            for number, data in read():
                receiver.take(pipes, pid, NAMES[number], data)
            if finishes:
                receiver.finish(pipes, pid)
        except Exception:
            if sys.stderr is not None:
                print("--- Error while the output of a worker was handled ---", file=sys.stderr)
                traceback.print_exc()
        finally:
            pipes.handling.release()

    async def _while_reading(self, wait: Callable[[], Awaitable[ResultType]]) -> ResultType:
        """Await something that the worker does, and read its output beside that.

        A cancellation concerns the wait only: a job that is not killed may go on writing.
        """
        if self.is_read:
            return await wait()  # Part of a wait that reads already.
        result: outcome.Outcome[ResultType] | None = None
        scopes = {number: trio.CancelScope(shield=True) for number in NAMES}
        self.is_read = True
        try:
            async with trio.open_nursery() as nursery:
                for number, scope in scopes.items():
                    nursery.start_soon(self._read, number, scope)
                result = await outcome.acapture(wait)
                for scope in scopes.values():
                    scope.cancel()
        except BaseException as error:
            # The tasks raise nothing, so this is the cancellation of an outer scope. It comes again
            # at the next checkpoint.
            if result is None or not is_cancelled(error):
                raise
        finally:
            self.is_read = False
        return result.unwrap()

    async def _read(self, number: int, scope: trio.CancelScope) -> None:
        pipes = self.pipes
        if pipes is None:
            return
        with scope, contextlib.suppress(trio.ClosedResourceError, OSError):
            while number in pipes.reads:
                await trio.lowlevel.wait_readable(pipes.reads[number])
                data: bytes | None = None

                def read() -> list[tuple[int, bytes]]:
                    nonlocal data
                    data = pipes.read(number)
                    return [(number, data)] if data else []

                self._handle(read)
                if data == b"":
                    return  # All writers have closed their ends.


def captured(base: type[Worker]) -> type[Worker]:
    """Return a class of workers with pipes, for contexts that read output."""
    if base not in _made:
        _made[base] = type(base.__name__, (_Captured, base), {"__slots__": ()})
    return _made[base]


_made: Final[dict[type, type[Worker]]] = {}
