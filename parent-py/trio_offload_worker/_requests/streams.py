"""A generator function that runs as a job: its values are sent to the parent one by one.

A value that the consumer waits for is sent at once. While the consumer is behind, small values are
held, and travel together. The parent writes the number of the values that were taken into the
record, so this costs no message. A held value is sent after a millisecond at the latest, by a
thread. The exception is a generator that holds the GIL for longer.
"""

from __future__ import annotations

import _pickle
from _thread import allocate_lock, start_new_thread
from time import sleep

from .._protocol.frames import TAKEN_AT
from .errors import JobEndedError, make_cancelled
from .handles import JobHandle
from .line import current_line
from .named_calls import NamedCall
from .pickles import dumps, result
from .requests import Segments, bind_thread, post, request, running_call
from .shields import add_shield, drop_shield, shield_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final


class GeneratorCall(NamedCall):
    """A function that sends the values of a generator function."""

    def __call__(self, sender: ValueSender, *args: Any) -> Any:
        """Call the generator function, send its values, and return its result."""
        values = self.function(*args)
        if hasattr(values, "__aiter__"):
            from . import async_streams

            return async_streams.send_values(sender, values)
        return send_values(sender, iterator_of(values, self.function))


def iterator_of(values: Any, function: Any) -> Iterator[Any]:
    """Return an iterator of the values that a function has returned."""
    try:
        return iter(values)
    except TypeError:
        raise TypeError(
            f"the function of a stream must be a generator function, or return an iterable; {function!r} returned {values!r}"
        ) from None


def send_values(sender: ValueSender, values: Iterator[Any]) -> Any:
    """Send the values of an iterator, and return what it returns, if it is a generator.

    If the stream is left, or a value cannot be sent, the generator is closed. Waits of its cleanup
    are protected from the cancellation.
    """
    try:
        return sender.send_all(values)
    except BaseException:
        add_shield(_FOREVER)
        try:
            close = getattr(values, "close", None)
            if close is not None:
                close()
        finally:
            drop_shield(_FOREVER)
        raise


class PickledValue:
    """A value among others of its message. It is unpickled when the consumer gets it."""

    __slots__ = ("pickled",)

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __reduce__(self) -> Any:
        return PickledValue, (self.pickled,)


