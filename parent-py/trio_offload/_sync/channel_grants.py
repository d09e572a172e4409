"""What one call of a job may do with an end of a channel: the parent's side of its requests.

Each grant has an end of its own, which closes when the call has ended.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from trio_offload_worker._protocol.frames import HANDED_ALL

from .._pickling.picklers import PROTOCOL
from . import pickled_items
from .bounded_buffer import Item, Refusal
from .channel_state import (
    MAX_AHEAD,
    MAX_AHEAD_IN_STREAM,
    ChannelState,
    Delivery,
    ReceiveEnd,
    SendEnd,
    no_action,
)
from .channel_statistics import statistics_of
from .handles import new_number, register
from .waiters import RequestWaiter

_STREAM_PAUSE: Final = 0.005  # seconds between two receives of a job that streams

if TYPE_CHECKING:
    from .._worker.conversation import Conversation
    from .._worker.requests import Death, Post, Request


def refuse(request: Request, refusal: Refusal) -> None:
    """Reply with a refusal."""
    body = {"message": refusal.message}
    if refusal.status == "refused":
        body["type"] = "RuntimeError"
    request.complete(refusal.status, body=body)


class SendWaiter(RequestWaiter):
    """A job that waits for a place in a buffer."""

    def complete(self, result: Any) -> None:
        """The items are in the buffer."""
        self.request.complete()

    def fail(self, error: BaseException) -> None:
        """The items were refused."""
        if isinstance(error, Refusal):
            refuse(self.request, error)
        else:
            self.request.fail(error)


class ReceiveWaiter(SendWaiter):
    """A job that waits for items."""

    def complete(self, result: list[Item]) -> None:
        """Send the items to the job."""
        pickled_items.reply(self.request, result, several=True)


class _EndGrant:
    """A grant of an end. Subclasses have its operations."""

    def __init__(self, state: ChannelState, make: Callable[[ChannelState, Any], Any]) -> None:
        self.id = new_number()
        self.state = state
        self.make = make  # the class of this program's ends
        self.is_ended = False
        # Of the worker. This one is its clone for a call. If the job closes this, both close.
        self.lasting: _EndGrant | None = None
        register(self.id, self)

    def begin(self, conversation: Conversation) -> None:
        """See :class:`~.._pickling.payload.Grant`."""

    def request(self, request: Request) -> None:
        """See :class:`~.._pickling.payload.Grant`."""
        try:
            if request.op == "clone":
                clone = self.clone()
                request.complete("value", [pickle.dumps(clone.id, PROTOCOL)], grants=[clone])
            elif request.op == "statistics":
                request.complete_value(attrs.asdict(statistics_of(self.state)))
            else:
                self.operate(request)
        except Refusal as refusal:
            refuse(request, refusal)

    def clone(self) -> _EndGrant:
        """Return a grant of a further end for the same call."""
        raise NotImplementedError

    def for_call(self) -> _EndGrant:
        """See :class:`~.._pickling.payload.Grant`."""
        if self.is_ended:
            return self
        grant = self.clone()
        grant.id, grant.lasting = self.id, self
        return grant

    def _close_lasting(self) -> None:
        if self.lasting is not None:
            self.lasting.end(None)

    def operate(self, request: Request) -> None:
        """Handle the other requests."""
        raise NotImplementedError

    def post(self, post: Post) -> None:
        """See :class:`~.._pickling.payload.Grant`."""
        raise NotImplementedError

    def end(self, death: Death | None) -> None:
        """See :class:`~.._pickling.payload.Grant`."""
        raise NotImplementedError


class SendGrant(_EndGrant):
    """A send channel of one call."""

    RUNS: ClassVar[frozenset[str]] = frozenset(("send",))
    """Posts of which :meth:`post_run` takes several."""

    def __init__(self, state: ChannelState, end: SendEnd, make: Callable[[ChannelState, Any], Any]) -> None:
        super().__init__(state, make)
        self.channel_end = end
        self._last: Request | None = None

    def clone(self) -> SendGrant:
        """As :meth:`_EndGrant.clone`."""
        return SendGrant(self.state, self.state.clone_sender(self.channel_end), self.make)

    def resolved(self) -> Any:
        """Return a new send channel, for this program, in place of the job's."""
        end = SendEnd(closed=True) if self.channel_end.closed else self.state.clone_sender(self.channel_end)
        channel = self.make(self.state, end)
        pickled_items.note_end(channel)
        return channel

    def operate(self, request: Request) -> None:
        """Send items."""
        try:
            items = pickled_items.items_from(request, several=request.op == "send_many")
        except Exception as error:
            request.fail(error)
            return
        # The items that it could have sent on credit.
        self.channel_end.credit -= min(request.count or 0, self.channel_end.credit)
        waiter = None if request.op == "send_nowait" else SendWaiter(request, withdraw=self.state.withdraw)
        try:
            is_done = self.state.send(self.channel_end, items, waiter)
        except Refusal:
            pickled_items.release(items)
            raise
        self._last = request
        self.state.on_room = self._extend_credit
        # Before the reply, so the job has it for the next item.
        self._extend_credit(asks=True)
        if is_done:
            request.complete()

    def _extend_credit(self, *, asks: bool = False) -> None:
        if self._last is not None and (count := self.state.extend_credit(self.channel_end, asks=asks)):
            self._last.give_credit(self.id, count)

    def post(self, post: Post) -> None:
        """Send an item on credit, or close the end."""
        if post.op == "send":
            (item,) = pickled_items.items_from(post, several=False)
            self.state.send_on_credit(self.channel_end, [item])
        elif post.op == "close":
            self.state.close_sender(self.channel_end)
            self._close_lasting()

    def post_run(self, pickles: Sequence[bytes]) -> None:
        """Send several items on credit, as :meth:`post` does one after the other."""
        items = pickled_items.plain_items(pickles)
        if items is not None:
            self.state.send_on_credit(self.channel_end, items)
            return
        for pickled in pickles:
            self.state.send_on_credit(self.channel_end, [pickled_items.item_of((pickled,))])

    def end(self, death: Death | None) -> None:
        """Close the end. A death is told to the receivers, after what was sent."""
        self.is_ended = True
        if self.state.on_room == self._extend_credit:
            self.state.on_room = no_action
        self.state.close_sender(
            self.channel_end, "" if death is None else f"worker {death.pid}, which ran {death.function}, {death.cause}"
        )


