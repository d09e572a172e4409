"""The values of an actor's generator method, as another job has them: the iteration blocks."""

from __future__ import annotations

import _pickle
from _thread import allocate_lock

from .errors import JobEndedError
from .handles import JobHandle
from .pickles import loads, result
from .requests import post, request
from .streams import PickledValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Final, Protocol

    from typing_extensions import Self

    class Streaming(Protocol):
        """An actor's stand-in."""

        def _stream(self, name: str, window: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


class ActorStream(JobHandle):
    """An iterator over the values of a generator that runs in an actor. It is for one thread.

    The generator is closed when the iterator is closed or dropped, and when the job's call ends.
    """

    __slots__ = ("_is_over", "_lock", "_result", "_values")

    def __init__(self, kind: str, id: int, *details: Any) -> None:
        super().__init__(kind, id, *details)
        self._values: Iterator[Any] = iter(())
        self._is_over = False
        self._result: Any = _NONE
        self._lock = allocate_lock()  # for one thread

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next value.

        Raises:
            StopIteration: the generator has returned. Its value is the generator's.
            Exception: any exception of the generator, after the values before it.
            BrokenResourceError: the actor has died, after the values that it had sent.
            ClosedResourceError: the block of the actor has ended.
            DeadlockError: the generator waits, perhaps through others, for this job.
            Cancelled: the job's call is cancelled.
        """
        while True:
            for value in self._values:
                return loads((value.pickled,)) if type(value) is PickledValue else value
            if self._is_over:
                raise StopIteration
            if not self._lock.acquire(False):
                raise RuntimeError("another thread takes a value of this stream")
            try:
                self._values = iter(self._take())
            finally:
                self._lock.release()

    @property
    def result(self) -> Any:
        """The value that the generator has returned.

        Raises:
            RuntimeError: it has not returned.
        """
        if self._result is _NONE:
            raise RuntimeError("the generator has not returned: it still runs, has raised, or was closed before its end")
        return self._result

    def close(self) -> None:
        """Close the generator, and wait until it has ended. This works in a cancelled job too.

        Raises:
            Exception: an exception of its cleanup.
        """
        self._values = iter(())
        if not self._is_over:
            self._is_over = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._drop()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("the values of an actor's generator are for the job that has called it; pass the actor on")

    def _take(self) -> Iterable[Any]:
        """Return further values, or note the end and raise as :meth:`__next__`."""
        # If a signal handler raises, the values go back.
        reply = request("values", self._id, give_back="return")
        if reply.status == "value":
            start = _pickle.loads(reply.segments[0])
            return start if type(start) is tuple else (loads(reply.segments[1:]),)
        self._is_over = True
        # The parent keeps the outcome until then: a signal handler may have kept an earlier reply
        # from this line.
        self._drop()
        if reply.status == "end_of_channel":
            raise self._stop(loads(reply.segments[1:]))
        result(reply)
        return ()

    def _stop(self, value: Any) -> StopIteration:
        self._result = value
        return StopIteration(value)

    def _close(self) -> None:
        result(request("close", self._id, shield=True))

    def _drop(self) -> None:
        try:
            post("close", self._id)
        except (JobEndedError, RuntimeError):
            pass  # The end of the call has closed it.


class ActorStreams:
    """The generator methods of an actor, also with another window.

    ``actor.stream.rows(q)`` is ``actor.rows(q)``. ``actor.stream(window=4).rows(q)`` is similar.
    """

    __slots__ = ("_actor", "_window")

    def __init__(self, actor: Streaming, window: int = 0) -> None:
        self._actor = actor
        self._window = window

    def __call__(self, *, window: int) -> ActorStreams:
        """Return the same with another window: values that a generator is ahead of its consumer."""
        if type(window) is not int or window < 1:
            raise ValueError(f"window must be a positive integer, got {window!r}")
        return ActorStreams(self._actor, window)

    def __getattr__(self, name: str) -> Callable[..., ActorStream]:
        if name.startswith("_"):
            raise AttributeError(name)
        actor, window = self._actor, self._window

        def call(*args: Any, **kwargs: Any) -> ActorStream:
            values: ActorStream = actor._stream(name, window, args, kwargs)
            return values

        return call


_NONE: Final = object()