class ValueSender(JobHandle):
    """The sending end of a stream.

    Details:
        window: Largest number of values that have been yielded and not been taken.
        chunk: Largest number of values that travel together.
    """

    __slots__ = (
        *("_call", "_held", "_is_over", "_is_waking", "_lock", "_sent", "_size", "_tag", "_taken", "_wakes", "_words"),
        "_yielded",
    )

    def __init__(self, kind: str, id: int, *details: Any) -> None:
        super().__init__(kind, id, *details)
        self._tag = (id & TAG_MASK) << TAG_SHIFT
        self._words: Any = None
        self._call = 0
        self._yielded = 0  # in `put` only
        self._sent = 0
        self._taken = 0  # known number of values that have been taken
        self._held: list[Any] = []
        self._size = 0  # bytes of the held pickles
        self._lock = allocate_lock()  # for a message
        # Of the thread, which the first held value starts.
        self._wakes: Any = None
        self._is_waking = False
        self._is_over = False

    def send_all(self, values: Iterator[Any]) -> Any:
        """Send the values of an iterator, and return what a generator returns."""
        window, chunk = self._details
        line = current_line()
        self._words, self._call = line.words, running_call()
        is_cancelled, words, tag, held = line.is_cancelled, self._words, self._tag, self._held
        advance = values.__next__
        yielded = 0
        try:
            while True:
                if yielded - self._taken >= window:
                    self._wait_for_room(yielded - window)
                try:
                    value = advance()
                except BaseException as error:
                    self._flush()
                    if isinstance(error, StopIteration):
                        return error.value
                    raise
                yielded += 1
                if is_cancelled() and shield_end() is None:
                    raise make_cancelled()
                kind = type(value)
                if kind in _PLAIN or (kind in _TEXTS and len(value) <= _MAX_TEXT):
                    held.append(value)
                else:
                    self._hold_pickled(value)
                if not self._sent or len(held) >= chunk or words[_TAKEN] == tag + self._sent:
                    self._flush()
                elif held and not self._is_waking:
                    self._wake()
        finally:
            self._end_thread()

    # The same step by step, for an async generator.

    def begin(self) -> None:
        """Begin to send."""
        self._words, self._call = current_line().words, running_call()

    def missing_room(self) -> int | None:
        """Return the argument for :meth:`wait_for_room`, or None if there is room."""
        needed: int = self._yielded - self._details[0]
        if needed >= self._taken:
            number: int = self._words[_TAKEN] - self._tag
            if not needed < number <= self._sent:
                return needed
            self._taken = number
        return None

    def wait_for_room(self, needed: int) -> None:
        """Wait until the next value has room."""
        self._wait_for_room(needed)

    def put(self, value: Any) -> None:
        """Send a value, or hold it."""
        self._yielded += 1
        kind, held = type(value), self._held
        if kind in _PLAIN or (kind in _TEXTS and len(value) <= _MAX_TEXT):
            held.append(value)
        else:
            self._hold_pickled(value)
        if not self._sent or len(held) >= self._details[1] or self._words[_TAKEN] == self._tag + self._sent:
            self._flush()
        elif held and not self._is_waking:
            self._wake()

    def finish(self) -> None:
        """Send the held values, and end the thread."""
        try:
            self._flush()
        finally:
            self._end_thread()

    def _hold_pickled(self, value: Any) -> None:
        """Hold a value as a pickle, because it may change. A large one is sent alone."""
        segments = dumps(value)
        size = sum(segments.lengths)
        if len(segments.lengths) == 1 and size <= _MAX_HELD_VALUE:
            pickled = b"".join(segments.parts)
            if pickled.find(_HANDLE) < 0:
                self._held.append(PickledValue(pickled))
                self._size += size
                if self._size >= _MAX_HELD:
                    self._flush()
                return
        self._flush()
        if size > _MAX_HELD_VALUE:
            # Its reply waits if large values pile up.
            result(request("value", self._id, segments))
        else:
            post("value", self._id, segments)
        self._sent += 1

    def _flush(self) -> None:
        """Send the held values."""
        with self._lock:
            held = self._held[:]
            if held:
                del self._held[: len(held)]
                self._size = 0
                pickled = _pickle.dumps(held, 5)
                post("values", self._id, Segments((pickled,), (len(pickled),)), count=len(held))
                self._sent += len(held)

    def _wait_for_room(self, needed: int) -> None:
        """Wait until more than ``needed`` values have been taken."""
        number: int = self._words[_TAKEN] - self._tag
        if needed < number <= self._sent:
            self._taken = number
        else:
            self._flush()
            self._taken = result(request("room", self._id, count=needed))

    def _wake(self) -> None:
        """Let the thread send the held values."""
        self._is_waking = True
        if self._wakes is None:
            wakes = allocate_lock()
            wakes.acquire()
            self._wakes = wakes
            try:
                start_new_thread(self._send_held, ())
            except RuntimeError:
                # The process may have no further thread. Then each value goes alone.
                self._wakes, self._is_waking = None, False
                self._flush()
        else:
            self._release()

    def _send_held(self) -> None:
        try:
            bind_thread(self._call)
            while not self._is_over:
                sleep(_TICK)
                if self._held and not self._is_over:
                    self._flush()
                    continue
                self._is_waking = False
                # A value that is held from now on wakes it.
                if not self._held or self._is_over:
                    self._wakes.acquire()
                self._is_waking = True
        except (JobEndedError, RuntimeError):
            pass  # The job has ended. What it has not sent is not wanted.

    def _end_thread(self) -> None:
        self._is_over = True
        if self._wakes is not None:
            self._release()

    def _release(self) -> None:
        try:
            self._wakes.release()
        except RuntimeError:
            pass  # It has been woken already.


_FOREVER: Final = float("inf")
_TICK: Final = 0.001  # seconds
_TAKEN: Final = TAKEN_AT // 8
# The word has the lowest bits of the handle's number, and the number of values.
TAG_MASK: Final = 0xFFFFFF
TAG_SHIFT: Final = 40
_PLAIN: Final = frozenset((int, float, bool, type(None)))
_TEXTS: Final = frozenset((str, bytes))
_MAX_TEXT: Final = 4096
_MAX_HELD_VALUE: Final = 4096  # bytes
_MAX_HELD: Final = 1 << 16  # bytes
_HANDLE: Final = b"_requests.handles"
