"""The template: a process with a running Python and imported modules, which forks workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, WireError, encode_head

from .._exceptions import WorkerStartError
from .._interpreter import hello as _hello
from .._interpreter import locate as _locate
from .._interpreter import settings as _settings
from .._pickling import calls as _calls
from .._process.fork_lock import fork_lock
from .._process.oom import count_kills
from .._process.pending import PendingFork
from .._process.privileges import current_grant
from .._transport.channel import EndOfStream
from .._transport.sockets import WriteFailed
from .._worker.endings import describe_ending, describe_failed_start, load_exception
from .._worker.handshake import Handshake
from .._worker.peer import Peer
from .._worker.states import IDLE, SETTING_UP, STARTING
from .spawn import original_environment, spawn

if TYPE_CHECKING:
    from .waiter import Waiter


class Template(Peer):
    """The process and the conversation with it. In the state IDLE it forks workers.

    Its workers are children of this process, and outlive it. One worker is forked ahead: the
    standby process, which waits for its greeting.
    """

    __slots__ = (
        "_applied",
        "_environment",
        "_handshake",
        "_hello",
        "_libpython",
        "_modules",
        "_setup",
        "_standby",
        "_threads",
        "attended",
        "waiting",
    )

    def __init__(self, modules: tuple[str, ...], threads: tuple[str, ...]) -> None:
        super().__init__()
        self._handshake = _TemplateHandshake(self, modules)
        self._modules = modules
        self._threads = threads
        # The environment and the settings that it was started with.
        self._environment: dict[bytes, bytes] = {}
        self._applied: object = None
        self._libpython = ""
        # What the last worker was told, and its frames. Tuples, because several threads may start
        # workers.
        self._hello: tuple[object, bytes] = None, b""
        self._setup: tuple[object, list[Buffer]] = None, []
        self._standby: PendingFork | None = None
        # True if a task awaits its start; then the tasks that wait for that one.
        self.attended = False
        self.waiting: list[Waiter] = []

    def begin(self) -> None:
        """Start the process and send it the greeting, without waiting.

        Raises:
            WorkerStartError: it could not be started.
        """
        self.grant = current_grant(time.monotonic(), anew=True)
        runtime = _locate.runtime()
        if not runtime.is_native:
            raise WorkerStartError(
                f"WorkerType.FORKSERVER needs the worker executable. Workers run in Python here, because {runtime.reason}. "
                f"Use WorkerType.SPAWN, or get the library: {'; '.join(_locate.remedies())}"
            )
        # The workers have its command line.
        self._handshake.greet(spawn(runtime, "forkserver"), lambda: self._greeting(runtime))

    async def finish(self, *, cancellable: bool) -> None:
        """Wait until it forks workers. If this is cancelled, the start goes on: call it again.

        Raises:
            WorkerStartError: the start failed. No process is left.
        """
        handshake = self._handshake
        try:
            if self.state is STARTING:
                await handshake.send_rest(False)
                handshake.check_welcome(await handshake.expect(Kind.WELCOME, cancellable))
                self.state = SETTING_UP
            await handshake.expect(Kind.READY, cancellable)
        except (EndOfStream, WireError) as error:
            await handshake.end_after(error)
            message = describe_failed_start(self.process, error, self.left_behind, bool, "")
            raise WorkerStartError(message, self.process) from None
        except WorkerStartError:
            await self.end()
            raise
        self.state = IDLE

    def fork(self) -> PendingFork | None:
        """Request a worker. Return None if that fails at this moment.

        Raises:
            WriteFailed: it has ended.
            OSError: this process has used up its descriptors.
        """
        return self._request(PendingFork(self.process))

    def take_standby(self) -> PendingFork | None:
        """Return the standby process, if there is one. The caller owns it from now on."""
        # Two threads may ask at the same time.
        with fork_lock:
            standby, self._standby = self._standby, None
        # In a fork of the program it counts as ended.
        return None if standby is None or standby.process.ended else standby

    def fork_standby(self) -> None:
        """Request a standby process if it is missing. The request may fail at this moment."""
        if self._standby is not None or self.state is not IDLE:
            return
        oom_kills = count_kills()
        with fork_lock:
            if self._standby is None:
                try:
                    self._standby = self._request(PendingFork(self.process, oom_kills))
                except (OSError, WriteFailed):
                    pass  # The next start meets the same error, and raises it.

    def _request(self, pending: PendingFork) -> PendingFork | None:
        channel = self._channel
        if channel is None or self.state is not IDLE:
            pending.close()
            raise WriteFailed(False)
        # The system takes so few bytes at once or not at all (net/unix/af_unix.c,
        # unix_stream_sendmsg).
        head = encode_head(Kind.FORK, 0, ())
        asked = pending.ask(lambda descriptors: channel.send_with_descriptors([head], descriptors) is not None)
        return pending if asked else None

    def hello_of_worker(self, streams: list[int], directory: bool) -> dict[str, Any]:
        """Return the body of a worker's HELLO. The arguments say which descriptors go with it."""
        return _hello.hello(self._libpython, self._changed_environment(), forked=(streams, directory))

    def hello_frame(self, hello: dict[str, Any]) -> bytes:
        """Return a worker's HELLO. It is rarely different from the last worker's."""
        before, frame = self._hello
        if hello != before:
            frame = encode_head(Kind.HELLO, 0, (), hello)
            self._hello = hello, frame
        return frame

    def setup_for(self, facts: object, encode: Callable[[], list[Buffer]]) -> list[Buffer]:
        """Return SETUP for these facts about a worker.

        They are rarely different from the last worker's, and comparing is faster than encoding.
        """
        before, frames = self._setup
        if facts != before:
            frames = encode()
            self._setup = facts, frames
        return frames

    def needs_eager_settings(self, settings: dict[str, Any]) -> bool:
        """Return True if a worker must apply the settings before its first job."""
        return (
            bool(settings["coverage"])
            or "forwarding" in settings
            or "output" in settings
            or _applied_part(settings) != self._applied
        )

    def describe_death(self) -> str:
        """Describe its end."""
        record = f". Python stack at the end:\n{self.left_behind}" if self.left_behind else ""
        return f"process {self.process.pid} {describe_ending(self.process)}{record}"

    def _changed_environment(self) -> dict[bytes, bytes | None]:
        """Return the variables that have changed since its start. None means that one is gone."""
        now = _hello.environment()
        if now == self._environment:
            return {}
        changed: dict[bytes, bytes | None] = {
            name: value for name, value in now.items() if self._environment.get(name) != value
        }
        return changed | dict.fromkeys(self._environment.keys() - now.keys())

    def _greeting(self, runtime: _locate.WorkerRuntime) -> list[Buffer]:
        self._libpython = runtime.libpython
        hello = {**_hello.hello(runtime.libpython, original_environment(runtime)), "template": True}
        self._environment = _hello.environment()
        settings = _settings.current_settings()
        self._applied = _applied_part(settings)
        segment = _calls.dump_settings(settings)
        body: dict[str, Any] = {
            # Each process measures coverage from its own beginning. The template does not run jobs.
            "eager": _settings.needs_eager_settings({**settings, "coverage": False}),
            "modules": list(self._modules),
        }
        if self._threads:
            body["threads"] = list(self._threads)
        return [encode_head(Kind.HELLO, 0, (), hello), encode_head(Kind.TEMPLATE, 0, [len(segment)], body), segment]


