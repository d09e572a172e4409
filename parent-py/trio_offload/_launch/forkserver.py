"""Start workers as forks of a template.

The guarantees:

* A context has one template at a time, for all tasks in all threads. The first task that needs a
  worker starts it. If it ends, the next start replaces it.
* A task that waits for the template may be cancelled. The start goes on, and the next waiting task
  awaits it.
* After the start of a worker, the next one is forked ahead: the standby process, one at most. It
  exits with its template, and is replaced if it has ended.
* A fork of this process starts another template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from trio_offload_worker._protocol.frames import Buffer, WireError

from .. import _clock
from .._exceptions import WorkerStartError
from .._interpreter import settings as _settings
from .._process.fork_lock import fork_lock
from .._process.inherited import inherited
from .._process.pending import PendingFork
from .._transport.channel import EndOfStream
from .._transport.sockets import WriteFailed
from .._worker.endings import describe_ending
from .._worker.handshake import WorkerHandshake, killed_on_failure, pickled_functions, setup_frame
from .._worker.launcher import Launcher
from .._worker.peer import Peer, logger
from .._worker.states import ENDED, IDLE, STARTING
from .._worker.worker import Worker
from .spawn import not_forked
from .template import Template
from .waiter import Waiter

if TYPE_CHECKING:
    from .._options import ContextOptions
    from .._pickling.payload import Payload
    from .._trace import TraceWriter

_MAX_TEMPLATES: Final = 3  # that may die while they fork one worker
_CROWDED_PAUSE: Final = 0.001  # seconds


class ForkserverLauncher(Launcher):
    """Has a template, which forks each worker."""

    def __init__(self, options: ContextOptions, trace: TraceWriter | None = None) -> None:
        super().__init__(options, trace)
        # Both change under `fork_lock` only. A fork of this process finds it free, in each thread.
        self._current: Template | None = None
        # Templates, and standby processes that were not needed.
        self._leaving: list[Peer] = []

    def _begin(self, call: Payload | None) -> Worker:
        worker = self._new_worker()
        worker.start = handshake = _ForkserverHandshake(worker, self, call)
        # A template that is idle is checked while the worker reads HELLO.
        template = self.current(checks_privileges=False)
        if template.state is IDLE:
            # If the request fails at this moment, or the template has just died, `finish` goes on.
            try:
                handshake.request(template)
            except BaseException:
                worker.keep(None)
                raise
        return worker

    def prepare_next(self) -> None:
        template = self._current
        if template is not None:
            # Once the task that waited for the worker has gone on.
            trio.lowlevel.current_trio_token().run_sync_soon(template.fork_standby, idempotent=True)

    def close(self) -> Sequence[Peer]:
        with fork_lock:
            template, self._current = self._current, None
            if template is not None and template.state is not ENDED:
                self._leaving.append(template)
                self._dismiss_standby(template)
            leaving, self._leaving = self._leaving, []
        for peer in leaving:
            if peer.hear():
                peer.ask_to_retire()
            elif not _has_exited(peer) and not peer.given_up:
                # It is starting, or about to exit, and is not needed.
                peer.give_up()
        return [peer for peer in leaving if peer.state is not ENDED]

    def current(self, *, checks_privileges: bool = True) -> Template:
        """Return the template. Begin one if necessary.

        Args:
            checks_privileges: False if the caller makes sure that this program still has the
                template's privileges.

        Raises:
            WorkerStartError: it could not be started.
        """
        with fork_lock:
            template = self._current
            # The request of a worker finds out whether it still lives.
            if template is not None and template.process.ended and not template.hear():
                self.discard(template)
                template = None
            if template is not None and checks_privileges and not template.keeps_privileges():
                self.dismiss_template(template)
                template = None
            if template is None or template.state is ENDED:
                template = Template(self.options.forkserver_preload, self.options.forkserver_threads)
                template.begin()
                self._current = template
            if self._leaving:
                self._leaving = [peer for peer in self._leaving if not _has_exited(peer)]
            return template

    async def ready(self, *, cancellable: bool) -> Template:
        """Return the template once it forks workers. A checkpoint if it must be waited for.

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
                waiter = Waiter()
                if not attends:
                    template.waiting.append(waiter)
            with trio.CancelScope(shield=not cancellable):
                await (_attend(template, cancellable) if attends else waiter.wait())

    def discard(self, template: Template) -> None:
        """Do without a template that has ended, or is useless."""
        with fork_lock:
            if self._current is template:
                self._current = None
                self._leaving.append(template)
                self._dismiss_standby(template)

    def dismiss_template(self, template: Template) -> None:
        """Let a template exit whose privileges this program no longer has."""
        self.discard(template)
        template.given_up = True
        template.ask_to_retire()

    def dismiss(self, standby: PendingFork) -> None:
        """Let a forked process exit that has ended, or is not needed."""
        unneeded = _UnneededFork(standby)
        with fork_lock:
            self._leaving.append(unneeded)

    def _dismiss_standby(self, template: Template) -> None:
        standby = template.take_standby()
        if standby is not None:
            self.dismiss(standby)


