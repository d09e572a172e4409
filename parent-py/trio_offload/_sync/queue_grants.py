"""What one call of a job may do with a work queue: the parent's side of its requests."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any

import attrs

from trio_offload_worker import PublicType

from .._documented import DocumentedType, documented
from .._pickling.picklers import PROTOCOL
from .._worker.peer import logger
from . import pickled_items
from .bounded_buffer import Refusal
from .channel_grants import SendWaiter, refuse
from .channel_statistics import queue_statistics_of
from .handles import Handle, PlainGrant
from .queue_state import LeaseState, QueueState

if TYPE_CHECKING:
    from .._worker.requests import Death, Post, Request


@documented
@attrs.define(eq=False)
class FailedItem(metaclass=PublicType):
    """An item of a work queue that has failed."""

    _is_constructible = False

    _pickled: pickled_items.PickledItem = attrs.field(repr=False)
    reason: str
    """The last failure: how the worker died, or the exception of the block."""

    @property
    def item(self) -> Any:
        """The item, unpickled now. Raises any exception of the unpickler."""
        return self._pickled.load()


class FailedItemsError(RuntimeError, metaclass=DocumentedType):
    """Items of a work queue have failed.

    ::

        try:
            await queue.join()
        except trio_offload.FailedItemsError as error:
            for failed in error.failed:
                print(f"{failed.item}: {failed.reason}")
    """

    _is_constructible = False

    def __init__(self, failed: tuple[FailedItem, ...]) -> None:
        super().__init__(failed)

    @property
    def failed(self) -> tuple[FailedItem, ...]:
        """The items, in the order of their failures."""
        failed: tuple[FailedItem, ...] = self.args[0]
        return failed

    def __str__(self) -> str:
        first = self.failed[0]
        more = f", and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
        return f"an item of a work queue has failed: {first.reason}{more}"


def failed_items(state: QueueState) -> tuple[FailedItem, ...]:
    """Return the items of a queue that have failed."""
    return tuple(FailedItem(failed.item.payload, failed.reason) for failed in state.failed)


class _GetWaiter(SendWaiter):
    """A job that waits for an item."""

    def __init__(self, request: Request, grant: QueueGrant) -> None:
        super().__init__(request, withdraw=grant.state.withdraw)
        self._grant = grant

    def complete(self, result: LeaseState) -> None:
        """Send the item to the job."""
        self._grant.deliver(self.request, result)


class _JoinWaiter(SendWaiter):
    """A job that waits until each item is finished."""

    def __init__(self, request: Request, state: QueueState) -> None:
        super().__init__(request, withdraw=state.withdraw)
        self._state = state

    def complete(self, result: Any) -> None:
        """Tell the job what has failed."""
        reply_to_join(self.request, self._state)


def reply_to_join(request: Request, state: QueueState) -> None:
    """Reply that each item is finished, with the reasons of those that have failed."""
    request.complete("value", [pickle.dumps([failed.reason for failed in state.failed], PROTOCOL)])


class QueueGrant(PlainGrant):
    """A work queue of one call, with the leases of its threads."""

    def __init__(self, handle: Handle, state: QueueState) -> None:
        super().__init__(handle)
        self.state = state
        # By the number of the request that got it, which the job uses as its name.
        self._leases: dict[int, LeaseState] = {}
        self._last: Request | None = None

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        state = self.state
        try:
            if request.op in ("put", "put_nowait"):
                self._put(request)
            elif request.op in ("get", "get_nowait"):
                self._get(request)
            elif request.op == "join":
                if state.join(waiter := _JoinWaiter(request, state)):
                    waiter.complete(None)
            elif request.op == "statistics":
                request.complete_value(attrs.asdict(queue_statistics_of(state)))
            else:
                super().request(request)
        except Refusal as refusal:
            refuse(request, refusal)

    def _put(self, request: Request) -> None:
        try:
            items = pickled_items.items_from(request, several=False)
        except Exception as error:
            request.fail(error)
            return
        waiter = None if request.op == "put_nowait" else SendWaiter(request, withdraw=self.state.withdraw)
        try:
            is_done = self.state.put(items, waiter)
        except Refusal:
            pickled_items.release(items)
            raise
        if is_done:
            request.complete()

    def _get(self, request: Request) -> None:
        self._last = request
        lease = self.state.get(self, None if request.op == "get_nowait" else _GetWaiter(request, self), request.number)
        if lease is not None:
            self.deliver(request, lease)

    def deliver(self, request: Request, lease: LeaseState) -> None:
        """Send a leased item to the job."""
        self._leases[request.number] = lease
        pickled_items.reply(request, [lease.item], several=False)

    def post(self, post: Post) -> None:
        """Settle a lease, named by the number of its request, or close the queue."""
        if post.op == "close":
            self.state.close()
            return
        lease = self._leases.pop(post.count or 0, None)
        if lease is None:
            return
        if post.op == "done":
            self.state.done(lease)
            pickled_items.release([lease.item])
        elif post.op == "fail":
            self.state.fail(lease, post.load())
        elif post.op in ("give_back", "return"):
            self.state.give_back(lease)

    def settle(self, death: Death | None) -> None:
        """Give the leases back, or fail those that a dead worker had in its hands."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            if not (self._last is not None and self._last.handed(lease.number)):
                self.state.give_back(lease)
            elif death is None:
                self.state.give_back(lease)
                _warn("a job has ended without settling a lease of a WorkQueue: its item goes back to the queue")
            else:
                self.state.fail(lease, f"worker {death.pid}, which ran {death.function}, {death.cause}")


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        # A filter makes it an exception, which would hit another call here.
        logger.warning("%s", message)
