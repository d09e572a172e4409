"""``WorkQueue``: a queue whose items are unfinished until a task or a job has done them."""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, final

import trio
from trio.lowlevel import enable_ki_protection

from .._exceptions import is_cancelled
from .._sizes import check_count, parse_size
from . import pickled_items
from .bounded_buffer import Refusal
from .channel_statistics import WorkQueueStatistics, queue_statistics_of
from .handles import Handle
from .open_channel import check_buffer_size
from .queue_grants import FailedItem, FailedItemsError, QueueGrant, failed_items
from .queue_state import ON_DEATH, LeaseState, QueueState
from .task_puts import end_of_wait, error_of, put_now, put_or_wait
from .waiters import TaskWaiter, current_owner

if TYPE_CHECKING:
    import trio_offload_worker.handles as JobHandles  # noqa: N812

ItemType = TypeVar("ItemType")


@final
class Lease(Generic[ItemType]):
    """One item of a work queue, in the hands of one task.

    As a context manager it is :meth:`done` at the end of the block. After an exception it has
    failed. A cancellation gives it back.
    """

    def __init__(self, state: QueueState, lease: LeaseState, item: ItemType) -> None:
        self._state = state
        self._lease = lease
        self._item = item

    def __repr__(self) -> str:
        return f"<Lease of {self._item!r}{', over' if self._lease.settled else ''}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Lease cannot be pickled or copied: it belongs to one holder. Pass its item, or the WorkQueue")

    @property
    def item(self) -> ItemType:
        """The item."""
        return self._item

    @enable_ki_protection
    def done(self) -> None:
        """Finish the item.

        Raises:
            RuntimeError: the lease is over.
        """
        _settle(self._state.done, self._lease)
        pickled_items.release([self._lease.item])

    @enable_ki_protection
    def give_back(self) -> None:
        """Put the item back to the front of the queue. It does not count as a failure.

        Raises:
            RuntimeError: the lease is over.
        """
        _settle(self._state.give_back, self._lease)

    @enable_ki_protection
    def fail(self, reason: str = "") -> None:
        """Count a failure: the item is tried again if it may be, or has failed.

        Args:
            reason: Why, for :attr:`FailedItem.reason`.

        Raises:
            RuntimeError: the lease is over.
        """
        _settle(self._state.fail, self._lease, reason or "its holder called fail()")

    def __enter__(self) -> Lease[ItemType]:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._lease.settled:
            if exc_value is None:
                self.done()
            elif is_cancelled(exc_value):
                self.give_back()
            else:
                self.fail(f"{type(exc_value).__name__}: {exc_value}")


def _settle(method: Any, *args: Any) -> None:
    try:
        method(*args)
    except Refusal as refusal:
        raise error_of(refusal) from None


