"""Semaphores and capacity limiters as a job has them. Their state is in the parent."""

from __future__ import annotations

from itertools import count as count_up

from .. import publish
from . import holdings
from .handles import JobHandle
from .pickles import dumps, result
from .records import Record
from .requests import post, request, running_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any, Final


def _take(handle: JobHandle, timeout: float | None, borrower: int | None = None) -> None:
    result(request("acquire", handle._id, count=borrower, timeout=timeout, give_back="return"))


def _take_nowait(handle: JobHandle, borrower: int | None = None) -> None:
    result(request("acquire_nowait", handle._id, count=borrower, shield=True, give_back="return"))


class Semaphore(JobHandle):
    """A number of tokens that tasks of the parent and jobs take and release.

    ::

        def query(text, connections: handles.Semaphore):
            connections.acquire(timeout=10)
            try:
                return execute(text)
            finally:
                connections.release()

    Details:
        is_bounded: whether a release may fail.
    """

    __slots__ = ()

    def acquire(self, timeout: float | None = None) -> None:
        """Take a token, and wait until one is free.

        Args:
            timeout: Seconds to wait at most, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
        """
        _take(self, timeout)

    def acquire_nowait(self) -> None:
        """Take a token without waiting.

        Raises:
            WouldBlock: All tokens are taken.
        """
        _take_nowait(self)

    def release(self) -> None:
        """Release a token: it goes to the first waiter.

        Raises:
            ValueError: There are ``max_value`` free tokens already.
        """
        if self._details[0]:
            result(request("release", self._id, shield=True))
        else:
            post("release", self._id)

    @property
    def value(self) -> int:
        """Number of free tokens."""
        value: int = result(request("value", self._id, shield=True))[0]
        return value

    @property
    def max_value(self) -> int | None:
        """Largest number of free tokens. None means an unlimited one."""
        value: int | None = result(request("value", self._id, shield=True))[1]
        return value

    def statistics(self) -> Any:
        """Return the number of waiters, as a record."""
        return Record(result(request("statistics", self._id, shield=True)))

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class CapacityLimiter(JobHandle):
    """A limit for the number of tasks and jobs that do something.

    ::

        def fetch_or_cached(url, downloads: handles.CapacityLimiter):
            if downloads.available_tokens == 0:
                return cached(url)
            with downloads:
                return fetch(url)

    Each borrower has one token: a thread of a job, or an object on whose behalf it borrows. Such an
    object counts for this job only.
    """

    __slots__ = ()

    def acquire(self, timeout: float | None = None) -> None:
        """Borrow a token for this thread, and wait until one is free.

        Args:
            timeout: Seconds to wait at most, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
            RuntimeError: The thread has one of this limiter's tokens.
        """
        _take(self, timeout)
        holdings.add(self._id)

    def acquire_nowait(self) -> None:
        """Borrow a token for this thread without waiting.

        Raises:
            WouldBlock: All tokens are taken.
            RuntimeError: The thread has one of this limiter's tokens.
        """
        _take_nowait(self)
        holdings.add(self._id)

    def release(self) -> None:
        """Return the token of this thread.

        Raises:
            RuntimeError: The thread lacks one.
        """
        holdings.remove(self._id, _HAS_NONE)
        post("release", self._id)

    def acquire_on_behalf_of(self, borrower: Hashable, timeout: float | None = None) -> None:
        """Borrow a token for an object, and wait until one is free.

        Args:
            borrower: The object.
            timeout: Seconds to wait at most, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
            RuntimeError: The object has one of this limiter's tokens, or waits for one.
        """
        number = _number_of(self._id, borrower)
        _take(self, timeout, number)
        _borrowers[self._id, borrower] = number, True

    def acquire_on_behalf_of_nowait(self, borrower: Hashable) -> None:
        """Borrow a token for an object without waiting.

        Args:
            borrower: The object.

        Raises:
            WouldBlock: All tokens are taken.
            RuntimeError: The object has one of this limiter's tokens.
        """
        number = _number_of(self._id, borrower)
        _take_nowait(self, number)
        _borrowers[self._id, borrower] = number, True

    def release_on_behalf_of(self, borrower: Hashable) -> None:
        """Return the token of an object.

        Args:
            borrower: The object for which it was borrowed.

        Raises:
            RuntimeError: The object lacks one.
        """
        number = _number_of(self._id, borrower)
        if not _borrowers.pop((self._id, borrower))[1]:
            raise RuntimeError(_HAS_NONE)
        post("release", self._id, count=number)

    @property
    def total_tokens(self) -> float:
        """Number of tokens. If it falls, borrowers keep theirs until they return them."""
        total: float = self.statistics().total_tokens
        return total

    @total_tokens.setter
    def total_tokens(self, total_tokens: float) -> None:
        result(request("resize", self._id, dumps(total_tokens), shield=True))

    @property
    def borrowed_tokens(self) -> int:
        """Number of tokens that are borrowed."""
        borrowed: int = self.statistics().borrowed_tokens
        return borrowed

    @property
    def available_tokens(self) -> float:
        """Number of tokens that are free. Negative if ``total_tokens`` has fallen below."""
        statistics = self.statistics()
        available: float = statistics.total_tokens - statistics.borrowed_tokens
        return available

    def statistics(self) -> Any:
        """Return the state of the limiter, as a record with texts for borrowers."""
        return Record(result(request("statistics", self._id, shield=True)))

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def _number_of(handle: int, borrower: Hashable) -> int:
    """Return the number by which the parent knows an object of the running call."""
    global _call
    call = running_call()
    if call != _call:
        _call = call
        _borrowers.clear()
    return _borrowers.setdefault((handle, borrower), (next(_numbers), False))[0]


_HAS_NONE: Final = "this borrower isn't holding any of this CapacityLimiter's tokens"
_numbers: Final = count_up(1)
_borrowers: Final[dict[tuple[int, Hashable], tuple[int, bool]]] = {}
_call = 0


publish("trio_offload_worker.handles", CapacityLimiter, Semaphore)
