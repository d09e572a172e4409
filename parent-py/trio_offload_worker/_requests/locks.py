"""Locks and conditions as a job has them. Their state is in the parent."""

from __future__ import annotations

from time import monotonic

from .. import publish
from . import holdings
from .errors import AbandonedLockError, JobEndedError
from .handles import JobHandle
from .messages import deadline_after
from .pickles import loads, result
from .records import Record
from .requests import post, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from .requests import Reply

    ResultType = TypeVar("ResultType")


class Lock(JobHandle):
    """A lock that tasks of the parent and jobs share.

    ::

        def append(line, lock: handles.Lock):
            with lock, open("log.txt", "a") as file:
                file.write(line)

    If its holder ended without a release, those who want it get :exc:`AbandonedLockError`, until
    :meth:`recover` is called.
    """

    __slots__ = ()

    def acquire(self, timeout: float | None = None) -> None:
        """Acquire the lock, and wait for it if it is held.

        Args:
            timeout: Seconds to wait at most, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
            AbandonedLockError: A holder ended with it.
            DeadlockError: The holder waits for this job, perhaps through others.
            RuntimeError: This thread holds it already, and it is not an :class:`RLock`.
        """
        _check(request("acquire", self._id, timeout=timeout, give_back="release"))
        holdings.add(self._id)

    def acquire_nowait(self) -> None:
        """Acquire the lock without waiting.

        Raises:
            WouldBlock: Another task or job holds it.
            AbandonedLockError: A holder ended with it.
            RuntimeError: This thread holds it already, and it is not an :class:`RLock`.
        """
        _check(request("acquire_nowait", self._id, shield=True, give_back="release"))
        holdings.add(self._id)

    def release(self) -> None:
        """Release the lock: it goes to the first waiter.

        Raises:
            RuntimeError: This thread does not hold it.
        """
        if not holdings.remove(self._id, "can't release a Lock you don't own"):
            post("release", self._id)

    def locked(self) -> bool:
        """Return True if the lock is held."""
        return bool(_check(request("locked", self._id, shield=True)))

    def recover(self) -> bool:
        """Let an abandoned lock be acquired again, after its data has been repaired.

        Returns:
            True if it was abandoned.
        """
        return bool(_check(request("recover", self._id, shield=True)))

    def statistics(self) -> Any:
        """Return the state of the lock: a record like the parent's, with texts for owners."""
        return Record(_check(request("statistics", self._id, shield=True)))

    def _reacquire(self, depth: int) -> None:
        """Acquire it after a wait that has failed, whatever happens meanwhile.

        Raises:
            AbandonedLockError, DeadlockError: it cannot be acquired.
            BaseException: an exception of a signal handler that came in between. It is acquired.
        """
        interrupt: BaseException | None = None
        while True:
            try:
                _check(request("reacquire", self._id, shield=True))
                break
            except (RuntimeError, AbandonedLockError):  # a deadlock too, or the end of the job
                raise
            except BaseException as error:
                interrupt = interrupt or error
        holdings.add(self._id, depth)
        if interrupt is not None:
            raise interrupt

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class RLock(Lock):
    """A :class:`Lock` whose holder, a thread of a job, may acquire it again.

    ::

        def write(path, text, lock: handles.RLock):
            with lock:
                path.write_text(text)

        def write_all(texts, lock: handles.RLock):
            with lock:
                for path, text in texts.items():
                    write(path, text, lock)
    """

    __slots__ = ()

    def acquire(self, timeout: float | None = None) -> None:
        """As :meth:`Lock.acquire`. The holder need not ask the parent."""
        if holdings.held(self._id):
            holdings.add(self._id)
        else:
            super().acquire(timeout)

    def acquire_nowait(self) -> None:
        """As :meth:`Lock.acquire_nowait`."""
        if holdings.held(self._id):
            holdings.add(self._id)
        else:
            super().acquire_nowait()


class Condition(JobHandle):
    """A condition of data behind a lock.

    ::

        def build(version, releases, changed: handles.Condition):
            with changed:
                changed.wait_for(lambda: version in releases, timeout=60)
            compile_release(version)

    Details:
        lock: the lock.
    """

    __slots__ = ()

    @property
    def _lock(self) -> Lock:
        lock: Lock = self._details[0]
        return lock

    def acquire(self, timeout: float | None = None) -> None:
        """Acquire the lock. Arguments and errors are as for :meth:`Lock.acquire`."""
        self._lock.acquire(timeout)

    def acquire_nowait(self) -> None:
        """Acquire the lock without waiting. Errors are as for :meth:`Lock.acquire_nowait`."""
        self._lock.acquire_nowait()

    def release(self) -> None:
        """Release the lock.

        Raises:
            RuntimeError: This thread does not hold it.
        """
        self._lock.release()

    def locked(self) -> bool:
        """Return True if the lock is held."""
        return self._lock.locked()

    def recover(self) -> bool:
        """As :meth:`Lock.recover`."""
        return self._lock.recover()

    def wait(self, timeout: float | None = None) -> None:
        """Release the lock, wait for a notification, and acquire the lock again.

        A wait that fails has the lock again too, unless the lock itself is the reason.

        Args:
            timeout: Seconds to wait at most for the notification, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
            AbandonedLockError: A holder ended with the lock. This thread does not hold it.
            DeadlockError: The lock's holder waits for this job. This thread does not hold it.
            RuntimeError: This thread does not hold the lock.
        """
        lock = self._lock
        depth = holdings.remove_all(lock._id, "must hold the lock to wait")
        try:
            reply = request("wait", self._id, timeout=timeout)
        except JobEndedError:
            raise
        except BaseException:
            lock._reacquire(depth)
            raise
        _check(reply)
        holdings.add(lock._id, depth)

    def wait_for(self, predicate: Callable[[], ResultType], timeout: float | None = None) -> ResultType:
        """Wait until a function returns a true value, and return that.

        The function is called at once and after each notification, while this thread holds the
        lock.

        Args:
            predicate: The function.
            timeout: Seconds to wait at most, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            BaseException: As :meth:`wait`.
        """
        deadline = deadline_after(timeout)
        value = predicate()
        while not value:
            self.wait(deadline - monotonic())
            value = predicate()
        return value

    def notify(self, n: int = 1) -> None:
        """Notify waiters, the first first. They continue once they have the lock.

        Args:
            n: Number of waiters.

        Raises:
            RuntimeError: This thread does not hold the lock.
        """
        self._notify(n)

    def notify_all(self) -> None:
        """Notify all waiters.

        Raises:
            RuntimeError: This thread does not hold the lock.
        """
        self._notify(None)

    def _notify(self, number: int | None) -> None:
        if not holdings.held(self._lock._id):
            raise RuntimeError("must hold the lock to notify")
        if number is None or number > 0:
            post("notify", self._id, count=number)

    def statistics(self) -> Any:
        """Return the number of waiters and the state of the lock, as a record."""
        return Record(_check(request("statistics", self._id, shield=True)))

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        # `wait` may have lost the lock. An error of the release would hide the reason.
        if holdings.held(self._lock._id) or exc_info[0] is None:
            self._lock.release()


def _check(reply: Reply) -> Any:
    """Return the value of a reply, as :func:`result`. A lost lock comes with its facts."""
    if reply.status == "abandoned" and reply.segments:
        error = AbandonedLockError(reply.message)
        error.pid, error.function, error.signal = loads(reply.segments)
        raise error
    return result(reply)


publish("trio_offload_worker.handles", Condition, Lock, RLock)
