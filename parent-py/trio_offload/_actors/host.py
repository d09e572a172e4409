"""``ActorHost``: an actor's worker, its calls in turn, and its death.

A task runs its own call, inside its cancel scopes. The calls of jobs are run by one task of the
actor, its server. Whoever ends a call sends the next one to the worker before it does anything
else, so the worker does not wait for a task to be scheduled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal

import trio
from trio.lowlevel import checkpoint_if_cancelled

from trio_offload_worker._requests import hosted as _worker_side
from trio_offload_worker._requests.actors import STREAM

from .. import _clock
from .._exceptions import BrokenWorkerError
from .._pickling.calls import dump_call_as
from .._pickling.payload import Payload, release, repeated
from .._sync.waiters import current_owner
from .._worker.endings import describe_ending, raise_cancelled, with_lost
from .._worker.lasting import LastingGrants
from .._worker.states import ENDED, IDLE, RUNNING, CallNotRun
from .grants import Callee
from .job_calls import JobCalls
from .statistics import ActorStatistics
from .turns import Turn, TurnOfTask, Turns

if TYPE_CHECKING:
    from .._options import WorkerType
    from .._pool.pool import WorkerPool
    from .._process.process import WorkerProcess
    from .._worker.requests import Request
    from .._worker.worker import Worker
    from .interface import Interface
    from .relays import Relay


class ActorHost(Callee):
    """The actor behind an :class:`~.actor.Actor`."""

    def __init__(
        self,
        pool: WorkerPool,
        interface: Interface,
        make: tuple[Any, ...],
        restart: Literal["never", "fresh"],
        max_pending: float,
        grace: float | None,
    ) -> None:
        """``make`` has the class and its arguments."""
        super().__init__(interface)
        self.facade: Any = None
        """The object that users have."""
        self.on_copy: Callable[[], object] = bool
        """Called in a fork of this program."""
        self._pool = pool
        self._to_fork = pool.launcher.inherits_main
        self._make = make
        self._restarts = restart == "fresh"
        self._grace = grace
        self._worker: Worker | None = None
        self._turns = Turns(max_pending, self._send_ahead)
        # Why calls are refused, once they are.
        self._refusal: Callable[[], Exception] | None = None
        self._jobs = JobCalls(self, self._turns, self._dump, self.run)
        self._calls = 0
        self._starts = 0

    @property
    def worker_type(self) -> WorkerType:
        """The start method of its workers."""
        return self._pool.launcher.options.worker_type

    def __str__(self) -> str:
        return f"the actor {self.interface.name}"

    def __repr__(self) -> str:
        return f"<trio_offload actor {self.interface.name} at {id(self):#x}>"

    # --- handles and waits -----------------------------------------------------------------------

    @property
    def holder(self) -> Hashable | None:
        """The thread of its running method, if that has said something: see :class:`Awaited`."""
        conversation = None if self._worker is None else self._worker.conversation
        return None if conversation is None else conversation.holder

    def resolved(self) -> Any:
        """As :meth:`Handle.resolved`."""
        return self.facade

    def details(self, grant: Any) -> tuple[Any, ...]:
        """As :meth:`Handle.details`. Without a grant this process is a fork, with a copy."""
        if grant is None:
            self.on_copy()
        return super().details(grant)

    def details_of_stand_in(self) -> tuple[str, tuple[str, ...], bool]:
        """As :meth:`Callee.details_of_stand_in`, with ``stream`` for generator methods."""
        name, special, has_attributes = super().details_of_stand_in()
        return name, (*special, STREAM) if self.interface.streams else special, has_attributes

    def statistics(self) -> ActorStatistics:
        """Return its statistics."""
        worker = self._worker
        return ActorStatistics(
            pid=None if worker is None else worker.process.pid,
            running=None if worker is None else worker.running_function,
            pending=len(self._turns),
            calls=self._calls,
            restarts=max(0, self._starts - 1),
        )

    # --- calls -----------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method for a task of this program."""
        if self._refusal is not None:
            raise self._refusal()
        if kwargs:
            payload = self._dump(function, _worker_side.call_with_keywords, (name, args, kwargs))
        else:
            payload = self._dump(function, _worker_side.call, (name, *args))
        value = await self._take_turn(payload)
        return self.facade if value is _worker_side.Itself else value

    @trio.lowlevel.enable_ki_protection
    async def send_values(
        self, name: str, function: Callable[..., Any], channel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Send the values of a generator method into a channel, and return its result."""
        if self._refusal is not None:
            raise self._refusal()
        return await self._take_turn(self._dump(function, _worker_side.send_values, (name, channel, args, kwargs)))

    async def _take_turn(self, payload: Payload) -> Any:
        """Run a call of this task, when it has its turn."""
        turn = TurnOfTask(payload)
        turns = self._turns
        try:
            if turns.running is None:
                await checkpoint_if_cancelled()
            if turns.running is None and self._refusal is None:
                turns.running = turn
            else:
                turns.enqueue(turn)
                await turn.wait(self, turns.leave)
        except BaseException:
            release(payload)
            raise
        return await self.run(turn)

    async def call_for_thread(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As :meth:`Callee.call_for_thread`. A generator method returns a :class:`Relay`."""
        if self.interface.generator_method(name) is not None:
            return await self.stream_for_thread(name, 0, args, kwargs)
        value = await self.call(name, self.interface.method(name), args, kwargs)
        return _worker_side.Itself if value is self.facade else value

    async def stream_for_thread(self, name: str, window: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Relay:
        """Call a generator method for a thread of Trio's. 0 stands for the usual window."""
        if self._refusal is not None:
            raise self._refusal()
        return self._jobs.stream(name, window, current_owner(), (args, kwargs))

    def call_for_job(self, request: Request, name: str) -> None:
        """Call a method for a job: see :meth:`PlainGrant.request`."""
        if self._refusal is not None:
            request.fail(self._refusal())
        else:
            self._jobs.call(request, name)

    async def run(self, turn: Turn) -> Any:
        """Run a call that has the turn, and return its result. Then the next has the turn."""
        value: Any = None
        error: BaseException | None = None
        try:
            while True:
                worker = self._worker or await self._restart()
                try:
                    if not turn.is_sent:
                        if worker.state is not IDLE:
                            raise CallNotRun
                        worker.submit(turn.payload)
                    turn.is_sent = False
                    value, error = await worker.answer(False, turn.spins)
                    break
                except CallNotRun:
                    self._note_loss(worker, f"worker {worker.process.pid} {_ending_between_calls(worker)}")
                    if self._refusal is not None:
                        raise self._refusal() from None
                except BaseException as broken:
                    if worker.state is not IDLE:
                        self._note_loss(worker, self._describe(broken, turn))
                    raise
            self._calls += 1
        finally:
            if turn.payload.grants:
                release(turn.payload)
            self._turns.next()
        if error is None:
            return value
        try:
            if not isinstance(error, Exception):
                await raise_cancelled(error)
            raise error
        finally:
            error = None  # it refers to this frame

    def _dump(self, function: Callable[..., Any], helper: Callable[..., Any], args: tuple[Any, ...]) -> Payload:
        return dump_call_as(function, helper, args, to_fork=self._to_fork)

    def _send_ahead(self, turn: Turn) -> None:
        """Send a call that has just got the turn. Its own task may be scheduled later."""
        worker = self._worker
        if worker is not None and worker.state is IDLE:
            try:
                worker.submit(turn.payload)
            except CallNotRun:
                return  # its task finds that out too
            worker.flush()
            turn.is_sent = True

    # --- start and end ---------------------------------------------------------------------------

    async def _restart(self) -> Worker:
        worker = await self.start()
        if self._refusal is not None:  # the block has ended meanwhile
            raise self._refusal()
        return worker

    async def start(self) -> Worker:
        """Start a worker with a new object.

        Raises:
            Exception: the class has raised it.
            WorkerStartError, BrokenWorkerError: the worker did not start, or died.
        """
        pool = self._pool
        lost: list[WorkerProcess] = []
        while True:
            payload = self._dump_start()
            try:
                worker, _ = await pool.take()
            except BaseException:
                release(payload)
                raise
            try:
                # The object is as this program was at its start, so changes do not matter.
                worker.main_snapshot = None
                _keep(worker, payload)
                worker.submit(payload)
                _, error = await worker.answer(True, True)
            except CallNotRun:
                pool.cache.push(worker)
                lost = with_lost(lost, worker.process, payload.name)
                continue
            except BaseException:
                pool.cache.push(worker)
                raise
            if error is not None:
                pool.cache.push(worker)
                raise error
            break
        worker.grace = self._grace
        self._worker = worker
        self._starts += 1
        return worker

    def _dump_start(self) -> Payload:
        if not self._restarts:
            return self._dump(self.interface.cls, _worker_side.make, self._make)
        with repeated("each new object gets the same arguments"):
            return self._dump(self.interface.cls, _worker_side.make, self._make)

    def _note_loss(self, worker: Worker, how: str) -> None:
        """Note that the worker has ended, or is about to."""
        self._worker = None
        self._pool.cache.push(worker)
        if not self._restarts and self._refusal is None:
            self._refuse(lambda: trio.BrokenResourceError(f"{self} has ended: {how}"))

    def _refuse(self, make_error: Callable[[], Exception]) -> None:
        """Refuse all calls from now on, and those that wait."""
        self._refusal = make_error
        self._turns.refuse(make_error)

    def _describe(self, error: BaseException, turn: Turn) -> str:
        if isinstance(error, BrokenWorkerError):
            return str(error)
        return f"a cancelled call of {turn.payload.name} did not end within its grace of {self._grace} s"

    async def close(self, *, tells: bool) -> None:
        """Refuse calls, wait for the running one, and end the worker.

        Args:
            tells: tell the running method that it is cancelled.
        """
        if self._refusal is None:
            self._refuse(lambda: trio.ClosedResourceError(f"{self} is closed: its block has ended"))
        try:
            if not tells:
                await self._turns.wait_idle()
        finally:
            await self._end_running()
            self._jobs.close()
            if self._worker is not None:
                self._pool.cache.push(self._worker)
                self._worker = None
            await self._pool.close(self._pool.launcher.options.grace_period)

    async def _end_running(self) -> None:
        """End a method that runs although the block has ended."""
        worker = self._worker
        if self._turns.running is None:
            return
        with trio.CancelScope(shield=True):
            if worker is None:  # it starts anew, and the call does not run
                await self._turns.wait_idle()
                return
            if worker.state is RUNNING:
                worker.tell_cancelled()
            with _clock.move_on_after(math.inf if self._grace is None else self._grace):
                await self._turns.wait_idle()
            if self._turns.running is not None:
                worker.kill()
                await self._turns.wait_idle()


def _ending_between_calls(worker: Worker) -> str:
    if worker.state is ENDED:
        how = describe_ending(worker.process)
    elif not worker.keeps_privileges():
        return "was asked to exit, because this program's privileges, root directory or namespaces have changed since it started"
    else:
        how = "exited, perhaps because of memory_limit,"
    return f"{how} between two calls"


def _keep(worker: Worker, payload: Payload) -> None:
    """Let all jobs of a worker use the handles in a call that it is about to get."""
    if payload.grants:
        conversation = worker.converse()
        if conversation.lasting is None:
            conversation.lasting = LastingGrants()
        conversation.lasting.add(payload.grants, conversation)
        payload.grants = ()
