"""The start of a process that speaks the protocol: from its greeting to READY."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from trio_offload_worker._jobs.retire import RetireWhen
from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, WireError, encode_head

from .._exceptions import WorkerStartError
from .._interpreter import locate as _locate
from .._interpreter import settings as _settings
from .._pickling import calls as _calls
from .._pickling import payload as _payload
from .._transport.buffer_pool import BufferPool
from .._transport.channel import Channel, EndOfStream
from .._transport.sockets import WriteFailed
from .endings import describe_failed_start, load_exception, secure_execution_hint
from .states import SETTING_UP

if TYPE_CHECKING:
    from .._options import ContextOptions
    from .._process.process import WorkerProcess
    from .._process.start import Started
    from .launcher import Launcher
    from .peer import Peer
    from .worker import Worker

_MAX_AHEAD: Final = 16 * 1024  # bytes of a call that is sent before READY
_MAX_SECONDS: Final = 10 * 365 * 86400.0  # longer ones count as infinite


class Handshake:
    """The conversation with a process until it is ready, as workers and templates have it."""

    def __init__(self, peer: Peer, pool: BufferPool | None = None) -> None:
        self._peer = peer
        self._pool = pool
        self._channel: Channel | None = None
        # The part of the greeting that the socket has not taken.
        self._rest: list[Buffer] = []

    def greet(self, started: Started, greeting: Callable[[], list[Buffer]]) -> None:
        """Adopt a process that has just been started, and send it the greeting.

        The greeting is composed afterwards: the system needs that time to load the program.
        """
        process, ours, record = started
        with killed_on_failure(self._peer, process):
            self._channel = channel = self._peer.adopt(process, ours, record, self._pool)
            self._rest = channel.send_partly(greeting())
            self._note_greeting()

    async def send_rest(self, cancellable: bool) -> None:
        """Send the rest of the greeting: a long `sys.path` may not fit into the socket."""
        rest, self._rest = self._rest, []
        if not rest:
            return
        # If the process has ended, its last frames or its exit status have the cause.
        with contextlib.suppress(WriteFailed):
            await self.channel.send(rest, cancellable=cancellable)

    @property
    def channel(self) -> Channel:
        """The channel, once the process has been adopted."""
        if self._channel is None:
            raise RuntimeError("the process has not been started")
        return self._channel

    async def expect(self, kind: Kind, cancellable: bool) -> Frame:
        """Return the next frame, which must be of this kind.

        Raises:
            WorkerStartError: it is another one. The process has been ended.
        """
        peer = self._peer
        frame = await peer.next_frame(self.channel, cancellable)
        if frame.kind is kind:
            return frame
        if frame.kind is Kind.SETUP_FAILED and kind is Kind.READY:
            # Before the end: a segment of the frame may lie in the channel's buffer.
            error = self._explain_setup(frame)
            await peer.end_gently()
            raise error
        if frame.kind in (Kind.REFUSED, Kind.ABORTED):
            # A fork that the template refused does not exist.
            processes = [peer.process] if peer.process.has_pid else []
            await peer.end_gently()
            raise WorkerStartError(
                f"a worker could not be started: {frame.body['message']}{secure_execution_hint()}", *processes
            )
        await peer.end()
        raise WorkerStartError(
            f"worker {peer.process.pid} was ended: it sent {frame.kind.name}, and {kind.name} was expected", peer.process
        )

    def check_welcome(self, frame: Frame) -> None:
        """Compare facts that only a running interpreter knows. The worker compares versions.

        Raises:
            WorkerStartError: the worker is another Python.
        """
        process = self._peer.process
        if frame.body.get("free_threaded", False) is not _locate.is_free_threaded():
            # Releases that do not send this have not compared it either.
            raise WorkerStartError(
                "the worker and this program are different builds of Python, one free-threaded and one with a GIL. Install "
                "trio-offload with the Python that runs the program",
                process,
            )
        for name in ("prefix", "exec_prefix"):
            theirs = os.fsdecode(frame.body[name])
            ours = getattr(sys, name)
            if theirs != ours:
                raise WorkerStartError(
                    f"the worker is not this Python: its sys.{name} is {theirs}, here it is {ours}. It was started as "
                    f"{sys.executable!r}; is that the interpreter that runs this program?",
                    process,
                )

    async def end_after(self, error: EndOfStream | WireError) -> None:
        """End the process after a failed read. One that has closed its end is about to exit."""
        await (self._peer.end_gently() if isinstance(error, EndOfStream) else self._peer.end())

    def _note_greeting(self) -> None:
        """Called when the greeting has been sent: the process is busy with it."""

    def _explain_setup(self, frame: Frame) -> WorkerStartError:
        """Return the error for a SETUP_FAILED."""
        raise NotImplementedError


class WorkerHandshake(Handshake):
    """The start of a worker, with its first call if that may be sent before READY."""

    def __init__(self, worker: Worker, launcher: Launcher, call: _payload.Payload | None) -> None:
        super().__init__(worker, launcher.buffer_pool)
        self._worker = worker
        self._launcher = launcher
        self._options: Final = launcher.options
        self._call = call

    async def finish(self, *, cancellable: bool) -> None:
        """Wait until the worker takes calls. See :meth:`Worker.finish`."""
        worker = self._worker
        try:
            await self._send_greeting(cancellable)
            await self._hear_welcome(cancellable)
            worker.state = SETTING_UP
            ready = await self.expect(Kind.READY, cancellable)
            if not worker.process.has_pid:
                raise RuntimeError("a worker has sent READY before its process ID")
            worker.become_ready(ready, self._call)
        except (EndOfStream, WireError) as error:
            await self.end_after(error)
            raise self._explain_end(error) from None
        except BaseException:
            await worker.end()
            raise

    def _note_greeting(self) -> None:
        # Not earlier, because this takes less time than the worker needs for the greeting.
        self._worker.observe()
        self._worker.enter_record(self._call)

    async def _send_greeting(self, cancellable: bool) -> None:
        await self.send_rest(cancellable)

    async def _hear_welcome(self, cancellable: bool) -> None:
        """Receive WELCOME. Then the first call may be sent: the rest of the start takes longer."""
        worker = self._worker
        self.check_welcome(await self.expect(Kind.WELCOME, cancellable))
        call = self._call_ahead()
        if call is not None and worker.sent_settings is _settings.current_snapshot() and worker.keeps_privileges():
            with contextlib.suppress(WriteFailed):
                await self.channel.send(worker.send_ahead(call), cancellable=cancellable)

    def _call_ahead(self) -> _payload.Payload | None:
        """Return the first call if it need not wait for READY: only a failed start can prevent it.

        It waits if the start may still refuse or warn: with a memory limit, or with a policy that
        is compared with the baseline. It also waits if the worker is watched, because such a worker
        is polled before each call.
        """
        call, options = self._call, self._options
        if call is None or options.memory_limit is not None or type(options.retire) is RetireWhen or self._worker.is_watched:
            return None
        if self._worker.pipes is not None:
            return None  # The output of `init` must not be taken for the call's.
        return call if sum(call.lengths) <= _MAX_AHEAD else None

    def _explain_end(self, error: EndOfStream | WireError) -> Exception:
        worker = self._worker
        message = describe_failed_start(
            worker.process, error, worker.left_behind, self._options.init, self._launcher.failed_start_hint(worker.process)
        )
        return WorkerStartError(message, worker.process)

    def _explain_setup(self, frame: Frame) -> WorkerStartError:
        error = WorkerStartError(
            f"a worker could not be started, because its init, {_payload.function_name(self._options.init)}, "
            f"raised {frame.body['type']}",
            self._worker.process,
        )
        error.__cause__ = load_exception(frame)
        return error


@contextlib.contextmanager
def killed_on_failure(peer: Peer, process: WorkerProcess) -> Iterator[None]:
    """Leave no process if anything but a write fails between its start and its greeting."""
    try:
        yield
    except WriteFailed:
        raise
    except BaseException:
        process.kill()
        peer.wait_sync(math.inf)
        raise


def reported(launcher: Launcher) -> Callable[[], Any] | None:
    """Return ``init`` as workers call it: so that its log records are sent, if jobs' are."""
    init = launcher.options.init
    if init is bool:
        return None
    if launcher.forwarder is None:
        return init
    from trio_offload_worker._requests.reported_init import ReportedInit  # few programs need it

    return ReportedInit(init)


