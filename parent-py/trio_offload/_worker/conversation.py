"""The messages of a running job to its parent: its requests, and their replies.

A worker has a conversation from the first message, or the first call with handles, on. The task
that waits for the call's answer is its *host*. It reads the job's messages too, and handles them
at once. Callbacks run in a nursery of the host, inside its cancel scopes and with its context
variables.

Rules:

* A request gets one reply as long as its call runs, also if it is withdrawn or its caller is
  cancelled.
* The message of a job counts as soon as it is in the socket. A dead worker's socket is read to its
  end before its grants are settled.
* A reply is written whole, behind a write in progress. A task of the host's nursery waits for a
  socket that is full.
* A callback's exception is a reply. Only Ctrl+C and its like end the job, and are raised in the
  host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from trio_offload_worker._protocol.frames import Buffer, Frame, Kind, encode_head, encode_reply

from .._exceptions import DeadlockError, is_cancelled
from .._statistics import WaitingJob
from .._transport.sender import MIN_PAGES_SIZE
from .._transport.sockets import CarryingFrame
from .._wait_graph import WAITS, in_words
from .board import Board
from .callback_tasks import CallbackTasks
from .callbacks import call_plain
from .endings import describe_ending
from .item_stream import Follower
from .loans import Loan, loan_of
from .outbox import Outbox
from .peer import MAX_UNINTERRUPTED
from .requests import Death, JobCall, JobOwner, Post, Request, TaskOwner
from .stalls import StallWatch, watch_of_run

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._process.process import WorkerProcess
    from .._transport.channel import Channel
    from .lasting import LastingGrants
    from .speaker import Speaker

SYNCHRONOUS: Final = frozenset(("run_sync",))
"""Requests that a cancelled job may still make, because they end at once."""


class Conversation:
    """The requests of one worker's jobs. It lives as long as the worker."""

    def __init__(self, worker: Speaker) -> None:
        self._worker = worker
        self.in_hand: list[Any] = []  # items that the dead worker's job had, by channel
        self._call: JobCall | None = None
        self._owner: JobOwner | None = None  # of the last message
        self._pinned: dict[int, Sequence[Buffer]] = {}  # by thread: the socket may hold their pages
        self._grants: dict[int, dict[int, Grant]] = {}  # by the call's number and their identities
        self._granted: dict[int, Grant] = {}  # to the running call, by their ids
        self._open: dict[int, Request] = {}
        self.tasks = CallbackTasks()
        self.start = self.tasks.start  # as :meth:`Replier.start`
        self.start_unawaited = self.tasks.start_unawaited  # as :meth:`Replier.start_unawaited`
        self._outbox = Outbox(worker, self)
        self._follower = Follower()
        self._write = self._outbox.write
        self._interrupt: BaseException | None = None
        self._cancelled = 0  # number of the call that was notified of its cancellation
        self._loan: Loan | None = None
        self._board: Board | None = None
        self._stalls: StallWatch | None = None
        self.lasting: LastingGrants | None = None

    def grant(self, number: int, grants: Sequence[Grant]) -> None:
        """Let a call use these handles."""
        for grant in grants:
            grant.begin(self)
        self._grants.setdefault(number, {}).update((id(grant), grant) for grant in grants)
        if self._call is not None and self._call.number == number:
            self._granted.update((grant.id, grant) for grant in grants)

    @property
    def board(self) -> Board:
        """The flags in the record of the worker."""
        if self._board is None:
            self._board = Board(self._worker)
        return self._board

    def take(self, frame: Frame) -> None:
        """Handle a message of the running job."""
        call = self._running_call(frame.id)
        body = frame.body
        if frame.kind is Kind.WITHDRAW:
            request = self._open.get(body["request"])
            if request is not None:
                request.withdraw("withdrawn")
            return
        thread, item = body["thread"], body.get("item", 0)
        self._pinned.pop(thread, None)
        owner = self._owner
        if owner is None or owner.thread != thread or owner.item != item or owner.call is not call:
            self._owner = owner = JobOwner(call, thread, item)
        grant = self._granted.get(body.get("handle", 0))
        if grant is None and self.lasting is not None:
            grant = self.lasting.lend(self, call.number, body.get("handle"))
        types = body.get("types", b"")
        if frame.kind is Kind.POST:
            if grant is not None:
                grant.post(Post(self, body["op"], owner, frame.segments, types, body.get("count")))
            return
        request = Request(
            self, body["request"], body["op"], owner, frame.segments, types, body.get("count"), body.get("shield", False)
        )
        request.grant = grant
        self._open[request.number] = request
        _dispatch(request, body, is_cancelled=self._cancelled == call.number)
        if len(self._open) == 1 and not request.is_completed:
            if self._loan is not None:
                self._loan.begin()
            self._stalls = watch_of_run()
            self._stalls.add(self, self._worker.options.stall_report)

    def _running_call(self, number: int) -> JobCall:
        call = self._call
        if call is None or call.number != number:
            function = self._worker.running_function or "an unknown function"
            call = self._call = JobCall(self._worker.process.pid, number, function)
            self._granted = {grant.id: grant for grant in self._grants.get(number, {}).values()}
            self._loan = loan_of(self._worker.limiter, self._worker.options, self._open)
        return call

    def settle(self, number: int, death: Death | None) -> None:
        """Settle the grants of a call that has ended. Its parked requests leave their places."""
        if self._call is not None and self._call.number == number:
            self._call = None  # so they get no reply
            self._granted = {}
            self._pinned.clear()
            for request in list(self._open.values()):
                request.withdraw("closed")
            self._loan = None
            self._outbox.drop_carrying()
        for grant in self._grants.pop(number, {}).values():
            grant.end(death)

    def drop_grant(self, call: JobCall, grant: Grant) -> None:
        """As :meth:`Replier.drop_grant`."""
        if call is self._call and self._grants.get(call.number, {}).pop(id(grant), None) is not None:
            del self._granted[grant.id]
            grant.end(None)

    def end(self, number: int, function: str | None, process: WorkerProcess) -> None:
        """Settle the grants of the running call, whose worker has ended. Its messages are read."""
        if number in self._grants or (self._call is not None and self._call.number == number):
            cause = describe_ending(process)
            death = Death(process.pid, function or "an unknown function", cause, process.signal, self.in_hand)
            self.settle(number, death)
        for behind in list(self._grants):
            self.settle(behind, None)
        if self.lasting is not None:
            self.lasting.end_with(process, function, self.in_hand)

    @property
    def is_live(self) -> bool:
        """True if the running call has sent a message."""
        return self._call is not None

    @property
    def limiter(self) -> Any:
        """The limiter of which the running call holds a token."""
        return self._worker.limiter

    def waits(self) -> list[WaitingJob]:
        """Return a record for each request that has no reply yet."""
        return [request.as_wait() for request in list(self._open.values())]

    def forget(self) -> None:
        """Forget the calls in flight. They go to another worker, with their grants."""
        self._grants.clear()

    def cancel(self, number: int) -> None:
        """Tell the job of this call that its caller is cancelled: blocked waits of it end."""
        self._cancelled = number
        if self._call is not None and self._call.number == number:
            for request in list(self._open.values()):
                if not request.is_shielded:
                    request.withdraw("cancelled")

    def give_credit(self, call: JobCall, handle: int, count: int) -> None:
        """As :meth:`Replier.give_credit`."""
        if call is self._call:
            self._write([encode_head(Kind.CREDIT, call.number, (), {"handle": handle, "count": count})])

    def handed(self, request: int) -> int:
        """As :meth:`Replier.handed`."""
        return self._worker.handed(request)

    def interrupt(self, error: BaseException) -> None:
        """As :meth:`Replier.interrupt`."""
        self._interrupt = self._interrupt or error
        self.tasks.cancel()

    @property
    def is_late(self) -> bool:
        """As :attr:`Replier.is_late`."""
        return self._worker.deadline is not None and self._worker.deadline.cancel_called

    def reply(
        self,
        request: Request,
        status: str,
        segments: Sequence[Buffer],
        types: bytes,
        lengths: Sequence[int] | None,
        grants: Sequence[Grant],
        body: dict[str, Any] | None,
    ) -> None:
        """Write the reply of a request. See :meth:`Request.complete`."""
        self._open.pop(request.number, None)
        if not self._open:
            if self._loan is not None:
                self._loan.end()
            if self._stalls is not None:
                self._stalls.discard(self)
        call = request.owner.call
        if call is not self._call:
            for grant in grants:
                grant.end(None)
            return
        if grants:
            self.grant(call.number, grants)
        sizes = [len(segment) for segment in segments] if lengths is None else lengths
        if sizes and max(sizes) >= MIN_PAGES_SIZE:
            self._pinned[request.owner.thread] = segments
        head = _head_of_reply(call.number, request.number, status, sizes, types, body)
        if request.descriptors is None:
            self._write([head, *segments])
        else:
            # The frame alone owns them.
            descriptors, request.descriptors = request.descriptors, None
            self._outbox.write_carrying(CarryingFrame.of(head, descriptors))

    @property
    def holder(self) -> JobOwner | None:
        """The thread of the job whose end its host waits for. See :class:`Awaited`."""
        return None if self._call is None else JobOwner(self._call, self._call.pid)

    def __str__(self) -> str:
        return "the end of its job"

    def _begin_wait(self, host: TaskOwner) -> None:
        """Enter the host's wait. If it closes a cycle, the job's request, the first, fails."""
        cycle = WAITS.cycle(host, self)
        WAITS.add_unchecked(host, self)
        for request in list(self._open.values()) if cycle else ():
            if request.owner == self.holder:
                request.refuse(DeadlockError(in_words(cycle)))

    async def host(self, channel: Channel, start: bytes, *, kills: bool) -> Frame | memoryview:
        """Return the answer of the running call, and serve its job until then.

        Args:
            channel, start: as for :meth:`Channel.receive`.
            kills: whether a cancellation kills the worker at once. Else the job is notified.

        Raises:
            Cancelled: it was cancelled. The host may come back.
            EndOfStream, WireError: as :meth:`Channel.receive`.
            BaseException: Ctrl+C or its like out of a callback.
        """
        waits = TaskOwner(trio.lowlevel.current_task())
        self._begin_wait(waits)
        self._outbox.take_unsent()
        answer: outcome.Outcome[Frame | memoryview] | None = None
        try:
            async with trio.open_nursery() as nursery:
                self.tasks.begin(nursery)
                self._outbox.continue_writing(channel)
                if self._interrupt is None:
                    # Captured, because the nursery would wrap the exception into a group.
                    answer = await outcome.acapture(self._listen, channel, start, kills)
                    is_cancelled_call = self._call is not None and self._cancelled == self._call.number
                    if self.tasks.has_unawaited and type(answer) is outcome.Value and not is_cancelled_call:
                        await self.tasks.wait_for_unawaited(self._loan)
                nursery.cancel_scope.cancel()
        except BaseException as error:
            # The tasks capture their exceptions, so this is the cancellation of an outer scope. It
            # comes again at the next checkpoint.
            if answer is None or not is_cancelled(error):
                raise
        finally:
            WAITS.remove(waits)
            self.tasks.end()
            self._outbox.put_back_unsent()
        if self._interrupt is not None:
            interrupt, self._interrupt = self._interrupt, None
            raise interrupt
        if answer is None:
            raise RuntimeError("the host has heard no answer")
        return answer.unwrap()

    async def _listen(self, channel: Channel, start: bytes, kills: bool) -> Frame | memoryview:
        worker = self._worker
        handled = 0
        while True:
            try:
                frame = await channel.receive(cancellable=True, start=start)
                if type(frame) is not Frame or not worker.handle_aside(frame):
                    return frame
                if frame.kind is Kind.POST and (sink := _sink_of(frame, self._granted)) is not None:
                    await self._follower.follow(channel, frame, sink)
            except trio.Cancelled:
                # Before the callbacks end, which may take its time.
                if self._interrupt is None:
                    worker.begin_cancelling(kills=kills)
                raise
            handled += 1
            if not handled % MAX_UNINTERRUPTED:
                await trio.lowlevel.cancel_shielded_checkpoint()


def _dispatch(request: Request, body: dict[str, Any], *, is_cancelled: bool) -> None:
    if is_cancelled and not request.is_shielded and request.op not in SYNCHRONOUS:
        request.complete("cancelled")
    elif request.grant is not None:
        request.grant.request(request)
    elif body.get("handle"):
        request.complete("unknown_handle")
    else:
        call_plain(request)


def _head_of_reply(
    call: int, request: int, status: str, sizes: Sequence[int], types: bytes, body: dict[str, Any] | None
) -> bytes:
    if len(sizes) <= 1 and not types and not body:
        return encode_reply(call, sizes, status, request)
    fields: dict[str, Any] = {"status": status, **(body or {})}
    if types:
        fields["types"] = types
    return encode_head(Kind.REPLY, call, sizes, fields | {"request": request})


def _sink_of(frame: Frame, granted: Mapping[int, Grant]) -> Any | None:
    """Return the grant that takes several messages like this one at once, if there is one."""
    body = frame.body
    grant = granted.get(body.get("handle", 0))
    if grant is None or body["op"] not in getattr(grant, "RUNS", ()) or "types" in body or len(frame.segments) != 1:
        return None
    return grant