class ReceiveGrant(_EndGrant):
    """A receive channel of one call."""

    def __init__(self, state: ChannelState, end: ReceiveEnd, make: Callable[[ChannelState, Any], Any]) -> None:
        super().__init__(state, make)
        self.channel_end = end
        # Any request knows which of its siblings' replies reached the job's code.
        self._last: Request | None = None
        self._received_at = 0.0

    def clone(self) -> ReceiveGrant:
        """As :meth:`_EndGrant.clone`."""
        return ReceiveGrant(self.state, self.state.clone_receiver(self.channel_end), self.make)

    def resolved(self) -> Any:
        """Return a new receive channel, for this program, in place of the job's."""
        end = ReceiveEnd(closed=True) if self.channel_end.closed else self.state.clone_receiver(self.channel_end)
        channel = self.make(self.state, end)
        pickled_items.note_end(channel)
        return channel

    def operate(self, request: Request) -> None:
        """Receive up to the request's ``count`` items, or what the job may have ahead."""
        self._last = request
        is_ahead = request.op != "receive_many"
        limit = self.state.may_run_ahead(self._stream_limit(request)) if is_ahead else request.count or 1
        waiter = None if request.op == "receive_nowait" else ReceiveWaiter(request, withdraw=self.state.withdraw)
        delivery = Delivery(request.owner.thread, request.number, is_ahead)
        items = self.state.receive(self.channel_end, waiter, limit, delivery)
        if items is not None:
            pickled_items.reply(request, items, several=True)

    def _stream_limit(self, request: Request) -> int:
        """Return how many items the job may have ahead: more if it uses them up at once."""
        before, self._received_at = self._received_at, request.since
        return MAX_AHEAD_IN_STREAM if request.since - before < _STREAM_PAUSE else MAX_AHEAD

    def post(self, post: Post) -> None:
        """Close the end, or put back items that the job got and could not use."""
        if post.op == "close":
            self.state.close_receiver(self.channel_end)
            self._close_lasting()
        elif post.op == "return":
            self.state.put_back(self.channel_end, post.count or 0, 0)
        elif post.op == "return_rest":
            number, handed = divmod(post.count or 0, HANDED_ALL + 1)
            self.state.put_back(self.channel_end, number, handed)

    def end(self, death: Death | None) -> None:
        """Close the end. Items that did not reach the job's code go back to the front."""
        if self.is_ended:
            return
        self.is_ended = True
        in_hand = self.state.finish_receiver(self.channel_end, self._handed)
        if death is not None and in_hand:
            death.in_hand.append(InHand([item.payload for item in in_hand], self.channel_end.received))
        pickled_items.release(in_hand)

    def _handed(self, number: int) -> int:
        return 0 if self._last is None else self._last.handed(number)


@attrs.define(eq=False)
class InHand:
    """The items that a job had received from one channel when its worker died.

    They were passed to its code, and are not received again.
    """

    _pickles: Sequence[pickled_items.PickledItem] = attrs.field(repr=False)
    received: int
    """Number of items that the call had received from the channel in all."""

    @property
    def count(self) -> int:
        """Number of items that its threads received last: at most one ``receive`` of each."""
        return len(self._pickles)

    def items(self) -> list[Any]:
        """Unpickle the items that its threads received last.

        Raises:
            Exception: any exception of the unpickler.
        """
        return [pickled.load() for pickled in self._pickles]
