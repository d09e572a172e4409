"""Templates: processes with a running Python from which a context's workers are forked, and the one that a context has now.

What is guaranteed:

* A context has one template at a time, however many tasks, in however many threads, want a worker. It is started when the
  first of them does, and started anew when it has ended; its workers are children of this process and live on.
* Whoever waits for a template may be cancelled: the start goes on, and the next who waits sees to it.
* Once a worker has been started the next one is forked ahead, and waits for somebody to want it without a word said to it: the
  «reserve», one process at most. It goes with its template, and is replaced if it has ended.
* A fork of this process has no template: it starts one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NoReturn

import trio

from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, WireError, encode_head

from ._exceptions import WorkerStartError
from ._interpreter import hello as _hello
from ._interpreter import locate as _locate
from ._interpreter import settings as _settings
from ._pickling import calls as _calls
from ._process.fork_lock import fork_lock
from ._process.oom import count_kills
from ._process.pending import PendingFork
from ._transport.channel import EndOfStream
from ._transport.sockets import WriteFailed
from ._worker.endings import describe_ending, load_exception
from ._worker.peer import logger
from ._worker.states import ENDED, IDLE, SETTING_UP, STARTING
from ._worker.worker import Worker, WorkerSettings, given_back


class Template(Worker):
    """The process and the conversation with it. In the state IDLE it forks workers."""

    def __init__(self, modules: tuple[str, ...], threads: tuple[str, ...] = ()) -> None:
        super().__init__(WorkerSettings())
        self._modules = modules
        self._threads = threads
        self._environment: dict[bytes, bytes] = {}
        self._applied: object = None
        self._libpython = ""
        # What the last worker was told, and the frames of that; in one piece, because several threads may start workers.
        self._said: tuple[object, list[Buffer]] = None, []
        self._reserve: PendingFork | None = None
        # Whether a task sees to its start, and who waits for that.
        self.attended = False
        self.waiting: list[_Waiter] = []

    async def finish(self, *, cancellable: bool) -> None:
        """As for a worker; but if it is cancelled the start goes on, and this can be called again."""
        channel = self._channel
        if channel is None:
            raise RuntimeError("the template has not been begun")
        try:
            if self.state is STARTING:
                rest, self._greeting_rest = self._greeting_rest, []
                try:
                    await channel.send(rest, cancellable=False)
                except WriteFailed:
                    pass  # Why it is gone, its last words or its exit status tell.
                self._check_welcome(await self._receive(cancellable))
                self.state = SETTING_UP
            await self._receive(cancellable)
        except (EndOfStream, WireError) as error:
            await (self._end_gently() if isinstance(error, EndOfStream) else self._end())
            raise WorkerStartError(self._describe_failed_start(error), self.process) from None
        except WorkerStartError:
            await self._end()
            raise
        self._become_idle()
        self.expires_at = math.inf

    def fork(self) -> PendingFork | None:
        """Ask for a worker; None if that cannot be done at this moment.

        Raises:
            WriteFailed: it has ended.
            OSError: there are no more descriptors here.
        """
        return self._ask(PendingFork(self.process))

    def take_reserve(self) -> PendingFork | None:
        """The process that was forked ahead, which is the caller's from now on; None: there is none."""
        with fork_lock:
            # Two threads may ask at the same time.
            reserve, self._reserve = self._reserve, None
        # In a fork of the process that started it, it has ended.
        return None if reserve is None or reserve.process.ended else reserve

    def fork_reserve(self) -> None:
        """Have the next worker forked, unless there is one already or it cannot be done just now: then there is none."""
        if self._reserve is not None or self.state is not IDLE:
            return
        oom_kills = count_kills()
        with fork_lock:
            if self._reserve is None:
                try:
                    self._reserve = self._ask(PendingFork(self.process, oom_kills))
                except (OSError, WriteFailed):
                    pass  # Whoever needs one is told.

    def _ask(self, pending: PendingFork) -> PendingFork | None:
        channel = self._channel
        if channel is None or self.state is not IDLE:
            pending.close()
            raise WriteFailed(False)
        # So few bytes the system takes as a whole or not at all (net/unix/af_unix.c, unix_stream_sendmsg).
        head = encode_head(Kind.FORK, 0, ())
        asked = pending.ask(lambda descriptors: channel.send_with_descriptors([head], descriptors) is not None)
        return pending if asked else None

    def environment_since(self) -> dict[bytes, bytes | None]:
        """The variables that have changed here since it was started; None: it is gone."""
        now = _hello.environment()
        if now == self._environment:
            return {}
        changed: dict[bytes, bytes | None] = {
            name: value for name, value in now.items() if self._environment.get(name) != value
        }
        return changed | dict.fromkeys(self._environment.keys() - now.keys())

    def hello_of_worker(self, streams: list[int], directory: bool) -> dict[str, Any]:
        """The body of its HELLO. The arguments say which descriptors go with it."""
        return _hello.hello(self._libpython, self.environment_since(), forked=(streams, directory))

    def frames_said(self, what: object, encode: Callable[[], list[Buffer]]) -> list[Buffer]:
        """What a worker is told at its start, encoded. It is seldom anything else than the last time, and takes longer to encode than
        to compare.
        """
        before, frames = self._said
        if what != before:
            frames = encode()
            self._said = what, frames
        return frames

    def needs_eager_settings(self, settings: dict[str, Any]) -> bool:
        """Whether a worker has to act on the settings before its first job: something in them is not what the template has."""
        return bool(settings["coverage"]) or _applied_part(settings) != self._applied

    def describe_death(self) -> str:
        """How it ended, for people."""
        left = f". What it left behind:\n{self._left_behind}" if self._left_behind else ""
        return f"process {self.process.pid} {describe_ending(self.process)}{left}"

    def _label(self) -> list[str]:
        # Its workers have its command line.
        return [*super()._label(), "forkserver"]

    def _prepare(self, way: _locate.WorkerRuntime) -> tuple[bytes, bytes]:
        if not way.is_native:
            raise WorkerStartError(
                f"WorkerType.FORKSERVER needs the worker executable, and here workers are run in Python, because {way.reason}. "
                f"Use WorkerType.SPAWN, or get the library: {'; '.join(_locate.remedies())}"
            )
        return b"", b""

    def _greeting(self, way: _locate.WorkerRuntime, init: bytes, retire: bytes) -> list[Buffer]:
        self._libpython = way.libpython
        hello = {**_hello.hello(way.libpython, given_back(way)), "template": True}
        self._environment = _hello.environment()
        settings = _settings.current_settings()
        self._applied = _applied_part(settings)
        segment = _calls.dump_settings(settings)
        # A process is measured from its own beginning on; the template runs no job.
        body: dict[str, Any] = {
            "eager": _settings.needs_eager_settings({**settings, "coverage": False}),
            "modules": list(self._modules),
        }
        if self._threads:
            body["threads"] = list(self._threads)
        return [encode_head(Kind.HELLO, 0, (), hello), encode_head(Kind.TEMPLATE, 0, [len(segment)], body), segment]

    async def _refuse_setup(self, frame: Frame) -> NoReturn:
        what, module = frame.body, frame.body.get("module")
        await self._end_gently()
        if what["stage"] == "threads":
            which = "one of the modules of" if module is None else f"{module}, of"
            raise WorkerStartError(
                f"no worker can be forked after {which} forkserver_preload={list(self._modules)} was imported: {what['message']}. "
                "Leave it out there, and import it in init or in the jobs; or use WorkerType.SPAWN. Some libraries start no "
                "thread where a variable says so (OMP_NUM_THREADS=1; MALLOC_CONF=background_thread:false, which is "
                "JE_ARROW_MALLOC_CONF for pyarrow's own). If you know that a fork beside these threads is safe, name them in "
                "forkserver_threads",
                self.process,
            )
        where = "the settings" if module is None else f"{module}, of forkserver_preload,"
        raise WorkerStartError(
            f"the template of the workers could not be started: importing {where} raised {what['type']}: {what['message']}",
            self.process,
        ) from load_exception(frame)


