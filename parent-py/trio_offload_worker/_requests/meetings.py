"""Events and barriers as a job has them. Their state is in the parent."""

from __future__ import annotations

from .. import publish
from .._protocol.frames import FLAGS_AT
from .handles import JobHandle
from .line import current_line
from .pickles import result
from .records import Record
from .requests import post, request, running_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


class Event(JobHandle):
    """A flag that tasks of the parent and jobs set, reset and wait for.

    ::

        def convert_all(paths, stop: handles.Event):
            for path in paths:
                if stop.is_set():
                    break
                convert(path)

    Details:
        flag: the number of its flag in the record, 0 for none.
    """

    __slots__ = ()

    def is_set(self) -> bool:
        """Return True if the flag is set."""
        flag: int = self._details[0]
        if flag and self._id not in _changed:
            words = current_line().words
            # Bit 0 tells that the parent writes the flags.
            if words[_FLAGS] & 1:
                return bool(words[_FLAGS + (flag >> 6)] >> (flag & 63) & 1)
        # Behind a change by this job, which the parent may not have seen yet.
        _changed.discard(self._id)
        return bool(result(request("is_set", self._id, shield=True)))

    def set(self) -> None:
        """Set the flag, and end all waits."""
        self._change("set")

    def clear(self) -> None:
        """Reset the flag. Waits that have ended stay ended."""
        self._change("clear")

    def _change(self, operation: str) -> None:
        global _call
        call = running_call()
        if call != _call:
            _call = call
            _changed.clear()
        _changed.add(self._id)
        post(operation, self._id)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the flag is set.

        Args:
            timeout: Seconds to wait at most, by default for ever.

        Raises:
            TimeoutError: The timeout has passed.
            Cancelled: The job's call is cancelled.
        """
        result(request("wait", self._id, timeout=timeout))

    def statistics(self) -> Any:
        """Return the number of waiters, as a record."""
        return Record(result(request("statistics", self._id, shield=True)))

    def __bool__(self) -> bool:
        raise NotImplementedError("an event is no truth value; did you mean `event.is_set()`?")


class Barrier(JobHandle):
    """A place where tasks of the parent and jobs wait for each other.

    ::

        def measure(barrier: handles.Barrier) -> float:
            load_tables()
            barrier.wait(timeout=60)  # all workers begin at once
            return benchmark()
    """

    __slots__ = ()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the other parties.

        Args:
            timeout: Seconds to wait at most, by default for ever.

        Returns:
            The index of this party, 0 for the first that arrived, and so on.

        Raises:
            TimeoutError: The timeout has passed. The barrier is broken for the others.
            BrokenBarrierError: The barrier is broken, or breaks now.
            Cancelled: The job's call is cancelled.
        """
        index: int = result(request("wait", self._id, timeout=timeout))
        return index

    def abort(self) -> None:
        """Break the barrier."""
        post("abort", self._id)

    def reset(self) -> None:
        """Mend and empty the barrier. Those that wait get BrokenBarrierError."""
        post("reset", self._id)

    @property
    def parties(self) -> int:
        """Number of parties."""
        return self._facts()[0]

    @property
    def n_waiting(self) -> int:
        """Number of parties that have arrived and wait for the others."""
        return self._facts()[1]

    @property
    def broken(self) -> bool:
        """True if the barrier is broken."""
        return self._facts()[2]

    def _facts(self) -> tuple[int, int, bool]:
        facts: tuple[int, int, bool] = result(request("facts", self._id, shield=True))
        return facts

    def statistics(self) -> Any:
        """Return the number of waiters, as a record."""
        return Record(result(request("statistics", self._id, shield=True)))


_FLAGS: Final = FLAGS_AT // 8
# Events that the running call has changed since it last asked.
_changed: Final[set[int]] = set()
_call = 0


publish("trio_offload_worker.handles", Barrier, Event)
