"""``open_process``: a separate worker for one long job, with a channel both ways.

It is put together from a context with one worker, a call in a task of the block, and two channels.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, TypeVar, final

import outcome
import trio
from trio.lowlevel import enable_ki_protection

from trio_offload_worker import PublicType
from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._requests.processes import ProcessCall

from .._context import WorkerContext
from .._exceptions import BrokenWorkerError, JobExitError, is_interrupt
from .._limiter import require_trio
from .._options import ContextOptions, WorkerType
from .._pickling.by_reference import check_function
from .._pickling.payload import function_name
from .._sizes import check_seconds
from .._sync import pickled_items
from .._sync.channels import ReceiveChannel, SendChannel
from .._sync.open_channel import open_channel

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from .._crash import CrashRecord
    from .._statistics import WorkerStatistics

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ResultType = TypeVar("ResultType")

_CLOSE_TIMEOUT: Final = 30.0  # seconds for exit handlers


def open_process(
    fn: Callable[[Unpack[ArgumentTypes]], ResultType],
    *args: Unpack[ArgumentTypes],
    name: str | None = None,
    memory_limit: int | str | None = None,
    grace: float | None = 10.0,
    max_buffer_size: float = 16,
    worker_type: WorkerType | Literal["spawn", "forkserver", "fork"] = WorkerType.SPAWN,
    forward_logging: bool | int | str | Mapping[str, int | str] | None = None,
    output: Literal["inherit", "lines"] | Callable[[str | None, str, bytes], Any] = "inherit",
) -> Process[ResultType]:
    """Run ``fn(*args)`` in a separate process, with a channel both ways.

    ::

        async with trio_offload.open_process(serve_model, "weights.bin") as process:
            await process.send(question)
            answer = await process.receive()

        def serve_model(path):
            channel = from_worker.channel()
            for question in channel:
                channel.send(...)

    The process takes no token of a limiter. Its block ends as a nursery's does: it waits for the
    end of ``fn``, for which the channel has ended then, and raises its exception. Items that it
    sends then are dropped. If the block raises, the process is cancelled.

    Args:
        fn: A synchronous function, as for :func:`run_sync`.
        *args: Its positional arguments.
        name: Name of the process, for people. None means the function's name.
        memory_limit: Memory that it may use, as for :func:`open_worker_context`.
        grace: Seconds that a cancelled process has to end by itself, before it is killed. None
            means unlimited.
        max_buffer_size: Number of items in the buffer of each direction, or ``math.inf``.
        worker_type: The start method.
        forward_logging: True, a level, or levels by logger: handle its log records here.
        output: "inherit", "lines" or a function: for text that it prints (``docs/logging.md``).

    Returns:
        An async context manager, whose block has the :class:`Process`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    check_function(fn, "open_process")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if grace is not None:
        check_seconds("grace", grace)
    options: Any = {"memory_limit": memory_limit, "worker_type": worker_type, "output": output}
    context = ContextOptions(idle_timeout=math.inf, forward_logging=forward_logging, **options)
    return Process(fn, args, name, grace, max_buffer_size, context)