class Templates:
    """The template of one context."""

    def __init__(self, modules: tuple[str, ...], threads: tuple[str, ...] = ()) -> None:
        self._modules: Final = modules
        self._threads: Final = threads
        # All that is in here is changed under `fork_lock`: a lock that a fork of this process finds free, in any thread.
        self._current: Template | None = None
        # Templates, and reserves that nobody wanted.
        self._leaving: list[Worker] = []

    def current(self) -> Template:
        """The template, begun now if there is none.

        Raises:
            WorkerStartError: it could not be started.
        """
        with fork_lock:
            template = self._current
            # Whether it still lives is found out when it is asked for a worker.
            if template is not None and template.process.ended and not template.hear():
                self.discard(template)
                template = None
            if template is not None and not template.keeps_privileges():
                self.discard(template)
                template.given_up = True
                template.ask_to_retire()
                template = None
            if template is None or template.state is ENDED:
                template = Template(self._modules, self._threads)
                template.begin()
                self._current = template
            if self._leaving:
                self._leaving = [leaving for leaving in self._leaving if not _has_gone(leaving)]
            return template

    async def ready(self, *, cancellable: bool) -> Template:
        """The template, once it forks workers. A checkpoint if it has to be waited for.

        Raises:
            WorkerStartError: it could not be started, or a module could not be imported.
        """
        while True:
            with fork_lock:
                template = self.current()
                if template.state is IDLE:
                    return template
                attends = not template.attended
                template.attended = True
                waiter = _Waiter()
                if not attends:
                    template.waiting.append(waiter)
            if attends:
                await self._attend(template, cancellable)
            else:
                with trio.CancelScope(shield=not cancellable):
                    await waiter.event.wait()
                waiter.raise_failure()

    def discard(self, template: Template) -> None:
        """It has proved to have ended, or to be of no use."""
        with fork_lock:
            if self._current is template:
                self._current = None
                self._leaving.append(template)
                self._dismiss_reserve(template)

    def see_off(self, reserve: PendingFork) -> None:
        """A reserve has proved to have ended, or is not wanted any more."""
        worker = Worker(WorkerSettings())
        worker.leave_unused(reserve)
        with fork_lock:
            self._leaving.append(worker)

    def _dismiss_reserve(self, template: Template) -> None:
        reserve = template.take_reserve()
        if reserve is not None:
            self.see_off(reserve)

    def dismiss(self) -> list[Worker]:
        """Ask all to leave. They are to be waited for; afterwards there may be another one."""
        with fork_lock:
            template, self._current = self._current, None
            if template is not None and template.state is not ENDED:
                self._leaving.append(template)
                self._dismiss_reserve(template)
            leaving, self._leaving = self._leaving, []
        for worker in leaving:
            if worker.hear():
                worker.ask_to_retire()
            elif not _has_gone(worker) and not worker.given_up:
                # It is starting, or about to exit, and nobody needs it.
                worker.give_up()
        return [worker for worker in leaving if worker.state is not ENDED]

    async def _attend(self, template: Template, cancellable: bool) -> None:
        failure: WorkerStartError | None = None
        try:
            with trio.CancelScope(shield=not cancellable):
                await template.finish(cancellable=cancellable)
        except WorkerStartError as error:
            failure = error
            raise
        finally:
            with fork_lock:
                waiting, template.waiting = template.waiting, []
                template.attended = False
            for waiter in waiting:
                waiter.wake(failure)