class _TemplateHandshake(Handshake):
    """The start of a template."""

    def __init__(self, template: Template, modules: tuple[str, ...]) -> None:
        super().__init__(template)
        self._modules = modules

    def _explain_setup(self, frame: Frame) -> WorkerStartError:
        failure, module = frame.body, frame.body.get("module")
        process = self._peer.process
        if failure["stage"] == "threads":
            which = "one of the modules of" if module is None else f"{module}, of"
            return WorkerStartError(
                f"no worker can be forked after {which} forkserver_preload={list(self._modules)} was imported: {failure['message']}. "
                "Import it in init or in the jobs instead, or use WorkerType.SPAWN. For some libraries, a variable prevents "
                "the threads: OMP_NUM_THREADS=1; MALLOC_CONF=background_thread:false (for pyarrow JE_ARROW_MALLOC_CONF). If a "
                "fork beside these threads is safe, name them in forkserver_threads",
                process,
            )
        where = "the settings" if module is None else f"{module}, of forkserver_preload,"
        error = WorkerStartError(
            f"the template of the workers could not be started: importing {where} raised {failure['type']}: {failure['message']}",
            process,
        )
        error.__cause__ = load_exception(frame)
        return error


def _applied_part(settings: dict[str, Any]) -> object:
    """Return the settings that a template applies before its imports."""
    return settings["warning_filters"], settings["modules"]