class _ForkserverHandshake(WorkerHandshake):
    """The start of a worker that a template forks. The template's WELCOME was checked."""

    def __init__(self, worker: Worker, launcher: ForkserverLauncher, call: Payload | None) -> None:
        super().__init__(worker, launcher, call)
        self._forkserver = launcher
        self._template: Template | None = None
        # Sends the greeting. Returns False if the socket takes nothing at this moment. None once it
        # has been sent.
        self._greet: Callable[[], bool] | None = None

    def request(self, template: Template) -> bool:
        """Take the standby process, or request a fork. Return True if one of them has succeeded."""
        functions = pickled_functions(self._forkserver, self._worker)
        self._worker.restart()
        self._template = template
        standby = template.take_standby()
        if standby is not None:
            try:
                self._converse(template, functions, standby)
                return True
            except WriteFailed as failure:
                # It was killed. That is harmless, because it had not got a call.
                self._undo()
                self._forkserver.dismiss(standby)
                if isinstance(failure, _OtherPrivileges):
                    return False
        try:
            pending = template.fork()
        except WriteFailed:
            self._forkserver.discard(template)
            return False
        except OSError as error:
            raise not_forked(error) from error
        if pending is None:
            return False
        try:
            self._converse(template, functions, pending)
        except _OtherPrivileges:
            self._undo()
            self._forkserver.dismiss(pending)
            return False
        except WriteFailed:
            pass  # The template has refused or died. `finish` receives the cause.
        return True

    async def finish(self, *, cancellable: bool) -> None:
        worker = self._worker
        lost = 0
        while True:
            try:
                if self._channel is None:
                    await self._request_when_ready(cancellable)
                await super().finish(cancellable=cancellable)
                return
            except _OtherPrivileges:
                template = None
            except _NeverForked as failure:
                template = failure.template
                lost += 1
                self._forkserver.discard(template)
            self._undo()
            if template is not None and lost == _MAX_TEMPLATES:
                worker.state = ENDED
                worker.keep(None)
                await template.end_gently()
                raise WorkerStartError(
                    f"the template of the workers died {_MAX_TEMPLATES} times while it forked a worker. The last one: "
                    f"{template.describe_death()}",
                    template.process,
                )
            worker.state = STARTING

    def _undo(self) -> None:
        """Forget a process that has ended, or does not exist."""
        self._worker.disown()
        self._worker.recall()
        self._channel = self._greet = None

    async def _request_when_ready(self, cancellable: bool) -> None:
        try:
            while True:
                template = await self._forkserver.ready(cancellable=cancellable)
                if self.request(template):
                    return
                # The template has died, or has as many requests waiting as its socket holds.
                with trio.CancelScope(shield=not cancellable):
                    await _clock.sleep(_CROWDED_PAUSE)
        except BaseException:
            self._worker.state = ENDED
            self._worker.keep(None)
            raise

    def _converse(self, template: Template, functions: tuple[bytes, bytes], pending: PendingFork) -> None:
        """Adopt a requested process, and send it the greeting.

        Raises:
            WriteFailed: it has ended, or does not exist.
        """

        def greet() -> bool:
            try:
                with inherited() as (streams, directory):
                    output = self._worker.open_pipes()
                    numbers = sorted({*streams, *output})
                    hello = template.hello_of_worker(numbers, directory is not None)
                    descriptors = [output.get(number, number) for number in numbers]
                    if directory is not None:
                        descriptors.append(directory)
                    rest = channel.send_with_descriptors([template.hello_frame(hello)], descriptors)
            except OSError as error:
                raise not_forked(error) from error
            if rest is None:
                return False
            # No code of the program runs in the worker before SETUP. So all that is left to do
            # takes place while it reads HELLO.
            if not template.keeps_privileges():
                self._forkserver.dismiss_template(template)
                raise _OtherPrivileges(False)
            self._worker.grant = template.grant
            self._rest = channel.send_partly([*rest, *self._rest_of_greeting(template, functions)])
            return True

        with killed_on_failure(self._worker, pending.process):
            channel = self._worker.adopt(pending.process, pending.ours, pending.record, self._pool)
            self._channel = channel
            self._greet = None if greet() else greet
            # The counters of a standby process may be old, so they are read again. The process is
            # busy with the greeting meanwhile.
            kills = pending.oom_kills
            self._worker.observe(None if kills is None else kills.refreshed())
            # A standby process has written its process ID. No later moment is better to read it.
            if pending.process.read_pid():
                self._worker.enter_record(self._call)

    def _rest_of_greeting(self, template: Template, functions: tuple[bytes, bytes]) -> list[Buffer]:
        settings = self._worker.current_settings()

        def encode() -> list[Buffer]:
            return setup_frame(self._options, settings, template.needs_eager_settings(settings), functions)

        frames = template.setup_for((settings, *functions), encode)
        self._worker.sent_settings = _settings.current_snapshot()
        call = self._call_ahead()
        return frames if call is None else [*frames, *self._worker.send_ahead(call)]

    async def _send_greeting(self, cancellable: bool) -> None:
        try:
            while self._greet is not None and not self._greet():
                with trio.CancelScope(shield=not cancellable):
                    await _clock.sleep(_CROWDED_PAUSE)
        except _OtherPrivileges:
            await self._worker.end()
            raise
        except WriteFailed:
            self._rest = []
        self._greet = None
        await self.send_rest(cancellable)

    async def _hear_welcome(self, cancellable: bool) -> None:
        pass

    def _explain_end(self, error: EndOfStream | WireError) -> Exception:
        if self._template is not None and not self._worker.process.has_pid:
            return _NeverForked(self._template)
        return super()._explain_end(error)


