"""The values of an actor's generator method on their way to another job.

The generator's call has a turn like any other, and the actor's server runs it. Its values come as
those of every stream do (``_streams/values.py``), and wait here, unread, until the job asks for
them. With that the job is done with the values that it got before, so the window is the same.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, Protocol

import outcome
import trio

from .._exceptions import BrokenWorkerError
from .._pickling.picklers import PROTOCOL
from .._streams.values import Values, load
from .._sync import pickled_items
from .._sync.bounded_buffer import Item
from .._sync.handles import Handle, PlainGrant
from .._sync.waiters import RequestWaiter, TaskWaiter, current_owner
from .._wait_graph import WAITS
from .._worker.callbacks import fail
from .turns import Turn

if TYPE_CHECKING:
    from .._pickling.payload import Grant, Payload
    from .._wait_graph import Awaited
    from .._worker.requests import Death, Post, Request

WINDOW: Final = 16


class Taker(Protocol):
    """A job, or a thread of Trio's, that waits for values."""

    @property
    def owner(self) -> Any:
        """Who waits."""

    def complete(self, result: Any) -> None:
        """End the wait with values, or with what the generator has returned."""

    def fail(self, error: BaseException) -> None:
        """End the wait with an exception."""


class Returned:
    """The end of the values."""

    def __init__(self, segments: list[Any]) -> None:
        self.item = pickled_items.item_of(segments)
        """The pickle of what the generator has returned."""