@final
class Process(Generic[ResultType], metaclass=PublicType):
    """A process that runs one function, from :func:`open_process`.

    ::

        async with trio_offload.open_process(transcode, "film.mkv") as process:
            async for percent in process:
                print(f"{process.name}: {percent} %")
            print(await process.wait(), process.exitcode)

    The function of ``Process[int]`` returns an `int`.

    Attributes:
        name: Name of the process, as it was passed or made.
    """

    _is_constructible = False

    def __init__(
        self,
        fn: Callable[..., ResultType],
        args: tuple[Any, ...],
        name: str | None,
        grace: float | None,
        max_buffer_size: float,
        options: ContextOptions,
    ) -> None:
        self.name = function_name(fn) if name is None else name
        self._call: Callable[..., Any] = ProcessCall(fn)
        self._args = args
        self._grace = grace
        self._context = WorkerContext._create(options)
        self._to_job: tuple[SendChannel[Any], ReceiveChannel[Any]] = open_channel[Any](max_buffer_size)
        self._from_job: tuple[SendChannel[Any], ReceiveChannel[Any]] = open_channel[Any](max_buffer_size)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._outcome: outcome.Value[ResultType] | outcome.Error | None = None
        self._manager: Any = None
        self._pid = 0
        self._descriptor = -1
        self._was_killed = False
        self._was_reported = False

    def __repr__(self) -> str:
        state = "has ended" if self._ended.is_set() else f"pid {self._pid}" if self._pid else "has not begun"
        return f"<process {self.name}, {state}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a process cannot be pickled or copied. Pass an end of open_channel() to a job instead")

    @enable_ki_protection
    async def __aenter__(self) -> Process[ResultType]:
        require_trio()
        if self._manager is not None:
            raise RuntimeError("a process can be entered once; call open_process() again")
        self._manager = trio.open_nursery()
        try:
            await self._context.prewarm(1)
            self._find_pid()
        except BaseException:
            # Nothing has been run yet, so no exit is awaited.
            with contextlib.suppress(BrokenWorkerError):
                await self._context._pool.close(0.0)
            raise
        self._nursery: trio.Nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._run)
        return self

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._to_job[0].close()
        if error is None:
            self._nursery.start_soon(self._drop_items)
        else:
            self._scope.cancel()
            self._from_job[1].close()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as ending:
            # The task catches its errors, so this is the cancellation of an outer scope, or Ctrl+C.
            if not is_interrupt(ending):
                raise
            raise KeyboardInterrupt from None
        finally:
            self._from_job[1].close()
            self._close_descriptor()
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(self._outcome, outcome.Error) and not self._was_reported:
            problem = self._outcome.error
            if error is None:
                raise problem
            if isinstance(error, Exception):
                add_note(error, f"(the process {self.name} raised {type(problem).__name__}: {problem})")

    # --- its channel ------------------------------------------------------------------------------

    async def send(self, value: Any) -> None:
        """Send an item to the process, as :meth:`SendChannel.send`. A checkpoint.

        Raises:
            trio.BrokenResourceError: The process has ended.
        """
        self._check_entered()
        await self._to_job[0].send(value)

    def send_nowait(self, value: Any) -> None:
        """As :meth:`SendChannel.send_nowait`."""
        self._to_job[0].send_nowait(value)

    async def send_eof(self) -> None:
        """Send nothing any more. The process gets the end behind what was sent. A checkpoint."""
        await self._to_job[0].aclose()

    async def receive(self) -> Any:
        """Receive an item of the process, as :meth:`ReceiveChannel.receive`. A checkpoint.

        Raises:
            trio.EndOfChannel: The process sends nothing any more.
            trio.BrokenResourceError: The same, because it has died.
        """
        self._check_entered()
        return await self._from_job[1].receive()

    def receive_nowait(self) -> Any:
        """As :meth:`ReceiveChannel.receive_nowait`."""
        return self._from_job[1].receive_nowait()

    def __aiter__(self) -> Process[ResultType]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    # --- its life ---------------------------------------------------------------------------------

    async def wait(self) -> ResultType:
        """Wait for the end of the function, and return its value. A checkpoint.

        Raises:
            BaseException: As :func:`run_sync`.
            trio.BrokenResourceError: The process was cancelled, and has not returned.
        """
        self._check_entered()
        await self._ended.wait()
        self._was_reported = True
        if self._outcome is None:
            raise trio.BrokenResourceError("the process was cancelled")
        if isinstance(self._outcome, outcome.Error):
            raise self._outcome.error
        # An outcome can be unwrapped once, and several tasks may wait.
        return self._outcome.value

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._manager is not None and not self._ended.is_set()

    @property
    def exitcode(self) -> int | None:
        """Exit status, or the negative number of the signal. None while it runs.

        As with :mod:`multiprocessing`, it is 1 if the function raised an exception.
        """
        if not self._ended.is_set():
            return None
        if isinstance(self._outcome, outcome.Value):
            return 0
        error = None if self._outcome is None else self._outcome.error
        if isinstance(error, BrokenWorkerError):
            return error.exitcode
        if isinstance(error, JobExitError) and isinstance(error.__cause__, SystemExit):
            code = error.code
            return code if isinstance(code, int) else int(code is not None)
        return -signal.SIGKILL if error is None and self._was_killed else 1

    @property
    def crash(self) -> CrashRecord | None:
        """The record of its death. None if it did not die."""
        error = self._outcome.error if isinstance(self._outcome, outcome.Error) else None
        return error.crash if isinstance(error, BrokenWorkerError) else None

    def statistics(self) -> WorkerStatistics | None:
        """Return its memory, processor time and so on. None after its end."""
        workers = self._context.statistics().workers
        return workers[0] if workers else None

    def cancel(self) -> None:
        """Notify the function that it is cancelled. After the grace the process is killed."""
        self._scope.cancel()

    def terminate(self) -> None:
        """Send SIGTERM. Python code in the process may handle it. By default the process dies."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it (SIGKILL), with all processes that it has started."""
        self._signal(signal.SIGKILL)

    def _check_entered(self) -> None:
        """Refuse a wait that would have no end."""
        if self._manager is None:
            raise TypeError(
                "a process runs inside a block: write `async with open_process(fn) as process:`, and use it there"
            )

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            self._find_pid()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def _find_pid(self) -> None:
        """Note the process. Another one takes its place if it dies before the function began."""
        workers = self._context.statistics().workers
        if workers and workers[0].pid != self._pid:
            self._close_descriptor()
            self._descriptor = os.pidfd_open(workers[0].pid)
            self._pid = workers[0].pid

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)

    async def _drop_items(self) -> None:
        """Receive what nobody wants, so that the process does not wait for room for ever."""
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError, trio.Cancelled):
            while True:
                pickled_items.release(await self._from_job[1]._receive(64))

    @enable_ki_protection
    async def _run(self) -> None:
        context, limiter = self._context, trio.CapacityLimiter(1)
        send, receive = self._from_job[0], self._to_job[1]
        try:
            with self._scope:
                value = await context.run_sync(
                    self._call, send.move(), receive.move(), *self._args, grace=self._grace, limiter=limiter
                )
                self._outcome = outcome.Value(value)
        except trio.Cancelled:
            pass  # From a scope around the block, whose own task gets its own cancellation.
        except Exception as error:
            self._outcome = outcome.Error(error)
        finally:
            send.close()
            receive.close()
            self._was_killed = context.statistics().counters.workers_killed > 0
            try:
                await context._pool.close(_CLOSE_TIMEOUT)
            except BrokenWorkerError as error:
                if not isinstance(self._outcome, outcome.Error):
                    self._outcome = outcome.Error(error)
            self._ended.set()
