"""Work queues as a job has them: with the methods of the parent's, which block."""

from __future__ import annotations

from .. import PublicType, publish
from .errors import Cancelled, EndOfChannel
from .handles import JobHandle
from .pickles import dumps, result
from .requests import hand_over, post, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Generic, NoReturn, TypeVar

    from .requests import Reply

    ItemType = TypeVar("ItemType")

    class _OfItems(Generic[ItemType]):
        pass

else:
    from .channels import _OfSent as _OfItems


class FailedItemsError(RuntimeError, metaclass=PublicType):
    """Items of a work queue have failed. ``reasons`` has the last failure of each."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(reasons)

    @property
    def reasons(self) -> list[str]:
        """The last failure of each item."""
        reasons: list[str] = self.args[0]
        return reasons

    def __str__(self) -> str:
        more = f", and {len(self.reasons) - 1} more" if len(self.reasons) > 1 else ""
        return f"an item of a work queue has failed: {self.reasons[0]}{more}"


class Lease(_OfItems["ItemType"], metaclass=PublicType):
    """One item of a work queue, in the hands of this job.

    ::

        def convert_from(queue: handles.WorkQueue[str]):
            for lease in queue:
                if os.path.exists(lease.item):
                    convert(lease.item)
                    lease.done()
                else:
                    lease.fail("no such file")

    As a context manager it is :meth:`done` at the end of the block. After an exception it has
    failed. A cancellation gives it back.
    """

    __slots__ = {"_id": "", "_is_over": "", "_request": "", "item": "The item."}
    _is_constructible = False

    def __init__(self, id: int, request: int, item: ItemType) -> None:
        self._id = id
        self._request = request
        self._is_over = False
        self.item = item

    def __repr__(self) -> str:
        return f"<Lease of {self.item!r}{', over' if self._is_over else ''}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Lease cannot be pickled or copied: it belongs to one holder. Pass its item, or the WorkQueue")

    def done(self) -> None:
        """Finish the item.

        Raises:
            RuntimeError: The lease is over.
        """
        self._settle("done")

    def give_back(self) -> None:
        """Put the item back to the front of the queue. It does not count as a failure.

        Raises:
            RuntimeError: The lease is over.
        """
        self._settle("give_back")

    def fail(self, reason: str = "") -> None:
        """Count a failure: the item is tried again if it may be, or has failed.

        Args:
            reason: Why, for the parent's list of failed items.

        Raises:
            RuntimeError: The lease is over.
        """
        self._settle("fail", reason or "its holder called fail()")

    def _settle(self, op: str, *reason: str) -> None:
        if self._is_over:
            raise RuntimeError("the lease is over: it was done, given back or failed before")
        segments = [dumps(text) for text in reason]
        post(op, self._id, *segments, count=self._request)
        self._is_over = True

    def __enter__(self) -> Lease[ItemType]:
        return self

    def __exit__(self, cls: object, error: BaseException | None, traceback: object) -> None:
        if not self._is_over:
            if error is None:
                self.done()
            elif isinstance(error, Cancelled):
                self.give_back()
            else:
                self.fail(f"{type(error).__name__}: {error}")


class WorkQueue(JobHandle, _OfItems["ItemType"]):
    """A queue of work for tasks and jobs, in a job. Iterate over it to get its leases.

    ::

        def digest_files(paths: handles.WorkQueue[str], digests: handles.SendChannel[str]):
            for lease in paths:
                with lease:
                    digests.send(digest(lease.item))

    If the worker dies with a lease, its item fails, or is tried again by another job.
    """

    __slots__ = ()

    def put(self, value: ItemType, *, timeout: float | None = None) -> None:
        """Put an item, and wait while the queue is full.

        Args:
            value: The item.
            timeout: Seconds to wait at most. None means no limit.

        Raises:
            Exception: The item cannot be pickled.
            ClosedResourceError: The queue is closed.
            TimeoutError: The timeout has passed. The item was not put.
            Cancelled: The job's call is cancelled. The item was not put.
        """
        result(request("put", self._id, dumps(value), timeout=timeout))

    def put_nowait(self, value: ItemType) -> None:
        """Put an item without waiting for a place. It works in a cancelled job too.

        Raises:
            WouldBlock: The queue is full.
            Exception: As :meth:`put`.
        """
        result(request("put_nowait", self._id, dumps(value), shield=True))

    def get(self, *, timeout: float | None = None) -> Lease[ItemType]:
        """Lease the first item, and wait while there is none.

        Args:
            timeout: Seconds to wait at most. None means no limit.

        Raises:
            EndOfChannel: The queue is closed, and each item is finished.
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
            Exception: The item cannot be unpickled. It has failed.
        """
        return self._lease(request("get", self._id, timeout=timeout, give_back="return"))

    def get_nowait(self) -> Lease[ItemType]:
        """Lease the first item without waiting for one. It works in a cancelled job too.

        Raises:
            WouldBlock: The queue is empty.
            Exception: As :meth:`get`.
        """
        return self._lease(request("get_nowait", self._id, shield=True, give_back="return"))

    def _lease(self, reply: Reply) -> Lease[ItemType]:
        if reply.status != "value":
            result(reply)
        hand_over(reply)
        try:
            item: ItemType = result(reply)
        except BaseException as error:
            post("fail", self._id, dumps(f"it cannot be unpickled: {error!r}"), count=reply.request)
            raise
        return Lease(self._id, reply.request, item)

    def join(self, *, timeout: float | None = None) -> None:
        """Wait until each item is finished.

        Args:
            timeout: Seconds to wait at most. None means no limit.

        Raises:
            FailedItemsError: Some items have failed.
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
        """
        reasons = result(request("join", self._id, timeout=timeout))
        if reasons:
            raise FailedItemsError(reasons)

    def close(self) -> None:
        """Refuse further items. Holders go on until each item is finished."""
        post("close", self._id)

    def statistics(self) -> Any:
        """Return the statistics of the queue, with the parent's attributes."""
        from types import SimpleNamespace

        return SimpleNamespace(**result(request("statistics", self._id, shield=True)))

    def __iter__(self) -> Iterator[Lease[ItemType]]:
        return self

    def __next__(self) -> Lease[ItemType]:
        try:
            return self.get()
        except EndOfChannel:
            raise StopIteration from None


publish("trio_offload_worker.handles", Lease, WorkQueue)
