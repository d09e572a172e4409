"""The values of a stream that have come and have not been taken.

The job sends them ahead, without a reply, as far as the window allows. This side counts the values
that the consumer has taken, and writes the number into the worker's record, where the job reads it.
A job without room asks, and gets the number as the reply.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import trio

from trio_offload_worker._requests.streams import TAG_MASK, TAG_SHIFT, PickledValue

from .._exceptions import DeadlockError
from .._sync import pickled_items
from .._sync.bounded_buffer import Item
from .._sync.handles import Handle, PlainGrant
from .._wait_graph import WAITS
from .statistics import StreamStatistics

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._worker.board import Board
    from .._worker.conversation import Conversation
    from .._worker.requests import Death, Post, Request

_MAX_AT_ONCE: Final = 2048  # values between two checkpoints
_MAX_CHUNK: Final = 256
_MAX_BYTES: Final = 64 * 1024 * 1024


class Values(Handle):
    """The receiving end of a stream. A job gets it as its ``ValueSender``.

    Args:
        window: Largest number of values that have been yielded and not been taken.
        chunk: Largest number of values that travel together. None means that it depends on the
            window.
    """

    kind: ClassVar[str] = "stream"

    def __init__(self, window: int, chunk: int | None) -> None:
        super().__init__()
        self._window = window
        self._chunk = min(_MAX_CHUNK, max(1, window // 2)) if chunk is None else chunk
        self._at_once = min(_MAX_AT_ONCE, (window + 1) // 2)
        self._ready: list[Any] = []
        self._received = 0
        self._taken = 0
        self._size = 0  # bytes of large values in `_ready`
        self._board: Board | None = None
        self._room: Request | None = None
        self._large: list[Request] = []
        self._consumer: trio.lowlevel.Task | None = None
        self.taker: Hashable | None = None
        """The task or job that has asked for values last, if one has."""
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<stream at {id(self):#x}, {self._received} values have come, {self._taken} were taken>"

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`."""
        return _ValuesGrant(self)

    def grant_of_copy(self) -> NoReturn:
        """As :meth:`Handle.grant_of_copy`: only the call that runs the generator sends values."""
        raise RuntimeError("the stream belongs to another call")

    def details(self, grant: Grant | None) -> tuple[int, int]:
        """As :meth:`Handle.details`."""
        return self._window, self._chunk

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def holder(self) -> Hashable | None:
        """The one who can make room for a generator that waits for it: see :class:`Awaited`."""
        return self.taker

    def __str__(self) -> str:
        return "the consumer of its stream"

    def statistics(self) -> StreamStatistics:
        """Return statistics of the stream."""
        return StreamStatistics(self._received, self._taken, len(self._ready), self._window)

    # --- for the consumer -------------------------------------------------------------------------

    def take(self) -> list[Any]:
        """Return values that have come, in order: so many that the job can go on behind them."""
        ready = self._ready
        if len(ready) <= self._at_once:
            self._ready = []
            return ready
        self._ready = ready[self._at_once :]
        return ready[: self._at_once]

    def note_taken(self, values: list[Any]) -> None:
        """Note that the consumer is done with values of :meth:`take`."""
        self._taken += len(values)
        if self._board is not None:
            self._board.show_taken(((self.bind() & TAG_MASK) << TAG_SHIFT) + self._taken)
        self._give_room()
        if self._size:
            self._size -= sum(value.size for value in values if type(value) is Item)
            while self._large and self._size <= _MAX_BYTES:
                self._large.pop(0).complete()

    async def wait(self) -> None:
        """Wait for values, or for :meth:`wake`. A checkpoint."""
        if self._consumer is not None:
            raise trio.BusyResourceError("another task waits for a value of this stream")
        self._consumer = trio.lowlevel.current_task()
        self._give_room()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._consumer = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Wake the consumer."""
        task, self._consumer = self._consumer, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def close(self) -> None:
        """Drop all values: the consumer has left."""
        self._is_closed = True
        self.taker = None
        values, self._ready = self._ready, []
        pickled_items.release([value for value in values if type(value) is Item])

    # --- for the job ------------------------------------------------------------------------------

    def begin(self, board: Board) -> None:
        """Let a job send."""
        self._board = board
        board.show_taken((self.bind() & TAG_MASK) << TAG_SHIFT)

    def end(self) -> None:
        """Its call has ended."""
        self._board = None

    def receive(self, values: list[Any]) -> None:
        """Take values of the job."""
        self._received += len(values)
        if self._is_closed:
            pickled_items.release([value for value in values if type(value) is Item])
        else:
            self._ready += values
            self.wake()

    def receive_large(self, item: Item, request: Request) -> None:
        """Take a large value. The reply waits for its place in memory."""
        self._size += item.size
        self.receive([item])
        if self._size <= _MAX_BYTES or len(self._ready) <= 1:
            request.complete()
        else:
            request.on_withdraw = lambda: self._large.remove(request)
            self._large.append(request)

    def ask_for_room(self, request: Request) -> None:
        """Reply once more values than the request's ``count`` have been taken."""
        request.on_withdraw = self._forget_room
        self._room = request
        self._give_room()
        if self._room is request:
            try:
                WAITS.add(request.owner, self)
            except DeadlockError as error:
                self._room = None
                request.fail(error)

    def _forget_room(self) -> None:
        if self._room is not None:
            WAITS.remove(self._room.owner)
            self._room = None

    def _give_room(self) -> None:
        request = self._room
        if request is None:
            return
        more = self._taken - (request.count or 0)
        # A reply costs as much for one place as for half of the window.
        if more >= max(1, self._window // 2) or (more > 0 and not self._ready):
            self._forget_room()
            request.complete_value(self._taken)


class _ValuesGrant(PlainGrant):
    """What the generator's call may do."""

    handle: Values

    def begin(self, conversation: Conversation) -> None:
        """As :meth:`PlainGrant.begin`."""
        self.handle.begin(conversation.board)

    def settle(self, death: Death | None) -> None:
        """As :meth:`PlainGrant.settle`."""
        self.handle.end()

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        if request.op == "room":
            self.handle.ask_for_room(request)
        elif request.op == "value":
            try:
                (item,) = pickled_items.items_from(request, several=False)
            except Exception as error:
                request.fail(error)
            else:
                self.handle.receive_large(item, request)
        else:
            super().request(request)

    def post(self, post: Post) -> None:
        """As :meth:`PlainGrant.post`."""
        if post.op == "values":
            self.handle.receive(post.load())
        elif post.op == "value":
            self.handle.receive(pickled_items.items_from(post, several=False))


LATE: Final = frozenset((PickledValue, Item))
"""Types of values that are unpickled when the consumer gets them."""


def load(value: Any) -> Any:
    """Unpickle a value of these types. Raises any exception of the unpickler."""
    return pickled_items.load_plain(value.pickled) if type(value) is PickledValue else pickled_items.take(value)
