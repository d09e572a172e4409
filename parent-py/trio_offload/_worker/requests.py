"""What a job says while it runs: requests, one-way messages, and their owner."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import trio

from trio_offload_worker._jobs.guards import describe

from .._exceptions import AbandonedLockError, BrokenBarrierError, DeadlockError
from .._pickling import calls as _calls
from .._pickling.by_reference import are_small
from .._pickling.payload import with_grants
from .._pickling.picklers import PROTOCOL
from .._statistics import WaitingJob

if TYPE_CHECKING:
    import signal

    from .._pickling.payload import Grant
    from .._transport.sockets import Descriptors

STATUS_OF: Final[Sequence[tuple[type[BaseException], str]]] = (
    (trio.Cancelled, "cancelled"),
    (trio.WouldBlock, "would_block"),
    (trio.EndOfChannel, "end_of_channel"),
    (AbandonedLockError, "abandoned"),
    (trio.BrokenResourceError, "broken"),
    (trio.ClosedResourceError, "closed"),
    (DeadlockError, "deadlock"),
    (BrokenBarrierError, "broken_barrier"),
)
"""Errors with a twin in the job, and the status of the reply that stands for them."""


class Replier(Protocol):
    """The conversation of a request."""

    def reply(
        self,
        request: Request,
        status: str,
        segments: Sequence[Any],
        types: bytes,
        lengths: Sequence[int] | None,
        grants: Sequence[Grant],
        body: dict[str, Any] | None,
    ) -> None:
        """Write the reply of a request. See :meth:`Request.complete`."""

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Run an async function, which must handle its exceptions, in the host's nursery."""

    def start_unawaited(self, function: Callable[..., Any], *args: Any) -> None:
        """As :meth:`start`, but the call waits for its end, if its job ends in order."""

    def interrupt(self, error: BaseException) -> None:
        """End the job, and raise this exception of a callback in the host."""

    @property
    def is_late(self) -> bool:
        """True if the time of the running call is over."""

    def give_credit(self, call: JobCall, handle: int, count: int) -> None:
        """Let a call send messages about a handle that need no reply."""

    def handed(self, request: int) -> int:
        """Return how many items that a request got have reached the code of its job."""

    def drop_grant(self, call: JobCall, grant: Grant) -> None:
        """End a grant before its call ends. The job has closed the handle, and had it once."""


@attrs.frozen
class Death:
    """How a worker died."""

    pid: int
    function: str
    """Name of the function that it ran."""
    cause: str
    """How it ended, in words that follow `worker 4711, which ran produce,`."""
    signal: signal.Signals | None = None
    in_hand: list[Any] = attrs.field(factory=list, eq=False)
    """What the job had received from channels. Their grants add it."""


@attrs.define(eq=False)
class JobCall:
    """One call of a worker, as an owner of locks and the like."""

    pid: int
    number: int
    function: str

    def __str__(self) -> str:
        return f"the job {self.function} in worker {self.pid}"


@attrs.frozen(cache_hash=True)
class JobOwner:
    """A thread of a call; in a chunk of a map, of one item."""

    call: JobCall
    thread: int
    item: int = 0

    def __str__(self) -> str:
        return str(self.call)


@attrs.frozen
class TaskOwner:
    """A task of this program, as an owner of locks and the like."""

    task: trio.lowlevel.Task = attrs.field(eq=id)

    def __str__(self) -> str:
        return f"the task {self.task.name}"


@attrs.define(eq=False)
class Post:
    """A one-way message of a job."""

    _conversation: Replier
    op: str
    owner: JobOwner
    segments: Sequence[Any]
    types: bytes
    count: int | None

    def load(self) -> Any:
        """Unpickle the segments."""
        return _calls.load(self.segments)

    def drop_grant(self, grant: Grant) -> None:
        """As :meth:`Replier.drop_grant`."""
        self._conversation.drop_grant(self.owner.call, grant)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """As :meth:`Replier.start_unawaited`."""
        self._conversation.start_unawaited(function, *args)

    def interrupt(self, error: BaseException) -> None:
        """As :meth:`Request.interrupt`."""
        self._conversation.interrupt(error)