class _OtherPrivileges(WriteFailed):
    """This program has no longer the privileges of the template. The worker got HELLO only."""


class _NeverForked(Exception):
    """The template died before it forked the worker. Another template can do so."""

    def __init__(self, template: Template) -> None:
        super().__init__()
        self.template = template


class _UnneededFork(Peer):
    """A process that was forked ahead and is not needed. It exits at the end of its stream."""

    __slots__ = ()

    def __init__(self, pending: PendingFork) -> None:
        super().__init__()
        channel = self.adopt(pending.process, pending.ours, pending.record)
        self._leave(in_order=True)
        self.given_up = True
        with fork_lock:
            channel.close()


async def _attend(template: Template, cancellable: bool) -> None:
    """Await the template's start, for all tasks that need it."""
    failure: WorkerStartError | None = None
    try:
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


def _has_exited(peer: Peer) -> bool:
    """Return True if a leaving process has ended. Log an end that was not asked for."""
    if not peer.gone():
        return False
    if isinstance(peer, Template):
        if peer.process.exitcode is not None and not peer.given_up:
            logger.warning("the template of the workers ended: %s", peer.describe_death())
    elif peer.process.exitcode:
        logger.warning("standby worker %s %s", peer.process.pid, describe_ending(peer.process))
    return True