class Relay(Handle):
    """The receiving end of such a stream. A job gets it as its ``ActorStream``."""

    kind: ClassVar[str] = "actor_stream"

    def __init__(self, actor: Awaited, window: int, taker: Hashable, leave: Callable[[Turn], object]) -> None:
        """``taker`` makes room for the generator. ``leave`` takes a call out of the queue."""
        super().__init__()
        self.values = _RelayedValues(window, self._wake)
        self.values.taker = taker
        self.turn: TurnOfStream | None = None
        self._actor = actor
        self._leave = leave
        self._scope: trio.CancelScope | None = None
        self._here: list[Any] = []  # values that wait for the next request
        self._handed: list[Any] = []  # values of the last reply
        self._outcome: outcome.Value[Returned] | outcome.Error | None = None
        self._taker: Taker | None = None
        self._closers: list[Taker] = []
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<stream of {self._actor} at {id(self):#x}>"

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _RelayGrant(self)

    def grant_of_copy(self) -> NoReturn:
        """As :meth:`Handle.grant_of_copy`: only the job that has called the generator has it."""
        raise RuntimeError("the stream belongs to another call")

    # --- for the job ------------------------------------------------------------------------------

    def take(self, taker: Taker) -> None:
        """Give the next values to a job. It is done with those before.

        Raises:
            DeadlockError: the generator waits, perhaps through others, for the taker. It is closed.
        """
        self.values.taker = taker.owner
        handed, self._handed = self._handed, []
        if handed:
            self.values.note_taken(handed)
            _release(handed)
        if self._give(taker):
            return
        try:
            WAITS.add(taker.owner, self._actor)
        except BaseException:
            self.close()
            raise
        self._taker = taker

    def put_back(self) -> None:
        """Take the values of the last reply back, which did not reach the job's code."""
        self._here = self._handed + self._here
        self._handed = []

    def withdraw(self, taker: Taker) -> None:
        """End a wait for values, or for the generator's end."""
        WAITS.remove(taker.owner)
        if self._taker is taker:
            self._taker = None
        elif taker in self._closers:
            self._closers.remove(taker)

    def close(self, taker: Taker | None = None) -> None:
        """Drop all values, and end the generator.

        Args:
            taker: waits until it has ended. An exception of the cleanup is its exception.

        Raises:
            DeadlockError: the generator waits, perhaps through others, for the taker.
        """
        if not self._is_closed:
            self._is_closed = True
            self.values.close()
            _release(self._here + self._handed)
            self._here, self._handed = [], []
            if self._scope is not None:
                self._scope.cancel()
            elif self.turn is not None and not self.turn.has_begun and self._outcome is None:
                self._leave(self.turn)
                self.finish(outcome.Error(trio.ClosedResourceError("the stream is closed")), has_run=False)
        if taker is None:
            return
        if self._outcome is not None:
            taker.complete(None)
            return
        WAITS.add(taker.owner, self._actor)
        self._closers.append(taker)

    # --- for the generator's call -----------------------------------------------------------------

    def enter(self, scope: trio.CancelScope) -> None:
        """Note that the generator's call runs inside of this scope."""
        self._scope = scope
        if self._is_closed:
            scope.cancel()

    def finish(self, result: outcome.Value[Any] | outcome.Error, *, has_run: bool = True) -> None:
        """Note the end of the generator's call."""
        self._scope = None
        if isinstance(result, outcome.Error):
            self._outcome = outcome.Error(_for_job(result.error))
        else:
            self._outcome = outcome.capture(Returned, result.value)
        closers, self._closers = self._closers, []
        for taker in closers:
            WAITS.remove(taker.owner)
            if has_run and isinstance(self._outcome, outcome.Error) and not isinstance(self._outcome.error, trio.Cancelled):
                taker.fail(self._outcome.error)
            else:
                taker.complete(None)
        self._wake()

    def _wake(self) -> None:
        taker = self._taker
        if taker is not None and self._give(taker):
            self._taker = None

    def _give(self, taker: Taker) -> bool:
        """Give values, or the end. Return True if there were some."""
        if not self._here:
            self._here = self.values.take()
        if not self._here and self._outcome is None:
            return False
        WAITS.remove(taker.owner)
        if self._here:
            # A value with a pickle of several segments goes alone.
            alone = (number for number, value in enumerate(self._here) if type(value) is Item)
            count = max(1, next(alone, len(self._here)))
            self._handed, self._here = self._here[:count], self._here[count:]
            taker.complete(self._handed)
        elif isinstance(self._outcome, outcome.Value):
            taker.complete(self._outcome.value)
        elif self._outcome is not None:
            taker.fail(self._outcome.error)
        return True

    # --- for threads of Trio's --------------------------------------------------------------------

    async def take_in_thread(self) -> Any:
        """Return further values, or :class:`Returned`."""
        taker: TaskWaiter[Any] = TaskWaiter(current_owner())
        self.take(taker)
        found = await taker.wait(lambda: self.withdraw(taker))
        if isinstance(found, list) and type(found[0]) is Item:
            return [load(found[0])]
        return found

    async def close_in_thread(self) -> None:
        """Close it, and wait for the generator's end."""
        taker: TaskWaiter[None] = TaskWaiter(current_owner())
        with trio.CancelScope(shield=True):
            self.close(taker)
            await taker.wait(lambda: self.withdraw(taker))


class TurnOfStream(Turn):
    """The call of a generator method, which the actor's server runs for a job."""

    def __init__(self, payload: Payload, relay: Relay, serve: Callable[[TurnOfStream], object]) -> None:
        super().__init__(payload)
        self.has_begun = False
        self._relay = relay
        self._serve = serve
        relay.turn = self

    def begin(self) -> None:
        """As :meth:`Turn.begin`."""
        self.has_begun = True
        self._serve(self)

    def refuse(self, error: Exception) -> None:
        """As :meth:`Turn.refuse`."""
        self._relay.finish(outcome.Error(error), has_run=False)

    def enter(self, scope: trio.CancelScope) -> None:
        """As :meth:`Served.enter`."""
        self._relay.enter(scope)

    def end(self, result: outcome.Value[Any] | outcome.Error) -> None:
        """As :meth:`Served.end`."""
        self._relay.finish(result)


class _RelayedValues(Values):
    """Values that a relay takes."""

    def __init__(self, window: int, wake: Callable[[], object]) -> None:
        super().__init__(window, None)
        self._wake_relay = wake

    def wake(self) -> None:
        """As :meth:`Values.wake`."""
        self._wake_relay()


class _JobTaker(RequestWaiter):
    """The wait of a job."""

    def complete(self, result: Any) -> None:
        """As :meth:`Taker.complete`."""
        if isinstance(result, Returned):
            pickled_items.reply(self.request, [result.item], several=True, status="end_of_channel")
        elif result and type(result[0]) is Item:
            pickled_items.reply(self.request, result, several=True)
        else:
            self.request.complete("value", () if result is None else (pickle.dumps(tuple(result), PROTOCOL),))

    def fail(self, error: BaseException) -> None:
        """As :meth:`Taker.fail`."""
        fail(self.request, error)


class _RelayGrant(PlainGrant):
    """What the job may do that has called the generator."""

    handle: Relay

    def settle(self, death: Death | None) -> None:
        """As :meth:`PlainGrant.settle`."""
        self.handle.close()

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        if request.op not in ("values", "close"):
            super().request(request)
            return
        taker = _JobTaker(request, withdraw=self.handle.withdraw)
        try:
            if request.op == "values":
                self.handle.take(taker)
            else:
                self.handle.close(taker)
        except Exception as error:
            request.fail(error)
        if request.op == "close":
            request.drop_grant(self)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "close":
            post.drop_grant(self)
        elif post.op == "return":
            self.handle.put_back()


def _for_job(error: BaseException) -> BaseException:
    # The job would have to import this package for the exception itself.
    return trio.BrokenResourceError(str(error)) if isinstance(error, BrokenWorkerError) else error


def _release(values: list[Any]) -> None:
    pickled_items.release([value for value in values if type(value) is Item])
