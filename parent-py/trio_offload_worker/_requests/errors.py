"""The exceptions of jobs that talk to their parent, in a module that imports nothing else.

Some stand for exceptions of Trio, which a worker does not import. If a job lets one escape, its
caller gets Trio's exception of the same name.

* :class:`Cancelled` is a BaseException, as Trio's is, so ``except Exception`` lets it pass.
"""

from __future__ import annotations

from .. import PublicType, publish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import Signals
    from typing import Any, NoReturn


class Cancelled(BaseException, metaclass=PublicType):
    """The call of this job is cancelled. Let it escape: the caller gets Trio's ``Cancelled``.

    ::

        def convert(source, target):
            try:
                with open(target, "w") as file:
                    for line in open(source):
                        from_worker.check_cancelled()
                        file.write(line.upper())
            except from_worker.Cancelled:
                os.unlink(target)
                raise

    Only trio-offload makes one. The parent ignores it unless the call is cancelled.
    """

    _is_constructible = False

    def __new__(cls, *args: Any) -> Cancelled:  # noqa: PYI034
        raise TypeError("only trio-offload makes a Cancelled; to end a job early, return or raise another exception")

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("Cancelled is final")


def make_cancelled() -> Cancelled:
    """Return a new :class:`Cancelled`."""
    error: Cancelled = BaseException.__new__(Cancelled)
    BaseException.__init__(error, "the call of this job is cancelled")
    return error


class JobEndedError(RuntimeError, metaclass=PublicType):
    """The job of this thread has ended, so the thread may not talk to the parent any more.

    ::

        def report_load():
            try:
                while True:
                    from_worker.run_sync(print, os.getloadavg())
                    from_worker.sleep(1)
            except from_worker.JobEndedError:
                pass  # the thread may end too

    ``from_worker.job().adopt()`` in the thread binds it to the job that runs now.
    """


class RemoteError(RuntimeError, metaclass=PublicType):
    """Replaces an exception of the parent that could not be pickled, or not be unpickled here.

    ::

        def job(name):
            try:
                return from_worker.run(find_user, name)
            except from_worker.RemoteError as error:
                return f"unknown: {error}"
    """


class WouldBlock(Exception, metaclass=PublicType):
    """The operation would have to wait. It stands for :exc:`trio.WouldBlock`.

    ::

        def sample(send):
            try:
                send.send_nowait(os.getloadavg())
            except from_worker.WouldBlock:
                pass  # the receiver is slow: skip this one

        send, receive = trio_offload.open_channel(10)
        await trio_offload.run_sync(sample, send)
    """


class EndOfChannel(Exception, metaclass=PublicType):
    """All senders are closed, and the channel is empty. It stands for :exc:`trio.EndOfChannel`.

    ::

        def store_batches(receive):
            while True:
                try:
                    batch = receive.receive_many(100)
                except from_worker.EndOfChannel:
                    return
                store(batch)
    """


class BrokenResourceError(Exception, metaclass=PublicType):
    """The other side is gone. It stands for :exc:`trio.BrokenResourceError`.

    ::

        def search(candidates, send):
            try:
                for candidate in candidates:
                    send.send(candidate)
            except from_worker.BrokenResourceError:
                return  # all receivers are closed: they have found enough
    """


class ClosedResourceError(Exception, metaclass=PublicType):
    """This end is closed. It stands for :exc:`trio.ClosedResourceError`.

    ::

        def crawl(queue, links):
            try:
                for link in links:
                    queue.put(link)
            except from_worker.ClosedResourceError:
                pass  # the program has called `queue.close()`
    """


class AbandonedLockError(BrokenResourceError):
    """The lock's holder ended without releasing it.

    ::

        def append(lock, path, line):
            try:
                with lock, open(path, "a") as file:
                    file.write(line)
            except from_worker.AbandonedLockError as error:
                print(f"{error.function} may have left {path} half written")
                raise

    Attributes:
        pid: Process ID of the holder's worker. None means a task of the parent.
        function: Name of the function that held it.
        signal: Signal that ended the worker. None means that it was not a signal.
    """

    pid: int | None = None
    function: str | None = None
    signal: Signals | None = None


class DeadlockError(RuntimeError, metaclass=PublicType):
    """The wait would close a circle of owners that wait for each other. It did not begin.

    ::

        def move(amount, source, target):
            with source.lock:
                try:
                    target.lock.acquire()
                except from_worker.DeadlockError:
                    return False  # another job moves the other way
                ...
    """


class BrokenBarrierError(RuntimeError, metaclass=PublicType):
    """The barrier is broken: a party died or stopped waiting, or it was aborted.

    ::

        def simulate(barrier, part):
            for step in range(100):
                advance(part)
                try:
                    barrier.wait()
                except from_worker.BrokenBarrierError:
                    return step  # another part has failed
    """


publish("trio_offload_worker.from_worker", *(value for value in globals().values() if isinstance(value, PublicType)))
