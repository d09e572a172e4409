"""The exceptions of jobs that talk to their parent, in a module that imports nothing else.

Some stand for exceptions of Trio, which a worker does not import. If a job lets one escape, its
caller gets Trio's exception of the same name.

* :class:`Cancelled` is a BaseException, as Trio's is, so ``except Exception`` lets it pass.
"""

from __future__ import annotations

from .. import PublicType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import Signals
    from typing import Any, NoReturn


class Cancelled(BaseException, metaclass=PublicType):
    """The call of this job is cancelled. Let it escape: the caller gets Trio's ``Cancelled``.

    Only trio-offload makes one. The parent ignores it unless the call is cancelled.
    """

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

    ``from_worker.job().adopt()`` in the thread binds it to the job that runs now.
    """


class RemoteError(RuntimeError, metaclass=PublicType):
    """Replaces an exception of the parent that could not be pickled, or not be unpickled here."""


class WouldBlock(Exception, metaclass=PublicType):
    """The operation would have to wait. It stands for :exc:`trio.WouldBlock`."""


class EndOfChannel(Exception, metaclass=PublicType):
    """All senders are closed, and the channel is empty. It stands for :exc:`trio.EndOfChannel`."""


class BrokenResourceError(Exception, metaclass=PublicType):
    """The other side is gone. It stands for :exc:`trio.BrokenResourceError`."""


class ClosedResourceError(Exception, metaclass=PublicType):
    """This end is closed. It stands for :exc:`trio.ClosedResourceError`."""


class AbandonedLockError(BrokenResourceError):
    """The lock's holder ended without releasing it.

    Attributes:
        pid: Process ID of the holder's worker. None means a task of the parent.
        function: Name of the function that held it.
        signal: Signal that ended the worker. None means that it was not a signal.
    """

    pid: int | None = None
    function: str | None = None
    signal: Signals | None = None


class DeadlockError(RuntimeError, metaclass=PublicType):
    """The wait would close a circle of owners that wait for each other. It did not begin."""


class BrokenBarrierError(RuntimeError, metaclass=PublicType):
    """The barrier is broken: a party died or stopped waiting, or it was aborted."""