@final
class WorkQueue(Handle, Generic[ItemType]):
    """A queue of work for tasks and jobs. Items survive the death of a worker.

    ::

        queue = trio_offload.WorkQueue[str]()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run_sync, work, queue)
            for path in paths:
                await queue.put(path)
            queue.close()
            await queue.join()

        def work(queue):  # a job
            for lease in queue:
                with lease:
                    convert(lease.item)

    ``get`` leases an item: it stays unfinished until the lease is done. A lease fails if its block
    raises, or its holder's worker dies. A call that ends without settling a lease gives it back,
    with a :exc:`RuntimeWarning`.

    The queue works in the order of ``put``. An item that comes back goes to the front.

    Args:
        max_buffer_size: Maximum number of items that wait, at least 1.
        max_buffer_bytes: Maximum size of the pickled items that wait: a number of bytes, or text
            like ``"64MiB"``.
        on_death: ``"fail"``: an item whose lease has failed is not tried again. ``"retry"``: it is,
            at the front of the queue, until ``attempts`` have failed.
        attempts: Number of attempts with ``"retry"``.

    Raises:
        TypeError: ``max_buffer_size`` is neither an integer nor infinite.
        ValueError: an argument is out of its range.
    """

    kind: ClassVar[str] = "work_queue"

    if TYPE_CHECKING:

        @property
        def handle(self) -> JobHandles.WorkQueue[ItemType]:
            """As ``Handle.handle``."""

    def __init__(
        self,
        max_buffer_size: float = math.inf,
        max_buffer_bytes: int | str = "64MiB",
        *,
        on_death: str = "fail",
        attempts: int = 3,
    ) -> None:
        super().__init__()
        if on_death not in ON_DEATH:
            raise ValueError(f"on_death must be one of {', '.join(map(repr, ON_DEATH))}, got {on_death!r}")
        check_count("attempts", attempts)
        if check_buffer_size(max_buffer_size) < 1:
            raise ValueError(f"max_buffer_size must be >= 1, got {max_buffer_size!r}")
        size = parse_size(max_buffer_bytes, "max_buffer_bytes")
        self._state = QueueState(max_buffer_size, size, attempts if on_death == "retry" else 1)
        self._state.buffer.released = pickled_items.release

    def __repr__(self) -> str:
        return f"<WorkQueue at {id(self):#x} with {self._state.unfinished} unfinished items>"

    @enable_ki_protection
    async def put(self, value: ItemType) -> None:
        """Put an item, and wait while the queue is full. A checkpoint.

        If it is cancelled, the item was not put.

        Raises:
            Exception: The item cannot be pickled.
            trio.ClosedResourceError: The queue is closed, perhaps during the wait.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        await put_or_wait(self._state.put, self._state.withdraw, [pickled_items.dump(value)])

    @enable_ki_protection
    def put_nowait(self, value: ItemType) -> None:
        """Put an item without waiting.

        Raises:
            trio.WouldBlock: The queue is full.
            Exception: As :meth:`put`.
        """
        self.bind()
        put_now(self._state.put, [pickled_items.dump(value)])

    @enable_ki_protection
    async def get(self) -> Lease[ItemType]:
        """Lease the first item, and wait while there is none. A checkpoint.

        If it is cancelled, nothing was leased.

        Raises:
            trio.EndOfChannel: The queue is closed, and each item is finished.
            Exception: The item cannot be unpickled. It has failed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        waiter: TaskWaiter[LeaseState] = TaskWaiter()
        try:
            lease = self._state.get(current_owner(), waiter)
        except Refusal as refusal:
            raise error_of(refusal) from None
        if lease is None:
            try:
                lease = await waiter.wait(lambda: self._state.withdraw(waiter))
            except Refusal as refusal:
                raise error_of(refusal) from None
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return self._lease(lease)

    @enable_ki_protection
    def get_nowait(self) -> Lease[ItemType]:
        """Lease the first item without waiting.

        Raises:
            trio.WouldBlock: The queue is empty.
            Exception: As :meth:`get`.
        """
        self.bind()
        try:
            lease = self._state.get(current_owner(), None)
        except Refusal as refusal:
            raise error_of(refusal) from None
        if lease is None:
            raise RuntimeError("a get without a waiter was parked; this is an error in trio-offload")
        return self._lease(lease)

    def _lease(self, lease: LeaseState) -> Lease[ItemType]:
        try:
            value: ItemType = lease.item.payload.load()
        except BaseException as error:
            self._state.fail(lease, f"it cannot be unpickled: {error!r}")
            raise
        return Lease(self._state, lease, value)

    def __aiter__(self) -> WorkQueue[ItemType]:
        return self

    async def __anext__(self) -> Lease[ItemType]:
        try:
            return await self.get()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    @enable_ki_protection
    async def join(self) -> None:
        """Wait until each item is finished. A checkpoint.

        Raises:
            FailedItemsError: Some items have failed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.bind()
        waiter: TaskWaiter[None] = TaskWaiter()
        await end_of_wait(waiter, self._state.join(waiter), self._state.withdraw)
        if self._state.failed:
            raise FailedItemsError(self.failed)

    @enable_ki_protection
    def close(self) -> None:
        """Refuse further items. Holders go on until each item is finished."""
        self._state.close()

    @property
    def failed(self) -> tuple[FailedItem, ...]:
        """The items that have failed, in the order of their failures."""
        return failed_items(self._state)

    def statistics(self) -> WorkQueueStatistics:
        """Return statistics of the queue."""
        return queue_statistics_of(self._state)

    def grant(self) -> QueueGrant:
        """As :meth:`Handle.grant`."""
        return QueueGrant(self, self._state)