def pickled_functions(launcher: Launcher, worker: Worker) -> tuple[bytes, bytes]:
    """Return ``init`` and ``retire`` as SETUP carries them. Empty means none.

    The worker keeps the handles in them.

    Raises:
        TypeError: they have handles, and the context outlives the run of Trio that has these.
    """
    options = launcher.options
    if options.init is bool and options.retire is bool:
        return b"", b""
    init = reported(launcher)
    with _payload.exporting() as export, _payload.repeated("each worker gets the init and the retire of its context"):
        functions = (
            b"" if init is None else _calls.dump_callable(init),
            b"" if options.retire is bool else _calls.dump_callable(options.retire),
        )
        if export.grants and launcher.outlives_run:
            raise TypeError(
                "init and retire of the default context cannot have locks or channels. They belong to a run of Trio, and the "
                "default context outlives it. Use open_worker_context or cache_scope"
            )
    if export.grants:
        from .lasting import LastingGrants  # few programs need it

        worker.keep(LastingGrants(tuple(export.grants.values())))
    else:
        worker.keep(None)
    return functions


def setup_frame(
    options: ContextOptions, settings: dict[str, Any], eager: bool, functions: tuple[bytes, bytes]
) -> list[Buffer]:
    """Return SETUP.

    Args:
        options: of the context.
        settings: as :func:`~trio_offload._interpreter.settings.current_settings` returns them.
        eager: True if they must be applied before the first job.
        functions: see :func:`pickled_functions`.
    """
    segments = [_calls.dump_settings(settings), *functions]
    body: dict[str, Any] = {"eager": eager}
    # With min_idle the parent decides which workers exit.
    if options.idle_timeout < _MAX_SECONDS and not options.min_idle:
        body["idle_timeout_ms"] = math.ceil(options.idle_timeout * 1000)
    if options.report_interval < _MAX_SECONDS:
        body["report_interval_ms"] = math.ceil(options.report_interval * 1000)
    if options.memory_limit is not None:
        body["memory_limit"] = options.memory_limit
    return [encode_head(Kind.SETUP, 0, [len(segment) for segment in segments], body), *segments]