@attrs.define(eq=False)
class Request:
    """A request of a job. It is completed exactly once."""

    _conversation: Replier
    number: int
    op: str
    owner: JobOwner
    segments: Sequence[Any]
    types: bytes
    count: int | None
    is_shielded: bool
    on_withdraw: Callable[[], object] | None = None
    """Takes it out of the place where it is parked. The reply is the caller's."""
    ends_itself: bool = False
    """True if a withdrawn request is completed by its task, once that has ended."""
    withdrawn_as: str = ""
    """The status of such a request after it was withdrawn."""
    refusal: Exception | None = None
    """The exception of such a request after it was refused."""
    is_completed: bool = False
    descriptors: Descriptors | None = None
    """Descriptors that its reply carries."""
    is_over: bool = False
    """True if it is withdrawn because its call has ended."""
    grant: Grant | None = None
    """The handle that it concerns. None means a function by name, or a sleep."""
    since: float = attrs.field(factory=time.monotonic)
    """Time of its arrival, by the monotonic clock."""

    def give_credit(self, handle: int, count: int) -> None:
        """Let the job send ``count`` messages about a handle that need no reply."""
        self._conversation.give_credit(self.owner.call, handle, count)

    def drop_grant(self, grant: Grant) -> None:
        """As :meth:`Replier.drop_grant`."""
        self._conversation.drop_grant(self.owner.call, grant)

    def handed(self, number: int) -> int:
        """Return how many items that a request of this job got have reached the job's code.

        It may be more than the request got.
        """
        return self._conversation.handed(number)

    def load(self) -> Any:
        """Unpickle the segments."""
        return _calls.load(self.segments)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Run an async function, which must handle its exceptions, in the call's task."""
        self._conversation.start(function, *args)

    def interrupt(self, error: BaseException) -> None:
        """End the job, and raise the exception in the task that waits for the call."""
        self._conversation.interrupt(error)

    @property
    def is_late(self) -> bool:
        """True if the time of its call is over."""
        return self._conversation.is_late

    def complete(
        self,
        status: str = "value",
        segments: Sequence[Any] = (),
        types: bytes = b"",
        *,
        lengths: Sequence[int] | None = None,
        grants: Sequence[Grant] = (),
        body: dict[str, Any] | None = None,
    ) -> None:
        """Send the reply. A second completion is ignored.

        Args:
            status: the status of the reply.
            segments: the bytes of its segments.
            types: type of each segment, as in a call. Empty if all are memory.
            lengths: length of each segment, if ``segments`` are pieces of them.
            grants: handles in the segments, which the call may use from now on.
            body: further keys of its body.
        """
        if not self.is_completed:
            self.is_completed = True
            self.on_withdraw = None
            self._conversation.reply(self, status, segments, types, lengths, grants, body)

    def complete_value(self, value: Any) -> None:
        """Send a value, or the error of its pickling."""
        if value is None:
            self.complete()
            return
        if are_small((value,)):
            self.complete("value", (pickle.dumps(value, PROTOCOL),))
            return
        try:
            payload = with_grants(_calls.dump_value, value)
        except Exception as error:
            self.fail(error)
        else:
            self.complete("value", payload.parts, payload.types, lengths=payload.lengths, grants=payload.grants)

    def complete_descriptors(self, descriptors: Descriptors) -> None:
        """Send duplicates of file descriptors."""
        if not self.is_completed:
            self.descriptors = descriptors
            self.complete(body={"descriptors": len(descriptors.numbers)})

    def fail(self, error: BaseException) -> None:
        """Send an exception."""
        for kind, status in STATUS_OF:
            if isinstance(error, kind):
                self.complete(status, body={"type": type(error).__qualname__, "message": str(error)})
                return
        segments, type_name, message, traceback = describe(error, "call")
        self.complete("raised", segments, body={"type": type_name, "message": message, "traceback": traceback})

    def as_wait(self) -> WaitingJob:
        """Return a record of the wait for its reply."""
        return WaitingJob(
            self.owner.call.pid,
            self.owner.call.function,
            self.op,
            None if self.grant is None else repr(getattr(self.grant, "handle", self.grant)),
            time.monotonic() - self.since,
        )

    def refuse(self, error: Exception) -> None:
        """Send an exception, after it has been taken out of its place."""
        if self.on_withdraw is not None:
            self.on_withdraw()
        if self.ends_itself:
            self.withdrawn_as, self.refusal = self.withdrawn_as or "refused", error
        else:
            self.fail(error)

    def withdraw(self, status: str) -> None:
        """Complete it with this status, after it has been taken out of its place."""
        if not self.is_completed:
            self.is_over = status == "closed"
            if self.on_withdraw is not None:
                self.on_withdraw()
            if self.ends_itself and not self.is_over:
                self.withdrawn_as = self.withdrawn_as or status
            else:
                self.complete(status)