def _has_gone(worker: Worker) -> bool:
    """Whether a template on its way out, or a reserve, has ended. By itself it does not, so that is worth a word."""
    if not worker.gone():
        return False
    if isinstance(worker, Template):
        if worker.process.exitcode is not None and not worker.given_up:
            logger.warning("the template of the workers ended: %s", worker.describe_death())
    elif worker.process.exitcode:
        logger.warning("worker %s, which was forked ahead, %s", worker.process.pid, describe_ending(worker.process))
    return True


class _Waiter:
    """Waits, in any run of Trio, for what another task is doing."""

    def __init__(self) -> None:
        self.event: Final = trio.Event()
        self._token: Final = trio.lowlevel.current_trio_token()
        self._failure: WorkerStartError | None = None

    def wake(self, failure: WorkerStartError | None) -> None:
        self._failure = failure
        try:
            self._token.run_sync_soon(self.event.set)
        except trio.RunFinishedError:
            pass  # Cancelled, then; nobody waits any more.

    def raise_failure(self) -> None:
        """Each who waited gets an exception of its own: tracebacks and notes are added to it."""
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure.__cause__


def _applied_part(settings: dict[str, Any]) -> object:
    """What of the settings a worker acts on before its first job, and a template before it imports anything."""
    return settings["warning_filters"], settings["modules"]
